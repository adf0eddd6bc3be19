"""Engine ``openvino``: the Keras network, converted once, cached on disk, and run without TensorFlow.

The converted network computes everything from uint8 pixels to vectors. It is stored in the user's cache folder under
a key made from the recipe and the versions of the libraries, and its checksum is verified before it is used.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineError
from pipeline.features.pixel_batches import check_pixels, fill_up
from pipeline.features.recipe import Recipe
from pipeline.files import cache_folder

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_FILES = ("model.xml", "model.bin")
_REQUESTS = 16  # forward passes per batch: small ones fit into the CPU's cache


class OpenVinoEncoder:
    """A recipe run by OpenVINO on the CPU.

    Parameters
    ----------
    recipe : Recipe
        Its network is converted if it is not in the cache.
    batch_size : int
        Images per call of `encode`, divided into 16 forward passes. Short ones are padded, so that there is one
        shape, and a vector does not depend on the other images of its batch.

    Attributes
    ----------
    recipe, segments, dim, batch_size
        See `pipeline.features.engines.Encoder`.

    Raises
    ------
    EngineError
        If the CPU does not support the precision of the recipe.
    WeightsError
        If the network must be converted and its weights are missing or have changed.

    Examples
    --------
    >>> encoder = OpenVinoEncoder(Recipe("mobilenet_0.25", "random:0", size=32), batch_size=8)
    >>> encoder.encode(np.zeros((3, 32, 32, 3), np.uint8)).shape
    (3, 256)
    """

    name = "openvino"

    def __init__(self, recipe: Recipe, batch_size: int) -> None:
        import openvino

        core = openvino.Core()
        _check_precision(core, recipe.precision)
        network = cached_network(recipe)
        self.recipe = dataclasses.replace(recipe, weights_sha256=network.recipe.weights_sha256)
        self.segments = network.segments
        self.dim = max(stop for _, stop in self.segments.values())
        self._rows = max(1, batch_size // _REQUESTS)
        self.batch_size = batch_size
        model = core.read_model(network.xml, network.weights)
        model.reshape([self._rows, recipe.size, recipe.size, 3])
        hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": PRECISIONS[recipe.precision]}
        self._queue = openvino.AsyncInferQueue(core.compile_model(model, "CPU", hints))
        self._queue.set_callback(self._store)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the vectors, float32 (n, dim), of pixels, uint8 (n, size, size, 3)."""
        check_pixels(pixels, self.recipe.size)
        vectors = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), self._rows):
            batch = pixels[start : start + self._rows]
            self._queue.start_async(fill_up(batch, self._rows), vectors[start : start + len(batch)])
        self._queue.wait_all()
        return vectors

    @staticmethod
    def _store(request: Any, rows: NDArray[np.float32]) -> None:
        rows[...] = request.get_output_tensor(0).data[: len(rows)]


@dataclasses.dataclass(frozen=True)
class Network:
    """A converted network in memory, with a verified checksum."""

    recipe: Recipe
    segments: dict[str, tuple[int, int]]
    xml: bytes
    weights: bytes


def cached_network(recipe: Recipe) -> Network:
    """Return the converted network of a recipe; convert it if it is missing or damaged in the cache.

    Raises
    ------
    WeightsError
        If it must be converted and the weights are missing or have changed.
    """
    folder = cache_folder() / "networks" / _key(recipe)
    network = _read(folder)
    if network is None:
        converted = _convert(recipe)
        _write(converted, folder)
        return converted
    return network


def _key(recipe: Recipe) -> str:
    """Return the SHA-256 of everything that the converted network depends on."""
    identity = {
        name: value for name, value in recipe.identity().items() if name not in ("resize", "precision", "views")
    }
    versions = {name: importlib.metadata.version(name) for name in ("keras", "openvino", "tensorflow")}
    return hashlib.sha256(json.dumps([identity, versions], sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> Network | None:
    """Return the network in a folder, None if it is missing or damaged."""
    try:
        description = json.loads((folder / "network.json").read_bytes())
        xml, weights = ((folder / name).read_bytes() for name in _FILES)
        if description["digest"] != _digest(description, xml, weights):
            return None
        segments = {name: (start, stop) for name, (start, stop) in description["segments"].items()}
        return Network(Recipe.from_json(description["recipe"]), segments, xml, weights)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digest(description: dict[str, Any], xml: bytes, weights: bytes) -> str:
    digest = hashlib.sha256(json.dumps([description["recipe"], description["segments"]]).encode())
    for part in (xml, weights):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _convert(recipe: Recipe) -> Network:
    import openvino

    from pipeline.features.keras_engine import build_model

    # The precision is chosen when the network is compiled; it is stored in float32.
    model, made, segments = build_model(recipe, precision="float32")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        converted = openvino.convert_model(model, input=[openvino.PartialShape([-1, recipe.size, recipe.size, 3])])
        openvino.save_model(converted, Path(folder) / _FILES[0], compress_to_fp16=False)
        xml, weights = ((Path(folder) / name).read_bytes() for name in _FILES)
    return Network(made, segments, xml, weights)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        # Keras warns about any tensor that is not passed by the name of its input.
        warnings.filterwarnings("ignore", message="The structure of `inputs`", category=UserWarning)
        yield


def _write(network: Network, folder: Path) -> None:
    """Write a network to a temporary folder and rename it; a cache that cannot be written is not an error."""
    description: dict[str, Any] = {"recipe": network.recipe.to_json(), "segments": network.segments}
    description = json.loads(json.dumps(description))
    description["digest"] = _digest(description, network.xml, network.weights)
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as temporary:
            fresh = Path(temporary) / folder.name
            fresh.mkdir()
            for name, content in zip(_FILES, (network.xml, network.weights), strict=True):
                (fresh / name).write_bytes(content)
            (fresh / "network.json").write_text(json.dumps(description))
            if folder.exists():  # damaged, or written by another process meanwhile
                shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)


def _check_precision(core: Any, precision: str) -> None:
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision not in PRECISIONS:
        raise EngineError(f"engine openvino does not compute {precision}; use --precision {' or '.join(PRECISIONS)}")
    if precision == "bfloat16" and "BF16" not in capabilities:
        raise EngineError(
            f"this CPU supports {', '.join(capabilities)}, not BF16; use --precision float32 (vectors of the"
            " two precisions cannot be mixed)"
        )

"""`Encoder`: the network of a recipe, ready to run, and the table of engines that provide one."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineError, UsageError
from pipeline.features.options import Speed as Speed
from pipeline.features.recipe import VERSIONS, Recipe
from pipeline.wording import closest

AUTO = "auto"
# Images of 224 pixels per batch: larger batches are not faster on a CPU (scripts/benchmark.py).
_BATCH = {"keras": 32, "openvino": 64}
_MAX_BATCH = 1024


class Encoder(Protocol):
    """The network of a recipe: pixels in, vectors out.

    Attributes
    ----------
    name : str
        The engine.
    recipe : Recipe
        With the digest of the weights in use.
    segments : dict of str to (int, int)
        Columns ``[start, stop)`` of each layer.
    dim : int
        Length of a vector.
    batch_size : int
        Images per forward pass.
    """

    name: str
    recipe: Recipe
    segments: dict[str, tuple[int, int]]
    dim: int
    batch_size: int

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return vectors, float32 (n, dim), of pixels, uint8 (n, size, size, 3); rows do not depend on each other."""
        ...


def _keras(recipe: Recipe, batch_size: int) -> Encoder:
    from pipeline.features.keras_engine import KerasEncoder

    return KerasEncoder(recipe, batch_size)


def _openvino(recipe: Recipe, batch_size: int) -> Encoder:
    from pipeline.features.openvino_engine import OpenVinoEncoder

    return OpenVinoEncoder(recipe, batch_size)


ENGINES: dict[str, Callable[[Recipe, int], Encoder]] = {"keras": _keras, "openvino": _openvino}


def choose_engine() -> str:
    """Return the engine that ``auto`` selects: ``keras`` if there is an NVIDIA GPU, else ``openvino``."""
    return "keras" if any(Path("/dev").glob("nvidia[0-9]*")) else "openvino"


def make_encoder(recipe: Recipe, speed: Speed = Speed()) -> Encoder:
    """Build the network of a recipe.

    Raises
    ------
    UsageError
        If the engine is unknown, or the batch size is below 1 or needs too much memory.
    EngineError
        If the recipe belongs to a version of this package that computes pixels or vectors differently.
    WeightsError
        If the weights are missing, have changed, or do not fit.

    Examples
    --------
    >>> make_encoder(Recipe("mobilenet_0.25", "random:0", size=32)).dim
    256
    """
    if speed.engine not in (AUTO, *ENGINES):
        raise UsageError(f"engine {speed.engine!r} is unknown; {closest(speed.engine, [AUTO, *ENGINES])}")
    if speed.batch_size is not None and speed.batch_size < 1:
        raise UsageError(f"batch size {speed.batch_size} is too small; give 1 or more")
    if dict(recipe.versions) != VERSIONS:
        raise EngineError(
            f"these vectors were made with versions {dict(recipe.versions)} of the pixel and vector code, this package"
            f" has {VERSIONS}; install the old twostage-features or extract again with --overwrite"
        )
    engine = choose_engine() if speed.engine == AUTO else speed.engine
    most = max(1, _MAX_BATCH * 224**2 // recipe.size**2)
    if speed.batch_size and speed.batch_size > most:
        raise UsageError(f"batch size {speed.batch_size} needs too much memory at {recipe.size} px; give 1 to {most}")
    batch_size = speed.batch_size or max(1, min(_BATCH[engine], _BATCH[engine] * 224**2 // recipe.size**2))
    return ENGINES[engine](recipe, batch_size)

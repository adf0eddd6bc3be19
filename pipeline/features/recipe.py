"""`Recipe`: everything that determines a vector, and nothing that changes only the speed."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import IntegrityError, UsageError
from pipeline.features.backbones import Backbone, find_backbone
from pipeline.features.options import RecipeOptions as RecipeOptions
from pipeline.features.weights import FILE, IMAGENET, TUNED, file_sha256, imagenet_file, is_published, parse_weights
from pipeline.images.decode import PIXELS_VERSION
from pipeline.images.resize import RESIZE_POLICIES
from pipeline.images.views import ONE, PixelSpec, parse_views
from pipeline.option_groups import accepts_fields
from pipeline.wording import closest

LAST = "last"  # name of the last feature map, in every network
POOLINGS = ("avg", "max", "flatten")
PRECISIONS = ("float32", "bfloat16", "float16")
CUSTOM = "keras-file"
MAX_SIZE = 4096

# Incremented when a change to this package changes vectors.
VERSIONS = {"pixels": PIXELS_VERSION, "encoding": 1}


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a bottleneck vector.

    Use `Recipe.create` to make one from a user's options.

    Parameters
    ----------
    backbone : str
        A name in `pipeline.features.backbones.BACKBONES`, or ``"keras-file"`` for a whole ``.keras`` model.
    weights : str
        ``"imagenet"``, ``"random:SEED"``, ``"file"``, or ``"tuned"`` for a file that fine-tuning made.
    weights_sha256 : str
        Digest of the weights file; of the arrays for random weights, empty until they are made.
    layers : tuple of str
        Layers whose outputs are concatenated; ``"last"`` is the last feature map.
    pooling : str
        ``"avg"``, ``"max"`` or ``"flatten"``.
    size : int
        Side of the square input, in pixels.
    resize : str
        Resize policy: ``"squash"``, ``"crop"`` or ``"pad"``.
    precision : str
        Arithmetic of the network: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    views : str
        Augmented versions of each image: ``"1"`` (none), ``"flip"``, ``"K"`` or ``"K:SEED"``.
    versions : mapping of str to int
        Versions of the code that computes pixels and vectors.
    weights_path : str
        Last known path of a local weights file; not part of the identity.

    Examples
    --------
    >>> recipe = Recipe("mobilenet", "random:0", size=64)
    >>> Recipe.from_json(recipe.to_json()) == recipe
    True
    """

    backbone: str
    weights: str
    weights_sha256: str = ""
    layers: tuple[str, ...] = (LAST,)
    pooling: str = "avg"
    size: int = 224
    resize: str = "squash"
    precision: str = "float32"
    views: str = ONE
    versions: Mapping[str, int] = field(default_factory=lambda: dict(VERSIONS), hash=False)
    weights_path: str = field(default="", compare=False)

    @classmethod
    @accepts_fields
    def create(
        cls, backbone: str | os.PathLike[str] = "mobilenetv2", options: RecipeOptions = RecipeOptions()
    ) -> "Recipe":
        """Make a recipe from a user's options; find the weights and compute their digest.

        Parameters
        ----------
        backbone : str or path
            Name of a backbone, path of a ``.keras`` model that preprocesses its own input (it gets
            RGB values from 0 to 255), or path of a bundle, whose network is used.
        options : RecipeOptions
            Its fields may be given as keywords.

        Raises
        ------
        UsageError
            If an option has no such value.
        WeightsError
            If the weights are absent, unreadable or damaged.

        Examples
        --------
        >>> Recipe.create("vgg16", weights="random", size=150).size
        150
        """
        _check_choices(options)
        weights, size = options.weights, options.size
        common: dict[str, Any] = {
            "layers": tuple(options.layers) or (LAST,),
            "pooling": options.pooling,
            "resize": options.resize,
            "precision": options.precision,
            "views": str(parse_views(options.views)),
        }
        if len(set(common["layers"])) < len(common["layers"]):
            raise UsageError(f"layers {list(options.layers)} repeat a layer; give each layer once")
        path = Path(backbone)
        if path.suffix == ".keras":
            return cls._of_keras_file(path, weights, size, common)
        if (path / "bundle.json").is_file():
            return cls._of_bundle(path, weights, size, common)
        row = find_backbone(os.fspath(backbone))
        size = row.size if size is None else size
        if not row.min_size <= size <= MAX_SIZE:
            raise UsageError(
                f"size {size} is out of range for {row.name}; choose {row.min_size} to {MAX_SIZE} pixels"
                f" (its default is {row.size})"
            )
        kind, file = parse_weights(weights)
        if file is not None and is_published(file, row):
            kind = IMAGENET  # the file that Keras publishes, in another folder
        if kind == IMAGENET and file is None:
            file = imagenet_file(row, size)
        return cls(
            row.name,
            kind,
            file_sha256(file) if file else "",
            size=size,
            weights_path=str(file) if file else "",
            **common,
        )

    @classmethod
    def _of_keras_file(
        cls, path: Path, weights: str | os.PathLike[str], size: int | None, common: dict[str, Any]
    ) -> "Recipe":
        _refuse_weights(path, weights)
        if not path.is_file():
            raise UsageError(f"there is no model {str(path)!r}; check the path")
        size = size or _size_in(path)
        if size is None:
            raise UsageError(f"{path.name} accepts inputs of any size; choose one with --size PX")
        return cls(CUSTOM, FILE, file_sha256(path), size=size, weights_path=str(path.absolute()), **common)

    @classmethod
    def _of_bundle(
        cls, path: Path, weights: str | os.PathLike[str], size: int | None, common: dict[str, Any]
    ) -> "Recipe":
        _refuse_weights(path, weights)
        try:
            recipes = json.loads((path / "bundle.json").read_text("utf-8"))["recipes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path / 'bundle.json'} cannot be read as a bundle description: {error}") from error
        if len(recipes) != 1:
            raise UsageError(f"bundle {str(path)!r} has {len(recipes)} backbones; name one of them instead")
        network = cls.from_json(json.dumps(recipes[0])).near(path.parent)
        return dataclasses.replace(network, size=size or network.size, versions=dict(VERSIONS), **common)

    @property
    def row(self) -> Backbone | None:
        """The row in the table of backbones, None for a whole ``.keras`` model."""
        return None if self.backbone == CUSTOM else find_backbone(self.backbone)

    @functools.cached_property
    def pixels(self) -> PixelSpec:
        """The pixels that the network expects of an image; the text of `views` is parsed here, once."""
        return PixelSpec(self.size, self.resize, parse_views(self.views))

    def identity(self) -> dict[str, Any]:
        """Return everything that determines a vector, as plain data."""
        data = self._data()
        del data["weights_path"]
        return data

    def _data(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        if self.views == ONE:
            del data["views"]  # as in recipes made before views existed, whose fingerprints must not change
        return data

    def near(self, folder: Path) -> "Recipe":
        """Return the recipe with a local weights file that is missing replaced by the one of that name in `folder`."""
        hint = Path(self.weights_path)
        beside = folder.absolute() / hint.name
        if self.weights not in (FILE, TUNED) or hint.is_file() or not beside.is_file():
            return self
        return dataclasses.replace(self, weights_path=str(beside))

    def with_one_view(self) -> "Recipe":
        """Return the recipe without augmented views."""
        return dataclasses.replace(self, views=ONE)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of `identity`, in hexadecimal."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the recipe as JSON, including the path of its weights."""
        return json.dumps(self._data(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Parse the result of `to_json`.

        Raises
        ------
        IntegrityError
            If the text is not a recipe, or was written by a newer version of this package.
        """
        try:
            data = json.loads(text)
            known = {f.name for f in dataclasses.fields(cls)}
            if unknown := sorted(set(data) - known):
                raise IntegrityError(
                    f"the recipe has unknown fields {unknown} of a newer version; upgrade twostage-features"
                )
            recipe = cls(**{**data, "layers": tuple(data["layers"])})
            recipe._check()
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"not a recipe: {error}; the file is damaged or foreign") from error
        return recipe

    def _check(self) -> None:
        expected = {
            "backbone": str, "weights": str, "weights_sha256": str, "layers": tuple, "pooling": str, "size": int,
            "resize": str, "precision": str, "views": str, "versions": dict, "weights_path": str,
        }  # fmt: skip
        for name, kind in expected.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is {getattr(self, name)!r}, expected {kind.__name__}")
        _check_choices(self)
        self.pixels  # noqa: B018 - raises for unknown views
        if self.row is None and self.weights != FILE:
            raise ValueError(f"a .keras model has weights {self.weights!r}, expected 'file'")

    def same_as(self, other: "Recipe") -> bool:
        """Return whether two recipes give the same vectors; random weights not yet made match any of that seed."""
        if self.weights_sha256 and other.weights_sha256:
            return self.fingerprint == other.fingerprint
        return dataclasses.replace(self, weights_sha256="") == dataclasses.replace(other, weights_sha256="")

    def differences(self, other: "Recipe") -> str:
        """Describe the fields in which two recipes differ: ``size 224 instead of 150``."""
        mine, theirs = ({"views": ONE, **each.identity()} for each in (self, other))
        return ", ".join(
            f"{name} {_short(mine[name])} instead of {_short(theirs[name])}"
            for name in mine
            if mine[name] != theirs[name]
        )

    def __str__(self) -> str:
        layers = "" if self.layers == (LAST,) else f" layers {'+'.join(self.layers)}"
        precision = "" if self.precision == "float32" else f" {self.precision}"
        views = "" if self.views == ONE else f" views {self.views}"
        digest = f" ({self.weights_sha256[:8]})" if self.weights_sha256 else ""
        name = Path(self.weights_path).name if self.backbone == CUSTOM else self.backbone
        return (
            f"{name}{layers} {self.pooling}-pooled at {self.size} px {self.resize}{precision}{views},"
            f" weights {self.weights}{digest}"
        )


def _size_in(path: Path) -> int | None:
    """Read the side of the square input from a .keras archive; None if it is open or cannot be found."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json").decode()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # the engine reports what is wrong when it loads the model
    shape = re.search(r'"batch_(?:input_)?shape": \[null, (\d+), (\d+), 3\]', config)
    return int(shape[1]) if shape and shape[1] == shape[2] else None


def _refuse_weights(path: Path, weights: str | os.PathLike[str]) -> None:
    if weights != IMAGENET:  # the default
        raise UsageError(f"{path.name} contains its own weights; leave out --weights {weights}")


def _short(value: object) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    return text[:12] + "…" if len(text) > 32 else text


def _check_choices(recipe: Recipe | RecipeOptions) -> None:
    choices = {"pooling": POOLINGS, "resize": RESIZE_POLICIES, "precision": PRECISIONS}
    for name, known in choices.items():
        if (value := getattr(recipe, name)) not in known:
            raise UsageError(f"{name} {value!r} is unknown; {closest(value, known)}")

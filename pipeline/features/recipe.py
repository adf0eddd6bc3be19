"""`Recipe`: everything that determines a vector, and nothing that only changes speed."""

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
from pipeline.options import accepts_fields
from pipeline.wording import closest

LAST = "last"  # the name of the last feature map, whatever the network calls it
POOLINGS = ("avg", "max", "flatten")
PRECISIONS = ("float32", "bfloat16", "float16")
CUSTOM = "keras-file"
MAX_SIZE = 4096

# Raised when a change to this package moves vectors.
VERSIONS = {"pixels": PIXELS_VERSION, "encoding": 1}


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a bottleneck vector.

    Use `Recipe.create` to make one from a user's options.

    Parameters
    ----------
    backbone : str
        A name of the table of backbones, or ``"keras-file"`` for a whole ``.keras`` model.
    weights : str
        ``"imagenet"``, ``"random:SEED"``, ``"file"``, or ``"tuned"`` for a file that fine-tuning made.
    weights_sha256 : str
        Digest of the weights file; for random weights of the arrays, empty until they were made.
    layers : tuple of str
        Layers whose outputs are joined, ``"last"`` being the last feature map.
    pooling : str
        ``"avg"``, ``"max"`` or ``"flatten"``.
    size : int
        Side of the square input, in pixels.
    resize : str
        Resize policy: ``"squash"``, ``"crop"`` or ``"pad"``.
    precision : str
        Arithmetic of the convnet: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    views : str
        Augmented versions of each image: ``"1"`` (none), ``"flip"``, ``"K"`` or ``"K:SEED"``.
    versions : mapping of str to int
        Versions of the code that makes pixels and vectors.
    weights_path : str
        Where a local weights file was last seen: a hint that is no part of the identity.

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
            raise UsageError(f"layers {list(options.layers)} name one layer twice; name each once")
        path = Path(backbone)
        if path.suffix == ".keras":
            return cls._of_keras_file(path, weights, size, common)
        if (path / "bundle.json").is_file():
            return cls._of_bundle(path, weights, size, common)
        row = find_backbone(os.fspath(backbone))
        size = row.size if size is None else size
        if not row.min_size <= size <= MAX_SIZE:
            raise UsageError(
                f"size {size} does not suit {row.name}; choose {row.min_size} to {MAX_SIZE} pixels"
                f" (its own is {row.size})"
            )
        kind, file = parse_weights(weights)
        if file is not None and is_published(file, row):
            kind = IMAGENET  # the file Keras publishes is ImageNet's, whatever folder it was put in
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
            raise UsageError(f"the input size of {path.name} must be said; give --size PX")
        return cls(CUSTOM, FILE, file_sha256(path), size=size, weights_path=str(path.absolute()), **common)

    @classmethod
    def _of_bundle(
        cls, path: Path, weights: str | os.PathLike[str], size: int | None, common: dict[str, Any]
    ) -> "Recipe":
        _refuse_weights(path, weights)
        try:
            recipes = json.loads((path / "bundle.json").read_text("utf-8"))["recipes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path / 'bundle.json'} is no readable bundle description: {error}") from error
        if len(recipes) != 1:
            raise UsageError(f"bundle {str(path)!r} joins {len(recipes)} backbones; name one backbone instead")
        network = cls.from_json(json.dumps(recipes[0])).near(path.parent)
        return dataclasses.replace(network, size=size or network.size, versions=dict(VERSIONS), **common)

    @property
    def row(self) -> Backbone | None:
        """The row of the table, None for a whole ``.keras`` model."""
        return None if self.backbone == CUSTOM else find_backbone(self.backbone)

    @functools.cached_property
    def pixels(self) -> PixelSpec:
        """The pixels that the network expects of an image; the text of `views` is parsed here, once."""
        return PixelSpec(self.size, self.resize, parse_views(self.views))

    def identity(self) -> dict[str, Any]:
        """Return all that determines a vector, as plain data."""
        data = self._data()
        del data["weights_path"]
        return data

    def _data(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        if self.views == ONE:
            del data["views"]  # recipes older than views keep their fingerprints
        return data

    def near(self, folder: Path) -> "Recipe":
        """Return the same recipe; a local weights file that is not where it was is looked for in a folder."""
        hint = Path(self.weights_path)
        beside = folder.absolute() / hint.name
        if self.weights not in (FILE, TUNED) or hint.is_file() or not beside.is_file():
            return self
        return dataclasses.replace(self, weights_path=str(beside))

    def with_one_view(self) -> "Recipe":
        """Return the same recipe without augmented views."""
        return dataclasses.replace(self, views=ONE)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of `identity`, in hexadecimal."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the recipe as JSON, the hint where its weights lie included."""
        return json.dumps(self._data(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read what `to_json` wrote.

        Raises
        ------
        IntegrityError
            If the text is no recipe, or one of a newer version of this package.
        """
        try:
            data = json.loads(text)
            known = {f.name for f in dataclasses.fields(cls)}
            if unknown := sorted(set(data) - known):
                raise IntegrityError(
                    f"the recipe has unknown fields {unknown}, made by a newer version; upgrade twostage-features"
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
        """Say whether two recipes give the same vectors; unmade random weights match any of that seed."""
        if self.weights_sha256 and other.weights_sha256:
            return self.fingerprint == other.fingerprint
        return dataclasses.replace(self, weights_sha256="") == dataclasses.replace(other, weights_sha256="")

    def differences(self, other: "Recipe") -> str:
        """Name the fields in which two recipes differ: ``size 224 instead of 150``."""
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
    """Read the side of the square input from a .keras archive, None where it is open or hard to tell."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json").decode()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None  # the engine, which loads the model, says what is wrong with it
    shape = re.search(r'"batch_(?:input_)?shape": \[null, (\d+), (\d+), 3\]', config)
    return int(shape[1]) if shape and shape[1] == shape[2] else None


def _refuse_weights(path: Path, weights: str | os.PathLike[str]) -> None:
    if weights != IMAGENET:  # the default
        raise UsageError(f"{path.name} holds its own weights, so --weights {weights} cannot apply; leave it out")


def _short(value: object) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    return text[:12] + "…" if len(text) > 32 else text


def _check_choices(recipe: Recipe | RecipeOptions) -> None:
    choices = {"pooling": POOLINGS, "resize": RESIZE_POLICIES, "precision": PRECISIONS}
    for name, known in choices.items():
        if (value := getattr(recipe, name)) not in known:
            raise UsageError(f"{name} {value!r} is unknown; {closest(value, known)}")

"""`Bundle`: a trained classifier in one folder: recipe, head, classes and provenance.

Loading a bundle executes no code from it: scikit-learn heads are stored with skops, and only allowed types are
restored; Keras heads are stored as weights, and their layers are built here; the SHA-256 of every file is verified
before it is opened.
"""

import ctypes
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.card import model_card
from pipeline.bundles.head_files import SKOPS_FILE, WEIGHTS_FILE, read_head, write_head
from pipeline.errors import BundleError, IntegrityError, UsageError, WeightsError
from pipeline.features.engines import Encoder, make_encoder
from pipeline.features.image_encoder import ImageEncoder
from pipeline.features.options import Speed
from pipeline.features.recipe import Recipe
from pipeline.features.store import with_view_axis
from pipeline.features.weights import FILE, TUNED, check_digest
from pipeline.files import publish, writing
from pipeline.heads.affine import AffineHead
from pipeline.heads.classifiers import class_probabilities
from pipeline.heads.multi_label import MultiLabel
from pipeline.images.decode import Source
from pipeline.trust.safeguards import CALIBRATION_FILE, NOVELTY_FILE, Safeguards

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)  # 2 added "average_views", "trust" and "multi_label"
DESCRIPTION = "bundle.json"
AFFINE_FILE = "head.npz"
REPORT_FILE = "report.json"
CARD_FILE = "README.md"
FILES = (SKOPS_FILE, WEIGHTS_FILE, AFFINE_FILE, REPORT_FILE, CARD_FILE, CALIBRATION_FILE, NOVELTY_FILE)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # constants of Linux


@dataclass(repr=False)
class Bundle:
    """A trained classifier of images.

    Parameters
    ----------
    recipes : tuple of Recipe
        Of the vectors; several if feature files were joined.
    dims : tuple of int
        Length of each recipe's vector.
    classes : tuple of str
    head : fitted pipeline, or None
        A scikit-learn estimator whose ``classes_`` are indexes into `classes`. None after loading a bundle that
        predicts without scikit-learn; `estimator` reads it then.
    head_name : str
        A name in `pipeline.HEADS`, or an import path.
    params : mapping of str to object
        The chosen parameters of the head.
    report : mapping
        The report of the training, as plain data.
    provenance : mapping of str to str
        Seed, versions, fingerprints.
    average_views : bool
        Predict the mean probability over the views of an image instead of that of the original.
    safeguards : Safeguards
        Calibration, threshold for abstaining, novelty score.
    multi_label : MultiLabel or None
        Separator and thresholds if an image can have several labels.

    Examples
    --------
    >>> bundle = Bundle.load("artifacts/photos.bundle")
    >>> bundle.predict(["new.jpg"])
    array(['cat'], dtype='<U3')
    """

    recipes: tuple[Recipe, ...]
    dims: tuple[int, ...]
    classes: tuple[str, ...]
    head: Any
    head_name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    average_views: bool = False
    safeguards: Safeguards = field(default_factory=Safeguards, compare=False)
    multi_label: MultiLabel | None = None
    affine: AffineHead | None = field(default=None, repr=False, compare=False)
    _stored: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    _encoders: dict[Speed, list[Encoder]] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        return f"Bundle({self.head_name} {dict(self.params)} on {self.describe()}: {len(self.classes)} classes)"

    def __post_init__(self) -> None:
        if self.head is not None and self.affine is None:
            self.affine = AffineHead.of(self.head)

    def estimator(self) -> Any:
        """Return the fitted scikit-learn pipeline, from vectors to class indexes."""
        if self.head is None and self._stored:
            self.head = self._stored()
        return self.head

    @property
    def inputs(self) -> tuple[Recipe, ...]:
        """The recipes for prediction: without augmented views unless these are averaged."""
        return self.recipes if self.average_views else tuple(recipe.with_one_view() for recipe in self.recipes)

    def encoders(self, speed: Speed = Speed()) -> list[Encoder]:
        """Return the networks of `inputs`; built once.

        Raises
        ------
        WeightsError
            If the weights are missing or have changed since the training.
        """
        if speed not in self._encoders:
            self._encoders[speed] = [make_encoder(recipe, speed) for recipe in self.inputs]
        return self._encoders[speed]

    def image_encoder(self, speed: Speed = Speed(), *, isolated: bool = True) -> ImageEncoder:
        """Return what turns images into the vectors that `probabilities` expects; a context manager.

        Parameters
        ----------
        speed : Speed
        isolated : bool
            Decode in child processes.
        """
        return ImageEncoder(self.inputs, lambda: self.encoders(speed), speed.threads(), isolated=isolated)

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probability of each class.

        Parameters
        ----------
        features : ndarray of float32, shape (n, sum of dims) or (n, views, sum of dims)
            Concatenated vectors of this bundle's recipes.

        Returns
        -------
        ndarray of float64, shape (n, number of classes)
            The mean over the views; a class without training images has probability 0.

        Raises
        ------
        UsageError
            If the vectors have another length.
        """
        if features.ndim not in (2, 3) or features.shape[-1] != sum(self.dims):
            raise UsageError(
                f"features have shape {features.shape}, expected (n, {sum(self.dims)}): vectors of {self.describe()}"
            )
        head = self.affine or self.estimator()
        return class_probabilities(head, with_view_axis(features), len(self.classes), self.safeguards.calibrate)

    def predict_proba(self, images: Source | Sequence[Source], speed: Speed = Speed()) -> NDArray[np.float64]:
        """Return the probability of each class for each image, float64 (n, number of classes).

        Parameters
        ----------
        images : path, bytes, PIL image or uint8 array, or a sequence of them
            Decoded in this process; for many or untrusted images use `pipeline.predict`, or a
            `pipeline.prediction.Predictor`, which also takes bytes.

        Raises
        ------
        ImageError
            If an image cannot be decoded.
        WeightsError
            If the weights are missing or have changed.
        """
        batch: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
        with self.image_encoder(speed, isolated=False) as encoder:
            return self.probabilities(encoder.vectors(batch))

    def predict(self, images: Source | Sequence[Source], speed: Speed = Speed()) -> NDArray[np.str_]:
        """Return the most probable class of each image, an array of str (n,); see `predict_proba`.

        Several labels of an image are joined by their separator.
        """
        proba = self.predict_proba(images, speed)
        if self.multi_label:
            return np.array([self.multi_label.answer(row, self.classes)[0] for row in proba], np.str_)
        return np.asarray(self.classes)[proba.argmax(axis=1)]

    def describe(self) -> str:
        """Return one line that describes the recipes."""
        return " + ".join(str(recipe) for recipe in self.recipes)

    def description(self) -> dict[str, Any]:
        """Return the content of ``bundle.json`` except the checksums of the other files, as plain data."""
        return {
            "format": "twostage-bundle",
            "schema_version": SCHEMA_VERSION,
            "recipes": [json.loads(recipe.to_json()) for recipe in self.recipes],
            "dims": list(self.dims),
            "classes": list(self.classes),
            "head": {"name": self.head_name, "params": dict(self.params)},
            "provenance": dict(self.provenance),
            "average_views": self.average_views,
            "trust": self.safeguards.to_dict(),
            "multi_label": asdict(self.multi_label) if self.multi_label else None,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the bundle to a folder, completely or not at all; an existing bundle is replaced.

        Raises
        ------
        BundleError
            If the head cannot be stored safely, or the folder exists and is not a bundle.
        """
        target = Path(path)
        if not target.name:
            raise UsageError(f"{str(path)!r} names no folder; give one such as artifacts/photos.bundle")
        if target.exists() and not (target / DESCRIPTION).is_file() and (target.is_file() or any(target.iterdir())):
            raise BundleError(f"{target} exists and is not a bundle; choose another --out")
        with writing(target, BundleError):
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
                fresh = Path(folder) / "new"
                fresh.mkdir()
                self._write(fresh)
                for file in sorted(fresh.iterdir()):
                    publish(file, file)
                if target.exists():
                    _exchange(fresh, target)
                else:
                    fresh.rename(target)
        return target

    def _write(self, folder: Path) -> None:
        layers = write_head(self.estimator(), folder)
        if self.affine:
            (folder / AFFINE_FILE).write_bytes(self.affine.to_bytes())
        for name, data in self.safeguards.to_files().items():
            (folder / name).write_bytes(data)
        content = self.description()
        content["head"] |= layers
        (folder / CARD_FILE).write_text(model_card(content, self.report), "utf-8")
        (folder / REPORT_FILE).write_text(json.dumps(self.report, indent=1), "utf-8")
        content["files"] = {file.name: _sha256(file.read_bytes()) for file in sorted(folder.iterdir())}
        content["digest"] = _digest(content)
        (folder / DESCRIPTION).write_text(json.dumps(content, indent=1), "utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Bundle":
        """Read a bundle; no code in it is executed.

        Raises
        ------
        BundleError
            If there is no bundle, or it was written by a newer version.
        IntegrityError
            If a file is missing, has changed, or contains a type that is not allowed.
        """
        folder = Path(path)
        content = _read_description(folder)
        try:
            files = {name: _read_file(folder, name, digest) for name, digest in content["files"].items()}
            head = dict(content["head"])
            affine = AffineHead.from_bytes(files[AFFINE_FILE]) if AFFINE_FILE in files else None
            stored = functools.partial(read_head, folder, head, files)
            return cls(
                recipes=tuple(
                    Recipe.from_json(json.dumps(recipe)).near(folder.parent) for recipe in content["recipes"]
                ),
                dims=tuple(int(dim) for dim in content["dims"]),
                classes=tuple(content["classes"]),
                head=None if affine else stored(),
                head_name=head["name"],
                params=head["params"],
                report=json.loads(files[REPORT_FILE]),
                provenance=content["provenance"],
                average_views=bool(content.get("average_views")),  # schema 1 has none
                safeguards=Safeguards.read(content.get("trust", {}), files, sum(content["dims"])),
                multi_label=MultiLabel(**content["multi_label"]) if content.get("multi_label") else None,
                affine=affine,
                _stored=stored,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise
            raise IntegrityError(
                f"{folder / DESCRIPTION} does not describe a bundle ({error}); train it again"
            ) from error


def _exchange(fresh: Path, target: Path) -> None:
    """Swap two folders, atomically if the kernel supports it; otherwise in two steps, undone on failure."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = os.fsencode(fresh.absolute()), os.fsencode(target.absolute())
    if swap and swap(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return
    aside = fresh.with_name("old")
    target.rename(aside)
    try:
        fresh.rename(target)
    except OSError:
        aside.rename(target)
        raise


def verify_bundle(path: str | os.PathLike[str]) -> list[str]:
    """Read a whole bundle and the weights file that it needs; return what is wrong, empty if nothing is.

    Raises
    ------
    BundleError
        If there is no bundle, or it was written by a newer version.
    """
    problems = []
    try:
        bundle = Bundle.load(path)
        bundle.estimator()
        for recipe in bundle.recipes:
            if recipe.weights_path and recipe.weights in (FILE, TUNED):
                check_digest(Path(recipe.weights_path), recipe.weights_sha256)
    except (IntegrityError, WeightsError) as error:
        problems.append(str(error))
    return problems


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{folder} is not a bundle: it has no {DESCRIPTION}; make one with train_head.py") from error
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged ({error}); train the bundle again") from error
    if not isinstance(content, dict) or content.get("format") != "twostage-bundle":
        raise IntegrityError(f"{path} is not a description of a bundle; make one with train_head.py")
    if content.get("schema_version") not in READABLE_VERSIONS:
        raise BundleError(
            f"{path} has schema version {content.get('schema_version')}, this package reads up to {SCHEMA_VERSION};"
            " upgrade twostage-features"
        )
    if content.get("digest") != _digest(content):
        raise IntegrityError(f"{path} has changed since it was written; restore it or train the bundle again")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "digest"}
    return _sha256(json.dumps(rest, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_file(folder: Path, name: str, digest: str) -> bytes:
    if name not in FILES:
        raise IntegrityError(f"{folder} lists the unknown file {name!r}; it is not a bundle of this package")
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise IntegrityError(f"{folder / name} cannot be read ({error.strerror}); train the bundle again") from error
    if _sha256(data) != digest:
        raise IntegrityError(f"{folder / name} has changed since the training; restore it or train the bundle again")
    return data

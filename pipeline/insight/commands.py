"""The commands that made a feature file, a bundle and its report, as they would be typed."""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.bundles.bundle import Bundle
from pipeline.features.recipe import LAST
from pipeline.features.store import FeatureStore
from pipeline.features.weights import FILE, IMAGENET, TUNED
from pipeline.images.views import ONE
from pipeline.training.provenance import asked_of
from pipeline.wording import printable

# What train_head.py was asked, option by option, where it differs from the default.
_TRAINING = {
    "cv": None,
    "budget": None,
    "average_views": False,
    "curve": False,
    "seed": 0,
    "calibration": "auto",
    "abstain": None,
    "novelty": False,
    "exclude": None,
}
_TUNING = {"after": None, "epochs": 20, "learning_rate": 3e-4, "views": ONE, "seed": 0}
_EXTRACTION = {"pooling": "avg", "size": None, "resize": "squash", "precision": "float32", "views": ONE}
_CALLED = {"projection": "map"}  # options whose name on the way down is another


def extract_command(store: FeatureStore) -> str:
    """Return the command that makes a feature file."""
    recipe = store.recipe
    backbone = recipe.weights_path if recipe.row is None else recipe.backbone
    weights = recipe.weights_path if recipe.weights in (FILE, TUNED) else recipe.weights
    words = ["extract.py", store.index.root, "--out", str(store.path), "--backbone", backbone]
    words += [] if recipe.row is None else _options({"weights": weights}, {"weights": IMAGENET})
    words += [] if recipe.layers == (LAST,) else [word for layer in recipe.layers for word in ("--layer", layer)]
    words += _options({name: getattr(recipe, name) for name in _EXTRACTION}, _EXTRACTION)
    return _command([*words, *_options({"dtype": str(store.dtype)}, {"dtype": "float32"})])


def train_command(bundle: Bundle, name: str, files: Sequence[str]) -> str:
    """Return the command that trains a bundle, or that tuned it; of an older one, what can be told."""
    if tuning := bundle.provenance.get("tuning"):
        words = ["finetune.py", tuning["bundle"] or "BUNDLE", "--out", name]
        return _command([*words, *_options(tuning, _TUNING)])
    asked = asked_of(bundle)
    words = ["train_head.py", *files, "--out", name, "--head", str(asked["head"])]
    words += [word for key, value in asked["params"].items() for word in ("--param", f"{key}={value}")]
    return _command([*words, *_options(asked, _TRAINING)])


def report_command(
    files: tuple[str, str | os.PathLike[str]],
    features: Sequence[str | os.PathLike[str]],
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> str:
    """Return the command that makes a report; `files` are the bundle and the page."""
    words = ["report.py", files[0], "--out", os.fspath(files[1])]
    words += [word for file in features for word in ("--features", os.fspath(file))]
    return _command([*words, *_options(options, defaults)])


def _options(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return the words of the options whose value is another than the default."""
    words = []
    for name, default in defaults.items():
        value = values.get(name, default)
        if value != default and value is not None:
            option = f"--{_CALLED.get(name, name).replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    return words


def _command(words: Sequence[str]) -> str:
    return printable(shlex.join(["python", f"scripts/{words[0]}", *words[1:]]))

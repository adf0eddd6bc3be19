"""The command lines that made a feature file, a bundle and its report."""

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

# Options of each command with their defaults, which need not be shown.
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
_OPTION_NAMES = {"projection": "map"}  # of parameters that are called otherwise


def commands_of(stores: Sequence[FeatureStore], bundle: Bundle, name: str) -> list[str]:
    """Return the commands that made a bundle and its feature files."""
    tuned = "tuning" in bundle.provenance  # finetune.py makes the feature file too
    extractions = [] if tuned else [extract_command(store) for store in stores]
    return [*extractions, train_command(bundle, name, [str(store.path) for store in stores])]


def extract_command(store: FeatureStore) -> str:
    """Return the command that made a feature file."""
    recipe = store.recipe
    backbone = recipe.weights_path if recipe.row is None else recipe.backbone
    weights = recipe.weights_path if recipe.weights in (FILE, TUNED) else recipe.weights
    words = ["extract.py", store.index.root, "--out", str(store.path), "--backbone", backbone]
    words += [] if recipe.row is None else _options({"weights": weights}, {"weights": IMAGENET})
    words += [] if recipe.layers == (LAST,) else [word for layer in recipe.layers for word in ("--layer", layer)]
    words += _options({name: getattr(recipe, name) for name in _EXTRACTION}, _EXTRACTION)
    return _command([*words, *_options({"dtype": str(store.dtype)}, {"dtype": "float32"})])


def train_command(bundle: Bundle, name: str, files: Sequence[str]) -> str:
    """Return the command that trained or fine-tuned a bundle; of an old bundle, as far as it is recorded."""
    if tuning := bundle.provenance.get("tuning"):
        words = ["finetune.py", tuning["bundle"] or "BUNDLE", "--out", name]
        return _command([*words, *_options(tuning, _TUNING)])
    options = asked_of(bundle)
    words = ["train_head.py", *files, "--out", name, "--head", str(options["head"])]
    words += [word for key, value in options["params"].items() for word in ("--param", f"{key}={value}")]
    return _command([*words, *_options(options, _TRAINING)])


def report_command(
    files: tuple[str, str | os.PathLike[str]],
    features: Sequence[str | os.PathLike[str]],
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> str:
    """Return the command that made a report; `files` are the bundle and the report."""
    words = ["report.py", files[0], "--out", os.fspath(files[1])]
    words += [word for file in features for word in ("--features", os.fspath(file))]
    return _command([*words, *_options(options, defaults)])


def _options(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return the command-line words of the options that differ from their defaults."""
    words = []
    for name, default in defaults.items():
        value = values.get(name, default)
        if value != default and value is not None:
            option = f"--{_OPTION_NAMES.get(name, name).replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    return words


def _command(words: Sequence[str]) -> str:
    return printable(shlex.join(["python", f"scripts/{words[0]}", *words[1:]]))

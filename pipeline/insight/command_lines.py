"""The command lines that made a feature file, a bundle and its report."""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.bundles.bundle import Bundle
from pipeline.features.options import RecipeOptions, Storage
from pipeline.features.recipe import LAST
from pipeline.features.store import FeatureStore
from pipeline.features.weights import FILE, IMAGENET, TUNED
from pipeline.finetuning.options import Tuning
from pipeline.insight.options import Options
from pipeline.option_groups import command_line_fields, flag_of
from pipeline.training.options import Training
from pipeline.training.provenance import asked_of
from pipeline.trust.options import Trust
from pipeline.wording import printable


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
    values = {field.name: getattr(recipe, field.name) for field in command_line_fields(RecipeOptions)}
    values["layers"] = () if recipe.layers == (LAST,) else recipe.layers
    values["weights"] = IMAGENET if recipe.row is None else weights
    return _command([*words, *_options({**values, "dtype": str(store.dtype)}, RecipeOptions, Storage)])


def train_command(bundle: Bundle, name: str, files: Sequence[str]) -> str:
    """Return the command that trained or fine-tuned a bundle; of an old bundle, as far as it is recorded."""
    if tuning := bundle.provenance.get("tuning"):
        words = ["finetune.py", tuning["bundle"] or "BUNDLE", "--out", name]
        return _command([*words, *_options(tuning, Tuning)])
    options = asked_of(bundle)
    words = ["train_head.py", *files, "--out", name, "--head", str(options["head"])]
    words += [word for key, value in options["params"].items() for word in ("--param", f"{key}={value}")]
    return _command([*words, *_options(options, Training, Trust)])


def report_command(
    files: tuple[str, str | os.PathLike[str]], features: Sequence[str | os.PathLike[str]], options: Options
) -> str:
    """Return the command that made a report; `files` are the bundle and the report."""
    words = ["report.py", files[0], "--out", os.fspath(files[1])]
    words += [word for file in features for word in ("--features", os.fspath(file))]
    return _command([*words, *_options(vars(options), Options)])


def _options(values: Mapping[str, Any], *groups: type) -> list[str]:
    """Return the command-line words of the values that differ from the defaults of their options."""
    words = []
    for field in (field for group in groups for field in command_line_fields(group)):
        value = values.get(field.name, field.default)
        if value is True and field.default is False:
            words.append(flag_of(field))
        elif value not in (field.default, None):
            for each in value if isinstance(value, (list, tuple)) else [value]:
                words += [flag_of(field), str(each)]
    return words


def _command(words: Sequence[str]) -> str:
    return printable(shlex.join(["python", f"scripts/{words[0]}", *words[1:]]))

"""What a bundle was trained on and with which options: written into the bundle, and read back from it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.bundles.bundle import Bundle
from pipeline.errors import UsageError, installed_versions
from pipeline.images.findings import Finding
from pipeline.training.training_data import TrainingData, load_training_data


def asked_of(bundle: Bundle) -> dict[str, Any]:
    """Return the options that a bundle was trained with; of an older bundle, those that can be inferred from it."""
    provenance = bundle.provenance
    # Parameters that the training chose are not options: given again, they would leave nothing to choose.
    given = {} if bundle.report.get("chosen_on") else dict(bundle.params)
    inferred = {"head": bundle.head_name, "params": given, "average_views": bundle.average_views}
    asked = provenance.get("asked") or {**inferred, "cv": provenance.get("cv"), "seed": provenance.get("seed", 0)}
    params = asked.get("params") or {}
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in params.items()}
    return {**asked, "params": tuples}  # JSON has no tuples


def training_data_of(bundle: Bundle, features: Sequence[str | os.PathLike[str]] = ()) -> TrainingData:
    """Read the feature files that a bundle was trained on, with the same splits.

    Parameters
    ----------
    bundle : Bundle
    features : sequence of path
        Empty to read them where they were at the training.

    Raises
    ------
    UsageError
        If the files are missing, or are not those of the training.
    """
    provenance = bundle.provenance
    recorded = list(provenance.get("features") or [])
    if not features and (not recorded or any(not Path(file).exists() for file in recorded)):
        where = f"is no longer at {recorded[0]}" if recorded else "is not known"
        raise UsageError(f"the feature file of the bundle {where}; name it with --features")
    files = [os.fspath(each) for each in features] or recorded
    findings = [Finding(**finding) for finding in provenance.get("findings") or []]
    data = load_training_data(files, int(provenance.get("seed", 0)), findings)
    made = [store.recipe for store in data.stores]
    if len(made) != len(bundle.recipes) or not all(
        ours.same_as(theirs) for ours, theirs in zip(bundle.recipes, made, strict=True)
    ):
        raise UsageError(
            f"{', '.join(files)} was made with {' + '.join(map(str, made))}, the bundle expects"
            f" {bundle.describe()}; name the files that it was trained on with --features"
        )
    if tuple(data.classes) != tuple(bundle.classes):
        raise UsageError(f"{files[0]} has other classes than the bundle; name the file that it was trained on")
    if provenance.get("content", data.content) != data.content:
        raise UsageError(
            f"{files[0]} contains other photographs than the bundle was trained on, though its recipe and classes are"
            " the same; name the file that it was trained on with --features, or train a bundle on this one"
        )
    return data


def provenance_of(data: TrainingData, seed: int) -> dict[str, Any]:
    """Return data, recipes, seed and versions of a training, as plain data."""
    recipes = [store.recipe for store in data.stores]
    return {
        "seed": seed,
        "fingerprints": [recipe.fingerprint for recipe in recipes],
        "recipes": [str(recipe) for recipe in recipes],
        "images": len(data.y),
        "content": data.content,
        "features": [str(store.path.absolute()) for store in data.stores],
        "versions": installed_versions("twostage-features", "numpy", "scikit-learn", "skops", "keras", "tensorflow"),
    }


def as_json(data: dict[str, Any]) -> dict[str, Any]:
    """Return data as JSON reads them back; values of types that JSON does not have become text."""
    plain: dict[str, Any] = json.loads(json.dumps(data, default=str))
    return plain

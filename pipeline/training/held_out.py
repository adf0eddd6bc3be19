"""Probabilities of images that a head has not learned from."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.classifiers import Calibrate, find_head
from pipeline.training.fitting import Fitter
from pipeline.training.search import Choice
from pipeline.training.training_data import TrainingData
from pipeline.trust.options import Trust
from pipeline.trust.safeguards import HeldOut

TRUST_FOLDS = 3  # for calibration and abstention, where choosing made no folds
ENOUGH = 300  # validation images from which a network learns its temperature; with 36 it was worse than by folds


def _answers(fitter: Fitter, fitted: Any, calibrate: Calibrate | None = None) -> dict[str, NDArray[np.float64]]:
    """Return the probabilities of the splits that the head has not seen."""
    rows = {split: fitter.data.rows(split) for split in ("validation", "test")}
    return {split: fitter.probabilities(fitted, each, calibrate) for split, each in rows.items() if len(each)}


def _validation_calibrates(data: TrainingData, chosen: Choice, trust: Trust) -> bool:
    """Say whether the validation images, by which a network stopped, may teach it its temperature, too.

    They do so as well as folds, which would train it three times more. A threshold and curves want more images, and
    without a test split the validation images are those that the score comes from.
    """
    return (
        find_head(chosen.head).early_stopping
        and trust.calibration in ("auto", "temperature")
        and trust.abstain is None
        and chosen.folded is None
        and len(data.rows("test")) > 0
        and len(data.rows("validation")) >= ENOUGH
    )


def _of_validation(
    data: TrainingData, raw: Mapping[str, NDArray[np.float64]], classes: NDArray[np.int64]
) -> HeldOut | None:
    """Return labels and probabilities of the validation images of the head's classes."""
    y = data.y[data.rows("validation")]
    known = np.isin(y, classes)
    return np.searchsorted(classes, y[known]), raw["validation"][known][:, np.asarray(classes, int)]


def _of_folds(fitter: Fitter, chosen: Choice, classes: NDArray[np.int64]) -> HeldOut | None:
    """Return labels and out-of-fold probabilities of training images, in columns of the head's classes."""
    y, rows = fitter.data.y, chosen.folded_rows
    proba = chosen.folded
    if proba is None:
        train = fitter.data.rows("train")
        counts = _units_of_classes(fitter.data, train)
        folds = min(TRUST_FOLDS, max(2, min(counts.values())))
        # A class with fewer images than folds takes no part.
        rows = train[[counts[label] >= folds for label in y[train].tolist()]]
        if len(np.unique(y[rows])) < 2:
            return None
        proba = np.zeros((len(y), len(fitter.data.classes)))
        for inner, outer in fitter.folds(folds, rows):
            (fitted,) = fitter.fit(chosen.head, [chosen.params], inner)
            proba[outer] = fitter.probabilities(fitted, outer)
        proba = proba[rows]
    return np.searchsorted(classes, y[rows]), proba[:, np.asarray(classes, int)]


def _units_of_classes(data: TrainingData, rows: NDArray[np.int64]) -> Counter[int]:
    """Count the units of each class: an image of a group counts with its group, which no fold may cut."""
    units = set(zip(data.y[rows].tolist(), data.units[rows].tolist(), strict=True))
    return Counter(label for label, _ in units)

"""Which images calibrate a head, and probabilities of images that it was not fitted on."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.classifiers import Calibrate, Head
from pipeline.training.candidates import Choice
from pipeline.training.fitting import Fitter
from pipeline.training.training_data import TrainingData
from pipeline.trust.options import Trust
from pipeline.trust.safeguards import HeldOut

TRUST_FOLDS = 3  # for calibration and abstention, where choosing made no folds
ENOUGH = 300  # validation images from which a network learns its temperature; with 36 it was worse than by folds
BySplit = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class CalibrationPlan:
    """How a head is calibrated and its threshold learned.

    Parameters
    ----------
    method : str
        ``"none"``, ``"temperature"`` or ``"isotonic"``.
    images : str
        ``"validation"``: the validation images; ``"folds"``: training images, predicted out of fold.
    """

    method: str
    images: str


def plan_calibration(
    trust: Trust, row: Head, counts: Mapping[str, int], *, tuned: bool, folded: bool, has_temperature: bool
) -> CalibrationPlan:
    """Decide by which method, and on which images, a head is calibrated.

    The images are folds of the training split, with two exceptions. If the network was tuned on the training images,
    they are the validation images, and there is no calibration unless these are enough and there are test images for
    the score. The temperature of a head with early stopping is fitted to the validation images too, on the same
    conditions, because folds would train it three times more; a threshold and isotonic curves need more images.

    Parameters
    ----------
    trust : Trust
    row : Head
    counts : mapping of str to int
        Images of each split.
    tuned : bool
        Whether the network was tuned on the training images.
    folded : bool
        Whether choosing the head already gave out-of-fold probabilities.
    has_temperature : bool
        Whether fitting the head already chose a temperature, by its own folds.

    Examples
    --------
    >>> from pipeline.heads.classifiers import HEADS
    >>> counts = {"train": 2000, "validation": 400, "test": 400}
    >>> how = {"tuned": False, "folded": False, "has_temperature": False}
    >>> plan_calibration(Trust(), HEADS["logreg"], counts, **how)
    CalibrationPlan(method='temperature', images='folds')
    >>> plan_calibration(Trust(), HEADS["dense"], counts, **how)
    CalibrationPlan(method='temperature', images='validation')
    """
    enough = counts["validation"] >= ENOUGH and counts["test"] > 0
    if tuned:
        # The head's own folds chose a temperature on images that the network was tuned on.
        method = "temperature" if trust.calibration == "auto" else trust.calibration
        return CalibrationPlan(method if enough else "none", "validation")
    method = trust.calibration
    if method == "auto":
        method = "none" if has_temperature else "temperature"
    stopped = row.early_stopping and method == "temperature" and trust.abstain is None and not folded
    return CalibrationPlan(method, "validation" if stopped and enough else "folds")


def unseen_probabilities(fitter: Fitter, head: Any, calibrate: Calibrate | None = None) -> dict[str, Any]:
    """Return the probabilities of the validation and test images by split, without empty splits."""
    rows = {split: fitter.data.rows(split) for split in ("validation", "test")}
    return {split: fitter.probabilities(head, each, calibrate) for split, each in rows.items() if len(each)}


def of_validation(data: TrainingData, unseen: BySplit, classes: NDArray[np.int64]) -> HeldOut | None:
    """Return labels and probabilities of the validation images, in columns of the head's classes."""
    y = data.y[data.rows("validation")]
    known = np.isin(y, classes)
    return np.searchsorted(classes, y[known]), unseen["validation"][known][:, np.asarray(classes, int)]


def of_folds(fitter: Fitter, choice: Choice, classes: NDArray[np.int64]) -> HeldOut | None:
    """Return labels and out-of-fold probabilities of training images, in columns of the head's classes.

    Returns
    -------
    tuple of ndarray (n,) and ndarray (n, k), or None
        None if fewer than two classes have enough images to make folds.
    """
    y, rows = fitter.data.y, choice.folded_rows
    proba = choice.folded
    if proba is None:
        train = fitter.data.rows("train")
        counts = units_of_classes(fitter.data, train)
        folds = min(TRUST_FOLDS, max(2, min(counts.values())))
        # A class with fewer images than folds takes no part.
        rows = train[[counts[label] >= folds for label in y[train].tolist()]]
        if len(np.unique(y[rows])) < 2:
            return None
        proba = np.zeros((len(y), len(fitter.data.classes)))
        for inner, outer in fitter.folds(folds, rows):
            (fitted,) = fitter.fit(choice.head, [choice.params], inner)
            proba[outer] = fitter.probabilities(fitted, outer)
        proba = proba[rows]
    return np.searchsorted(classes, y[rows]), proba[:, np.asarray(classes, int)]


def units_of_classes(data: TrainingData, rows: NDArray[np.int64]) -> Counter[int]:
    """Count the units of each class: the images of a group are one unit, which no fold splits."""
    units = set(zip(data.y[rows].tolist(), data.units[rows].tolist(), strict=True))
    return Counter(label for label, _ in units)

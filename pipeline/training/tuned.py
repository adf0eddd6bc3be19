"""What may be asked of a network that was tuned on the training images."""

from dataclasses import replace

from pipeline.errors import TrainingError, UsageError
from pipeline.heads.classifiers import AUTO
from pipeline.training.held_out import ENOUGH
from pipeline.training.training_data import TrainingData
from pipeline.trust.options import Trust


def _check_tuned(data: TrainingData, head: str, cv: int | None, curve: bool) -> None:
    """Refuse what would ask a tuned network about images that it has learned from."""
    if cv is not None or curve or head == AUTO:
        what = "--cv" if cv is not None else "--curve" if curve else "--head auto"
        raise UsageError(
            f"the network was tuned on training images, so parts of them prove nothing; leave out {what}, or take"
            " features of weights that were not tuned"
        )
    if not len(data.rows("validation")):
        raise TrainingError("the network was tuned, so nothing can be chosen without validation images; add some")


def _trust_of_tuned(data: TrainingData, trust: Trust) -> Trust:
    """Leave calibration to as many validation images as it takes, where others judge; elsewhere it does harm."""
    if len(data.rows("validation")) < ENOUGH or not len(data.rows("test")):
        return replace(trust, calibration="none")
    # A temperature that a head (svm, ridge, ...) fits by folds comes from images that the network knows.
    return replace(trust, calibration="temperature") if trust.calibration == "auto" else trust


def _tuned_note(trust: Trust, scored_on: str) -> str:
    also = ["chose when to stop"]
    also += ["calibrated the probabilities"] if trust.calibration != "none" else []
    also += ["set the threshold for abstaining"] if trust.abstain is not None else []
    told = f"the network was tuned on the training images, so the validation images {' and '.join(also)}"
    if trust.calibration == "none":
        told += f"; probabilities are calibrated only with {ENOUGH} of them, and test images"
    return told + ("; the score on them is too good" if scored_on == "validation" else "")

"""What a training can do with vectors of a network that was tuned on the training images."""

from pipeline.errors import TrainingError, UsageError
from pipeline.heads.classifiers import AUTO
from pipeline.training.held_out import ENOUGH
from pipeline.training.options import Training
from pipeline.training.training_data import TrainingData


def check_tuned_request(data: TrainingData, head_name: str, training: Training) -> None:
    """Check that nothing is measured on folds of training images, which the network has learned from."""
    if training.cv is not None or training.curve or head_name == AUTO:
        what = "--cv" if training.cv is not None else "--curve" if training.curve else "--head auto"
        raise UsageError(
            "the network was tuned on the training images, so folds of them measure nothing; leave out"
            f" {what}, or take features of weights that were not tuned"
        )
    if not len(data.rows("validation")):
        raise TrainingError("the network was tuned, so parameters are chosen on validation images only; add some")


def tuned_note(method: str, abstain: float | None, scored_on: str) -> str:
    """Return the note on what the validation images were used for."""
    uses = ["chose when to stop"]
    uses += ["calibrated the probabilities"] if method != "none" else []
    uses += ["set the threshold for abstaining"] if abstain is not None else []
    note = f"the network was tuned on the training images, so the validation images {' and '.join(uses)}"
    if method == "none":
        note += f"; probabilities are only calibrated if there are {ENOUGH} of them, and test images"
    return note + ("; the score on them is too optimistic" if scored_on == "validation" else "")

"""`Trust`: when the answers of a head are to be believed. Importing this module is light."""

from pipeline.errors import UsageError
from pipeline.option_groups import option, options

METHODS = ("auto", "none", "temperature", "isotonic")


@options
class Trust:
    """What a training learns about how far its answers can be trusted.

    Parameters
    ----------
    calibration : str
        ``"temperature"``, ``"isotonic"``, ``"none"``, or ``"auto"``: a temperature, except for heads whose
        probabilities come from one already (ridge, svm, ...). Learned from out-of-fold predictions; the temperature
        of a network also from many validation images.
    abstain : float or None
        Accuracy that accepted answers should have; less confident ones get the status ``abstain``.
    novelty : bool
        Whether predictions get a score of how much an image differs from the training images.

    Examples
    --------
    >>> Trust(abstain=1.5).check()
    Traceback (most recent call last):
        ...
    pipeline.errors.UsageError: abstain 1.5 is not an accuracy that can be guaranteed; give a number above 0 and below 1
    """

    calibration: str = option(
        default="auto", help="Calibration of the probabilities: auto, none, temperature or isotonic."
    )
    abstain: float | None = option(
        default=None, help="Accuracy that answers must reach; less certain ones abstain.", metavar="ACCURACY"
    )
    novelty: bool = option(default=False, help="When predicting, flag images that are unlike all training images.")

    def check(self) -> None:
        """Raise UsageError if a value cannot be used."""
        if self.calibration not in METHODS:
            raise UsageError(f"calibration {self.calibration!r} is unknown; expected one of {', '.join(METHODS)}")
        if self.abstain is not None and not 0 < self.abstain < 1:
            raise UsageError(
                f"abstain {self.abstain:g} is not an accuracy that can be guaranteed; give a number above 0 and below 1"
            )

"""`Training`: how a head is chosen and scored. Importing this module is light."""

import os
import re

from pipeline.errors import UsageError
from pipeline.option_groups import option, options


def read_seconds(text: str) -> float:
    """Return a duration such as 90, 60s or 5m in seconds.

    >>> read_seconds("5m")
    300.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found:
        raise UsageError(f"{text!r} is not a duration; give seconds or minutes, such as 60s or 5m")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


@options
class Training:
    """How a head is chosen and scored.

    Parameters
    ----------
    cv : int or None
        Folds for choosing and for a cross-validated score; None to choose on the validation split.
    seed : int
        Of the splits drawn, the folds, and the head.
    budget : float or None
        Seconds that the race of the head ``"auto"`` may take; None for 60.
    average_views : bool
        Whether a prediction is the mean over the views of an image, instead of that of its first view.
    curve : bool
        Whether to measure accuracy against the number of training images, see `pipeline.training.learning_curve`.
    exclude : path or None
        Findings of the audit: images whose action is ``exclude`` are left out, those of one group share
        their split when splits are drawn.

    Examples
    --------
    >>> Training(cv=1).check()
    Traceback (most recent call last):
        ...
    pipeline.errors.UsageError: cv 1 is too few folds; give 2 or more
    """

    cv: int | None = option(default=None, help="Select by K-fold cross-validation on the training split.", metavar="K")
    budget: float | None = option(
        default=None,
        help="Time limit of --head auto, such as 60s or 5m.  [default: 60s]",
        metavar="TIME",
        parse=read_seconds,
    )
    average_views: bool = option(default=False, help="Predict from the mean over the views of an image.")
    curve: bool = option(default=False, help="Also measure the learning curve, and extrapolate it.")
    seed: int = option(default=0, help="Seed of drawn splits, folds and the head.")
    exclude: str | os.PathLike[str] | None = option(
        default=None, help="Leave out the images that the audit's table excludes; see audit.", metavar="FINDINGS.csv"
    )

    def check(self) -> None:
        """Raise UsageError if a value cannot be used."""
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed {self.seed} is out of range; give a whole number from 0 to {2**32 - 1}")
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise UsageError(f"budget {self.budget} is not a time; give seconds above 0, such as 60")
        if self.cv is not None and self.cv < 2:
            raise UsageError(f"cv {self.cv} is too few folds; give 2 or more")

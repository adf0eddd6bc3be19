"""`Tuning`: options of fine-tuning. Importing this module is light."""

from pipeline.errors import UsageError
from pipeline.option_groups import option, options


@options
class Tuning:
    """Options of fine-tuning.

    Parameters
    ----------
    after : str or None
        Layer after which weights are trained; None to choose one with about the last quarter of the convolutions
        after it.
    epochs : int
        Largest number of epochs; the weights of the epoch with the lowest validation loss are kept.
    patience : int
        Number of epochs without a lower validation loss after which training stops.
    learning_rate : float
        Of Adam.
    batch_size : int
        Feature maps per step.
    views : str
        Augmented versions of each training image, as for an extraction.
    seed : int
        Of the order of the images and of dropout.

    Examples
    --------
    >>> Tuning(epochs=0).check()
    Traceback (most recent call last):
        ...
    pipeline.errors.UsageError: epochs 0 is too few; give 1 or more
    """

    after: str | None = option(
        default=None, metavar="LAYER", help="Tune the layers after this one.  [default: the last fifth to third]"
    )
    epochs: int = option(default=20, help="At most; the best one on the validation split is kept.")
    patience: int = option(default=3, in_python=True, help="Epochs without improvement before training stops.")
    learning_rate: float = option(default=3e-4, help="Learning rate of Adam.")
    batch_size: int = option(default=32, in_python=True, help="Feature maps per step.")
    views: str = option(default="1", help="Augmented versions of each training image; see extract.")
    seed: int = option(default=0, help="Seed of the order of images and of dropout.")

    def check(self) -> None:
        """Raise UsageError if a value is out of range."""
        from pipeline.images.views import parse_views

        for name in ("epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} is too few; give 1 or more")
        if not 0 < self.learning_rate < 1:
            raise UsageError(f"learning_rate {self.learning_rate:g} is not between 0 and 1; give one such as 3e-4")
        parse_views(self.views)

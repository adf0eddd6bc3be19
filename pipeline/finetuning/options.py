"""`Tuning`: the options of fine-tuning."""

from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.images.views import ONE, parse_views


@dataclass(frozen=True)
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
    """

    after: str | None = None
    epochs: int = 20
    patience: int = 3
    learning_rate: float = 3e-4
    batch_size: int = 32
    views: str = ONE
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError if a value is out of range."""
        for name in ("epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} is too few; give 1 or more")
        if not 0 < self.learning_rate < 1:
            raise UsageError(f"learning_rate {self.learning_rate:g} is not between 0 and 1; give one such as 3e-4")
        parse_views(self.views)

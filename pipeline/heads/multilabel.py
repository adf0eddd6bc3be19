"""Several labels per image: one classifier a label against the rest, and metrics that suit.

A feature file keeps one label per image, so an image's labels are written together: ``cat;dog``. What belongs
together is taken apart here, at training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError, UsageError
from pipeline.metrics.label_sets import THRESHOLD


@dataclass(frozen=True)
class MultiLabel:
    """How a bundle's labels are told apart and put together.

    Parameters
    ----------
    separator : str
        Stands between an image's labels.
    threshold : float
        Labels of this probability or more are named.

    Examples
    --------
    >>> MultiLabel(";").answer(np.array([0.9, 0.2, 0.5]), ("cat", "dog", "man"))
    ('cat;man', 0.5)
    """

    separator: str
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        if not self.separator.strip():
            raise UsageError(f"the separator {self.separator!r} cannot tell labels apart; give one such as ;")

    def answer(self, probabilities: NDArray[np.float64], names: Sequence[str]) -> tuple[str, float]:
        """Return the labels of an image, joined, and the probability of the least sure one.

        Without any label over the threshold: an empty text, and the probability that the likeliest one is absent.
        """
        named = np.flatnonzero(probabilities >= self.threshold).tolist()
        if not named:
            return "", float(1 - probabilities.max())
        return self.separator.join(names[i] for i in named), float(probabilities[named].min())


def label_matrix(sets: Sequence[str], separator: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Take labels apart that are written together.

    Parameters
    ----------
    sets : sequence of n str
        Such as ``"cat;dog"``; blanks around names, and empty names, count for nothing.
    separator : str

    Returns
    -------
    names : tuple of l str
        Sorted.
    matrix : ndarray of int64, shape (n, l)
        1 where the image has the label.

    Raises
    ------
    TrainingError
        If there are fewer than two labels.

    Examples
    --------
    >>> label_matrix(["cat;dog", "dog", "cat; man"], ";")
    (('cat', 'dog', 'man'), array([[1, 1, 0],
           [0, 1, 0],
           [1, 0, 1]]))
    """
    parts = [{name.strip() for name in text.split(separator)} - {""} for text in sets]
    names = tuple(sorted(set().union(*parts)))
    if len(names) < 2:
        raise TrainingError(
            f"taken apart at {separator!r} there is only the label {', '.join(names) or 'none'}; expected at least"
            " two: check the separator"
        )
    return names, np.array([[int(name in mine) for name in names] for mine in parts], np.int64)


def one_vs_rest(head: Any) -> Any:
    """Turn an unfitted pipeline of `make_head` into one with a classifier for each label.

    Raises
    ------
    UsageError
        If the head is a Keras network, whose copies a bundle cannot hold.
    """
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import Pipeline

    from pipeline.heads.keras_head import KerasHead

    last = head[-1]
    if isinstance(last, KerasHead):
        raise UsageError("the dense head cannot learn several labels per image; choose another --head, such as logreg")
    # One process: a head's own threads are enough, and memory is not copied.
    return Pipeline([*head.steps[:-1], ("head", OneVsRestClassifier(last))])

"""Several labels per image: one classifier per label against the rest.

A feature file has one label per image, so the labels of an image are written together: ``cat;dog``. They are split
here, at training.
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
    """How the labels of an image are split and joined.

    Parameters
    ----------
    separator : str
        Stands between an image's labels.
    threshold : float
        Labels with at least this probability are named.

    Examples
    --------
    >>> MultiLabel(";").answer(np.array([0.9, 0.2, 0.5]), ("cat", "dog", "man"))
    ('cat;man', 0.5)
    """

    separator: str
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        if not self.separator.strip():
            raise UsageError(f"the separator {self.separator!r} cannot separate labels; give one such as ;")

    def answer(self, probabilities: NDArray[np.float64], names: Sequence[str]) -> tuple[str, float]:
        """Return the named labels of an image, joined, and the smallest of their probabilities.

        If none reaches the threshold: an empty text, and the probability that the most probable label is absent.
        """
        named = np.flatnonzero(probabilities >= self.threshold).tolist()
        if not named:
            return "", float(1 - probabilities.max())
        return self.separator.join(names[i] for i in named), float(probabilities[named].min())


def label_matrix(sets: Sequence[str], separator: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Split labels that are written together.

    Parameters
    ----------
    sets : sequence of n str
        Such as ``"cat;dog"``; blanks around names, and empty names, are ignored.
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
            f"split at {separator!r} there is only the label {', '.join(names) or 'none'}; expected at least two:"
            " check the separator"
        )
    return names, np.array([[int(name in mine) for name in names] for mine in parts], np.int64)


def one_vs_rest(head: Any) -> Any:
    """Return an unfitted pipeline with a classifier for each label, from one of `make_head`.

    Raises
    ------
    UsageError
        If the head is a Keras network: a bundle cannot hold several.
    """
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import Pipeline

    from pipeline.heads.keras_head import KerasHead

    last = head[-1]
    if isinstance(last, KerasHead):
        raise UsageError(
            "head 'dense' does not support several labels per image; choose another --head, such as logreg"
        )
    # In one process: heads use threads themselves, and the vectors are not copied.
    return Pipeline([*head.steps[:-1], ("head", OneVsRestClassifier(last))])

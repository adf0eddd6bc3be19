"""Several labels per image: one classifier a label against the rest, and metrics that suit.

A feature file keeps one label per image, so an image's labels are written together: ``cat;dog``. What belongs
together is taken apart here, at training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError, UsageError
from pipeline.heads.evaluation import wilson_interval
from pipeline.wording import display_width, printable, shorten

THRESHOLD = 0.5  # a label is named from this probability on


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

    last = head[-1]
    if hasattr(last, "keras_model"):
        raise UsageError("the dense head cannot learn several labels per image; choose another --head, such as logreg")
    # One process: a head's own threads are enough, and memory is not copied.
    return Pipeline([*head.steps[:-1], ("head", OneVsRestClassifier(last))])


def choose(
    fits: Sequence[Callable[[], Any]], X: NDArray[np.float32], Y: NDArray[np.int64]
) -> tuple[int, Any, list[dict[str, float]]]:
    """Fit each candidate and return number, fitted head and scores of the one with the smallest log loss.

    The ranking alone, as in mean average precision, would not see probabilities on the wrong side of the threshold.
    """
    heads = [fit() for fit in fits]
    found = [head.predict_proba(X) for head in heads]
    scores = [{"log_loss": _log_loss(Y, p), "mean_average_precision": _precisions(Y, p)[1]} for p in found]
    best = min(range(len(heads)), key=lambda i: scores[i]["log_loss"])
    return best, heads[best], scores


def _log_loss(Y: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    own = np.where(Y == 1, probabilities, 1 - probabilities)
    return float(-np.log(np.clip(own, 1e-15, 1.0)).mean())


def evaluate_labels(
    Y: NDArray[np.int64], probabilities: NDArray[np.float64], names: Sequence[str], threshold: float = THRESHOLD
) -> dict[str, Any]:
    """Compare probabilities of labels with the true ones.

    Parameters
    ----------
    Y : int array of shape (n, l)
        0 and 1.
    probabilities : float array of shape (n, l)
        Each from 0 to 1; rows need not add up to anything.
    names : sequence of l str
    threshold : float

    Returns
    -------
    dict
        Ready for JSON: ``n``, ``classes``, ``accuracy`` (share of images whose labels are all right and none too many:
        subset accuracy) with its ``accuracy_interval`` (95 %, Wilson), ``mean_average_precision`` (mean over labels
        present), ``micro_f1``, ``macro_f1``, and ``per_class``: ``class``, ``average_precision`` (None without a
        positive image), ``precision``, ``recall``, ``f1``, ``support``.

    Examples
    --------
    >>> Y = np.array([[1, 0], [1, 1], [0, 1]])
    >>> found = evaluate_labels(Y, np.array([[0.9, 0.1], [0.8, 0.4], [0.2, 0.9]]), ["cat", "dog"])
    >>> round(found["accuracy"], 3), found["mean_average_precision"], round(found["micro_f1"], 3)
    (0.667, 1.0, 0.857)
    """
    from sklearn.metrics import precision_recall_fscore_support

    named = probabilities >= threshold
    right = int((named == Y).all(axis=1).sum())
    each = precision_recall_fscore_support(Y, named, average=None, zero_division=0.0)
    averages, mean = _precisions(Y, probabilities)
    present = Y.any(axis=0) | named.any(axis=0)
    return {
        "n": len(Y),
        "classes": list(names),
        "threshold": threshold,
        "accuracy": right / len(Y),
        "accuracy_interval": list(wilson_interval(right, len(Y))),
        "mean_average_precision": mean,
        "micro_f1": float(precision_recall_fscore_support(Y, named, average="micro", zero_division=0.0)[2]),
        "macro_f1": float(each[2][present].mean()) if present.any() else 0.0,
        "per_class": [
            {
                "class": str(name),
                "average_precision": averages[i],
                **{key: float(each[k][i]) for k, key in enumerate(("precision", "recall", "f1"))},
                "support": int(each[3][i]),
            }
            for i, name in enumerate(names)
        ],
    }


def _precisions(Y: NDArray[np.int64], probabilities: NDArray[np.float64]) -> tuple[list[float | None], float]:
    from sklearn.metrics import average_precision_score

    found = [
        float(average_precision_score(Y[:, i], probabilities[:, i])) if Y[:, i].any() else None
        for i in range(Y.shape[1])
    ]
    known = [value for value in found if value is not None]
    return found, float(np.mean(known)) if known else 0.0


def format_labels(metrics: Mapping[str, Any], width: int = 80) -> str:
    """Lay out what `evaluate_labels` found for a terminal: one line a label, then the totals."""
    names = [shorten(printable(row["class"]), width - 48) for row in metrics["per_class"]]
    column = max(display_width(name) for name in [*names, "label"])
    lines = ["label".ljust(column) + "  precision   recall      F1  avg. prec.    images"]
    for name, row in zip(names, metrics["per_class"], strict=True):
        average = "-" if row["average_precision"] is None else f"{row['average_precision']:.3f}"
        numbers = f"{row['precision']:>11.3f}{row['recall']:>9.3f}{row['f1']:>8.3f}{average:>12}{row['support']:>10}"
        lines.append(name + " " * (column - display_width(name)) + numbers)
    low, high = metrics["accuracy_interval"]
    right = f"all labels right {metrics['accuracy']:.3f} of {metrics['n']} images"
    return "\n".join(
        [
            *lines,
            "",
            f"{right} (95 % interval {low:.3f} to {high:.3f})",
            f"mean average precision {metrics['mean_average_precision']:.3f}   micro F1 {metrics['micro_f1']:.3f}"
            f"   macro F1 {metrics['macro_f1']:.3f}",
        ]
    )

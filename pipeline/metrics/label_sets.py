"""Metrics of multi-label predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.intervals import wilson_interval
from pipeline.wording import display_width, printable, shorten

THRESHOLD = 0.5  # labels of this probability or more are predicted


def evaluate_labels(
    Y: NDArray[np.int64], probabilities: NDArray[np.float64], names: Sequence[str], threshold: float = THRESHOLD
) -> dict[str, Any]:
    """Compute metrics of predicted label probabilities.

    Parameters
    ----------
    Y : int array of shape (n, l)
        0 and 1.
    probabilities : float array of shape (n, l)
        Each from 0 to 1, independent of the others.
    names : sequence of l str
    threshold : float

    Returns
    -------
    dict
        Ready for JSON: ``n``, ``classes``, ``threshold``, ``accuracy`` (subset accuracy: the fraction of images with
        exactly the true labels) with its ``accuracy_interval`` (95 %, Wilson), ``mean_average_precision`` (over the
        labels present), ``micro_f1``, ``macro_f1``, and ``per_class``: ``class``, ``average_precision`` (None without
        a positive image), ``precision``, ``recall``, ``f1``, ``support``.

    Examples
    --------
    >>> Y = np.array([[1, 0], [1, 1], [0, 1]])
    >>> metrics = evaluate_labels(Y, np.array([[0.9, 0.1], [0.8, 0.4], [0.2, 0.9]]), ["cat", "dog"])
    >>> round(metrics["accuracy"], 3), metrics["mean_average_precision"], round(metrics["micro_f1"], 3)
    (0.667, 1.0, 0.857)
    """
    from sklearn.metrics import precision_recall_fscore_support

    predicted = probabilities >= threshold
    correct = int((predicted == Y).all(axis=1).sum())
    each = precision_recall_fscore_support(Y, predicted, average=None, zero_division=0.0)
    averages = average_precisions(Y, probabilities)
    present = Y.any(axis=0) | predicted.any(axis=0)
    return {
        "n": len(Y),
        "classes": list(names),
        "threshold": threshold,
        "accuracy": correct / len(Y),
        "accuracy_interval": list(wilson_interval(correct, len(Y))),
        "mean_average_precision": mean_average_precision(averages),
        "micro_f1": float(precision_recall_fscore_support(Y, predicted, average="micro", zero_division=0.0)[2]),
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


def average_precisions(Y: NDArray[np.int64], probabilities: NDArray[np.float64]) -> list[float | None]:
    """Return the average precision of each label; None for labels without a positive image."""
    from sklearn.metrics import average_precision_score

    return [
        float(average_precision_score(Y[:, i], probabilities[:, i])) if Y[:, i].any() else None
        for i in range(Y.shape[1])
    ]


def mean_average_precision(averages: Sequence[float | None]) -> float:
    """Return the mean over the labels that have an average precision; 0.0 if none has."""
    known = [value for value in averages if value is not None]
    return float(np.mean(known)) if known else 0.0


def format_labels(metrics: Mapping[str, Any], width: int = 80) -> str:
    """Format the metrics of `evaluate_labels` for a terminal: one line per label, then the totals."""
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

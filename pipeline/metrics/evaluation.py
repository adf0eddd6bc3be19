"""Metrics of a head as plain data."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.errors import UsageError
from pipeline.metrics.intervals import bootstrap_intervals, wilson_interval
from pipeline.metrics.losses import log_losses


def evaluate(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    *,
    majority: int,
    top_k: Sequence[int] = (1, 3, 5),
    units: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute metrics of predicted probabilities.

    Parameters
    ----------
    y_true : int array of shape (n,)
        Indices into `classes`.
    probabilities : float array of shape (n, k)
        Rows add up to 1.
    classes : sequence of k str
    majority : int
        The most frequent class of the *training* labels; always predicting it is the baseline.
    top_k : sequence of int
        Numbers of most probable classes among which the true one counts as correct; numbers of k or more are left
        out. Ties are resolved in the order of `classes`.
    units : int array of shape (n,), optional
        Rows with the same value belong to one group; the bootstrap resamples whole groups.

    Returns
    -------
    dict
        Ready for JSON, never NaN: ``n``, ``classes``, ``accuracy``, ``accuracy_interval`` (95 %, by
        `wilson_interval`; with groups by `bootstrap_intervals`), ``intervals`` (95 %, of the other scores, by
        `bootstrap_intervals`), ``majority`` (``class`` and ``accuracy``), ``top_k`` (str to float),
        ``balanced_accuracy`` (mean recall of the classes present), ``macro_f1`` (mean over the classes present or
        predicted), ``log_loss`` (nats), ``per_class`` (one dict per class: ``class``, ``precision``, ``recall``,
        ``f1``, ``support``; 0.0 where undefined) and ``confusion`` (k lists of k counts; rows are true classes,
        columns predicted ones).

    Raises
    ------
    UsageError
        If there are no rows, or shapes, labels or probabilities do not fit each other.

    Examples
    --------
    >>> p = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    >>> metrics = evaluate(np.array([0, 1, 0, 0]), p, ["cat", "dog"], majority=0)
    >>> metrics["accuracy"], metrics["majority"], metrics["confusion"]
    (0.75, {'class': 'cat', 'accuracy': 0.75}, [[2, 1], [0, 1]])
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    y_true, p = _checked(y_true, probabilities, classes, majority)
    labels = np.arange(len(classes))
    predicted = p.argmax(axis=1)
    precision, recall, f1, support = precision_recall_fscore_support(
        y_true, predicted, labels=labels, zero_division=0.0
    )
    present = support > 0
    seen = present | np.isin(labels, predicted)
    correct = int((predicted == y_true).sum())
    units = np.arange(len(y_true)) if units is None else np.unique(units, return_inverse=True)[1]
    intervals = bootstrap_intervals(y_true, p, units)
    by_bootstrap = intervals.pop("accuracy")
    grouped = len(np.unique(units)) < len(units)
    return {
        "n": len(y_true),
        "classes": [str(name) for name in classes],
        "accuracy": correct / len(y_true),
        # Wilson's interval is accurate also near 0 and 1, but assumes independent images.
        "accuracy_interval": by_bootstrap if grouped else list(wilson_interval(correct, len(y_true))),
        "intervals": intervals,
        "majority": {"class": str(classes[majority]), "accuracy": float((y_true == majority).mean())},
        "top_k": _top_k(y_true, p, top_k),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[seen].mean()),
        "log_loss": float(log_losses(y_true, p).mean()),
        "per_class": [
            {
                "class": str(name),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(classes)
        ],
        "confusion": confusion_matrix(y_true, predicted, labels=labels).tolist(),
    }


def _checked(
    y_true: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], majority: int
) -> tuple[np.ndarray, np.ndarray]:
    """Check the arguments; return labels, and probabilities in float64 whose rows sum to 1."""
    y_true, p = np.asarray(y_true), np.asarray(probabilities, dtype=np.float64)
    k = len(classes)
    if y_true.ndim != 1 or len(y_true) == 0 or not np.issubdtype(y_true.dtype, np.integer):
        raise UsageError(
            f"y_true is an array of shape {y_true.shape} and type {y_true.dtype}; expected (n,) whole numbers"
            " with n of at least 1"
        )
    if p.shape != (len(y_true), k):
        raise UsageError(
            f"probabilities have the shape {p.shape}; expected {(len(y_true), k)}: one row per label, one"
            " column per class"
        )
    if y_true.min() < 0 or y_true.max() >= k or not 0 <= majority < k:
        raise UsageError(
            f"labels run from {y_true.min()} to {y_true.max()} and majority is {majority}; expected indices of"
            f" the {k} classes, 0 to {k - 1}"
        )
    sums = p.sum(axis=1)
    if not (np.isfinite(p).all() and p.min() >= 0 and np.allclose(sums, 1.0, atol=1e-2)):
        raise UsageError(
            f"probabilities run from {p.min()} to {p.max()} with row sums from {sums.min()} to {sums.max()};"
            " expected numbers of at least 0, with rows that add up to 1"
        )
    return y_true, p / sums[:, None]


def _top_k(y_true: np.ndarray, p: np.ndarray, top_k: Sequence[int]) -> dict[str, float]:
    own = p[np.arange(len(y_true)), y_true][:, None]  # probability of the true class
    before = np.arange(p.shape[1]) < y_true[:, None]
    rank = ((p > own) | ((p == own) & before)).sum(axis=1)  # 0 is the most probable class
    return {str(k): float((rank < k).mean()) for k in sorted(set(top_k)) if 0 < k < p.shape[1]}

"""Metrics of two classes: the area under the ROC curve, and precision and recall by threshold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.wording import printable, shorten

THRESHOLDS = tuple(i / 10 for i in range(1, 10))


def two_class_facts(
    y_true: NDArray[np.int64], probabilities: NDArray[np.float64], classes: Sequence[str]
) -> dict[str, Any]:
    """Return the metrics that only two classes have; an empty dict for any other number of classes.

    Parameters
    ----------
    y_true : int array of shape (n,)
    probabilities : float array of shape (n, 2)
    classes : sequence of str
        The second one is the positive class.

    Returns
    -------
    dict
        Ready for JSON: ``positive`` (name), ``roc_auc`` (0 to 1; None if only one class is present) and
        ``thresholds``, a list of ``{"threshold", "precision", "recall", "specificity"}``. A score is None where it is
        undefined: no image predicted positive, no positive image, or no negative one.

    Examples
    --------
    >>> p = np.array([0.1, 0.4, 0.35, 0.8])
    >>> facts = two_class_facts(np.array([0, 0, 1, 1]), np.stack([1 - p, p], axis=1), ["cat", "dog"])
    >>> facts["roc_auc"], facts["thresholds"][4]
    (0.75, {'threshold': 0.5, 'precision': 1.0, 'recall': 0.5, 'specificity': 1.0})
    """
    if len(classes) != 2:
        return {}
    from sklearn.metrics import roc_auc_score

    positive, score = np.asarray(y_true) == 1, np.asarray(probabilities)[:, 1]
    both_present = 0 < positive.sum() < len(positive)
    rows = []
    for threshold in THRESHOLDS:
        predicted = score >= threshold
        rows.append(
            {
                "threshold": threshold,
                "precision": _share(positive, predicted),
                "recall": _share(predicted, positive),
                "specificity": _share(~predicted, ~positive),
            }
        )
    return {
        "positive": str(classes[1]),
        "roc_auc": float(roc_auc_score(positive, score)) if both_present else None,
        "thresholds": rows,
    }


def format_two_class(metrics: Mapping[str, Any], width: int = 80) -> list[str]:
    """Return the lines of the threshold table for a terminal; an empty list unless there are two classes."""
    if "thresholds" not in metrics:
        return []
    auc = "-" if metrics["roc_auc"] is None else f"{metrics['roc_auc']:.3f}"
    lines = [
        "",
        f"ROC AUC {auc}; thresholds on the probability of " + shorten(printable(metrics["positive"]), width - 50),
        "threshold  precision   recall  specificity",
    ]
    for row in metrics["thresholds"]:
        cells = ("-" if row[name] is None else f"{row[name]:.3f}" for name in ("precision", "recall", "specificity"))
        lines.append("{:>9.1f}{:>11}{:>9}{:>13}".format(row["threshold"], *cells))
    return lines


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float | None:
    """Return the fraction of `whole` that is in `part`, None if it is empty."""
    return float((part & whole).sum() / whole.sum()) if whole.any() else None

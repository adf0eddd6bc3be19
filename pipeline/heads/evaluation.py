"""Metrics of a head as plain data, and as tables for a terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import UsageError
from pipeline.wording import display_width, printable, shorten

_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
_COLUMNS = (("precision", 11), ("recall", 9), ("F1", 8), ("images", 10))
_MIN_WIDTH = 60
_MAX_PAIRS = 10


def evaluate(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    *,
    majority: int,
    top_k: Sequence[int] = (1, 3, 5),
    units: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compare probabilities with true labels.

    Parameters
    ----------
    y_true : int array of shape (n,)
        Indices into `classes`.
    probabilities : float array of shape (n, k)
        Rows add up to 1.
    classes : sequence of k str
    majority : int
        The commonest class of the *training* labels: always answering it is the baseline.
    top_k : sequence of int
        How many most probable classes to look among; those that are not below k are left out. Of
        equally probable classes the first in `classes` counts as the more probable one.
    units : int array of shape (n,), optional
        Rows with the same value belong to one group: intervals draw whole groups.

    Returns
    -------
    dict
        Ready for JSON, without a NaN: ``n``, ``classes``, ``accuracy``, ``accuracy_interval`` (95 %, see
        `wilson_interval`; with groups that of `bootstrap_intervals`), ``intervals`` (95 %, of the other scores, see
        `bootstrap_intervals`), ``majority`` (``class`` and ``accuracy``), ``top_k`` (str to float),
        ``balanced_accuracy`` (mean recall of the classes present), ``macro_f1`` (mean over the
        classes present or predicted), ``log_loss`` (nats), ``per_class`` (one dict a class: ``class``,
        ``precision``, ``recall``, ``f1``, ``support``; 0.0 where undefined) and ``confusion`` (k lists of
        k counts, rows true, columns predicted).

    Raises
    ------
    UsageError
        If there is no row, or shapes, labels or probabilities do not fit each other.

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
    by_draws = intervals.pop("accuracy")
    grouped = len(np.unique(units)) < len(units)
    return {
        "n": len(y_true),
        "classes": [str(name) for name in classes],
        "accuracy": correct / len(y_true),
        # Score intervals hold what they promise also near 0 and 1, but only for images that stand on their own.
        "accuracy_interval": by_draws if grouped else list(wilson_interval(correct, len(y_true))),
        "intervals": intervals,
        "majority": {"class": str(classes[majority]), "accuracy": float((y_true == majority).mean())},
        "top_k": _top_k(y_true, p, top_k),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[seen].mean()),
        "log_loss": _log_loss(y_true, p),
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


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Give the 95 % score interval of a proportion (Wilson, "Probable inference ...", JASA 1927).

    Parameters
    ----------
    successes : int
        0 to n.
    n : int
        At least 1.

    Returns
    -------
    tuple of two float
        Lower and upper bound, within 0 and 1.

    Examples
    --------
    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # min and max with the share: at 0 and n rounding must not push a bound past it.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def bootstrap_intervals(
    y_true: np.ndarray, p: np.ndarray, units: np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> dict[str, list[float]]:
    """Give 95 % percentile intervals of scores by drawing units again with replacement.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; whole groups are drawn, since images
    of one group are not independent of each other.

    Parameters
    ----------
    y_true : int array of shape (n,)
    p : float array of shape (n, k)
    units : int array of shape (n,)
        0 to the number of units less one.
    seed : int
    resamples : int

    Returns
    -------
    dict
        Lower and upper bound of ``accuracy``, ``balanced_accuracy``, ``macro_f1`` and ``log_loss``.

    Examples
    --------
    >>> p = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    >>> bootstrap_intervals(np.array([0, 1, 0, 0]), p, np.arange(4))["accuracy"]
    [0.25, 1.0]
    """
    rng = np.random.default_rng(seed)
    k, count = p.shape[1], int(units.max()) + 1
    predicted = p.argmax(axis=1)
    right = (predicted == y_true).astype(float)
    losses = -np.log(np.clip(p[np.arange(len(y_true)), y_true], np.finfo(p.dtype).eps, 1.0))
    names = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
    drawn = np.empty((resamples, len(names)))
    for row in drawn:
        weights = np.bincount(rng.integers(count, size=count), minlength=count)[units].astype(float)
        hits, support, answers = (
            np.bincount(labels, each, k)
            for labels, each in ((y_true, weights * right), (y_true, weights), (predicted, weights))
        )
        present, seen = support > 0, support + answers > 0
        row[:] = (
            hits.sum() / weights.sum(),
            (hits[present] / support[present]).mean(),
            (2 * hits[seen] / (support + answers)[seen]).mean(),
            (weights * losses).sum() / weights.sum(),
        )
    bounds = np.percentile(drawn, [2.5, 97.5], axis=0).T
    return {name: [float(low), float(high)] for name, (low, high) in zip(names, bounds, strict=True)}


def format_table(metrics: Mapping[str, Any], width: int = 80) -> str:
    """Lay out the metrics for a terminal: one line a class, then the totals and the baseline.

    Parameters
    ----------
    metrics : mapping
        From `evaluate`.
    width : int
        Columns of the terminal, at least 60; no line is longer.

    Returns
    -------
    str
        Lines without a newline at the end.

    Raises
    ------
    UsageError
        If `width` is below 60.

    Examples
    --------
    >>> p = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    >>> print(format_table(evaluate(np.array([0, 1, 0, 0]), p, ["cat", "dog"], majority=0)))
    class  precision   recall      F1    images
    cat        1.000    0.667   0.800         3
    dog        0.500    1.000   0.667         1
    <BLANKLINE>
    accuracy 0.750 on 4 images (95 % interval 0.301 to 0.954)
    majority baseline 0.750 (always cat)
    balanced accuracy 0.833 (0.250 to 1.000)   macro F1 0.733 (0.200 to 1.000)
    log loss 0.511 (0.164 to 0.959)
    """
    names = [printable(row["class"]) for row in metrics["per_class"]]
    room = _checked_width(width) - sum(size for _, size in _COLUMNS)
    column = min(room, max(display_width(name) for name in [*names, "class"]))
    lines = [_pad("class", column) + "".join(title.rjust(size) for title, size in _COLUMNS)]
    for name, row in zip(names, metrics["per_class"], strict=True):
        cells = (f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{row['f1']:.3f}", str(row["support"]))
        numbers = "".join(cell.rjust(size) for cell, (_, size) in zip(cells, _COLUMNS, strict=True))
        lines.append(_pad(name, column) + numbers)
    low, high = metrics["accuracy_interval"]
    majority = metrics["majority"]
    scores = [("balanced accuracy", "balanced_accuracy"), ("macro F1", "macro_f1"), ("log loss", "log_loss")]
    parts = [f"{title} {metrics[key]:.3f}{_bounds(metrics, key)}" for title, key in scores]
    parts += [f"top-{k} {value:.3f}" for k, value in metrics["top_k"].items() if k != "1"]
    baseline = f"majority baseline {majority['accuracy']:.3f} (always "
    lines += [
        "",
        f"accuracy {metrics['accuracy']:.3f} on {metrics['n']} images (95 % interval {low:.3f} to {high:.3f})",
        baseline + shorten(printable(majority["class"]), width - len(baseline) - 1) + ")",
        *_wrap(parts, width),
    ]
    return "\n".join(lines)


def format_confusion(metrics: Mapping[str, Any], width: int = 80) -> str:
    """Lay out which class was taken for which: the whole matrix where it fits, else the worst pairs.

    Parameters
    ----------
    metrics : mapping
        From `evaluate`.
    width : int
        Columns of the terminal, at least 60; no line is longer.

    Returns
    -------
    str
        Lines without a newline at the end.

    Raises
    ------
    UsageError
        If `width` is below 60.

    Examples
    --------
    >>> p = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    >>> print(format_confusion(evaluate(np.array([0, 1, 0, 0]), p, ["cat", "dog"], majority=0)))
    rows are true classes, columns predicted ones
             1  2
    1 cat    2  1
    2 dog    0  1
    """
    _checked_width(width)
    names = [printable(name) for name in metrics["classes"]]
    counts = metrics["confusion"]
    cell = 2 + max(len(str(number)) for number in [len(names), *(c for row in counts for c in row)])
    rows = [f"{i} {name}" for i, name in enumerate(names, start=1)]
    column = 2 + min(24, max(display_width(row) for row in rows))
    if column + cell * len(names) > width:
        return "\n".join(_worst_pairs(names, counts, width))
    lines = [
        "rows are true classes, columns predicted ones",
        " " * column + "".join(str(i).rjust(cell) for i in range(1, len(names) + 1)),
    ]
    for row, numbers in zip(rows, counts, strict=True):
        lines.append(_pad(shorten(row, column - 2), column) + "".join(str(c).rjust(cell) for c in numbers))
    return "\n".join(lines)


def _checked(
    y_true: np.ndarray, probabilities: np.ndarray, classes: Sequence[str], majority: int
) -> tuple[np.ndarray, np.ndarray]:
    """Check what belongs together; give labels, and probabilities in float64 whose rows sum to 1."""
    y_true, p = np.asarray(y_true), np.asarray(probabilities, dtype=np.float64)
    k = len(classes)
    if y_true.ndim != 1 or len(y_true) == 0 or not np.issubdtype(y_true.dtype, np.integer):
        raise UsageError(
            f"y_true is an array of shape {y_true.shape} and type {y_true.dtype}; expected (n,) whole numbers"
            " with n of at least 1"
        )
    if p.shape != (len(y_true), k):
        raise UsageError(
            f"probabilities have the shape {p.shape}; expected {(len(y_true), k)}: a row for each label, a"
            " column for each class"
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
            " expected numbers of at least 0 whose rows add up to 1"
        )
    return y_true, p / sums[:, None]


def _top_k(y_true: np.ndarray, p: np.ndarray, top_k: Sequence[int]) -> dict[str, float]:
    own = p[np.arange(len(y_true)), y_true][:, None]
    before = np.arange(p.shape[1]) < y_true[:, None]
    rank = ((p > own) | ((p == own) & before)).sum(axis=1)  # 0 is the most probable class
    return {str(k): float((rank < k).mean()) for k in sorted(set(top_k)) if 0 < k < p.shape[1]}


def _log_loss(y_true: np.ndarray, p: np.ndarray) -> float:
    """Mean of -ln(probability of the true class), clipped as scikit-learn does; any number of classes."""
    own = np.clip(p[np.arange(len(y_true)), y_true], np.finfo(p.dtype).eps, 1.0)
    return abs(float(np.log(own).mean()))  # abs: no -0.0


def _checked_width(width: int) -> int:
    if width < _MIN_WIDTH:
        raise UsageError(f"a width of {width} columns is too narrow for the table; give at least {_MIN_WIDTH}")
    return width


def _pad(text: str, width: int) -> str:
    text = shorten(text, width)
    return text + " " * (width - display_width(text))


def _bounds(metrics: Mapping[str, Any], key: str) -> str:
    low, high = metrics.get("intervals", {}).get(key, (None, None))
    return "" if low is None else f" ({low:.3f} to {high:.3f})"


def _wrap(parts: Sequence[str], width: int) -> list[str]:
    lines = [parts[0]]
    for part in parts[1:]:
        joined = f"{lines[-1]}   {part}"
        if len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines


def _worst_pairs(names: Sequence[str], counts: Sequence[Sequence[int]], width: int) -> list[str]:
    pairs = [(c, t, p) for t, row in enumerate(counts) for p, c in enumerate(row) if c and t != p]
    if not pairs:
        return ["no image was taken for another class"]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    lines = ["most frequent confusions: how many images of a class were taken for which other"]
    lines[0] = shorten(lines[0], width)
    for count, true, predicted in pairs[:_MAX_PAIRS]:
        numbers = f"{count} of {sum(counts[true])}  "
        room = (width - len(numbers) - len(" as ")) // 2
        lines.append(f"{numbers}{shorten(names[true], room)} as {shorten(names[predicted], room)}")
    if len(pairs) > _MAX_PAIRS:
        rest = sum(count for count, _, _ in pairs[_MAX_PAIRS:])
        lines.append(f"and {len(pairs) - _MAX_PAIRS} other pairs with {rest} images")
    return lines

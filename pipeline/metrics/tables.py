"""Metrics formatted for a terminal: the table of classes and the confusion matrix."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import UsageError
from pipeline.wording import display_width, printable, shorten

_COLUMNS = (("precision", 11), ("recall", 9), ("F1", 8), ("images", 10))
_MIN_WIDTH = 60
_MAX_PAIRS = 10


def format_table(metrics: Mapping[str, Any], width: int = 80) -> str:
    """Format the metrics for a terminal: one line per class, then the totals and the baseline.

    Parameters
    ----------
    metrics : mapping
        From `evaluate`.
    width : int
        Columns of the terminal, at least 60; the maximum length of a line.

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
    >>> import numpy as np
    >>> from pipeline.metrics.evaluation import evaluate
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
    available = _checked_width(width) - sum(size for _, size in _COLUMNS)
    column = min(available, max(display_width(name) for name in [*names, "class"]))
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
    """Format the confusion matrix for a terminal, or its most frequent confusions if it is too wide.

    Parameters
    ----------
    metrics : mapping
        From `evaluate`.
    width : int
        Columns of the terminal, at least 60; the maximum length of a line.

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
    >>> import numpy as np
    >>> from pipeline.metrics.evaluation import evaluate
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
        return ["no image was misclassified"]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    lines = ["most frequent confusions: images of a true class predicted as another class"]
    lines[0] = shorten(lines[0], width)
    for count, true, predicted in pairs[:_MAX_PAIRS]:
        numbers = f"{count} of {sum(counts[true])}  "
        available = (width - len(numbers) - len(" as ")) // 2
        lines.append(f"{numbers}{shorten(names[true], available)} as {shorten(names[predicted], available)}")
    if len(pairs) > _MAX_PAIRS:
        rest = sum(count for count, _, _ in pairs[_MAX_PAIRS:])
        lines.append(f"and {len(pairs) - _MAX_PAIRS} other pairs with {rest} images")
    return lines

"""Words of the report page: the result of a head in sentences, and names that fit."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.wording import printable, shorten

_NAME_WIDTH = 40  # columns of a class name; the full name is in its title


def show(text: Any) -> str:
    r"""Replace the characters of a name that cannot be printed by their escapes.

    >>> print(show("a\udc80\n.jpg"))
    a\udc80\n.jpg
    """
    return printable(str(text))


def short(text: Any, columns: int = _NAME_WIDTH) -> str:
    """Shorten a long name.

    >>> short("a name as long as this", 12)
    'a name as l…'
    """
    return shorten(show(text), columns)


def verdict(metrics: Mapping[str, Any], split: str) -> str:
    """Describe the result of a head in two or three sentences.

    Parameters
    ----------
    metrics : mapping
        From `pipeline.metrics.evaluation.evaluate`.
    split : str
        What it was scored on.

    Returns
    -------
    str

    Examples
    --------
    >>> from pipeline.metrics.evaluation import evaluate
    >>> p = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    >>> text = verdict(evaluate(np.array([0, 1, 0, 0]), p, ["cat", "dog"], majority=0), "test")
    >>> print(text[:96])
    Correct on 3 of 4 test images: accuracy 75.0 % (95 % confidence interval: 30.1 % to 95.4 %). Alw
    """
    low, high = metrics["accuracy_interval"]
    where = f"{split} images"
    if split == "cross-validation":
        where = "training images, each predicted by a head that was trained without it"
    matrix = np.array(metrics["confusion"])
    baseline = metrics["majority"]
    text = (
        f"Correct on {int(np.trace(matrix)):,} of {metrics['n']:,} {where}: accuracy {_percent(metrics['accuracy'])}"
        f" (95 % confidence interval: {_percent(low)} to {_percent(high)}). Always answering"
        f" {short(baseline['class'])} would reach {_percent(baseline['accuracy'])}."
    )
    mistakes = matrix - np.diag(np.diag(matrix))
    if not mistakes.any():
        return f"{text} There were no mistakes."
    true, predicted = np.unravel_index(int(mistakes.argmax()), mistakes.shape)
    names = metrics["classes"]
    return (
        f"{text} Most frequent mistake: {short(names[true])} predicted as {short(names[predicted])}"
        f" ({int(mistakes[true, predicted]):,} of {int(matrix[true].sum()):,})."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

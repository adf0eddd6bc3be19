"""Learning curve: accuracy against the number of training images, and the gain to expect from more of them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.training.fitting import Fitter, Rows

_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_REPEATS = 3  # subsets of each smaller size
_FOLDS = 3
_RESAMPLES = 400
_EXPONENTS = np.linspace(0.05, 2.0, 40)
_WORTH = 0.01  # a gain in accuracy below this counts as hardly any
_FEWEST_POINTS = 4


def learning_curve(fitter: Fitter, head: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Fit a head on nested subsets of the training split of growing size, and extrapolate its accuracy.

    A subset has the same share of every class, and whole groups. The accuracy is that on the validation split, or,
    if there is none, on folds of the training split. An inverse power law, error = floor + scale * images **
    -exponent (Cortes et al., "Learning Curves: Asymptotic Values and Rate of Convergence", NIPS 1993), is fitted
    to the errors; its intervals come from a bootstrap over the scored images (or groups).

    Parameters
    ----------
    fitter : Fitter
    head : str
    params : mapping
        The same for every subset.

    Returns
    -------
    dict
        Ready for JSON: ``scored_on``; ``points``, each with ``images``, ``per_class`` (mean images per class),
        ``accuracy`` and ``interval`` (95 %); ``fit`` with ``floor``, ``scale`` and ``exponent``, or None if the
        law does not fit the points; ``extrapolation``, for two and four times the images ``images``,
        ``accuracy`` and ``interval``, empty without a fit; ``verdict``, a sentence.
    """
    sizes, right, units, scored_on = _measure(fitter, head, params)
    draws = _resampled(units, fitter.seed) @ right.T  # (resamples, sizes): accuracies
    accuracies = right.mean(axis=1)
    classes = len(np.unique(fitter.data.y[fitter.data.rows("train")]))
    points = [
        {
            "images": int(size),
            "per_class": round(float(size / classes), 1),
            "accuracy": float(accuracy),
            "interval": _interval(drawn),
        }
        for size, accuracy, drawn in zip(sizes, accuracies, draws.T, strict=True)
    ]
    law, reason = extrapolate(sizes, 1.0 - accuracies, 1.0 - draws)
    result: dict[str, Any] = {"scored_on": scored_on, "points": points, "fit": None, "extrapolation": []}
    if law is None:
        return {**result, "verdict": f"no extrapolation: {reason}"}
    more = [
        {"images": int(size), "accuracy": float(1 - law.error(size)), "interval": _interval(1 - law.band(size))}
        for size in (2 * sizes[-1], 4 * sizes[-1])
    ]
    return {
        **result,
        "fit": law.to_dict(),
        "extrapolation": more,
        "verdict": law.verdict(sizes[-1], 1 - accuracies[-1], 1 - draws[:, -1]),
    }


class PowerLaw:
    """An inverse power law, ``error = floor + scale * images ** -exponent``, and those of bootstrap resamples.

    Parameters
    ----------
    best : ndarray of float64, shape (3,)
        Floor, scale, exponent.
    drawn : ndarray of float64, shape (resamples, 3)
    """

    def __init__(self, best: NDArray[np.float64], drawn: NDArray[np.float64]) -> None:
        self.best, self.drawn = best, drawn

    def error(self, images: float) -> float:
        """Return the expected error with this many images."""
        return float(_law(self.best, images))

    def band(self, images: float) -> NDArray[np.float64]:
        """Return the expected error of each resample, shape (resamples,)."""
        return np.asarray(_law(self.drawn.T, images))

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers by name."""
        return dict(zip(("floor", "scale", "exponent"), map(float, self.best), strict=True))

    def verdict(self, images: float, error: float, drawn: NDArray[np.float64]) -> str:
        """Describe the expected gain from doubling the training images.

        Parameters
        ----------
        images : float
            Training images now.
        error : float
            Measured with them.
        drawn : ndarray of float64, shape (resamples,)
            The same error in each resample.
        """
        gain = error - self.error(2 * images)
        low, high = _interval(drawn - self.band(2 * images))
        text = (
            f"twice as many images would add about {gain:.3f} to the accuracy (95 % interval {low:.3f} to {high:.3f})"
        )
        if low >= _WORTH:
            return f"more images would help: {text}"
        return f"more images would hardly help: {text}" if high < _WORTH else f"more images may help: {text}"


def extrapolate(
    sizes: NDArray[np.int64], errors: NDArray[np.float64], draws: NDArray[np.float64]
) -> tuple[PowerLaw | None, str]:
    """Fit an inverse power law, unless the points do not support one.

    Parameters
    ----------
    sizes : ndarray of int, shape (s,)
        Training images, ascending.
    errors : ndarray of float, shape (s,)
    draws : ndarray of float, shape (resamples, s)
        The errors in bootstrap resamples of the scored images.

    Returns
    -------
    law : PowerLaw or None
    reason : str
        Why there is none, else empty.
    """
    if len(sizes) < _FEWEST_POINTS:
        return None, f"{len(sizes)} sizes are too few, {_FEWEST_POINTS} are needed; add images"
    spread = np.maximum(draws.std(axis=0), 1e-3)
    best = _fit(sizes, errors[None], spread)[0]
    misfit = np.abs(_law(best, sizes) - errors) / spread
    if misfit.max() > 2:
        worst = f"{sizes[misfit.argmax()]:,} images"
        return None, f"no power law fits, the point of {worst} is {misfit.max():.1f} standard errors off"
    law = PowerLaw(best, _fit(sizes, draws, spread))
    low, high = _interval(law.band(2 * sizes[-1]))
    if high - low > 0.2:
        return None, f"the accuracy with twice as many images could be anything from {1 - high:.2f} to {1 - low:.2f}"
    return law, ""


def format_curve(curve: Mapping[str, Any], width: int = 80) -> str:
    """Lay out a learning curve for a terminal.

    Parameters
    ----------
    curve : mapping
        From `learning_curve`.
    width : int
        Columns of the terminal, at least 60.

    Returns
    -------
    str
        Lines without a newline at the end.
    """
    import textwrap

    lines = ["training images  a class  accuracy  95 % interval"]
    rows = [(row, f"{row['per_class']:.1f}") for row in curve["points"]]
    rows += [(row, "estimate") for row in curve["extrapolation"]]
    for row, per_class in rows:
        low, high = row["interval"]
        lines.append(f"{row['images']:>15,}{per_class:>9}{row['accuracy']:>10.3f}  {low:.3f} to {high:.3f}")
    return "\n".join([*lines, *textwrap.wrap(curve["verdict"], width)])


def _measure(
    fitter: Fitter, head: str, params: Mapping[str, Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], str]:
    """Return sizes (s,), shares of right predictions of each scored image at each size (s, n), its units, its split."""
    data = fitter.data
    train, validation = data.rows("train"), data.rows("validation")
    pairs = [(train, validation)] if len(validation) else fitter.folds(_FOLDS, train)
    scored = np.concatenate([outer for _, outer in pairs])
    found: dict[int, NDArray[np.float64]] = {}
    for share in _SHARES:
        used, right = [], []
        for inner, outer in pairs:
            repeats = _REPEATS if share < 1 else 1
            parts = [_part(fitter, inner, share, repeat) for repeat in range(repeats)]
            heads = [next(fitter.fit(head, [params], part)) for part in parts]
            hits = [fitter.probabilities(each, outer).argmax(axis=1) == data.y[outer] for each in heads]
            used.append(np.mean([len(part) for part in parts]))
            right.append(np.mean(hits, axis=0))
        found[round(float(np.mean(used)))] = np.concatenate(right)
    sizes = np.array(sorted(found), np.int64)
    right_at = np.array([found[size] for size in sizes.tolist()])
    return sizes, right_at, data.units[scored], "validation" if len(validation) else "cross-validation"


def _part(fitter: Fitter, rows: Rows, share: float, repeat: int) -> Rows:
    """Return a share of the units of each class, at least one unit; smaller shares are subsets of larger ones."""
    rng = np.random.default_rng([fitter.seed, repeat])
    y, units = fitter.data.y[rows], fitter.data.units[rows]
    kept: set[int] = set()
    for label in np.unique(y):
        own = rng.permutation(np.unique(units[y == label]))
        kept.update(own[: math.ceil(share * len(own))].tolist())
    return rows[np.isin(units, sorted(kept))]


def _resampled(units: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return the weight of each image in bootstrap resamples of whole units, (resamples, n); rows add up to 1."""
    codes = np.unique(units, return_inverse=True)[1]
    count = int(codes.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), _RESAMPLES)[:, codes]
    return np.asarray(drawn / drawn.sum(axis=1, keepdims=True))


def _fit(sizes: NDArray[np.int64], errors: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit (floor, scale, exponent) to each row of errors by weighted least squares, floor and scale at least 0."""
    weights = 1 / spread**2
    best, lowest = np.zeros((len(errors), 3)), np.full(len(errors), np.inf)
    for exponent in _EXPONENTS:
        x = (sizes / sizes[0]) ** -exponent  # relative to the first size, for small numbers
        mean, means = np.average(x, weights=weights), np.average(errors, axis=1, weights=weights)
        scale = ((errors - means[:, None]) * (x - mean) * weights).sum(axis=1) / ((x - mean) ** 2 * weights).sum()
        scale = np.maximum(scale, 0.0)
        floor = means - scale * mean
        below = floor < 0
        floor[below] = 0.0
        scale[below] = (errors[below] * x * weights).sum(axis=1) / (x**2 * weights).sum()
        loss = ((floor[:, None] + scale[:, None] * x - errors) ** 2 * weights).sum(axis=1)
        better = loss < lowest
        lowest[better] = loss[better]
        best[better] = np.column_stack([floor, scale * sizes[0] ** exponent, np.full(len(errors), exponent)])[better]
    return best


def _law(numbers: Any, images: Any) -> Any:
    floor, scale, exponent = numbers
    return floor + scale * np.power(np.asarray(images, float), -exponent)


def _interval(values: NDArray[np.float64]) -> list[float]:
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]

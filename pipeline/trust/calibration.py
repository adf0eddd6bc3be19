"""Calibration of probabilities, learned from held-out images: a temperature, or isotonic curves."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError, UsageError
from pipeline.heads.arrays import from_npz, softmax, to_npz
from pipeline.metrics.losses import log_losses
from pipeline.trust.options import METHODS

# Pseudo-counts that are distributed among all classes before a temperature is fitted: votes of neighbours and
# trees contain zeros, which no temperature can raise.
_SMOOTHING = (1e-6, 1e-3, 0.01, 0.03, 0.1, 0.3)
_NAMES = ("smoothing", "temperature", "x", "y", "sizes")


@dataclass(frozen=True, eq=False)
class Calibration:
    """A map from the probabilities of a head to calibrated ones; applying it needs only NumPy.

    Parameters
    ----------
    smoothing : float
        Pseudo-counts distributed among the classes: p becomes (p + smoothing / k) / (1 + smoothing).
    temperature : float
        Then softmax(log(p) / temperature); see `pipeline.heads.temperature.fit_temperature`.
    curves : tuple of two float64 arrays, or empty
        One per class, each of shape (2, knots): the knots x and y of the isotonic curve that replaces smoothing
        and temperature. The results are scaled to add up to 1.

    Examples
    --------
    >>> Calibration(temperature=2.0).apply(np.array([[0.8, 0.2]])).round(3).tolist()
    [[0.667, 0.333]]
    """

    smoothing: float = 0.0
    temperature: float = 1.0
    curves: tuple[NDArray[np.float64], ...] = ()

    def apply(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return calibrated probabilities, float64 (n, k); rows add up to 1."""
        if self.curves:
            return self._isotonic(probabilities)
        return softmax(_smoothed_logits(probabilities, self.smoothing) / self.temperature)

    def _isotonic(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        if p.shape[1] != len(self.curves):
            raise IntegrityError(
                f"the calibration has {len(self.curves)} curves for {p.shape[1]} classes; train the bundle again"
            )
        mapped = np.column_stack([np.interp(p[:, k], *curve) for k, curve in enumerate(self.curves)])
        total = mapped.sum(axis=1, keepdims=True)
        # If every curve is 0 there, nothing was learned about such probabilities, and they stay.
        return np.asarray(np.where(total > 0, mapped / np.where(total > 0, total, 1.0), p))

    def to_bytes(self) -> bytes:
        """Return the arrays as an ``.npz`` archive."""
        sizes = np.array([curve.shape[1] for curve in self.curves], np.int64)
        x, y = np.hstack(self.curves) if self.curves else np.empty((2, 0))
        return to_npz(smoothing=self.smoothing, temperature=self.temperature, x=x, y=y, sizes=sizes)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Calibration":
        """Read the result of `to_bytes`; nothing is unpickled.

        Raises
        ------
        IntegrityError
            If these are not the arrays of a calibration.
        """
        with from_npz(data, _NAMES, "the calibration") as (smoothing, temperature, x, y, sizes):
            stacked = np.stack([x, y]).astype(np.float64)
            parts = np.split(stacked, np.cumsum(sizes)[:-1], axis=1) if len(sizes) else []
            found = cls(float(smoothing), float(temperature), tuple(parts))
        valid = found.smoothing >= 0 and found.temperature > 0 and all(part.shape[1] for part in parts)
        if not (valid and np.isfinite([found.smoothing, found.temperature]).all() and np.isfinite(stacked).all()):
            raise IntegrityError("the calibration contains invalid numbers; train the bundle again")
        return found


def fit_calibration(method: str, y_true: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Calibration:
    """Learn a calibration from images that the head was not fitted on.

    Parameters
    ----------
    method : str
        ``"temperature"``: one number, which never changes the most probable class (Guo et al., "On Calibration of
        Modern Neural Networks", ICML 2017), with the pseudo-counts that have the smallest log loss.
        ``"isotonic"``: one monotonic curve per class against the others, by scikit-learn (Zadrozny and Elkan,
        "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002); it corrects any
        monotonic distortion, needs some hundred images, and can change the most probable class.
    y_true : int array of shape (n,)
    probabilities : float array of shape (n, k)
        Out of fold, or of images of another split.

    Returns
    -------
    Calibration

    Raises
    ------
    UsageError
        If the method is unknown.

    Examples
    --------
    >>> p = np.array([[0.99, 0.01]] * 10)  # overconfident: right eight times in ten
    >>> calibration = fit_calibration("temperature", np.array([0] * 8 + [1] * 2), p)
    >>> bool(0.7 < calibration.apply(p)[0, 0] < 0.85)
    True
    """
    if method == "isotonic":
        return Calibration(
            curves=tuple(_curve(probabilities[:, k], y_true == k) for k in range(probabilities.shape[1]))
        )
    if method != "temperature":
        raise UsageError(f"calibration {method!r} is unknown; expected one of {', '.join(METHODS)}")
    candidates = []
    for smoothing in _SMOOTHING:
        calibration = Calibration(smoothing, fit_temperature_to(y_true, probabilities, smoothing))
        candidates.append((float(log_losses(y_true, calibration.apply(probabilities)).mean()), calibration))
    return min(candidates, key=lambda pair: pair[0])[1]


def fit_temperature_to(
    y_true: NDArray[np.int64], probabilities: NDArray[np.float64], smoothing: float = 1e-12
) -> float:
    """Fit a temperature to probabilities instead of logits; see `pipeline.heads.temperature.fit_temperature`."""
    from pipeline.heads.temperature import fit_temperature

    return fit_temperature(_smoothed_logits(probabilities, smoothing), y_true)


def across_halves(
    method: str, y_true: NDArray[np.int64], probabilities: NDArray[np.float64], seed: int = 0
) -> NDArray[np.float64]:
    """Calibrate each half of held-out images with a calibration fitted to the other half, to measure its effect.

    Parameters
    ----------
    method, y_true, probabilities
        As in `fit_calibration`.
    seed : int
        Of the halves.

    Returns
    -------
    float64 array of shape (n, k)

    Examples
    --------
    >>> p = np.array([[0.9, 0.1], [0.6, 0.4]] * 10)
    >>> across_halves("temperature", np.array([0, 1] * 10), p).shape
    (20, 2)
    """
    order = np.random.default_rng(seed).permutation(len(y_true))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    mapped = np.empty_like(probabilities)
    for learn, apply in (halves, halves[::-1]):
        mapped[apply] = fit_calibration(method, y_true[learn], probabilities[learn]).apply(probabilities[apply])
    return mapped


def _smoothed_logits(p: NDArray[np.float64], smoothing: float) -> NDArray[np.float64]:
    smooth = (p + smoothing / p.shape[1]) / (1 + smoothing)
    return np.asarray(np.log(np.maximum(smooth, 1e-300)))


def _curve(p: NDArray[np.float64], is_class: NDArray[np.bool_]) -> NDArray[np.float64]:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(p, is_class)
    return np.stack([fitted.X_thresholds_, fitted.y_thresholds_]).astype(np.float64)

"""`AffineHead`: an affine map and a softmax, as plain arrays, so that prediction needs only NumPy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError
from pipeline.heads.arrays import from_npz, softmax, to_npz

_NAMES = ("matrix", "offset", "classes")


@dataclass(frozen=True)
class AffineHead:
    """Probabilities as ``softmax(X @ matrix + offset)``.

    Parameters
    ----------
    matrix : ndarray of float64, shape (d, k)
        Standardisation and temperature are folded in.
    offset : ndarray of float64, shape (k,)
    classes_ : ndarray of int64, shape (k,)
        Classes of the columns.

    Examples
    --------
    >>> head = AffineHead(np.array([[0.0, 1.0]]), np.zeros(2), np.arange(2))
    >>> head.predict_proba(np.array([[0.0], [50.0]])).round(3).tolist()
    [[0.5, 0.5], [0.0, 1.0]]
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    classes_: NDArray[np.int64]

    def predict_proba(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probabilities of vectors (n, d), float64 (n, k)."""
        return softmax(X.astype(np.float64) @ self.matrix + self.offset)

    def to_bytes(self) -> bytes:
        """Return the arrays as an ``.npz`` archive."""
        return to_npz(matrix=self.matrix, offset=self.offset, classes=self.classes_)

    @classmethod
    def from_bytes(cls, data: bytes) -> "AffineHead":
        """Read the archive that `to_bytes` wrote; nothing is unpickled.

        Raises
        ------
        IntegrityError
            If the archive is damaged or holds other arrays.
        """
        with from_npz(data, _NAMES, "the arrays of the head") as (matrix, offset, classes):
            pass
        fits = matrix.ndim == 2 and offset.shape == classes.shape == matrix.shape[1:]
        if not fits or {matrix.dtype, offset.dtype} != {np.dtype(np.float64)} or classes.dtype != np.int64:
            raise IntegrityError(
                f"the arrays of the head have shapes {matrix.shape}, {offset.shape}; train the bundle again"
            )
        return cls(matrix, offset, classes)

    @classmethod
    def of(cls, pipeline: Any) -> "AffineHead | None":
        """Fold a fitted pipeline of `make_head` into one affine map; None if it is not affine up to the softmax."""
        from sklearn.linear_model._base import LinearClassifierMixin
        from sklearn.preprocessing import FunctionTransformer, StandardScaler

        from pipeline.heads.softmax_head import SoftmaxHead
        from pipeline.heads.temperature import is_softmax

        last = pipeline[-1]
        linear, temperature = (last.estimator_, last.temperature_) if isinstance(last, SoftmaxHead) else (last, 1.0)
        steps = [step for _, step in pipeline.steps[:-1]]
        scaler = next((step for step in steps if isinstance(step, StandardScaler)), None)
        known = all(isinstance(step, (FunctionTransformer, StandardScaler)) for step in steps)
        has_softmax = isinstance(last, SoftmaxHead) or is_softmax(last)
        if not (known and has_softmax and isinstance(linear, LinearClassifierMixin)):
            return None
        weights = np.atleast_2d(linear.coef_).T.astype(np.float64)
        offset = np.ravel(linear.intercept_).astype(np.float64)
        if weights.shape[1] == 1:  # two classes: scikit-learn keeps one column, the log odds
            weights, offset = np.hstack([0 * weights, weights]), np.concatenate([[0.0], offset])
        if scaler is not None:
            weights = weights / scaler.scale_[:, None]
            offset = offset - scaler.mean_ @ weights
        return cls(weights / temperature, offset / temperature, np.asarray(last.classes_, np.int64))

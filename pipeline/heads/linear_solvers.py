"""Linear heads for a whole path of regularisation strengths, by NumPy and SciPy.

Neighbouring strengths have almost the same work to do: `Scatter` multiplies the vectors once for every strength
of ridge regression and of linear discriminant analysis, `LogisticPath` starts each fit where the one before
ended. The results are the optima that scikit-learn finds, which the tests hold them to.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_RANK = 100  # directions that the preconditioner knows exactly
_MEMORY = 20  # pairs that L-BFGS remembers
_MAX_STEPS = 2000

Array = NDArray[np.floating]
Affine = tuple[NDArray[np.float64], NDArray[np.float64]]


class Scatter:
    """The scatter matrix of vectors, which serves all strengths of ridge regression and of discriminant analysis.

    Each strength takes a Cholesky factorisation, a dozen of which cost what an eigendecomposition does. Where there
    are fewer rows than columns the matrix is the smaller one of inner products.

    Parameters
    ----------
    X : ndarray of float, shape (n, d)
    codes : ndarray of int, shape (n,)
        Class of each row, 0 to k - 1, each class at least once.

    Examples
    --------
    >>> scatter = Scatter(np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([0, 0, 1, 1]))
    >>> coef, intercept = scatter.ridge(1.0)
    >>> coef.round(2).tolist(), intercept.round(2).tolist()
    ([[0.44]], [-1.11])
    """

    def __init__(self, X: Array, codes: NDArray[np.integer]) -> None:
        counts = np.bincount(codes)
        self.shares: NDArray[np.float64] = counts / len(codes)
        self.mean: NDArray[np.float64] = X.mean(axis=0, dtype=np.float64)
        centred = X - self.mean.astype(X.dtype)
        one_hot = np.eye(len(counts), dtype=X.dtype)[codes]
        self.sums: NDArray[np.float64] = (one_hot.T @ centred).astype(np.float64)  # of each class
        self.n, self.dim = X.shape
        self.offsets = self.sums / counts[:, None]  # class means less the mean
        self.means = self.offsets + self.mean
        # The rows of the smaller matrix are used again, and rounding between the two uses would be divided by a ridge.
        self.rows = None if self.n >= self.dim else centred.astype(np.float64)
        inner = centred.T @ centred if self.rows is None else self.rows @ self.rows.T
        self.inner: NDArray[np.float64] = inner.astype(np.float64)
        self.total = float(np.trace(self.inner))
        self.noise = float(np.finfo(inner.dtype).eps) * self.total  # eigenvalues below this may be rounding alone

    def ridge(self, alpha: float) -> Affine:
        """Fit targets of +1 and -1 as scikit-learn's RidgeClassifier does.

        Returns
        -------
        coef : ndarray of float64, shape (k, d), or (1, d) for two classes
        intercept : ndarray of float64, shape (k,), or (1,)
        """
        # The sum of centred targets times centred rows is twice the sum of a class's centred rows.
        coef = self._solve(2.0 * self.sums.T, alpha).T
        intercept = 2.0 * self.shares - 1.0 - coef @ self.mean
        return (coef[1:], intercept[1:]) if len(coef) == 2 else (coef, intercept)

    def lda(self, shrinkage: float) -> Affine:
        """Fit as scikit-learn's LinearDiscriminantAnalysis with solver "lsqr" does, 0 < shrinkage < 1.

        The pooled covariance is the total one less that of the class means, a matrix of rank k - 1, so the
        Woodbury identity reaches it from the same matrix.

        Returns
        -------
        coef : ndarray of float64, shape (k, d), or (1, d) for two classes
        intercept : ndarray of float64, shape (k,), or (1,)
        """
        counts = self.shares * self.n
        within = self.total - float(np.sum(self.offsets**2 * counts[:, None]))
        scale = (1.0 - shrinkage) / self.n
        ridge = max(shrinkage * within / self.n / self.dim, np.finfo(float).tiny) / scale
        near, far = self._solve(np.vstack([self.means, self.offsets]).T, ridge).T.reshape(2, *self.means.shape)
        inner = np.diag(1.0 / counts) - self.offsets @ far.T
        coef = (near + np.linalg.solve(inner, self.offsets @ near.T).T @ far) / scale
        intercept = np.log(self.shares) - 0.5 * np.sum(self.means * coef, axis=1)
        return (coef[1:] - coef[:1], intercept[1:] - intercept[:1]) if len(coef) == 2 else (coef, intercept)

    def _solve(self, right: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
        """Return (X'X + ridge I)^-1 right, also for what lies outside of the rows' span."""
        from scipy.linalg import cho_factor, cho_solve

        if ridge <= self.noise:
            values, basis = self._spectrum
            inside = basis.T @ right
            return basis @ (inside / (values + ridge)[:, None]) + (right - basis @ inside) / ridge
        factor = cho_factor(self.inner + ridge * np.eye(len(self.inner)), overwrite_a=True, check_finite=False)
        if self.rows is None:
            return np.asarray(cho_solve(factor, right, check_finite=False))
        return (right - self.rows.T @ cho_solve(factor, self.rows @ right, check_finite=False)) / ridge

    @cached_property
    def _spectrum(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues of X'X that are more than rounding, and their directions (d, rank)."""
        values, basis = np.linalg.eigh(self.inner)
        kept = values > values[-1] * 1e-7
        values, basis = values[kept], basis[:, kept]
        return values, basis if self.rows is None else self.rows.T @ (basis / np.sqrt(values))


class LogisticPath:
    """Multinomial logistic regression for falling strengths, each fit starting from the one before.

    L-BFGS whose first guess of the curvature is a Nystrom approximation of it (Frangella, Tropp and Udell,
    "Randomized Nystrom Preconditioning", SIAM J. Matrix Anal. Appl. 2023), scaled at each step by how undecided
    the probabilities are. Work is in the type of `X`.

    Parameters
    ----------
    X : ndarray of float32 or float64, shape (n, d)
        Standardised.
    codes : ndarray of int, shape (n,)
        Class of each row, 0 to k - 1, each class at least once.
    weights : ndarray of float, shape (n,), or None
        Of the rows in the loss.
    tol : float
        A fit ends when the next step promises less than this share of what was gained since all coefficients were 0.
    seed : int
        Of the random directions.

    Examples
    --------
    >>> path = LogisticPath(np.array([[-1.0], [-0.5], [0.5], [1.0]]), np.array([0, 0, 1, 1]), tol=1e-9)
    >>> coef, intercept = path.fit(C=1.0)
    >>> coef.round(2).tolist()
    [[0.94]]
    """

    def __init__(
        self, X: Array, codes: NDArray[np.integer], weights: Array | None = None, tol: float = 3e-5, seed: int = 0
    ) -> None:
        self.X = np.asarray(X)
        self.targets = np.eye(int(codes.max()) + 1, dtype=self.X.dtype)[codes]
        self.weights = None if weights is None else np.asarray(weights, self.X.dtype)[:, None]
        total = len(codes) if self.weights is None else float(self.weights.sum())
        self.start = total * float(np.log(self.targets.shape[1]))  # the objective with all coefficients 0
        self.tol, self.seed = tol, seed
        self.point = np.zeros((self.X.shape[1] + 1, self.targets.shape[1]), self.X.dtype)  # last row: intercepts
        self.steps = 0

    @cached_property
    def curvature(self) -> tuple[Array, Array]:
        """Largest eigenvalues of X'X, falling, and their directions (d, rank), by subspace iteration."""
        rank = min(_RANK, *self.X.shape)
        drawn = np.random.default_rng(self.seed).standard_normal((self.X.shape[1], rank))
        basis = drawn.astype(self.X.dtype)
        for _ in range(2):
            basis = np.linalg.qr(self.X.T @ (self.X @ basis))[0]
        image = self.X @ basis
        values, turn = np.linalg.eigh((image.T @ image).astype(np.float64))
        return np.maximum(values[::-1], 0.0).astype(self.X.dtype), basis @ turn[:, ::-1].astype(self.X.dtype)

    def fit(self, C: float) -> Affine:
        """Fit with one inverse strength, from wherever the last fit ended.

        Returns
        -------
        coef : ndarray of float64, shape (k, d), or (1, d) for two classes
        intercept : ndarray of float64, shape (k,), or (1,)
            As in scikit-learn's LogisticRegression, whose penalty is on the difference where classes are two.
        """
        two = self.targets.shape[1] == 2
        self._descend((2.0 if two else 1.0) / C)
        coef, intercept = self.point[:-1].T.astype(np.float64), self.point[-1].astype(np.float64)
        return (coef[1:] - coef[:1], intercept[1:] - intercept[:1]) if two else (coef, intercept - intercept.mean())

    def _objective(self, point: Array, strength: float) -> tuple[float, Array, float]:
        """Return the penalised log loss, its gradient, and the mean of weight * p (1 - p)."""
        logits = self.X @ point[:-1] + point[-1]
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        sums = odds.sum(axis=1, keepdims=True)
        losses = np.log(sums) - (logits * self.targets).sum(axis=1, keepdims=True)
        p = odds / sums
        residuals, doubt = p - self.targets, p * (1 - p)
        if self.weights is not None:
            losses, residuals, doubt = losses * self.weights, residuals * self.weights, doubt * self.weights
        gradient = np.empty_like(point)
        gradient[:-1] = self.X.T @ residuals + point.dtype.type(strength) * point[:-1]
        gradient[-1] = residuals.sum(axis=0)
        value = float(losses.sum(dtype=np.float64)) + 0.5 * strength * float(np.vdot(point[:-1], point[:-1]))
        return value, gradient, max(float(doubt.mean()), 1e-12)

    def _descend(self, strength: float) -> None:
        value, gradient, doubt = self._objective(self.point, strength)
        pairs: list[tuple[Array, Array, float]] = []
        for self.steps in range(_MAX_STEPS):
            step = -self._direction(gradient, pairs, strength, doubt)
            slope = float(np.vdot(gradient, step))
            if -slope <= self.tol * min(value, self.start - value):
                return
            length = 1.0
            while True:
                point = self.point + self.X.dtype.type(length) * step
                new_value, new_gradient, doubt = self._objective(point, strength)
                if new_value <= value + 1e-4 * length * slope:
                    break
                length *= 0.5
                if length < 1e-6:  # rounding is all that is left
                    return
            moved, turned = point - self.point, new_gradient - gradient
            if (curved := float(np.vdot(moved, turned))) > 0:
                pairs = [*pairs, (moved, turned, 1.0 / curved)][-_MEMORY:]
            self.point, value, gradient = point, new_value, new_gradient

    def _direction(
        self, gradient: Array, pairs: Sequence[tuple[Array, Array, float]], strength: float, doubt: float
    ) -> Array:
        """Two loops of L-BFGS (Nocedal and Wright, "Numerical Optimization", algorithm 7.4)."""
        cast = self.X.dtype.type
        left, factors = gradient.copy(), []
        for moved, turned, inverse in reversed(pairs):
            factors.append(inverse * float(np.vdot(moved, left)))
            left -= cast(factors[-1]) * turned
        result = self._precondition(left, strength, doubt)
        if pairs:
            _, turned, inverse = pairs[-1]
            result /= cast(inverse * float(np.vdot(turned, self._precondition(turned, strength, doubt))))
        for (moved, turned, inverse), factor in zip(pairs, reversed(factors), strict=True):
            result += cast(factor - inverse * float(np.vdot(turned, result))) * moved
        return result

    def _precondition(self, point: Array, strength: float, doubt: float) -> Array:
        """Divide by the guessed curvature, doubt * X'X + strength."""
        cast = self.X.dtype.type
        values, basis = self.curvature
        rest = cast(1.0 / (0.5 * doubt * float(values[-1]) + strength))
        known = 1.0 / (cast(doubt) * values + cast(strength)) - rest
        result = np.empty_like(point)
        result[:-1] = rest * point[:-1] + basis @ (known[:, None] * (basis.T @ point[:-1]))
        result[-1] = point[-1] / cast(doubt * len(self.X))
        return result

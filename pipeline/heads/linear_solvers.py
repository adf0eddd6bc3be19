"""Linear classifiers for many regularisation strengths, in NumPy and SciPy.

Fits of different strengths share work: `Scatter` computes one scatter matrix for all strengths of ridge regression
and linear discriminant analysis, and `LogisticPath` starts each fit from the solution of the one before. Tests
compare the results with scikit-learn's.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_RANK = 100  # of the preconditioner
_MEMORY = 20  # pairs of steps and gradient changes that L-BFGS keeps
_MAX_STEPS = 2000

Array = NDArray[np.floating]
Affine = tuple[NDArray[np.float64], NDArray[np.float64]]


class Scatter:
    """The scatter matrix of vectors, for all strengths of ridge regression and linear discriminant analysis.

    Each strength takes a Cholesky factorisation, a dozen of which cost as much as one eigendecomposition. With fewer
    rows than columns, the smaller matrix of inner products is used instead.

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
        self.sums: NDArray[np.float64] = (one_hot.T @ centred).astype(np.float64)  # of the centred rows of each class
        self.n, self.dim = X.shape
        self.offsets = self.sums / counts[:, None]  # class means minus the mean
        self.means = self.offsets + self.mean
        # Kept in float64: _solve divides by the ridge, which would amplify a difference in rounding.
        self.rows = None if self.n >= self.dim else centred.astype(np.float64)
        inner = centred.T @ centred if self.rows is None else self.rows @ self.rows.T
        self.inner: NDArray[np.float64] = inner.astype(np.float64)
        self.total = float(np.trace(self.inner))
        self.noise = float(np.finfo(inner.dtype).eps) * self.total  # eigenvalues below this may be rounding errors

    def ridge(self, alpha: float) -> Affine:
        """Fit as scikit-learn's RidgeClassifier does, on targets of +1 and -1.

        Returns
        -------
        coef : ndarray of float64, shape (k, d), or (1, d) for two classes
        intercept : ndarray of float64, shape (k,), or (1,)
        """
        # X'Y of the centred rows and targets is twice the sum of each class's centred rows.
        coef = self._solve(2.0 * self.sums.T, alpha).T
        intercept = 2.0 * self.shares - 1.0 - coef @ self.mean
        return (coef[1:], intercept[1:]) if len(coef) == 2 else (coef, intercept)

    def lda(self, shrinkage: float) -> Affine:
        """Fit as scikit-learn's LinearDiscriminantAnalysis with solver "lsqr" does, 0 < shrinkage < 1.

        The pooled covariance is the total covariance minus that of the class means, which has rank k - 1, so the
        Woodbury identity gives its inverse from the same scatter matrix.

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
        """Return (X'X + ridge I)^-1 right; columns of `right` need not lie in the span of the rows."""
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
        """Eigenvalues of X'X above rounding error, and their eigenvectors (d, rank)."""
        values, basis = np.linalg.eigh(self.inner)
        kept = values > values[-1] * 1e-7
        values, basis = values[kept], basis[:, kept]
        return values, basis if self.rows is None else self.rows.T @ (basis / np.sqrt(values))


class LogisticPath:
    """Multinomial logistic regression for decreasing penalties, each fit starting from the one before.

    L-BFGS with a Nystrom preconditioner (Frangella, Tropp and Udell, "Randomized Nystrom Preconditioning", SIAM J.
    Matrix Anal. Appl. 2023) of X'X, scaled at each step by the mean of p (1 - p). Computes in the dtype of `X`.

    Parameters
    ----------
    X : ndarray of float32 or float64, shape (n, d)
        Standardised.
    codes : ndarray of int, shape (n,)
        Class of each row, 0 to k - 1, each class at least once.
    weights : ndarray of float, shape (n,), or None
        Weights of the rows in the loss.
    tol : float
        A fit ends when the expected decrease of the next step is below this fraction of the decrease since all
        coefficients were 0.
    seed : int
        Of the preconditioner.

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
        """Largest eigenvalues of X'X in descending order, and their eigenvectors (d, rank), by subspace iteration."""
        rank = min(_RANK, *self.X.shape)
        gaussian = np.random.default_rng(self.seed).standard_normal((self.X.shape[1], rank))
        basis = gaussian.astype(self.X.dtype)
        for _ in range(2):
            basis = np.linalg.qr(self.X.T @ (self.X @ basis))[0]
        image = self.X @ basis
        values, rotation = np.linalg.eigh((image.T @ image).astype(np.float64))
        return np.maximum(values[::-1], 0.0).astype(self.X.dtype), basis @ rotation[:, ::-1].astype(self.X.dtype)

    def fit(self, C: float) -> Affine:
        """Fit with one inverse strength, starting from the last fit.

        Returns
        -------
        coef : ndarray of float64, shape (k, d), or (1, d) for two classes
        intercept : ndarray of float64, shape (k,), or (1,)
            As in scikit-learn's LogisticRegression, which penalises the difference of the two columns of two classes.
        """
        two = self.targets.shape[1] == 2
        self._descend((2.0 if two else 1.0) / C)
        coef, intercept = self.point[:-1].T.astype(np.float64), self.point[-1].astype(np.float64)
        return (coef[1:] - coef[:1], intercept[1:] - intercept[:1]) if two else (coef, intercept - intercept.mean())

    def _objective(self, point: Array, strength: float) -> tuple[float, Array, float]:
        """Return the penalised log loss, its gradient, and `spread`, the mean of weight * p (1 - p)."""
        logits = self.X @ point[:-1] + point[-1]
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        sums = odds.sum(axis=1, keepdims=True)
        losses = np.log(sums) - (logits * self.targets).sum(axis=1, keepdims=True)
        p = odds / sums
        residuals, spread = p - self.targets, p * (1 - p)
        if self.weights is not None:
            losses, residuals, spread = losses * self.weights, residuals * self.weights, spread * self.weights
        gradient = np.empty_like(point)
        gradient[:-1] = self.X.T @ residuals + point.dtype.type(strength) * point[:-1]
        gradient[-1] = residuals.sum(axis=0)
        value = float(losses.sum(dtype=np.float64)) + 0.5 * strength * float(np.vdot(point[:-1], point[:-1]))
        return value, gradient, max(float(spread.mean()), 1e-12)

    def _descend(self, strength: float) -> None:
        """Minimise the objective by L-BFGS with a backtracking line search."""
        value, gradient, spread = self._objective(self.point, strength)
        pairs: list[tuple[Array, Array, float]] = []
        for self.steps in range(_MAX_STEPS):
            step = -self._direction(gradient, pairs, strength, spread)
            slope = float(np.vdot(gradient, step))
            if -slope <= self.tol * min(value, self.start - value):
                return
            length = 1.0
            while True:
                point = self.point + self.X.dtype.type(length) * step
                new_value, new_gradient, spread = self._objective(point, strength)
                if new_value <= value + 1e-4 * length * slope:
                    break
                length *= 0.5
                if length < 1e-6:  # no progress beyond rounding errors
                    return
            s, y = point - self.point, new_gradient - gradient
            if (curvature := float(np.vdot(s, y))) > 0:
                pairs = [*pairs, (s, y, 1.0 / curvature)][-_MEMORY:]
            self.point, value, gradient = point, new_value, new_gradient

    def _direction(
        self, gradient: Array, pairs: Sequence[tuple[Array, Array, float]], strength: float, spread: float
    ) -> Array:
        """Return the two-loop recursion of L-BFGS (Nocedal and Wright, "Numerical Optimization", algorithm 7.4)."""
        cast = self.X.dtype.type
        q, alphas = gradient.copy(), []
        for s, y, rho in reversed(pairs):
            alphas.append(rho * float(np.vdot(s, q)))
            q -= cast(alphas[-1]) * y
        result = self._precondition(q, strength, spread)
        if pairs:
            _, y, rho = pairs[-1]
            result /= cast(rho * float(np.vdot(y, self._precondition(y, strength, spread))))
        for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
            result += cast(alpha - rho * float(np.vdot(y, result))) * s
        return result

    def _precondition(self, point: Array, strength: float, spread: float) -> Array:
        """Multiply by the inverse of the approximate Hessian, spread * X'X + strength."""
        cast = self.X.dtype.type
        values, basis = self.curvature
        # Along directions outside of the basis, half the smallest known eigenvalue is assumed.
        rest = cast(1.0 / (0.5 * spread * float(values[-1]) + strength))
        known = 1.0 / (cast(spread) * values + cast(strength)) - rest
        result = np.empty_like(point)
        result[:-1] = rest * point[:-1] + basis @ (known[:, None] * (basis.T @ point[:-1]))
        result[-1] = point[-1] / cast(spread * len(self.X))
        return result

"""LogME: an estimate of how well vectors suit a classifier, without training one."""

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

_ROUNDS = 100
_TOLERANCE = 1e-5


def logme(X: NDArray[np.floating], y: NDArray[np.integer]) -> float:
    """Return the log of the maximum evidence (LogME) of a linear model on vectors.

    You, Liu, Wang and Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021
    (arXiv:2102.11005). For each class against the rest, y = Xw + noise with a normal prior on w; the evidence
    p(y | X) is maximised over the precisions of prior and noise by MacKay's fixed-point iteration, in the basis
    where X'X is diagonal. The score is the log evidence per image, averaged over the classes. It compares vectors
    of the same images and labels; higher is better.

    Parameters
    ----------
    X : float array of shape (n, d)
        No intercept is added.
    y : int array of shape (n,)
        At least two classes.

    Returns
    -------
    float
        In nats per image; invariant to scaling and rotation of X.

    Raises
    ------
    UsageError
        If there are fewer than two classes, or the vectors are not finite or all zero.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(200) % 2
    >>> good, poor = rng.normal(y[:, None], 0.5, (200, 4)), rng.normal(0, 1, (200, 4))
    >>> logme(good, y) > logme(poor, y)
    True
    """
    vectors = np.asarray(X, np.float64)
    classes = np.unique(y)
    if vectors.ndim != 2 or len(classes) < 2 or not np.isfinite(vectors).all() or not vectors.any():
        raise UsageError(
            f"vectors of shape {vectors.shape} with {len(classes)} classes cannot be scored; expected (n, d) finite"
            " numbers, not all zero, and at least two classes"
        )
    targets = (np.asarray(y)[:, None] == classes).astype(np.float64)
    squares, shares = _diagonal(vectors, targets)
    total = (targets**2).sum(axis=0)
    return float(np.mean([_evidence(squares, shares[:, k] ** 2, total[k], len(vectors)) for k in range(len(classes))]))


def _diagonal(X: NDArray[np.float64], targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the squared singular values (r,) of X, and the targets in the basis of its left singular vectors (r, k).

    They come from the eigenvectors of the smaller of X'X and XX', which is much faster than a decomposition of X.
    """
    n, d = X.shape
    squares, vectors = np.linalg.eigh(X.T @ X if d <= n else X @ X.T)
    kept = squares > squares[-1] * max(n, d) * np.finfo(np.float64).eps
    squares, vectors = squares[kept], vectors[:, kept]
    if d <= n:
        return squares, (vectors.T @ (X.T @ targets)) / np.sqrt(squares)[:, None]
    return squares, vectors.T @ targets


def _evidence(squares: NDArray[np.float64], share: NDArray[np.float64], total: float, n: int) -> float:
    """Return the maximum log evidence per image.

    `share` are the squared components of the target along the left singular vectors, `total` is its squared norm.
    """
    rest = max(total - float(share.sum()), 0.0)  # squared norm of the part that no weights can fit
    alpha = beta = 1.0
    for _ in range(_ROUNDS):
        ratio = alpha / beta
        effective = float((squares / (squares + ratio)).sum())
        norm = float((squares * share / (squares + ratio) ** 2).sum())
        residual = float((share / (1 + squares / ratio) ** 2).sum()) + rest
        # The bounds keep the precisions finite for a perfect fit and for one that explains nothing.
        alpha, beta = effective / max(norm, 1e-10), max(n - effective, 1e-10) / max(residual, 1e-10)
        if abs(alpha / beta - ratio) <= _TOLERANCE * ratio:
            break
    ratio = alpha / beta
    norm = float((squares * share / (squares + ratio) ** 2).sum())
    residual = float((share / (1 + squares / ratio) ** 2).sum()) + rest
    evidence = n * np.log(beta / (2 * np.pi)) - np.log1p(squares / ratio).sum() - beta * residual - alpha * norm
    return float(evidence / (2 * n))

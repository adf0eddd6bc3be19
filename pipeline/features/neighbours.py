"""Nearest neighbours by cosine similarity: exact search, block by block.

>>> rows, cosines = nearest(np.array([1.0, 0.0]), [(0, np.array([[0.0, 1.0], [2.0, 0.0]]))], k=1)
>>> rows.tolist(), cosines.tolist()
([1], [1.0])
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.parallel import one_blas_thread


def nearest(
    query: NDArray[np.floating], blocks: Iterable[tuple[int, NDArray[np.floating]]], k: int = 12
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the rows with the largest cosine similarity to a vector; needs the memory of one block.

    Parameters
    ----------
    query : ndarray of shape (d,)
    blocks : iterable of (int, ndarray of shape (rows, d))
        The number of each block's first row, and its vectors.
    k : int
        Number of rows to return, fewer if there are fewer.

    Returns
    -------
    rows : ndarray of int64, shape (k,)
        The most similar first; equal ones in order.
    cosines : ndarray of float32, shape (k,)

    Examples
    --------
    >>> nearest(np.ones(2), [(0, np.eye(2)), (2, np.ones((1, 2)))], k=2)[0].tolist()
    [2, 0]
    """
    rows, cosines = np.empty(0, np.int64), np.empty(0, np.float32)
    query = unit_rows(np.asarray(query, np.float32)[None])[0]
    for start, vectors in blocks:
        X = np.asarray(vectors, np.float32)
        rows = np.concatenate([rows, np.arange(start, start + len(X))])
        cosines = np.concatenate([cosines, X @ query / _lengths(X)])
        best = np.argsort(-cosines, kind="stable")[:k]
        rows, cosines = rows[best], cosines[best]
    return rows, cosines


def unit_rows(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1; rows of zeros are not changed."""
    return np.asarray(X / _lengths(X)[:, None], np.float32)


def _lengths(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the length of each row, 1 for rows of zeros."""
    length = np.sqrt(np.einsum("nd,nd->n", X, X))
    return np.where(length > 0, length, np.float32(1))


def standardise(X: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale columns to mean 0 and variance 1; constant columns become 0.

    Examples
    --------
    >>> standardise(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    mean, spread = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    spread[spread <= 1e-6 * np.abs(mean)] = np.inf
    Z = np.subtract(X, mean, dtype=np.float32, casting="same_kind")
    Z /= np.where(spread > 0, spread, np.inf).astype(np.float32)
    return Z


def principal_axes(Z: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """Return the principal axes of largest variance, shape (d, at most `most`), each of length 1."""
    from scipy.linalg import eigh

    d = Z.shape[1]
    with one_blas_thread():
        _, axes = eigh((Z.T @ Z).astype(np.float64), subset_by_index=(max(0, d - most), d - 1))
    return np.ascontiguousarray(axes[:, ::-1], np.float32)

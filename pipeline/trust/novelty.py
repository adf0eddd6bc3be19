"""`Novelty`: how unlike anything in training a vector is, as the distance to its nearest training vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError
from pipeline.heads.arrays import packed, unpacked

FALSE_ALARMS = 0.01  # share of images like those in training that are flagged all the same
_BANK = 1000  # vectors that are kept: 2.5 MB for 1,280 columns, and no worse than all of 3,068
_JUDGES = 5000  # training images that the threshold is learned from, at most
_NEIGHBOUR = 5
_BLOCK = 4096
_FINEST = 4e-3  # distances below are rounding of float16: such images are the same
_NAMES = ("bank", "threshold", "neighbour")


@dataclass(frozen=True, eq=False)
class Novelty:
    """The distance to the fifth nearest training vector, all scaled to length 1, in units of a threshold.

    After Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022. It needs
    no labels and NumPy alone.

    Parameters
    ----------
    bank : ndarray of float16, shape (m, d)
        Training vectors of length 1, a random thousand at most.
    threshold : float
        Distance that 1 % of images like those in training exceed.
    neighbour : int
        Which nearest one, counted from 1.

    Examples
    --------
    >>> cats = np.random.default_rng(0).normal(5, 0.5, (200, 8)).astype(np.float32)
    >>> novelty = Novelty.fit(cats)
    >>> strange = np.array([[5.0] * 4 + [-5.0] * 4], np.float32)
    >>> bool(novelty.score(strange)[0] > 1), bool((novelty.score(cats) > 1).mean() < 0.03)
    (True, True)
    """

    bank: NDArray[np.float16]
    threshold: float
    neighbour: int = _NEIGHBOUR

    @classmethod
    def fit(cls, X: NDArray[Any], groups: Sequence[str] | None = None, seed: int = 0) -> "Novelty":
        """Keep some training vectors, and learn the threshold from distances to other images than themselves.

        Parameters
        ----------
        X : array of shape (n, d)
            Vectors of the training split.
        groups : sequence of n str, or None
            Images of one group are not counted as each other's neighbours; an empty name is no group.
        seed : int
            Of the vectors that are kept.
        """
        rng = np.random.default_rng(seed)
        names = np.asarray([""] * len(X) if groups is None else groups)
        kept = np.sort(rng.permutation(len(X))[:_BANK])
        judges = np.sort(rng.permutation(len(X))[:_JUDGES])
        bank = _unit(X[kept]).astype(np.float16)
        neighbour = max(1, min(_NEIGHBOUR, len(kept) - 1))
        found = []
        for start in range(0, len(judges), _BLOCK):
            rows = judges[start : start + _BLOCK]
            itself = rows[:, None] == kept
            itself |= (names[rows][:, None] == names[kept]) & (names[rows][:, None] != "")
            found.append(_nearest(X[rows], bank, neighbour, itself))
        distances = np.concatenate(found)
        distances = np.sort(distances[np.isfinite(distances)])
        # The rank that makes the promise hold for one image more (conformal prediction).
        rank = int(np.ceil((len(distances) + 1) * (1 - FALSE_ALARMS))) - 1
        threshold = float(distances[min(rank, len(distances) - 1)]) if len(distances) else 0.0
        return cls(bank, max(threshold, _FINEST), neighbour)

    def score(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return distance over threshold, float64 (n,): above 1 an image is unlike anything in training."""
        blocks = [_nearest(X[i : i + _BLOCK], self.bank, self.neighbour) for i in range(0, len(X), _BLOCK)]
        return np.asarray(np.concatenate(blocks) / self.threshold) if blocks else np.empty(0)

    def to_bytes(self) -> bytes:
        """Return the arrays as an ``.npz`` archive."""
        return packed(bank=self.bank, threshold=self.threshold, neighbour=self.neighbour)

    @classmethod
    def from_bytes(cls, data: bytes, dim: int) -> "Novelty":
        """Read what `to_bytes` wrote; nothing is unpickled.

        Raises
        ------
        IntegrityError
            If these are other arrays.
        """
        with unpacked(data, _NAMES, "the novelty score") as (bank, threshold, neighbour):
            found = cls(bank, float(threshold), int(neighbour))
        fits = bank.ndim == 2 and bank.shape[1] == dim and bank.dtype == np.float16
        if not (fits and 1 <= found.neighbour <= len(bank) and 0 < found.threshold < np.inf):
            raise IntegrityError(f"the novelty score holds vectors of shape {bank.shape}; train the bundle anew")
        return found


def _unit(X: NDArray[Any]) -> NDArray[np.float32]:
    vectors = np.asarray(X, np.float64)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def _nearest(
    X: NDArray[Any], bank: NDArray[np.float16], neighbour: int, itself: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the distance of each row to its n-th nearest one in the bank; infinite where there are too few."""
    squares = np.maximum(2.0 - 2.0 * (_unit(X) @ _unit(bank).T), 0.0).astype(np.float64)  # float16 left length 1
    if itself is not None:
        squares[itself] = np.inf
    return np.asarray(np.sqrt(np.partition(squares, neighbour - 1, axis=1)[:, neighbour - 1]))

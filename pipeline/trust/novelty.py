"""`Novelty`: how far a vector is from the training vectors, to flag images unlike anything in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError
from pipeline.heads.arrays import from_npz, to_npz

FALSE_ALARMS = 0.01  # share of images like the training images that are flagged nevertheless
_BANK_SIZE = 1000  # training vectors kept: 2.5 MB for 1,280 columns, as good as all of 3,068
_THRESHOLD_IMAGES = 5000  # training images that the threshold is learned from, at most
_NEIGHBOUR = 5
_BLOCK = 4096
_MIN_THRESHOLD = 4e-3  # smaller distances are rounding errors of float16
_NAMES = ("bank", "threshold", "neighbour")


@dataclass(frozen=True, eq=False)
class Novelty:
    """The distance to the fifth nearest training vector, divided by a threshold; vectors are scaled to length 1.

    Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022. Needs no labels
    and only NumPy.

    Parameters
    ----------
    bank : ndarray of float16, shape (m, d)
        At most 1,000 training vectors, drawn at random, of length 1.
    threshold : float
        Distance that 1 % of images like the training images exceed.
    neighbour : int
        Number of the neighbour, from 1.

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
        """Draw the training vectors to keep, and learn the threshold from distances between training images.

        Parameters
        ----------
        X : array of shape (n, d)
            Vectors of the training split.
        groups : sequence of n str, or None
            Neighbours from the same group are ignored; an empty name means no group.
        seed : int
            Of the draw.
        """
        rng = np.random.default_rng(seed)
        names = np.asarray([""] * len(X) if groups is None else groups)
        kept = np.sort(rng.permutation(len(X))[:_BANK_SIZE])
        measured = np.sort(rng.permutation(len(X))[:_THRESHOLD_IMAGES])
        bank = _unit(X[kept]).astype(np.float16)
        neighbour = max(1, min(_NEIGHBOUR, len(kept) - 1))
        blocks = []
        for start in range(0, len(measured), _BLOCK):
            rows = measured[start : start + _BLOCK]
            ignored = rows[:, None] == kept
            ignored |= (names[rows][:, None] == names[kept]) & (names[rows][:, None] != "")
            blocks.append(_nearest(X[rows], bank, neighbour, ignored))
        distances = np.concatenate(blocks)
        distances = np.sort(distances[np.isfinite(distances)])
        # The quantile that a new image exceeds with this probability (conformal prediction).
        rank = int(np.ceil((len(distances) + 1) * (1 - FALSE_ALARMS))) - 1
        threshold = float(distances[min(rank, len(distances) - 1)]) if len(distances) else 0.0
        return cls(bank, max(threshold, _MIN_THRESHOLD), neighbour)

    def score(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return the distance of each vector divided by the threshold, float64 (n,); above 1 an image is novel."""
        blocks = [_nearest(X[i : i + _BLOCK], self.bank, self.neighbour) for i in range(0, len(X), _BLOCK)]
        return np.asarray(np.concatenate(blocks) / self.threshold) if blocks else np.empty(0)

    def to_bytes(self) -> bytes:
        """Return the arrays as an ``.npz`` archive."""
        return to_npz(bank=self.bank, threshold=self.threshold, neighbour=self.neighbour)

    @classmethod
    def from_bytes(cls, data: bytes, dim: int) -> "Novelty":
        """Read the archive that `to_bytes` wrote; nothing is unpickled.

        Raises
        ------
        IntegrityError
            If the archive is damaged or holds other arrays.
        """
        with from_npz(data, _NAMES, "the novelty score") as (bank, threshold, neighbour):
            novelty = cls(bank, float(threshold), int(neighbour))
        fits = bank.ndim == 2 and bank.shape[1] == dim and bank.dtype == np.float16
        if not (fits and 1 <= novelty.neighbour <= len(bank) and 0 < novelty.threshold < np.inf):
            raise IntegrityError(f"the novelty score holds vectors of shape {bank.shape}; train the bundle again")
        return novelty


def _unit(X: NDArray[Any]) -> NDArray[np.float32]:
    vectors = np.asarray(X, np.float64)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def _nearest(
    X: NDArray[Any], bank: NDArray[np.float16], neighbour: int, ignored: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the distance of each row to its n-th nearest vector of the bank, inf if there are too few.

    `ignored` (rows, bank size) excludes pairs.
    """
    # The bank is normalised again, because float16 changed its lengths.
    squares = np.maximum(2.0 - 2.0 * (_unit(X) @ _unit(bank).T), 0.0).astype(np.float64)
    if ignored is not None:
        squares[ignored] = np.inf
    return np.asarray(np.sqrt(np.partition(squares, neighbour - 1, axis=1)[:, neighbour - 1]))

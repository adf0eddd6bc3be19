"""What all checks of the audit share: the images of a feature file, and a robust z-score."""

import numpy as np
from numpy.typing import NDArray

from pipeline.features.store import FeatureStore
from pipeline.images.findings import Finding

FAR = 3.5  # robust standard deviations from which a value is an outlier
FEW = 10  # images of a class, below which it is small


class AuditedImages:
    """The images of a feature file, about which findings are made.

    Parameters
    ----------
    store : FeatureStore

    Attributes
    ----------
    labels : ndarray of int64, shape (n,)
        -1 without a label.
    label_names : list of str
        Empty without a label.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.labels = store.labels.astype(np.int64)
        self.label_names = [store.classes[label] if label >= 0 else "" for label in self.labels.tolist()]

    def finding(self, action: str, kind: str, row: int, score: float, detail: str, **more: str) -> Finding:
        """Return a finding about the image of a row; the score is clipped to [0, 1]."""
        return Finding(
            action,
            kind,
            self.store.paths[row],
            label=self.label_names[row],
            split=self.store.splits[row],
            score=float(min(max(score, 0.0), 1.0)),
            detail=detail,
            **more,
        )


def robust_z(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return robust z-scores: distances from the median in standard deviations estimated from the quartiles.

    >>> robust_z(np.array([1.0, 2.0, 3.0, 4.0, 50.0])).round(1).tolist()
    [-1.3, -0.7, 0.0, 0.7, 31.7]
    """
    low, middle, high = np.nanpercentile(values, [25, 50, 75])
    deviation = (high - low) / 1.349
    return np.asarray((values - middle) / deviation if deviation > 0 else np.zeros(len(values)), np.float64)

"""`Fitter`: fits heads on the views of training images and asks them about the views that count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.classifiers import Calibrate, class_probabilities, find_head, make_head
from pipeline.heads.folds import Folds, make_folds
from pipeline.heads.multilabel import one_vs_rest
from pipeline.heads.regularisation_path import fit_path
from pipeline.training.training_data import TrainingData

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Fitter:
    """Fits and predicts by the rows of training data.

    Every view of an image that is fitted on is a sample of its own. An image that is asked about is
    the first of its views, or all of them, with the mean of their probabilities.

    Parameters
    ----------
    data : TrainingData
    seed : int
        Of the folds and the heads.
    average_views : bool
    """

    data: TrainingData
    seed: int = 0
    average_views: bool = False

    def fit(
        self,
        name: str,
        grid: Sequence[Mapping[str, Any]],
        rows: Rows,
        *,
        watched: Rows | None = None,
        temperature: float | None = None,
        preview: bool = False,
    ) -> Iterator[Any]:
        """Yield a head fitted on all views of some rows for each of the parameters.

        Parameters
        ----------
        name : str
        grid : sequence of mapping
        rows : ndarray of int
        watched : ndarray of int, optional
            Rows by which a head with early stopping decides when to stop.
        temperature, preview
            See `fit_path`.
        """
        X, y, units = self._samples(rows)
        if y.ndim > 1:
            for params in grid:
                yield one_vs_rest(make_head(name, params, self.seed)).fit(X, y)
            return
        watched = np.empty(0, np.int64) if watched is None else watched
        watched = watched[np.isin(self.data.y[watched], y)]  # the head has no column for other classes
        if find_head(name).early_stopping and len(watched):
            for params in grid:
                head = make_head(name, params, self.seed)
                before = head[:-1]
                Z = before.fit_transform(X, y)
                shown = before.transform(self.data.X[watched, 0]), self.data.y[watched]
                head[-1].fit(Z, y, validation_data=shown)
                yield head
        else:
            yield from fit_path(name, grid, X, y, units=units, seed=self.seed, temperature=temperature, preview=preview)

    def probabilities(self, head: Any, rows: Rows, calibrate: Calibrate | None = None) -> NDArray[np.float64]:
        """Return the probability of each class for some rows, float64 (len(rows), number of classes)."""
        X = self.data.X[rows] if self.average_views else self.data.X[rows, 0]
        return class_probabilities(head, X, len(self.data.classes), calibrate)

    def folds(self, k: int, rows: Rows) -> Folds:
        """Deal some rows into k folds that part no group; row numbers of the data."""
        dealt = make_folds(self.data.y[rows], k, self.seed, self.data.units[rows])
        return [(rows[inner], rows[outer]) for inner, outer in dealt]

    def _samples(self, rows: Rows) -> tuple[NDArray[np.float32], Rows, Rows | None]:
        views = self.data.X.shape[1]
        X = self.data.X[rows].reshape(len(rows) * views, -1)
        units = np.repeat(self.data.units[rows], views)
        parted = len(np.unique(units)) < len(units)
        return X, np.repeat(self.data.y[rows], views, axis=0), units if parted else None

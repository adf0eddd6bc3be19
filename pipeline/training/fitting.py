"""`Fitter`: fits heads on rows of the training data, and predicts rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.heads.classifiers import Calibrate, class_probabilities, find_head, make_head
from pipeline.heads.folds import Folds, make_folds
from pipeline.heads.multi_label import one_vs_rest
from pipeline.heads.regularisation_path import Samples, fit_path
from pipeline.training.training_data import TrainingData

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Fitter:
    """Fits heads on rows of the training data, and predicts rows.

    Every view of an image is a sample to fit on. A prediction is that of the first view of an image, or the mean of
    the probabilities of all its views.

    Parameters
    ----------
    data : TrainingData
    seed : int
        Of the folds and the heads.
    average_views : bool
        Whether to predict the mean over all views.
    """

    data: TrainingData
    seed: int = 0
    average_views: bool = False

    def fit(
        self,
        head_name: str,
        grid: Sequence[Mapping[str, Any]],
        rows: Rows,
        *,
        validation: Rows | None = None,
        temperature: float | None = None,
        preview: bool = False,
    ) -> Iterator[Any]:
        """Yield a head for each of the parameters, fitted on all views of some rows.

        With several labels per image, it is one classifier per label.

        Parameters
        ----------
        head_name : str
        grid : sequence of mapping
        rows : ndarray of int
        validation : ndarray of int, optional
            Rows on which a head with early stopping decides when to stop.
        temperature, preview
            See `fit_path`.
        """
        samples = self._samples(rows)
        X, y, _ = samples
        if y.ndim > 1:
            for params in grid:
                yield one_vs_rest(make_head(head_name, params, self.seed)).fit(X, y)
            return
        validation = np.empty(0, np.int64) if validation is None else validation
        validation = validation[np.isin(self.data.y[validation], y)]  # the head has no column for other classes
        if find_head(head_name).early_stopping and len(validation):
            for params in grid:
                head = make_head(head_name, params, self.seed)
                before = head[:-1]
                Z = before.fit_transform(X, y)
                judged = before.transform(self.data.X[validation, 0]), self.data.y[validation]
                head[-1].fit(Z, y, validation_data=judged)
                yield head
            return
        yield from fit_path(head_name, grid, samples, seed=self.seed, temperature=temperature, preview=preview)

    def probabilities(self, head: Any, rows: Rows, calibrate: Calibrate | None = None) -> NDArray[np.float64]:
        """Return the probabilities of some rows, float64 (len(rows), number of classes)."""
        X = self.data.X[rows] if self.average_views else self.data.X[rows, 0]
        return class_probabilities(head, X, len(self.data.classes), calibrate)

    def folds(self, k: int, rows: Rows) -> Folds:
        """Split rows into k stratified folds; rows of one group stay in one fold."""
        folds = make_folds(self.data.y[rows], k, self.seed, self.data.units[rows])
        return [(rows[inner], rows[outer]) for inner, outer in folds]

    def _samples(self, rows: Rows) -> Samples:
        """Return the views of some rows as samples: vectors, labels, and units unless each sample is one of its own."""
        views = self.data.X.shape[1]
        X = self.data.X[rows].reshape(len(rows) * views, -1)
        units = np.repeat(self.data.units[rows], views)
        shared = len(np.unique(units)) < len(units)
        return Samples(X, np.repeat(self.data.y[rows], views, axis=0), units if shared else None)

"""`Answers`: a bundle's predictions for the images that it was trained or scored on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Bundle
from pipeline.features.store import FeatureStore
from pipeline.images.texts import Texts
from pipeline.training.provenance import training_data_of


@dataclass(frozen=True)
class Answers:
    """A bundle's predictions for all images that it was trained or scored on; row i of each array is one image.

    Parameters
    ----------
    stores : tuple of FeatureStore
        The joined files.
    rows : ndarray of int64, shape (n,)
        Rows of the images in the first file.
    vectors : ndarray of float32, shape (n, d)
        Of the images themselves, without augmented views.
    y : ndarray of int64, shape (n,)
        True labels.
    splits : ndarray of str, shape (n,)
    proba : ndarray of float64, shape (n, k)
    """

    stores: tuple[FeatureStore, ...]
    rows: NDArray[np.int64]
    vectors: NDArray[np.float32]
    y: NDArray[np.int64]
    splits: NDArray[np.str_]
    proba: NDArray[np.float64]

    @property
    def store(self) -> FeatureStore:
        """The first of the joined files, whose paths and photographs are shown."""
        return self.stores[0]

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class of each image, shape (n,)."""
        return self.proba.argmax(axis=1)

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of that class, shape (n,)."""
        return np.asarray(self.proba.max(axis=1))

    @classmethod
    def of(cls, bundle: Bundle, features: Sequence[str | os.PathLike[str]]) -> "Answers":
        """Predict the images of the feature files that a bundle was trained on.

        Parameters
        ----------
        bundle : Bundle
        features : sequence of path
            Empty for the paths at training time.

        Raises
        ------
        UsageError
            If the bundle was trained on other files or other photographs.
        StoreError
            If a file cannot be found.
        """
        data = training_data_of(bundle, features)
        own = np.ascontiguousarray(data.X[:, 0])  # the first view is the image itself
        inputs = data.X if bundle.average_views else own
        rows = data.stores[0].positions.find(Texts.of(data.paths))
        proba = np.concatenate([bundle.probabilities(inputs[at : at + 4096]) for at in range(0, len(inputs), 4096)])
        return cls(data.stores, rows, own, data.y, np.asarray(data.splits), proba)

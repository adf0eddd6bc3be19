"""`Answers`: what a bundle says about the images that it was trained or scored on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Bundle
from pipeline.features.store import FeatureStore
from pipeline.images.texts import Texts
from pipeline.training.provenance import training_data_of


@dataclass(frozen=True)
class Answers:
    """What a bundle says about every image that it was trained or scored on; row i of each is one image.

    Parameters
    ----------
    stores : tuple of FeatureStore
        The joined files.
    rows : ndarray of int64, shape (n,)
        Where the images are in the first of them.
    vectors : ndarray of float32, shape (n, d)
        Of the plain pictures.
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

    @classmethod
    def of(cls, bundle: Bundle, features: Sequence[str | os.PathLike[str]]) -> "Answers":
        """Ask a bundle about the images of its feature files; none for the places where they lay at the training.

        Raises
        ------
        UsageError
            If these are not the files, or the photographs, that it was trained on.
        StoreError
            If they cannot be found.
        """
        data = training_data_of(bundle, features)
        own = np.ascontiguousarray(data.X[:, 0])  # the first view is the image itself
        asked = data.X if bundle.average_views else own
        rows = data.stores[0].positions.find(Texts.of(data.paths))
        proba = np.concatenate([bundle.probabilities(asked[at : at + 4096]) for at in range(0, len(asked), 4096)])
        return cls(data.stores, rows, own, data.y, np.asarray(data.splits), proba)

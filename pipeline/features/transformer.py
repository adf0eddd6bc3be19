"""`BottleneckFeatures`: stage 1 as a scikit-learn transformer."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pipeline.errors import UsageError
from pipeline.features.engines import Encoder, make_encoder
from pipeline.features.image_encoder import ImageEncoder
from pipeline.features.recipe import Recipe
from pipeline.parallel import cores


class BottleneckFeatures(TransformerMixin, BaseEstimator):
    """Transform image paths or arrays into bottleneck vectors, in a scikit-learn ``Pipeline``.

    Nothing is learned from the images: `fit` builds the network. For more than a few hundred images use
    `pipeline.extract`, which caches vectors: a grid search encodes all images again for each fold.

    Parameters
    ----------
    backbone, weights, layers, pooling, size, resize, precision
        See `pipeline.Recipe.create`.

    Attributes
    ----------
    recipe_ : Recipe
        With the digest of the weights.
    n_features_out_ : int
        Length of a vector.

    Examples
    --------
    >>> import numpy as np
    >>> features = BottleneckFeatures("mobilenet_0.25", weights="random", size=32)
    >>> features.fit_transform(np.zeros((2, 48, 64, 3), np.uint8)).shape
    (2, 256)
    """

    def __init__(
        self,
        backbone: str | os.PathLike[str] = "mobilenetv2",
        weights: str | os.PathLike[str] = "imagenet",
        layers: tuple[str, ...] = (),
        pooling: str = "avg",
        size: int | None = None,
        resize: str = "squash",
        precision: str = "float32",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.layers = layers
        self.pooling = pooling
        self.size = size
        self.resize = resize
        self.precision = precision

    def fit(self, X: Sequence[Any] | NDArray[Any], y: object = None) -> "BottleneckFeatures":
        """Build the network; `X` is only checked, `y` is ignored.

        Raises
        ------
        UsageError, WeightsError
            As `pipeline.Recipe.create`.
        """
        _images(X)
        recipe = Recipe.create(**self.get_params(deep=False))
        self._encoder: Encoder | None = make_encoder(recipe)
        self.recipe_ = self._encoder.recipe
        self.segments_ = self._encoder.segments
        self.n_features_out_ = self._encoder.dim
        return self

    def transform(self, X: Sequence[Any] | NDArray[Any]) -> NDArray[np.float32]:
        """Decode and encode images.

        Parameters
        ----------
        X : sequence of paths, bytes, PIL images or uint8 arrays; or one uint8 array (n, h, w, 3)
            A column (n, 1) of paths is accepted too.

        Returns
        -------
        ndarray of float32, shape (n, n_features_out_)

        Raises
        ------
        ImageError
            If an image cannot be decoded.
        """
        check_is_fitted(self, "recipe_")
        images = _images(X)
        if self._encoder is None:  # after unpickling
            self._encoder = make_encoder(self.recipe_)
        encoder = self._encoder
        with ImageEncoder([self.recipe_], lambda: [encoder], cores(), isolated=False) as stream:
            return stream.vectors(images)[:, 0]

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Return a name for each column: ``last_0``, or the layer's name and a number."""
        check_is_fitted(self, "recipe_")
        names = [f"{layer}_{i}" for layer, (start, stop) in self.segments_.items() for i in range(stop - start)]
        return np.array(names, object)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "_encoder" in state:
            state["_encoder"] = None  # not pickled: `transform` builds it again from the recipe
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.requires_fit = True
        return tags


def _images(X: Sequence[Any] | NDArray[Any]) -> Sequence[Any] | NDArray[Any]:
    if isinstance(X, (str, bytes, os.PathLike)):
        raise UsageError(f"X is the single image {X!r}, expected a sequence of images; wrap it in a list")
    if not isinstance(X, np.ndarray):
        return X
    if X.ndim == 2 and X.shape[1] == 1 and X.dtype.kind in "OUS":
        X = X[:, 0]
    if X.ndim not in (1, 4):
        raise UsageError(
            f"X has shape {X.shape}, expected paths of shape (n,) or pixels of shape (n, height, width, 3)"
        )
    return list(X.tolist()) if X.ndim == 1 else X

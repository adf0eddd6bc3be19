"""An encoder whose vectors can be computed by hand: the mean red, green and blue of the pixels."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.features.recipe import Recipe

RECIPE = Recipe("mobilenet", "random:0", weights_sha256="0" * 64, size=8)


class FakeEncoder:
    """Encoder with three columns: mean red, green and blue, from 0 to 255."""

    name = "fake"

    def __init__(self, recipe: Recipe = RECIPE, batch_size: int = 4) -> None:
        self.recipe = recipe
        self.segments = {"last": (0, 3)}
        self.dim = 3
        self.batch_size = batch_size
        self.images = 0

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the mean colour of each image."""
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (self.recipe.size, self.recipe.size, 3)
        assert len(pixels) <= max(self.batch_size, self.recipe.pixels.views.count)
        self.images += len(pixels)
        return np.asarray(pixels.mean(axis=(1, 2)), np.float32)


class Factory:
    """Makes fake encoders, and counts the images that they encode."""

    def __init__(self, batch_size: int = 4, **changes: Any) -> None:
        self.recipe = dataclasses.replace(RECIPE, **changes)
        self.batch_size = batch_size
        self.made: list[FakeEncoder] = []

    def __call__(self) -> FakeEncoder:
        """Make an encoder."""
        self.made.append(FakeEncoder(self.recipe, self.batch_size))
        return self.made[-1]

    @property
    def images(self) -> int:
        """Number of images that all encoders have encoded."""
        return sum(encoder.images for encoder in self.made)

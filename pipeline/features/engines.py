"""`Encoder`: a recipe made runnable, and the table of engines that can do it."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineError, UsageError, closest
from pipeline.features.recipe import VERSIONS, Recipe

AUTO = "auto"
_BATCH_PIXELS = 32 * 224 * 224  # 32 photographs of the common size: more gains no speed on a processor


class Encoder(Protocol):
    """A recipe made runnable: pixels in, vectors out.

    Attributes
    ----------
    name : str
        The engine.
    recipe : Recipe
        With the digest of the weights in use.
    segments : dict of str to (int, int)
        Columns ``[start, stop)`` of each layer.
    dim : int
        Length of a vector.
    batch_size : int
        Rows per forward pass.
    """

    name: str
    recipe: Recipe
    segments: dict[str, tuple[int, int]]
    dim: int
    batch_size: int

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn uint8 (n, size, size, 3) into float32 (n, dim); batch, order and neighbours do not matter."""
        ...


def _keras(recipe: Recipe, batch_size: int) -> Encoder:
    from pipeline.features.keras_engine import KerasEncoder

    return KerasEncoder(recipe, batch_size)


ENGINES: dict[str, Callable[[Recipe, int], Encoder]] = {"keras": _keras}


def make_encoder(recipe: Recipe, engine: str = AUTO, batch_size: int | None = None) -> Encoder:
    """Make a recipe runnable.

    Parameters
    ----------
    recipe : Recipe
    engine : {"auto", "keras"}
    batch_size : int or None
        Rows per forward pass; None for a size that suits the recipe.

    Raises
    ------
    UsageError
        If there is no such engine, or the batch size is below 1.
    EngineError
        If the recipe was made by code that computes pixels or vectors in another way.
    WeightsError
        If the weights are absent, changed, or do not fit.

    Examples
    --------
    >>> make_encoder(Recipe("mobilenet_0.25", "random:0", size=32)).dim
    256
    """
    if engine not in (AUTO, *ENGINES):
        raise UsageError(f"engine {engine!r} is unknown; {closest(engine, [AUTO, *ENGINES])}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch size {batch_size} is too small; give 1 or more")
    if dict(recipe.versions) != VERSIONS:
        raise EngineError(
            f"these vectors were made with versions {dict(recipe.versions)} of the pixel and vector code, this"
            f" package has {VERSIONS}; install the old twostage-features or extract anew with --overwrite"
        )
    size = batch_size or max(1, min(32, _BATCH_PIXELS // recipe.size**2))
    return ENGINES["keras" if engine == AUTO else engine](recipe, size)

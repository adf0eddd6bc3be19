"""The pixels that an encoder accepts."""

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError


def check_pixels(pixels: NDArray[np.uint8], size: int) -> None:
    """Raise UsageError unless pixels are uint8 of shape (n, size, size, 3)."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
        raise UsageError(
            f"pixels are {pixels.dtype} of shape {pixels.shape}, expected uint8 of shape (n, {size}, {size}, 3);"
            " resize them with pipeline.images"
        )


def fill_up(batch: NDArray[np.uint8], rows: int) -> NDArray[np.uint8]:
    """Pad a batch with black images to `rows` images."""
    missing = rows - len(batch)
    return np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else batch

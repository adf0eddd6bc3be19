"""Resize an image of any shape to a square, with antialiasing.

Pillow's bilinear filter is a triangle whose support grows with the scale, as in
``tf.image.resize(..., "bilinear", antialias=True)``.

>>> from PIL import Image
>>> resize(Image.new("RGB", (400, 533)), 150, "crop").size
(150, 150)
"""

from collections.abc import Callable

from PIL import Image

from pipeline.errors import UsageError

__all__ = ["RESIZE_POLICIES", "resize"]

_FILTER = Image.Resampling.BILINEAR

# White, as behind transparent pixels.
_BACKGROUND = (255, 255, 255)


def _squash(image: Image.Image, size: int) -> Image.Image:
    """Resize both sides to ``size``; the aspect ratio changes."""
    return image.resize((size, size), _FILTER)


def _crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the central square; the box crops and resizes in one resampling."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), _FILTER, box=(left, top, left + side, top + side))


def _pad(image: Image.Image, size: int) -> Image.Image:
    """Resize the longer side to ``size`` and centre the image on the background."""
    longer = max(image.size)
    width, height = (max(1, round(side * size / longer)) for side in image.size)
    canvas = Image.new("RGB", (size, size), _BACKGROUND)
    canvas.paste(image.resize((width, height), _FILTER), ((size - width) // 2, (size - height) // 2))
    return canvas


RESIZE_POLICIES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "squash": _squash,
    "crop": _crop,
    "pad": _pad,
}


def resize(image: Image.Image, size: int, policy: str = "squash") -> Image.Image:
    """Resize an RGB image to a square of ``size`` x ``size`` pixels.

    Parameters
    ----------
    image : PIL.Image.Image
        Mode RGB, any size from 1 x 1.
    size : int
        Side of the square in pixels, at least 1.
    policy : {"squash", "crop", "pad"}
        ``squash`` ignores the aspect ratio, ``crop`` resizes the shorter side to ``size`` and keeps
        the centre, ``pad`` resizes the longer side to ``size`` and fills the rest with white.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, a new image.

    Raises
    ------
    UsageError
        For an unknown policy, or a size below 1.

    Examples
    --------
    >>> wide = Image.new("RGB", (40, 10), "red")
    >>> padded = resize(wide, 8, "pad")
    >>> padded.getpixel((0, 0)), padded.getpixel((0, 4))
    ((255, 255, 255), (255, 0, 0))
    """
    if policy not in RESIZE_POLICIES:
        raise UsageError(f"unknown resize policy {policy!r}: choose one of {', '.join(RESIZE_POLICIES)}")
    if size < 1:
        raise UsageError(f"size {size} cannot be used: give the side of the square in pixels, at least 1")
    return RESIZE_POLICIES[policy](image, size)

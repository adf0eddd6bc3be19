"""Decode an image file, bytes, a PIL image or an array to RGB pixels.

Extraction, prediction and fine-tuning all decode here, so that an image has the same pixels everywhere.
The formats are the rows of `_TABLE`. Every failure is an `ImageError` with a short, stable reason.

>>> import numpy as np
>>> load_pixels(np.zeros((4, 6, 3), np.uint8), size=2).shape
(2, 2, 3)
"""

import importlib
import io
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.errors import ImageError, UsageError
from pipeline.images.colour import raw_mode, to_rgb
from pipeline.images.pillow_errors import PillowErrors
from pipeline.images.resize import resize as _resize
from pipeline.images.sources import MAX_BYTES, read_bytes

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "PIXELS_VERSION",
    "SUFFIXES",
    "Source",
    "load_pixels",
    "open_rgb",
    "read_bytes",
]

PIXELS_VERSION: int = 1
"""Part of every recipe; increase it when a change here, in ``colour`` or in ``resize`` changes pixels."""

MAX_PIXELS: int = 89_478_485
"""Larger images are refused before they are decoded; Pillow's own default limit."""

LARGE_PIXELS: int = 2**24
"""Before a larger image is decoded, `before_large_image` is called."""


def before_large_image() -> None:
    """Do nothing; the processes of `pipeline.images.isolation` wait here to decode large images one at a time."""


def _hide_exif(data: bytes) -> bytes:
    """Rename the EXIF entry of an AVIF, whose orientation is stored elsewhere: libavif refuses damaged EXIF."""
    return re.sub(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", rb"\1skip", data, flags=re.DOTALL)


def _check_length(data: bytes) -> bytes:
    """Check that a WebP has the length that its header gives."""
    if len(data) < (length := int.from_bytes(data[4:8], "little")):
        raise ImageError("truncated", f"{len(data)} bytes, the header says at least {length}")
    return data


class _Format(NamedTuple):
    name: str  # as Pillow calls it
    plugin: str  # module that registers it with Pillow
    suffixes: str  # in lower case
    prepare: Callable[[bytes], bytes] | None = None  # applied to the content before Pillow opens it
    verify: bool = False  # whether Pillow checks the checksums of the pixels only in `Image.verify`


# The formats that are read; to add one, add a row. Signatures are compared in this order.
_TABLE = (
    _Format("JPEG", "PIL.JpegImagePlugin", ".jpg .jpeg .jpe .jfif .mpo"),  # MPO: several pictures, from phones
    _Format("PNG", "PIL.PngImagePlugin", ".png .apng", verify=True),
    _Format("GIF", "PIL.GifImagePlugin", ".gif"),
    _Format("BMP", "PIL.BmpImagePlugin", ".bmp .dib"),
    _Format("WEBP", "PIL.WebPImagePlugin", ".webp", _check_length),
    _Format("TIFF", "PIL.TiffImagePlugin", ".tif .tiff"),
    _Format("AVIF", "PIL.AvifImagePlugin", ".avif .avifs", _hide_exif),
)

# Importing the plugins registers them, before any thread opens an image.
_PILLOW_ERRORS = PillowErrors([Image, *(importlib.import_module(row.plugin) for row in _TABLE)])

FORMATS: tuple[str, ...] = tuple(row.name for row in _TABLE)
"""Pillow's names of the formats that are read; the content decides, never the file name."""

SUFFIXES: frozenset[str] = frozenset(suffix for row in _TABLE for suffix in row.suffixes.split())
"""Lower-case suffixes of the files that a folder scan takes as images."""

Source = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
"""What can be decoded: a file, its content, a PIL image, or an array of samples."""


def open_rgb(source: Source) -> Image.Image:
    """Decode an image to RGB as a person would see it on a white page.

    The EXIF orientation is applied, 16-bit greys are scaled to 8 bits, CMYK, YCCK and palettes are
    converted, and every kind of transparency is composited on white. Of an animation the first frame
    is taken. Colour profiles are not applied.

    Parameters
    ----------
    source : str, os.PathLike, bytes, PIL.Image.Image or numpy.ndarray
        A file, its content, an image (loaded or not), or uint8 samples of shape (h, w),
        (h, w, 1), (h, w, 3) or (h, w, 4).

    Returns
    -------
    PIL.Image.Image
        Mode RGB; a new image that shares no memory with the source.

    Raises
    ------
    ImageError
        With one of the reasons ``missing``, ``not-a-file``, ``empty``, ``not-an-image`` (the
        content has none of the `FORMATS`), ``truncated``, ``unreadable`` (damaged, or no
        permission), ``too-large`` (above `MAX_PIXELS` or `MAX_BYTES`), ``unsupported-pixels``
        (samples whose range is unknown: 32-bit integers or floats).
    UsageError
        If the source is of another type.

    Examples
    --------
    >>> open_rgb(Image.new("LA", (2, 2), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    >>> open_rgb(b"<svg></svg>")
    Traceback (most recent call last):
        ...
    pipeline.errors.ImageError: not-an-image: the content is none of JPEG, PNG, GIF, BMP, WEBP, TIFF, AVIF
    """
    with _PILLOW_ERRORS.as_image_errors():
        if isinstance(source, bytes):
            return _decode(source)
        if isinstance(source, str | os.PathLike):
            return _decode(read_bytes(source))
        if isinstance(source, np.ndarray):
            source = _from_array(source)
        if isinstance(source, Image.Image):
            _check_size(source)
            return to_rgb(source)
    raise UsageError(f"{type(source).__name__} cannot be decoded: give a path, bytes, a PIL image or a uint8 array")


def load_pixels(source: Source, size: int, resize: str = "squash") -> NDArray[np.uint8]:
    """Decode an image and resize it to a square; safe to call from many threads.

    Parameters
    ----------
    source : str, os.PathLike, bytes, PIL.Image.Image or numpy.ndarray
        As for `open_rgb`.
    size : int
        Side of the square in pixels.
    resize : {"squash", "crop", "pad"}
        How an image that is not square is resized, see `pipeline.images.resize`.

    Returns
    -------
    numpy.ndarray of uint8, shape (size, size, 3)
        RGB, C-contiguous, owned by the caller.

    Raises
    ------
    ImageError
        As for `open_rgb`.
    UsageError
        For an unknown policy, a size below 1, or a source of another type.

    Examples
    --------
    >>> load_pixels(Image.new("RGB", (30, 20), (1, 2, 3)), size=2, resize="crop")[0, 0]
    array([1, 2, 3], dtype=uint8)
    """
    image = open_rgb(source)
    return np.array(_resize(image, size, resize), dtype=np.uint8, order="C")


def _decode(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("empty", "the content has no bytes")
    if len(data) > MAX_BYTES:
        raise ImageError("too-large", f"{len(data)} bytes, the limit is {MAX_BYTES}")
    row = _format_of(data)
    if row.prepare:
        data = row.prepare(data)
    image = _open(data, row.name)
    low = None
    if row.verify and raw_mode(image):
        image.verify()
        image = _open(data, row.name)
        if raw_mode(image) == "RGB;16B" and "transparency" in image.info:
            low = _low_bytes(data, row.name)
    return to_rgb(image, low, owned=True)


def _format_of(data: bytes) -> _Format:
    for row in _TABLE:
        accept = Image.OPEN[row.name][1]
        if accept is not None and accept(data[:16]) is True:
            return row
    raise ImageError("not-an-image", f"the content is none of {', '.join(FORMATS)}")


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header; the pixels are not decoded yet."""
    try:
        image = Image.open(io.BytesIO(data), formats=[name])
    except UnidentifiedImageError:
        # Pillow's text contains a memory address.
        raise ImageError("unreadable", f"the header of this {name} is damaged") from None
    _check_size(image)
    return image


def _low_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Return the lower bytes of 16-bit RGB samples; Pillow itself keeps the upper ones."""
    image = _open(data, name)
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    return np.asarray(image)


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError("too-large", f"{width} x {height} pixels, the limit is {MAX_PIXELS} pixels")
    if width * height == 0:
        raise ImageError("empty", f"{width} x {height} pixels")
    if width * height > LARGE_PIXELS:
        before_large_image()


def _from_array(array: NDArray[Any]) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not shaped:
        raise ImageError(
            "unsupported-pixels",
            f"array of {array.dtype} with shape {array.shape}; give uint8 of shape (h, w), (h, w, 1), (h, w, 3) "
            "or (h, w, 4)",
        )
    if array.size == 0:
        raise ImageError("empty", f"array of shape {array.shape}")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)

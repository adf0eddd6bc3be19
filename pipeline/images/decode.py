"""From an image file, bytes, a PIL image or an array to RGB pixels: the one decode path.

Extraction, prediction, fine-tuning and serving all call `load_pixels`, so that an image gives the
same pixels wherever it is used. Every failure is an `ImageError` with a short, stable reason.

>>> import numpy as np
>>> load_pixels(np.zeros((4, 6, 3), np.uint8), size=2).shape
(2, 2, 3)
"""

import contextlib
import errno
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from pipeline.errors import ImageError, PipelineError, UsageError
from pipeline.images.resize import resize as _resize

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
"""Part of every recipe; raise it when a change here or in ``resize`` moves pixels."""

# Importing the plugins here registers them, once and before any thread opens an image.
_PLUGINS: dict[str, ModuleType] = {
    "JPEG": JpegImagePlugin,  # finds multi-picture (MPO) phone files itself
    "PNG": PngImagePlugin,
    "GIF": GifImagePlugin,
    "BMP": BmpImagePlugin,
    "WEBP": WebPImagePlugin,
    "TIFF": TiffImagePlugin,
    "AVIF": AvifImagePlugin,
}

FORMATS: tuple[str, ...] = tuple(_PLUGINS)
"""Pillow's names of the formats that are read; the content decides, never the file name."""

SUFFIXES: frozenset[str] = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif"}
    | {".bmp", ".dib", ".webp", ".tif", ".tiff", ".avif", ".avifs"}
)
"""Lower-case suffixes of the files that a folder scan takes for images."""

MAX_PIXELS: int = 89_478_485
"""Larger images are refused before they are decoded; Pillow's own default limit."""

LARGE_PIXELS: int = 2**24
"""Before a larger image is decoded, `before_large` is called."""

MAX_BYTES: int = 2**30
"""Larger files are refused before they are read."""


def before_large() -> None:
    """Do nothing; `pipeline.images.isolation` puts something here that lets one process at a time go on."""


Source = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_REASON_OF_ERRNO = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.ENAMETOOLONG: "missing",
    errno.ENXIO: "not-a-file",  # a socket, or a FIFO nobody writes to
    errno.ENODEV: "not-a-file",
}

# The first row that fits an exception which Pillow raised; any other is "unreadable".
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (Image.DecompressionBombError, "too-large"),
    (Image.DecompressionBombWarning, "too-large"),
    (MemoryError, "too-large"),
    (EOFError, "truncated"),
)
_TRUNCATED = re.compile(r"truncated|incomplete", re.IGNORECASE)

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_OPAQUE_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
# Alpha mode -> the mode on Pillow's way to RGBA.
_ALPHA_MODES = {"LA": "RGBA", "PA": "RGBA", "RGBA": "RGBA", "La": "LA", "RGBa": "RGBA"}
_GREY16_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
# Largest sample of a 16-bit mode, where the file says that it has fewer bits.
_GREY16_MAXIMUM = {"I;12": 4095}
# PNG gives a colour key in samples of the file; Pillow has spread these to 8 bits.
_KEY_SCALE = {"L;2": 85, "L;4": 17}
_MIN_IS_WHITE = 0
_STRIP_PIXELS = 2**20

# The entry of an AVIF container that announces EXIF. AVIF keeps its orientation elsewhere (irot, imir),
# and libavif refuses the whole image when its EXIF is damaged: so the entry is renamed before decoding.
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


class _PillowWarnings:
    """Stands in for the module ``warnings`` inside Pillow, and changes nothing but our own decoding.

    ``warnings.catch_warnings`` swaps state of the whole process, so it cannot be used in threads,
    and a permanent filter would change the host program's own use of Pillow.
    """

    def __init__(self) -> None:
        self.here = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(
        self,
        message: str | Warning,
        category: type[Warning] | None = None,
        stacklevel: int = 1,
        source: object = None,
    ) -> None:
        """Raise for a decompression bomb, drop the rest; outside of decoding, warn as ever."""
        if not getattr(self.here, "decoding", False):
            warnings.warn(message, category, stacklevel + 1, source)
        elif category is Image.DecompressionBombWarning:
            raise Image.DecompressionBombWarning(message)


_pillow_warnings = _PillowWarnings()
for _module in (Image, *_PLUGINS.values()):
    if "warnings" in vars(_module):
        vars(_module)["warnings"] = _pillow_warnings


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Turn whatever Pillow raises or warns about into an ImageError; the only place that does."""
    _pillow_warnings.here.decoding = True
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        raise _image_error(error) from error
    finally:
        _pillow_warnings.here.decoding = False


def _image_error(error: Exception) -> ImageError:
    detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return ImageError(reason, detail)
    return ImageError("truncated" if _TRUNCATED.search(detail) else "unreadable", detail)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file; a FIFO or a device is refused and never waited for.

    Parameters
    ----------
    path : str or os.PathLike
        The file; symbolic links are followed.

    Returns
    -------
    bytes
        The whole content, at least one byte.

    Raises
    ------
    ImageError
        With the reason ``missing``, ``not-a-file``, ``unreadable`` (permission, input/output),
        ``too-large`` (above `MAX_BYTES`) or ``empty``.

    Examples
    --------
    >>> read_bytes("no/such/image.jpg")
    Traceback (most recent call last):
        ...
    pipeline.errors.ImageError: missing: 'no/such/image.jpg': No such file or directory
    """
    name = repr(os.fspath(path))
    try:
        with open(os.open(path, _OPEN_FLAGS), "rb") as file:  # noqa: PTH123 (a descriptor)
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not-a-file", f"{name} is not a regular file")
            if status.st_size > MAX_BYTES:
                raise ImageError("too-large", f"{name} has {status.st_size} bytes, the limit is {MAX_BYTES}")
            data = file.read()
    except IsADirectoryError:
        raise ImageError("not-a-file", f"{name} is a folder") from None
    except OSError as error:
        reason = _REASON_OF_ERRNO.get(error.errno or 0, "unreadable")
        raise ImageError(reason, f"{name}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise ImageError("missing", f"{name}: {error}") from error
    if not data:
        raise ImageError("empty", f"{name} has no bytes")
    return data


def open_rgb(source: Source) -> Image.Image:
    """Decode an image to RGB as a person would see it on a white page.

    The orientation of EXIF is applied; 16-bit greys are scaled; CMYK, YCCK and palettes are
    converted; every kind of transparency is composited on white; of an animation the first frame
    counts. Colour profiles are not applied.

    Parameters
    ----------
    source : str, os.PathLike, bytes, PIL.Image.Image or numpy.ndarray
        A file, its content, an image in any state of loading, or uint8 samples of shape (h, w),
        (h, w, 1), (h, w, 3) or (h, w, 4).

    Returns
    -------
    PIL.Image.Image
        Mode RGB; a new image that shares nothing with the source.

    Raises
    ------
    ImageError
        With one of the reasons ``missing``, ``not-a-file``, ``empty``, ``not-an-image`` (the
        content is of no format in `FORMATS`), ``truncated``, ``unreadable`` (damaged, or no
        permission), ``too-large`` (above `MAX_PIXELS` or `MAX_BYTES`), ``unsupported-pixels``
        (samples whose range is unknown: 32-bit integers or floats).
    UsageError
        When the source is of another type.

    Examples
    --------
    >>> open_rgb(Image.new("LA", (2, 2), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    >>> open_rgb(b"<svg></svg>")
    Traceback (most recent call last):
        ...
    pipeline.errors.ImageError: not-an-image: the content is none of JPEG, PNG, GIF, BMP, WEBP, TIFF, AVIF
    """
    with _guarded():
        if isinstance(source, bytes):
            return _decode(source)
        if isinstance(source, str | os.PathLike):
            return _decode(read_bytes(source))
        if isinstance(source, np.ndarray):
            source = _from_array(source)
        if isinstance(source, Image.Image):
            return _to_rgb(source)
    raise UsageError(f"{type(source).__name__} cannot be decoded: give a path, bytes, a PIL image or a uint8 array")


def load_pixels(source: Source, size: int, resize: str = "squash") -> NDArray[np.uint8]:
    """Decode an image and bring it to a square of pixels; safe to call from many threads.

    Parameters
    ----------
    source : str, os.PathLike, bytes, PIL.Image.Image or numpy.ndarray
        As for `open_rgb`.
    size : int
        Side of the square in pixels.
    resize : {"squash", "crop", "pad"}
        How the shape of the image becomes a square, see `pipeline.images.resize`.

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
        raise ImageError("empty", "there are no bytes")
    if len(data) > MAX_BYTES:
        raise ImageError("too-large", f"{len(data)} bytes, the limit is {MAX_BYTES}")
    image = _open(data)
    low = None
    if image.format == "PNG" and _raw_mode(image):
        image.verify()  # Pillow's decoder skips the checksums of the pixel data
        image = _open(data)
        if _raw_mode(image) == "RGB;16B" and "transparency" in image.info:
            low = _low_bytes(data)
    return _to_rgb(image, low, owned=True)


def _open(data: bytes) -> Image.Image:
    """Read the header of an allowed format; the pixels are not decoded yet."""
    name = _format_of(data)
    if name == "AVIF":
        data = _AVIF_EXIF.sub(rb"\1skip", data)
    if name == "WEBP" and len(data) < int.from_bytes(data[4:8], "little"):
        raise ImageError("truncated", f"{len(data)} bytes of a WEBP that should have more")
    try:
        image = Image.open(io.BytesIO(data), formats=[name])
    except UnidentifiedImageError:
        # Pillow's text names an address in memory.
        raise ImageError("unreadable", f"the header of this {name} is damaged") from None
    _check_size(image)
    return image


def _format_of(data: bytes) -> str:
    for name in FORMATS:
        accept = Image.OPEN[name][1]
        if accept is not None and accept(data[:16]) is True:
            return name
    raise ImageError("not-an-image", f"the content is none of {', '.join(FORMATS)}")


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError("too-large", f"{width} x {height} pixels, the limit is {MAX_PIXELS} in all")
    if width * height == 0:
        raise ImageError("empty", f"{width} x {height} pixels")
    if width * height > LARGE_PIXELS:
        before_large()


def _from_array(array: NDArray[Any]) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not shaped:
        raise ImageError(
            "unsupported-pixels",
            f"array of {array.dtype} with shape {array.shape}; give uint8 and (h, w), (h, w, 1), (h, w, 3) "
            "or (h, w, 4)",
        )
    if array.size == 0:
        raise ImageError("empty", f"array of shape {array.shape}")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _raw_mode(image: Image.Image) -> str:
    """Layout of the samples in the file; known only until the pixels are loaded, "" from then on."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _low_bytes(data: bytes) -> NDArray[np.uint8]:
    """Lower halves of 16-bit RGB samples, of which Pillow keeps the upper ones; a colour key needs both."""
    image = _open(data)
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]  # type: ignore[attr-defined]
    return np.asarray(image)


def _to_rgb(image: Image.Image, low: NDArray[np.uint8] | None = None, *, owned: bool = False) -> Image.Image:
    _check_size(image)
    raw_mode = _raw_mode(image)
    image.load()
    if image.mode in _GREY16_MODES:
        rgb = _from_grey16(image, raw_mode)
    elif image.mode == "RGB" and owned and "transparency" not in image.info:
        rgb = image  # a photograph, as nearly all are: no copy
    elif image.mode in _ALPHA_MODES or image.mode == "P":
        rgb = _on_white(image)
    elif image.mode in _OPAQUE_MODES:
        rgb = _from_opaque(image, raw_mode, low)
    else:
        raise ImageError("unsupported-pixels", f"samples of mode {image.mode} have no known range or colour")
    method = _TRANSPOSE.get(_orientation(image))
    rgb = rgb if method is None else rgb.transpose(method)
    rgb.info.clear()  # an orientation left in there would be applied again
    return rgb


def _orientation(image: Image.Image) -> int:
    """Orientation by EXIF or XMP, 1 (upright) where there is none or where it makes no sense."""
    with contextlib.suppress(Exception):  # damaged metadata must not cost an image with sound pixels
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if isinstance(value, int) else 1
    return 1


def _on_white(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    # In strips: whole copies of the largest image would be a gigabyte.
    height = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        while strip.mode in _ALPHA_MODES and strip.mode != "RGBA":
            strip = strip.convert(_ALPHA_MODES[strip.mode])
        strip = strip.convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        rgb.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return rgb


def _from_opaque(image: Image.Image, raw_mode: str, low: NDArray[np.uint8] | None) -> Image.Image:
    if image.mode == "1":
        image = image.convert("L")
    key = image.info.get("transparency")
    if key is None or image.mode not in ("L", "RGB"):
        return image.convert("RGB")
    samples = np.asarray(image)
    rgb = Image.fromarray(samples).convert("RGB")
    if low is not None:
        return _whiten(rgb, (samples.astype(np.uint16) << 8 | low) == key)
    key = np.bitwise_and(key, 255) * _KEY_SCALE.get(raw_mode, 1)
    return _whiten(rgb, samples == key)


def _from_grey16(image: Image.Image, raw_mode: str) -> Image.Image:
    maximum = _GREY16_MAXIMUM.get(raw_mode, 65535)
    levels = np.minimum(np.arange(65536), maximum)
    table = ((levels * 255 + maximum // 2) // maximum).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _MIN_IS_WHITE:
        table = 255 - table
    samples = np.asarray(image)
    rgb = Image.fromarray(table[samples]).convert("RGB")
    key = image.info.get("transparency")
    return rgb if key is None else _whiten(rgb, samples == key)


def _whiten(rgb: Image.Image, transparent: NDArray[np.bool_]) -> Image.Image:
    """White where the samples equal the colour key: all bands of RGB must."""
    mask = transparent.all(axis=-1) if transparent.ndim == 3 else transparent
    rgb.paste((255, 255, 255), mask=Image.fromarray(mask))
    return rgb

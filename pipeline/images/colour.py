"""Decoded samples of any kind to RGB as a person sees them on a white page.

>>> to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))
(255, 255, 255)
"""

import contextlib

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from pipeline.errors import ImageError

_TRANSPOSE = {  # EXIF orientation -> what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_OPAQUE_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
# Mode with alpha -> the next mode that Pillow can convert it to on the way to RGBA.
_ALPHA_MODES = {"LA": "RGBA", "PA": "RGBA", "RGBA": "RGBA", "La": "LA", "RGBa": "RGBA"}
_GREY16_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
# Largest sample of a 16-bit mode when the file has fewer bits per sample.
_GREY16_MAXIMUM = {"I;12": 4095}
# A PNG states its colour key in the file's own bit depth; Pillow has scaled these samples to 8 bits.
_KEY_SCALE = {"L;2": 85, "L;4": 17}
_MIN_IS_WHITE = 0
_STRIP_PIXELS = 2**20


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the sample layout in the file, or "" once the pixels are loaded."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def to_rgb(image: Image.Image, low: NDArray[np.uint8] | None = None, *, owned: bool = False) -> Image.Image:
    """Load an image and convert it to upright, opaque RGB.

    Parameters
    ----------
    image : PIL.Image.Image
    low : ndarray of uint8, shape (h, w, 3), optional
        Lower bytes of 16-bit RGB samples: Pillow keeps the upper ones, a colour key needs both.
    owned : bool
        Whether ``image`` may be changed and returned, which saves a copy.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    ImageError
        ``unsupported-pixels`` for samples without a known range, such as 32-bit integers.
    """
    layout = raw_mode(image)
    image.load()
    if image.mode in _GREY16_MODES:
        rgb = _from_grey16(image, layout)
    elif image.mode == "RGB" and owned and "transparency" not in image.info:
        rgb = image  # nearly all photographs
    elif image.mode in _ALPHA_MODES or image.mode == "P":
        rgb = _on_white(image)
    elif image.mode in _OPAQUE_MODES:
        rgb = _from_opaque(image, layout, low)
    else:
        raise ImageError("unsupported-pixels", f"samples of mode {image.mode} have no known range or colour")
    method = _TRANSPOSE.get(_orientation(image))
    rgb = rgb if method is None else rgb.transpose(method)
    rgb.info.clear()  # an orientation left in there would be applied again
    return rgb


def _orientation(image: Image.Image) -> int:
    """Return the orientation by EXIF or XMP, or 1 (upright) if it is missing or damaged."""
    with contextlib.suppress(Exception):  # the pixels are fine even if the metadata is not
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if isinstance(value, int) else 1
    return 1


def _on_white(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    # In strips, because copies of the largest image would take a gigabyte.
    height = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        while strip.mode in _ALPHA_MODES and strip.mode != "RGBA":
            strip = strip.convert(_ALPHA_MODES[strip.mode])
        strip = strip.convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        rgb.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return rgb


def _from_opaque(image: Image.Image, layout: str, low: NDArray[np.uint8] | None) -> Image.Image:
    if image.mode == "1":
        image = image.convert("L")
    key = image.info.get("transparency")
    if key is None or image.mode not in ("L", "RGB"):
        return image.convert("RGB")
    samples = np.asarray(image)
    rgb = Image.fromarray(samples).convert("RGB")
    if low is not None:
        return _whiten(rgb, (samples.astype(np.uint16) << 8 | low) == key)
    key = np.bitwise_and(key, 255) * _KEY_SCALE.get(layout, 1)
    return _whiten(rgb, samples == key)


def _from_grey16(image: Image.Image, layout: str) -> Image.Image:
    maximum = _GREY16_MAXIMUM.get(layout, 65535)
    levels = np.minimum(np.arange(65536), maximum)
    table = ((levels * 255 + maximum // 2) // maximum).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _MIN_IS_WHITE:
        table = 255 - table
    samples = np.asarray(image)
    rgb = Image.fromarray(table[samples]).convert("RGB")
    key = image.info.get("transparency")
    return rgb if key is None else _whiten(rgb, samples == key)


def _whiten(rgb: Image.Image, transparent: NDArray[np.bool_]) -> Image.Image:
    """Paint pixels white whose samples equal the colour key in all bands; ``transparent`` is (h, w) or (h, w, 3)."""
    mask = transparent.all(axis=-1) if transparent.ndim == 3 else transparent
    rgb.paste((255, 255, 255), mask=Image.fromarray(mask))
    return rgb

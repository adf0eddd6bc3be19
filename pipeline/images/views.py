"""Views: augmented versions of an image, made together with the original from one decode.

View 0 is always the image itself. ``"flip"`` adds its mirror image; a number K adds K - 1 random ones: a random
resized crop, mirrored half of the time, with changed brightness, contrast and colour. The parameters of a random
view are derived from the seed and the image's own pixels, so they do not depend on the order of images, their
names, or the size of the square.

References
----------
Szegedy et al., Going deeper with convolutions (2015), arXiv:1409.4842, for the random resized crop.
"""

import hashlib
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from pipeline.errors import UsageError
from pipeline.images.decode import Source, open_rgb
from pipeline.images.resize import resize as _resize

ONE = "1"
FLIP = "flip"
MAX_VIEWS = 64

_AREA = (0.5, 1.0)  # share of the image that a random crop keeps
_ASPECT = (3 / 4, 4 / 3)
_JITTER = (0.8, 1.2)  # factors of brightness, contrast and colour
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class Views:
    """How many views an image has, and how those after the first are made; see `parse_views`.

    Parameters
    ----------
    count : int
    seed : int or None
        Of random views; None if there are none.
    """

    count: int = 1
    seed: int | None = None

    def __str__(self) -> str:
        if self.seed is None:
            return ONE if self.count == 1 else FLIP
        return f"{self.count}:{self.seed}" if self.seed else str(self.count)


@dataclass(frozen=True)
class PixelSpec:
    """The pixels that a network expects of an image.

    Parameters
    ----------
    size : int
        Side of the square in pixels.
    resize : {"squash", "crop", "pad"}
        How the image, or a random crop of it, becomes a square.
    views : Views
    """

    size: int
    resize: str = "squash"
    views: Views = Views()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of an image's pixels: ``(views, size, size, 3)``."""
        return self.views.count, self.size, self.size, 3

    def to_json(self) -> Any:
        """Return plain data for JSON: ``(size, resize, (count, seed))``."""
        return astuple(self)


def parse_views(text: str) -> Views:
    """Parse the value of ``--views``.

    Parameters
    ----------
    text : str
        ``"1"``, ``"flip"``, ``"K"`` or ``"K:SEED"`` with K from 2 to 64.

    Raises
    ------
    UsageError
        If it is anything else.

    Examples
    --------
    >>> parse_views("flip").count, str(parse_views("04:0"))
    (2, '4')
    """
    if text == FLIP:
        return Views(2, None)
    match = re.fullmatch(r"([0-9]{1,3})(?::([0-9]{1,9}))?", text)
    count = int(match[1]) if match else 0
    if match is None or not 1 <= count <= MAX_VIEWS:
        raise UsageError(f"views {text!r} cannot be made; give flip, a number from 1 to {MAX_VIEWS}, or NUMBER:SEED")
    return Views(count, int(match[2] or 0) if count > 1 else None)


def load_views(source: Source, specs: Sequence[PixelSpec]) -> list[NDArray[np.uint8]]:
    """Decode an image once and make the pixels that each network expects; safe to call from many threads.

    Parameters
    ----------
    source : str, os.PathLike, bytes, PIL.Image.Image or numpy.ndarray
        As for `pipeline.images.decode.open_rgb`.
    specs : sequence of PixelSpec

    Returns
    -------
    list of numpy.ndarray of uint8, shape (views, size, size, 3)
        RGB, one array per spec. Its first view is what `pipeline.images.decode.load_pixels` returns.

    Raises
    ------
    ImageError
        If the image cannot be decoded.
    UsageError
        If a resize policy or a size does not exist.

    Examples
    --------
    >>> ramp = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> [(original, mirrored)] = load_views(ramp, [PixelSpec(2, views=parse_views("flip"))])
    >>> bool((mirrored == original[:, ::-1]).all())
    True
    """
    image = open_rgb(source)
    return [_views_of(image, spec) for spec in specs]


def load_flat(source: Source, specs: Iterable[Any]) -> NDArray[np.uint8]:
    """Return the arrays of `load_views` as one flat array, for sending between processes; see `split_flat`.

    Parameters
    ----------
    source : as for `load_views`
    specs : iterable of `PixelSpec.to_json`

    Examples
    --------
    >>> specs = [PixelSpec(2, "crop"), PixelSpec(3, "pad", parse_views("flip"))]
    >>> flat = load_flat(np.zeros((4, 5, 3), np.uint8), [spec.to_json() for spec in specs])
    >>> [part.shape for part in split_flat(flat, specs)]
    [(1, 2, 2, 3), (2, 3, 3, 3)]
    """
    parsed = [PixelSpec(size, resize, Views(*views)) for size, resize, views in specs]
    return np.concatenate([pixels.ravel() for pixels in load_views(source, parsed)])


def split_flat(flat: NDArray[np.uint8], specs: Sequence[PixelSpec]) -> list[NDArray[np.uint8]]:
    """Return the arrays (views, size, size, 3) that `load_flat` joined."""
    parts = np.split(flat, np.cumsum([math.prod(spec.shape) for spec in specs])[:-1])
    return [part.reshape(spec.shape) for part, spec in zip(parts, specs, strict=True)]


def _views_of(image: Image.Image, spec: PixelSpec) -> NDArray[np.uint8]:
    size, resize, views = spec.size, spec.resize, spec.views
    squares = [_resize(image, size, resize)]
    if views.seed is not None:
        digest = hashlib.sha256(image.tobytes()).digest()
        for number in range(1, views.count):
            rng = random.Random(hashlib.sha256(b"%d:%d:" % (views.seed, number) + digest).digest())
            squares.append(_random_view(image, size, resize, rng))
    elif views.count == 2:
        squares.append(ImageOps.mirror(squares[0]))
    return np.stack([np.asarray(square) for square in squares])


def _random_view(image: Image.Image, size: int, resize: str, rng: random.Random) -> Image.Image:
    # Only `random()` is called: its stream is the same in every version of Python.
    def between(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    width, height = image.size
    area, aspect = between(*_AREA), math.exp(between(*map(math.log, _ASPECT)))  # relative to the image's own
    across = max(1, min(width, round(width * math.sqrt(area * aspect))))
    down = max(1, min(height, round(height * math.sqrt(area / aspect))))
    left, top = (round(between(0, room)) for room in (width - across, height - down))
    view = _resize(image.crop((left, top, left + across, top + down)), size, resize)
    if rng.random() < 0.5:
        view = ImageOps.mirror(view)
    for enhancer in _ENHANCERS:
        view = enhancer(view).enhance(between(*_JITTER))
    return view

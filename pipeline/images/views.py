"""Views: augmented versions of one image, made beside the plain one from a single decode.

View 0 is always the plain picture. ``"flip"`` adds its mirror image; a number K adds K - 1 random ones: a random
resized crop, a mirror half of the time, and a change of brightness, contrast and colour. The parameters of a
random view come from the seed and the picture's own pixels, so that they depend on nothing else: not on
the order of images, their names, or the size asked for.

References
----------
Szegedy et al., Going deeper with convolutions (2015), arXiv:1409.4842, for the random resized crop.
"""

import hashlib
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from pipeline.errors import UsageError
from pipeline.images.decode import Source, open_rgb
from pipeline.images.resize import resize as _resize

ONE = "1"
FLIP = "flip"
MAX_VIEWS = 64

_AREA = (0.5, 1.0)  # share of the picture that a random crop keeps
_ASPECT = (3 / 4, 4 / 3)
_JITTER = (0.8, 1.2)  # factors of brightness, contrast and colour
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class Views:
    """How many views, and how those beyond the first are made; `parse_views` makes one."""

    count: int
    seed: int | None  # None where nothing is random

    def __str__(self) -> str:
        if self.seed is None:
            return ONE if self.count == 1 else FLIP
        return f"{self.count}:{self.seed}" if self.seed else str(self.count)


def parse_views(text: str) -> Views:
    """Read what ``--views`` says.

    Parameters
    ----------
    text : str
        ``"1"``, ``"flip"``, ``"K"`` or ``"K:SEED"`` with K from 2 to 64.

    Raises
    ------
    UsageError
        If it says something else.

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


def load_views(source: Source, size: int, resize: str = "squash", views: str = ONE) -> NDArray[np.uint8]:
    """Decode an image once and bring its views to squares of pixels; safe to call from many threads.

    Parameters
    ----------
    source : str, os.PathLike, bytes, PIL.Image.Image or numpy.ndarray
        As for `pipeline.images.decode.open_rgb`.
    size : int
        Side of the squares in pixels.
    resize : {"squash", "crop", "pad"}
        How a picture, or a random crop of it, becomes a square.
    views : str
        See `parse_views`.

    Returns
    -------
    numpy.ndarray of uint8, shape (number of views, size, size, 3)
        RGB. The first is what `pipeline.images.decode.load_pixels` returns.

    Raises
    ------
    ImageError
        If the image cannot be decoded.
    UsageError
        For views, a policy or a size that do not exist.

    Examples
    --------
    >>> ramp = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> plain, mirrored = load_views(ramp, size=2, views="flip")
    >>> bool((mirrored == plain[:, ::-1]).all())
    True
    """
    return _views_of(open_rgb(source), size, resize, views)


Kind = tuple[int, str, str]  # size, resize policy, views


def load_kinds(source: Source, kinds: Sequence[Kind]) -> NDArray[np.uint8]:
    """Decode an image once for several networks.

    Parameters
    ----------
    source : str, os.PathLike, bytes, PIL.Image.Image or numpy.ndarray
    kinds : sequence of (size, resize, views)
        What each network takes, see `load_views`.

    Returns
    -------
    numpy.ndarray of uint8, shape (total,)
        The pixels of all kinds in a row; `split_kinds` gives each its shape.

    Raises
    ------
    ImageError, UsageError
        As for `load_views`.

    Examples
    --------
    >>> kinds = [(2, "crop", "1"), (3, "pad", "flip")]
    >>> [part.shape for part in split_kinds(load_kinds(np.zeros((4, 5, 3), np.uint8), kinds), kinds)]
    [(1, 2, 2, 3), (2, 3, 3, 3)]
    """
    image = open_rgb(source)
    return np.concatenate([_views_of(image, *kind).ravel() for kind in kinds])


def split_kinds(pixels: NDArray[np.uint8], kinds: Sequence[Kind]) -> list[NDArray[np.uint8]]:
    """Return what `load_kinds` made as one uint8 array (views, size, size, 3) for each kind."""
    shapes = [(parse_views(views).count, size, size, 3) for size, _, views in kinds]
    parts = np.split(pixels, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _views_of(image: Image.Image, size: int, resize: str, views: str) -> NDArray[np.uint8]:
    plan = parse_views(views)
    pictures = [_resize(image, size, resize)]
    if plan.seed is not None:
        digest = hashlib.sha256(image.tobytes()).digest()
        for number in range(1, plan.count):
            chance = random.Random(hashlib.sha256(b"%d:%d:" % (plan.seed, number) + digest).digest())
            pictures.append(_random_view(image, size, resize, chance))
    elif plan.count == 2:
        pictures.append(ImageOps.mirror(pictures[0]))
    return np.stack([np.asarray(picture) for picture in pictures])


def _random_view(image: Image.Image, size: int, resize: str, chance: random.Random) -> Image.Image:
    # Only `random()` is drawn from, whose stream Python keeps from version to version.
    def between(low: float, high: float) -> float:
        return low + (high - low) * chance.random()

    width, height = image.size
    area, aspect = between(*_AREA), math.exp(between(*map(math.log, _ASPECT)))  # as shares of the picture's own
    across = max(1, min(width, round(width * math.sqrt(area * aspect))))
    down = max(1, min(height, round(height * math.sqrt(area / aspect))))
    left, top = (round(between(0, room)) for room in (width - across, height - down))
    view = _resize(image.crop((left, top, left + across, top + down)), size, resize)
    if chance.random() < 0.5:
        view = ImageOps.mirror(view)
    for enhancer in _ENHANCERS:
        view = enhancer(view).enhance(between(*_JITTER))
    return view

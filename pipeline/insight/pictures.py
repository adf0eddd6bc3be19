"""Image files looked at once, in small: thumbnails, brightness, sharpness and size."""

import base64
import hashlib
import io
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import ImageError
from pipeline.features.engines import Speed
from pipeline.features.store import FeatureStore
from pipeline.images.decode import open_rgb, read_bytes
from pipeline.parallel import ahead
from pipeline.wording import count_of

MEASURES = ("width", "height", "dark", "light", "contrast", "sharpness")
_LOOK = 256  # long side at which images are measured
_ERRORS = (ImageError, OSError, ValueError, SyntaxError)  # the last three from Pillow's reading of a header
_SHEET = 16  # thumbnails in a row and in a column of a sheet


@dataclass(frozen=True)
class Pictures:
    """What the image files of a feature store look like.

    Parameters
    ----------
    measures : ndarray of float64, shape (n, 6)
        Columns `MEASURES`: pixels; luma (0 to 1) which all but the brightest and the darkest twentieth stay
        below and above; its standard deviation; variance of the Laplacian (grey levels squared) at
        256 pixels. NaN for images that could not be read.
    thumbnails : dict of int to PIL image
        Of the rows that were asked for, at most `side` pixels wide and high.
    """

    measures: NDArray[np.float64]
    thumbnails: dict[int, Image.Image] = field(default_factory=dict)

    def column(self, name: str) -> NDArray[np.float64]:
        """Return one measure of every row."""
        return self.measures[:, MEASURES.index(name)]

    @property
    def unreadable(self) -> int:
        """How many image files are not where they were, cannot be read any more, or have changed."""
        return int(np.isnan(self.measures[:, 0]).sum())


def look_at(
    store: FeatureStore,
    side: int = 0,
    wanted: Collection[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Read every image file of a store once.

    Parameters
    ----------
    store : FeatureStore
    side : int
        Of thumbnails, in pixels; 0 for none.
    wanted : collection of int or None
        Rows to make thumbnails of; None for all.
    progress : callable (done, total) or None

    Returns
    -------
    Pictures

    Examples
    --------
    >>> look_at(FeatureStore("artifacts/photos.h5")).column("width")  # doctest: +SKIP
    array([400., 400., 533.])
    """
    wanted = None if wanted is None else set(wanted)
    measures = np.full((len(store), len(MEASURES)), np.nan)
    thumbnails = {}

    def look(row: int) -> tuple[list[float], Image.Image | None] | None:
        try:
            image, size = _open_small(photograph(store, row))
        except _ERRORS:
            return None
        small = image if max(image.size) <= _LOOK else ImageOps.contain(image, (_LOOK, _LOOK), Image.Resampling.BOX)
        keep = side and (wanted is None or row in wanted)
        return [*size, *_measure(small)], thumbnail(small, side) if keep else None

    threads = Speed().threads()
    with ThreadPoolExecutor(threads) as pool:
        for row, seen in ahead(pool, range(len(store)), look, 4 * threads):
            if seen:
                measures[row] = seen[0]
                if seen[1]:
                    thumbnails[row] = seen[1]
            if progress:
                progress(row + 1, len(store))
    return Pictures(measures, thumbnails)


def thumbnails(store: FeatureStore, rows: Collection[int], side: int) -> dict[int, Image.Image]:
    """Make thumbnails of some rows; those that cannot be read, or have changed, are left out."""

    def make(row: int) -> Image.Image | None:
        try:
            return thumbnail(_open_small(photograph(store, row))[0], side)
        except _ERRORS:
            return None

    with ThreadPoolExecutor(Speed().threads()) as pool:
        made = zip(rows, pool.map(make, rows), strict=True)
        return {row: image for row, image in made if image}


def path_of(store: FeatureStore, row: int) -> str:
    """Return where the image of a row lies, or lay when it was extracted."""
    return os.path.join(store.index.root, store.paths[row])  # noqa: PTH118 - names of any bytes


def photograph(store: FeatureStore, row: int) -> bytes:
    """Read the image file of a row, as it was when its vector was made.

    Raises
    ------
    ImageError
        As for `pipeline.images.decode.read_bytes`; with the reason ``changed`` if it has other bytes now.
    """
    path = path_of(store, row)
    data = read_bytes(path)
    if hashlib.sha256(data).digest() != store.index.digests[row].tobytes():
        raise ImageError("changed", f"{path!r} has changed since the extraction")
    return data


def lost_note(count: int, total: int, root: str) -> str:
    """Say how many photographs are not shown, and what to do.

    >>> print(lost_note(2, 9, "photos"))
    2 image files of 9 could not be read in photos, or changed since the extraction; put them back, or extract anew
    """
    return (
        f"{count_of(count, 'image file')} of {total:,} could not be read in {root}, or changed since the extraction;"
        " put them back, or extract anew"
    )


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """Shrink an image to fit into a square; its shape stays."""
    return ImageOps.contain(image, (side, side), Image.Resampling.BICUBIC)


def _open_small(data: bytes) -> tuple[Image.Image, tuple[int, int]]:
    """Open an image; a large JPEG at a half, a quarter or an eighth, which is faster than in full."""
    if not data.startswith(b"\xff\xd8\xff"):
        image = open_rgb(data)
        return image, image.size
    opened = Image.open(io.BytesIO(data), formats=["JPEG"])
    size = opened.size
    opened.draft("RGB", (_LOOK, _LOOK))
    return open_rgb(opened), size


def _measure(image: Image.Image) -> tuple[float, float, float, float]:
    grey = np.asarray(image.convert("L"), np.float32)
    dark, light = np.percentile(grey, [5, 95]) / 255
    inner = grey[1:-1, 1:-1]
    laplacian = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(dark), float(light), float(grey.std()) / 255, float(laplacian.var()) if laplacian.size else 0.0


@dataclass(frozen=True)
class Sheets:
    """Thumbnails packed into few large images, each a ``data:`` address.

    Parameters
    ----------
    side : int
        Of a cell, in pixels.
    addresses : list of str
    places : dict of int to int
        Row of the store -> number of its cell, counted line by line through all sheets.
    per_row : int
        Cells in a line; a sheet has as many lines.
    """

    side: int
    addresses: list[str]
    places: dict[int, int]
    per_row: int = _SHEET

    def style(self, row: int) -> str:
        """Return the CSS that shows a row's thumbnail: sheet and position."""
        sheet, place = divmod(self.places[row], self.per_row**2)
        line, column = divmod(place, self.per_row)
        left, top = -column * self.side, -line * self.side
        return f"background-image:var(--s{self.side}-{sheet});background-position:{left}px {top}px"


def pack(thumbnails: dict[int, Image.Image], side: int, quality: int = 60) -> Sheets:
    """Pack thumbnails into sheets of 256; row r of the store is cell ``places[r]``, counted through all sheets.

    Examples
    --------
    >>> sheets = pack({7: Image.new("RGB", (4, 3))}, side=4)
    >>> sheets.places, sheets.addresses[0][:23]
    ({7: 0}, 'data:image/webp;base64,')
    """
    rows = sorted(thumbnails)
    per_sheet = _SHEET * _SHEET
    with ThreadPoolExecutor(Speed().threads()) as pool:  # the encoder gives the lock free
        addresses = list(
            pool.map(
                lambda start: _sheet([thumbnails[row] for row in rows[start : start + per_sheet]], side, quality),
                range(0, len(rows), per_sheet),
            )
        )
    return Sheets(side, addresses, {row: place for place, row in enumerate(rows)})


def _sheet(images: Sequence[Image.Image], side: int, quality: int) -> str:
    canvas = Image.new("RGBA", (_SHEET * side, -(-len(images) // _SHEET) * side))
    for place, image in enumerate(images):
        column, line = place % _SHEET * side, place // _SHEET * side
        canvas.paste(image, (column + (side - image.width) // 2, line + (side - image.height) // 2))
    return data_address(canvas, quality)


def data_address(image: Image.Image, quality: int = 75) -> str:
    """Write an image into a ``data:`` address, as WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

"""Image files of a feature store: thumbnails, and measures of brightness, sharpness and size."""

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
from pipeline.features.options import Speed
from pipeline.features.store import FeatureStore
from pipeline.images.decode import open_rgb, read_bytes
from pipeline.parallel import ahead
from pipeline.wording import count_of

MEASURES = ("width", "height", "dark", "light", "contrast", "sharpness")
_MEASURED = 256  # pixels of the long side at which images are measured
_ERRORS = (ImageError, OSError, ValueError, SyntaxError)  # Pillow raises the last three for a damaged header
_SHEET = 16  # thumbnails in a row and in a column of a sheet


@dataclass(frozen=True)
class Pictures:
    """Measures and thumbnails of the image files of a feature store.

    Parameters
    ----------
    measures : ndarray of float64, shape (n, 6)
        Columns `MEASURES`: width and height in pixels; 5th and 95th percentile and standard deviation of the luma
        (0 to 1); variance of the Laplacian, in squared grey levels, of the image at 256 pixels. NaN for images
        that cannot be read.
    thumbnails : dict of int to PIL image
        Row -> thumbnail, at most `side` pixels wide and high.
    """

    measures: NDArray[np.float64]
    thumbnails: dict[int, Image.Image] = field(default_factory=dict)

    def column(self, name: str) -> NDArray[np.float64]:
        """Return one measure of every row."""
        return self.measures[:, MEASURES.index(name)]

    @property
    def unreadable(self) -> int:
        """Number of image files that are missing, unreadable or changed since the extraction."""
        return int(np.isnan(self.measures[:, 0]).sum())


def look_at(
    store: FeatureStore,
    side: int = 0,
    wanted: Collection[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Measure every image file of a store and make thumbnails, reading each file once.

    Parameters
    ----------
    store : FeatureStore
    side : int
        Pixels of a thumbnail; 0 for no thumbnails.
    wanted : collection of int or None
        Rows to make thumbnails of; None for all.
    progress : callable (done, total) or None

    Returns
    -------
    Pictures

    Examples
    --------
    >>> look_at(FeatureStore("artifacts/photos.h5")).column("width")[:3]
    array([12., 12., 12.])
    """
    wanted = None if wanted is None else set(wanted)
    measures = np.full((len(store), len(MEASURES)), np.nan)
    thumbnails = {}

    def measure(row: int) -> tuple[list[float], Image.Image | None] | None:
        try:
            image, size = _open_small(photograph(store, row))
        except _ERRORS:
            return None
        small = (
            image
            if max(image.size) <= _MEASURED
            else ImageOps.contain(image, (_MEASURED, _MEASURED), Image.Resampling.BOX)
        )
        keep = side and (wanted is None or row in wanted)
        return [*size, *_measure(small)], thumbnail(small, side) if keep else None

    threads = Speed().threads()
    with ThreadPoolExecutor(threads) as pool:
        for row, result in ahead(pool, range(len(store)), measure, 4 * threads):
            if result:
                measures[row], small = result
                if small:
                    thumbnails[row] = small
            if progress:
                progress(row + 1, len(store))
    return Pictures(measures, thumbnails)


def thumbnails(store: FeatureStore, rows: Collection[int], side: int) -> dict[int, Image.Image]:
    """Return thumbnails of some rows, without files that cannot be read or have changed since the extraction."""

    def make(row: int) -> Image.Image | None:
        try:
            return thumbnail(_open_small(photograph(store, row))[0], side)
        except _ERRORS:
            return None

    with ThreadPoolExecutor(Speed().threads()) as pool:
        made = zip(rows, pool.map(make, rows), strict=True)
        return {row: image for row, image in made if image}


def path_of(store: FeatureStore, row: int) -> str:
    """Return the path of the image of a row at the time of its extraction."""
    return os.path.join(store.index.root, store.paths[row])  # noqa: PTH118 - pathlib would normalise the name


def photograph(store: FeatureStore, row: int) -> bytes:
    """Return the content of the image file of a row, checked against the checksum of the extraction.

    Raises
    ------
    ImageError
        As for `pipeline.images.decode.read_bytes`; with the reason ``changed`` if the checksum differs.
    """
    path = path_of(store, row)
    data = read_bytes(path)
    if hashlib.sha256(data).digest() != store.index.digests[row].tobytes():
        raise ImageError("changed", f"{path!r} has changed since the extraction")
    return data


def lost_note(count: int, total: int, root: str) -> str:
    """Describe how many image files are lost, and what to do.

    >>> print(lost_note(2, 9, "photos"))
    missing, unreadable or changed since the extraction: 2 of 9 image files in photos; restore them or extract again
    """
    return (
        f"missing, unreadable or changed since the extraction: {count:,} of {count_of(total, 'image file')} in {root};"
        " restore them or extract again"
    )


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """Resize an image to fit into a square, keeping its aspect ratio."""
    return ImageOps.contain(image, (side, side), Image.Resampling.BICUBIC)


def _open_small(data: bytes) -> tuple[Image.Image, tuple[int, int]]:
    """Open an image and return it with its full size; large JPEGs are decoded at a lower resolution, for speed."""
    if not data.startswith(b"\xff\xd8\xff"):
        image = open_rgb(data)
        return image, image.size
    opened = Image.open(io.BytesIO(data), formats=["JPEG"])
    size = opened.size
    opened.draft("RGB", (_MEASURED, _MEASURED))
    return open_rgb(opened), size


def _measure(image: Image.Image) -> tuple[float, float, float, float]:
    grey = np.asarray(image.convert("L"), np.float32)
    dark, light = np.percentile(grey, [5, 95]) / 255
    inner = grey[1:-1, 1:-1]
    laplacian = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(dark), float(light), float(grey.std()) / 255, float(laplacian.var()) if laplacian.size else 0.0


@dataclass(frozen=True)
class Sheets:
    """Thumbnails packed into a few large images.

    Parameters
    ----------
    side : int
        Pixels of a cell.
    urls : list of str
        A data URL for each sheet.
    cells : dict of int to int
        Row of the store -> number of its cell, counted line by line through all sheets.
    per_row : int
        Cells in a line, and lines of a sheet.
    """

    side: int
    urls: list[str]
    cells: dict[int, int]
    per_row: int = _SHEET

    def style(self, row: int) -> str:
        """Return the CSS that shows the thumbnail of a row."""
        sheet, place = divmod(self.cells[row], self.per_row**2)
        line, column = divmod(place, self.per_row)
        left, top = -column * self.side, -line * self.side
        return f"background-image:var(--s{self.side}-{sheet});background-position:{left}px {top}px"


def pack(thumbnails: dict[int, Image.Image], side: int, quality: int = 60) -> Sheets:
    """Pack thumbnails into sheets of 256 cells.

    Parameters
    ----------
    thumbnails : dict of int to PIL image
        Row of the store -> thumbnail of at most `side` pixels.
    side : int
    quality : int
        Of the WebP images.

    Examples
    --------
    >>> sheets = pack({7: Image.new("RGB", (4, 3))}, side=4)
    >>> sheets.cells, sheets.urls[0][:23]
    ({7: 0}, 'data:image/webp;base64,')
    """
    rows = sorted(thumbnails)
    per_sheet = _SHEET * _SHEET
    with ThreadPoolExecutor(Speed().threads()) as pool:  # the WebP encoder releases the GIL
        urls = list(
            pool.map(
                lambda start: _sheet([thumbnails[row] for row in rows[start : start + per_sheet]], side, quality),
                range(0, len(rows), per_sheet),
            )
        )
    return Sheets(side, urls, {row: cell for cell, row in enumerate(rows)})


def _sheet(images: Sequence[Image.Image], side: int, quality: int) -> str:
    canvas = Image.new("RGBA", (_SHEET * side, -(-len(images) // _SHEET) * side))
    for place, image in enumerate(images):
        column, line = place % _SHEET * side, place // _SHEET * side
        canvas.paste(image, (column + (side - image.width) // 2, line + (side - image.height) // 2))
    return data_url(canvas, quality)


def data_url(image: Image.Image, quality: int = 75) -> str:
    """Encode an image as a data URL, in WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()

"""The stored images that look most like a given one, and a sheet that shows them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import PipelineError, UsageError
from pipeline.features.engines import Speed, make_encoder
from pipeline.features.neighbours import nearest
from pipeline.features.store import FeatureStore
from pipeline.features.vector_index import VectorIndex
from pipeline.images.decode import load_pixels, open_rgb
from pipeline.insight.pictures import lost_note, path_of, thumbnail, thumbnails
from pipeline.wording import printable, shorten

_CELL, _TEXT, _GAP, _ACROSS = 180, 34, 8, 5
_MOST = 250  # cells of a sheet, which is then 9,400 pixels high


class Similar(NamedTuple):
    """One stored image.

    Parameters
    ----------
    path : str
        Relative to the root of the feature file.
    label : str
        Empty without one.
    cosine : float
        Of its vector with that of the image asked for; 1 is the same direction.
    row : int
        Of the feature file.
    """

    path: str
    label: str
    cosine: float
    row: int


def find_similar(
    features: FeatureStore | str | os.PathLike[str],
    image: str | os.PathLike[str],
    k: int = 12,
    speed: Speed = Speed(),
    index: VectorIndex | None = None,
) -> list[Similar]:
    """Find the stored images whose vectors have the largest cosine to that of an image.

    Without an index the search is exact and reads the file block by block, so that memory does not grow with it.

    Parameters
    ----------
    features : FeatureStore or path
    image : path
        Encoded with the recipe of the feature file.
    k : int
    speed : Speed
    index : VectorIndex or None
        Of the feature file: many times faster among millions, and may miss some.

    Returns
    -------
    list of Similar
        The most similar first.

    Raises
    ------
    ImageError
        If the image cannot be decoded.
    WeightsError
        If the weights are absent or have changed since the extraction.

    Examples
    --------
    >>> find_similar("artifacts/photos.h5", "new.jpg", k=1)  # doctest: +SKIP
    [Similar(path='cat/17.jpg', label='cat', cosine=0.91, row=16)]
    """
    if k < 1:
        raise UsageError(f"{k} similar images cannot be found; ask for 1 or more")
    store = features if isinstance(features, FeatureStore) else FeatureStore(features)
    recipe = store.recipe
    pixels = load_pixels(os.fspath(image), recipe.size, recipe.resize)
    query = make_encoder(recipe, speed).encode(pixels[None])[0]
    if index:
        rows, cosines = index.nearest(query, k)
    else:
        rows, cosines = nearest(query, ((start, vectors[:, 0]) for start, vectors in store.blocks()), k)
    return [
        Similar(store.paths[row], store.classes[label] if label >= 0 else "", float(cosine), row)
        for row, label, cosine in zip(rows.tolist(), store.labels[rows].tolist(), cosines.tolist(), strict=True)
    ]


def contact_sheet(
    store: FeatureStore, image: str | os.PathLike[str], found: Sequence[Similar], out: str | os.PathLike[str]
) -> list[str]:
    """Write a PNG with the image asked for and those found, each with its label and cosine.

    Returns
    -------
    list of str
        What the sheet does not show, and why: it has room for 249 images, and not all may still be there.

    Raises
    ------
    PipelineError
        If it cannot be written.
    """
    notes = []
    if len(found) >= _MOST:
        notes.append(f"the sheet shows the first {_MOST - 1} of {len(found):,} images")
        found = found[: _MOST - 1]
    pictures = thumbnails(store, [each.row for each in found], _CELL)
    if lost := len(found) - len(pictures):
        notes.append(lost_note(lost, len(found), store.index.root))
    cells: list[tuple[Image.Image | None, str, str]] = [
        (thumbnail(open_rgb(os.fspath(image)), _CELL), "this image", "")
    ]
    cells += [(pictures.get(each.row), each.label or path_of(store, each.row), f"{each.cosine:.3f}") for each in found]
    lines = -(-len(cells) // _ACROSS)
    step, high = _CELL + _GAP, _CELL + _TEXT + _GAP
    sheet = Image.new("RGB", (_ACROSS * step + _GAP, lines * high + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (picture, name, cosine) in enumerate(cells):
        left, top = _GAP + number % _ACROSS * step, _GAP + number // _ACROSS * high
        if picture:
            sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + (_CELL - picture.height) // 2))
        else:
            pen.text((left, top + _CELL // 2), "not readable", "gray", font)
        pen.text((left, top + _CELL + 2), shorten(_ascii(name), 22), "black", font)
        pen.text((left, top + _CELL + 17), cosine, "gray", font)
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out, "PNG")
    except OSError as error:
        raise PipelineError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
    return notes


def _ascii(text: str) -> str:
    return printable(text).encode("ascii", "replace").decode()  # Pillow's own font has no more

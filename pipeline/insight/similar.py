"""The stored images most similar to a given one, and a contact sheet of them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import UsageError
from pipeline.features.engines import make_encoder
from pipeline.features.neighbours import nearest
from pipeline.features.options import Speed
from pipeline.features.store import FeatureStore
from pipeline.features.vector_index import VectorIndex
from pipeline.files import writing
from pipeline.images.decode import load_pixels, open_rgb
from pipeline.insight.pictures import lost_note, path_of, thumbnail, thumbnails
from pipeline.wording import printable, shorten

_CELL, _TEXT, _GAP = 180, 34, 8  # pixels of a sheet
_COLUMNS, _MAX_CELLS = 5, 250


class Similar(NamedTuple):
    """One stored image.

    Parameters
    ----------
    path : str
        Relative to the root of the feature file.
    label : str
        Empty without a label.
    cosine : float
        Cosine similarity of its vector and that of the given image.
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
    """Find the stored images with the largest cosine similarity to an image.

    Without an index the search is exact and reads the file block by block, in constant memory.

    Parameters
    ----------
    features : FeatureStore or path
    image : path
        Encoded with the recipe of the feature file.
    k : int
    speed : Speed
    index : VectorIndex or None
        Of the feature file: much faster for millions of images, but approximate.

    Returns
    -------
    list of Similar
        The most similar first.

    Raises
    ------
    ImageError
        If the image cannot be decoded.
    UsageError
        If `k` is less than 1.
    WeightsError
        If the weights are missing or have changed since the extraction.

    Examples
    --------
    >>> [(each.path, each.label) for each in find_similar("artifacts/photos.h5", "new.jpg", k=1)]
    [('cat/3.jpg', 'cat')]
    """
    if k < 1:
        raise UsageError(f"cannot find {k} similar images; give 1 or more")
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
    """Write a PNG with the given image and those found, each with its label and cosine similarity.

    Returns
    -------
    list of str
        Which images the sheet does not show, and why: there are more than 249, or files are lost.

    Raises
    ------
    PipelineError
        If the file cannot be written.
    """
    notes = []
    if len(found) >= _MAX_CELLS:
        notes.append(f"the sheet shows the first {_MAX_CELLS - 1} of {len(found):,} images")
        found = found[: _MAX_CELLS - 1]
    pictures = thumbnails(store, [each.row for each in found], _CELL)
    if lost := len(found) - len(pictures):
        notes.append(lost_note(lost, len(found), store.index.root))
    cells: list[tuple[Image.Image | None, str, str]] = [
        (thumbnail(open_rgb(os.fspath(image)), _CELL), "this image", "")
    ]
    cells += [(pictures.get(each.row), each.label or path_of(store, each.row), f"{each.cosine:.3f}") for each in found]
    lines = -(-len(cells) // _COLUMNS)
    step, high = _CELL + _GAP, _CELL + _TEXT + _GAP
    sheet = Image.new("RGB", (_COLUMNS * step + _GAP, lines * high + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (picture, name, cosine) in enumerate(cells):
        left, top = _GAP + number % _COLUMNS * step, _GAP + number // _COLUMNS * high
        if picture:
            sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + (_CELL - picture.height) // 2))
        else:
            pen.text((left, top + _CELL // 2), "not readable", "gray", font)
        pen.text((left, top + _CELL + 2), shorten(_ascii(name), 22), "black", font)
        pen.text((left, top + _CELL + 17), cosine, "gray", font)
    with writing(out, advice="choose another --out"):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out, "PNG")
    return notes


def _ascii(text: str) -> str:
    return printable(text).encode("ascii", "replace").decode()  # the only letters of Pillow's own font

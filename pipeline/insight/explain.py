"""Heat maps: which part of a photograph spoke for a class."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.bundles.bundle import Bundle
from pipeline.errors import ImageError, PipelineError
from pipeline.features.engines import Encoder, Speed, make_encoder
from pipeline.features.store import FeatureStore
from pipeline.images.decode import load_pixels, open_rgb
from pipeline.insight.pictures import photograph
from pipeline.prediction import Prediction

CAM, OCCLUSION = "cam", "occlusion"
_GRID = 8  # occlusion hides one of 8 x 8 overlapping squares at a time
_BATCH = 32
_SIDE = 480  # of a written heat map, in pixels
_STRENGTH = 0.6  # of the colours over the photograph


class Explainer:
    """Makes heat maps for the answers of a bundle.

    Where the head is an affine map of average-pooled feature maps, the map of a class is exact (class activation
    mapping: Zhou, Khosla, Lapedriza, Oliva and Torralba, "Learning Deep Features for Discriminative
    Localization", CVPR 2016; Grad-CAM of Selvaraju et al., ICCV 2017, gives the same there): its mean is what
    the image adds to the logit of the class, less what it adds to the mean logit. For anything else each part of the
    photograph is hidden in turn, and the map shows how much probability that costs (occlusion: Zeiler and
    Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014).

    Parameters
    ----------
    bundle : Bundle
    speed : Speed

    Attributes
    ----------
    method : {"cam", "occlusion"}

    Raises
    ------
    WeightsError
        If the weights are absent or have changed since the training.

    Examples
    --------
    >>> Explainer(Bundle.load("artifacts/photos.bundle")).map("new.jpg", 0).shape  # doctest: +SKIP
    (7, 7)
    """

    def __init__(self, bundle: Bundle, speed: Speed = Speed()) -> None:
        self.bundle = bundle
        self._speed = speed
        self._layers = _layers(bundle, speed)
        self.method = CAM if self._layers else OCCLUSION

    def map(self, image: Any, label: int) -> NDArray[np.float32]:
        """Return the heat map of an image.

        Parameters
        ----------
        image : path, bytes, PIL image or uint8 array
        label : int
            Class to explain, an index into ``bundle.classes``.

        Returns
        -------
        ndarray of float32, shape (h, w)
            Evidence for the class, above 0, and against it, below; as fine as the finest feature map, or as the
            grid of hidden squares.

        Raises
        ------
        ImageError
            If the image cannot be decoded.
        """
        picture = open_rgb(image)
        return self._cam(picture, label) if self._layers else self._occlusion(picture, label)

    def _cam(self, picture: Image.Image, label: int) -> NDArray[np.float32]:
        maps = [layer.evidence(picture, label) for layer in self._layers]
        side = max(len(each) for each in maps)
        return np.sum([_resized(each, (side, side)) for each in maps], axis=0, dtype=np.float32)

    def _occlusion(self, picture: Image.Image, label: int) -> NDArray[np.float32]:
        rgb = np.asarray(picture)
        grey = rgb.mean(axis=(0, 1)).astype(np.uint8)
        rows, columns = (_windows(length) for length in rgb.shape[:2])
        versions = [rgb]
        for low, high in rows:
            for left, right in columns:
                versions.append(rgb.copy())
                versions[-1][low:high, left:right] = grey
        p = [
            self.bundle.predict_proba(list(versions[start : start + _BATCH]), self._speed)[:, label]
            for start in range(0, len(versions), _BATCH)
        ]
        whole, *hidden = np.concatenate(p)
        return np.reshape(whole - np.array(hidden), (_GRID, _GRID)).astype(np.float32)


class _Layer(NamedTuple):
    """A feature map before pooling, and what each of its channels says for each class."""

    encoder: Encoder
    columns: slice
    weights: NDArray[np.float64]  # (channels, classes)

    def evidence(self, picture: Image.Image, label: int) -> NDArray[np.float32]:
        values = self.encoder.encode(_pixels(self.encoder, picture))[0, self.columns]
        channels = len(self.weights)
        side = int((len(values) / channels) ** 0.5)
        return np.asarray(values.reshape(side, side, channels) @ self.weights[:, label], np.float32)


def _pixels(encoder: Encoder, picture: Image.Image) -> NDArray[np.uint8]:
    return load_pixels(picture, encoder.recipe.size, encoder.recipe.resize)[None]


def _layers(bundle: Bundle, speed: Speed) -> list[_Layer]:
    """Return the maps whose means make the bundle's vectors; none where these are no means of square maps."""
    if bundle.affine is None or any(recipe.pooling != "avg" for recipe in bundle.recipes):
        return []
    weights = np.zeros((len(bundle.affine.matrix), len(bundle.classes)))
    weights[:, bundle.affine.classes_] = bundle.affine.matrix - bundle.affine.matrix.mean(axis=1, keepdims=True)
    found = []
    start = 0
    for pooled in bundle.encoders(speed):
        whole = make_encoder(
            dataclasses.replace(pooled.recipe, pooling="flatten"), dataclasses.replace(speed, batch_size=1)
        )
        probe = _pixels(whole, Image.effect_noise((64, 64), 80).convert("RGB"))
        vector, values = pooled.encode(probe)[0], whole.encode(probe)[0]
        for name, (low, high) in pooled.segments.items():
            columns = slice(*whole.segments[name])
            channels = high - low
            maps = values[columns].reshape(-1, channels)
            # ConvNeXt, for one, normalises after pooling: then the vector is not the mean.
            if int(len(maps) ** 0.5) ** 2 != len(maps) or len(maps) == 1:
                return []
            if not np.allclose(maps.mean(axis=0), vector[low:high], atol=1e-2 * np.abs(vector).max()):
                return []
            found.append(_Layer(whole, columns, weights[start + low : start + high]))
        start += pooled.dim
    return found


def _windows(length: int) -> list[tuple[int, int]]:
    """Cut a length into overlapping windows, one around each of `_GRID` centres."""
    step = length / _GRID
    return [(max(0, round((i - 0.5) * step)), min(length, round((i + 1.5) * step))) for i in range(_GRID)]


def _resized(heat: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC))


def overlay(picture: Image.Image, heat: NDArray[np.float32], resize: str = "squash") -> Image.Image:
    """Lay the evidence for a class over a photograph: the stronger, the more yellow; none leaves it as it is.

    Parameters
    ----------
    picture : PIL image
        RGB, of any size.
    heat : ndarray of float32, shape (h, w)
        From `Explainer.map`; what speaks against the class is not shown.
    resize : {"squash", "crop", "pad"}
        How the photograph became the square that the map covers.

    Returns
    -------
    PIL image
        Of the same size.
    """
    from matplotlib import colormaps

    width, height = picture.size
    side = {"squash": None, "crop": min(width, height), "pad": max(width, height)}[resize]
    covered = (side, side) if side else (width, height)
    strength = np.clip(_resized(heat, covered), 0, None)
    strength /= strength.max() or 1
    canvas = np.zeros((height, width), np.float32)
    top, left = (height - covered[1]) // 2, (width - covered[0]) // 2
    inner = strength[max(0, -top) : max(0, -top) + height, max(0, -left) : max(0, -left) + width]
    canvas[max(0, top) : max(0, top) + inner.shape[0], max(0, left) : max(0, left) + inner.shape[1]] = inner
    colour = colormaps["inferno"](canvas)[:, :, :3] * 255
    share = _STRENGTH * np.sqrt(canvas)[:, :, None]
    return Image.fromarray((np.asarray(picture) * (1 - share) + colour * share).astype(np.uint8))


def explained(
    bundle: Bundle,
    rows: Iterable[Prediction],
    folder: str | os.PathLike[str],
    *,
    stores: Sequence[FeatureStore] = (),
    lost: list[str] | None = None,
    speed: Speed = Speed(),
) -> Iterator[Prediction]:
    """Pass predictions on, and write the heat map of each into a folder.

    Parameters
    ----------
    bundle : Bundle
    rows : iterable of Prediction
    folder : path
        Gets ``000001_NAME.png`` and so on, numbered by row: the photograph, right of it what spoke for the answer.
    stores : sequence of FeatureStore
        The feature files that were predicted from, if it was these; a photograph that has changed since gets no
        heat map.
    lost : list of str or None
        Gets the paths of images without a heat map: gone, or changed since.
    speed : Speed

    Raises
    ------
    PipelineError
        If the folder cannot be written.
    """
    explainer = Explainer(bundle, speed)
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(rows, start=1):
            if row.labels:
                picture = _picture(row.path, stores)
                if picture is None and lost is not None:
                    lost.append(row.path)
                if picture is not None:
                    name = Path(row.path).stem.encode("utf-8", "replace").decode()[:80]
                    _side_by_side(explainer, picture, row.labels[0]).save(target / f"{number:06d}_{name}.png")
            yield row
    except OSError as error:
        raise PipelineError(
            f"cannot write heat maps into {folder}: {error.strerror or error}; choose another folder"
        ) from error


def _picture(path: str, stores: Sequence[FeatureStore]) -> Image.Image | None:
    store = next((each for each in stores if path in each.positions), None)
    try:
        source = photograph(store, store.positions[path]) if store else path
        return ImageOps.contain(open_rgb(source), (_SIDE, _SIDE))
    except ImageError:
        return None  # gone since it was predicted


def _side_by_side(explainer: Explainer, picture: Image.Image, label: str) -> Image.Image:
    heat = explainer.map(picture, explainer.bundle.classes.index(label))
    both = Image.new("RGB", (2 * picture.width, picture.height))
    both.paste(picture, (0, 0))
    both.paste(overlay(picture, heat, explainer.bundle.recipes[0].resize), (picture.width, 0))
    return both

"""Heat maps: which parts of a photograph support a class."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.bundles.bundle import Bundle
from pipeline.errors import ImageError
from pipeline.features.engines import Encoder, make_encoder
from pipeline.features.options import Speed
from pipeline.features.store import FeatureStore
from pipeline.files import writing
from pipeline.images.decode import load_pixels, open_rgb
from pipeline.insight.pictures import photograph
from pipeline.prediction import Prediction

CAM, OCCLUSION = "cam", "occlusion"
_GRID = 8  # occlusion hides one of 8 x 8 overlapping windows at a time
_BATCH = 32
_SIDE = 480  # pixels of a written heat map
_OPACITY = 0.6  # largest, of the colours over the photograph


class Explainer:
    """Heat maps of the predictions of a bundle.

    If the head is an affine map of average-pooled feature maps, the heat map of a class is exact (class activation
    mapping: Zhou, Khosla, Lapedriza, Oliva and Torralba, "Learning Deep Features for Discriminative Localization",
    CVPR 2016; Grad-CAM of Selvaraju et al., ICCV 2017, is equivalent in this case): its mean is the contribution of the
    image to the logit of the class, relative to the mean logit. Otherwise parts of the photograph are hidden in turn,
    and the heat map shows by how much the probability drops (occlusion: Zeiler and Fergus, "Visualizing and
    Understanding Convolutional Networks", ECCV 2014).

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
        If the weights are missing or have changed since the training.

    Examples
    --------
    >>> Explainer(Bundle.load("artifacts/photos.bundle")).map("new.jpg", 0).shape
    (8, 8)
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
            The class to explain, as an index into ``bundle.classes``.

        Returns
        -------
        ndarray of float32, shape (h, w)
            Positive where the image supports the class, negative where it speaks against it; in the resolution of the
            largest feature map, or of the grid of hidden windows.

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
    """A feature map before pooling, and the weights of its channels for each class."""

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
    """Return the feature maps whose means are the bundle's vectors; none if the vectors are not such means."""
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
            # ConvNeXt, for example, normalises after pooling, so its vector is not the mean.
            if int(len(maps) ** 0.5) ** 2 != len(maps) or len(maps) == 1:
                return []
            if not np.allclose(maps.mean(axis=0), vector[low:high], atol=1e-2 * np.abs(vector).max()):
                return []
            found.append(_Layer(whole, columns, weights[start + low : start + high]))
        start += pooled.dim
    return found


def _windows(length: int) -> list[tuple[int, int]]:
    """Divide a length into `_GRID` overlapping windows, as (start, stop)."""
    step = length / _GRID
    return [(max(0, round((i - 0.5) * step)), min(length, round((i + 1.5) * step))) for i in range(_GRID)]


def _resized(heat: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC))


def overlay(picture: Image.Image, heat: NDArray[np.float32], resize: str = "squash") -> Image.Image:
    """Overlay a photograph with the evidence for a class: the stronger, the more yellow.

    Parameters
    ----------
    picture : PIL image
        RGB, of any size.
    heat : ndarray of float32, shape (h, w)
        From `Explainer.map`; negative values are not shown.
    resize : {"squash", "crop", "pad"}
        How the photograph was resized to the square that the heat map covers.

    Returns
    -------
    PIL image
        Of the same size as `picture`.
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
    share = _OPACITY * np.sqrt(canvas)[:, :, None]
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
    """Yield predictions, and write the heat map of each into a folder.

    Parameters
    ----------
    bundle : Bundle
    rows : iterable of Prediction
    folder : path
        Gets ``000001_NAME.png`` and so on, numbered by row: the photograph, and on its right the heat map.
    stores : sequence of FeatureStore
        The feature files that the predictions were made from, if any; their photographs must not have changed since.
    lost : list of str or None
        Gets the paths of images without a heat map: missing, unreadable or changed.
    speed : Speed

    Raises
    ------
    PipelineError
        If the folder cannot be written.
    """
    explainer = Explainer(bundle, speed)
    target = Path(folder)
    with writing(f"heat maps into {folder}", advice="choose another folder"):
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


def _picture(path: str, stores: Sequence[FeatureStore]) -> Image.Image | None:
    store = next((each for each in stores if path in each.positions), None)
    try:
        source = photograph(store, store.positions[path]) if store else path
        return ImageOps.contain(open_rgb(source), (_SIDE, _SIDE))
    except ImageError:
        return None  # lost since the prediction


def _side_by_side(explainer: Explainer, picture: Image.Image, label: str) -> Image.Image:
    heat = explainer.map(picture, explainer.bundle.classes.index(label))
    both = Image.new("RGB", (2 * picture.width, picture.height))
    both.paste(picture, (0, 0))
    both.paste(overlay(picture, heat, explainer.bundle.recipes[0].resize), (picture.width, 0))
    return both

"""Checks of the audit that concern image files: bad photographs, and classes that one simple property separates."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.images.findings import REVIEW, Finding
from pipeline.insight.audited import FAR, FEW, AuditedImages, robust_z
from pipeline.insight.pictures import Pictures

_DARK = 0.32  # the threshold of cleanvision
_LIGHT = 0.97
_LOW_CONTRAST = 0.03
_SHARP = 40  # variance of the Laplacian from which an image is never called blurred
_SEPARATES = 0.9  # area under the ROC curve


def find_bad_photographs(images: AuditedImages, pictures: Pictures | None) -> Iterator[Finding]:
    """Yield dark, blank, blurred and odd-sized images, by fixed thresholds and by comparison with the others.

    Compared with cleanvision (see the tests): that looks for edges at 64 pixels, where most blur is no longer visible,
    and mistakes flat colours for blur; where most images have the same size, it calls every other size odd.
    """
    if pictures is None or pictures.unreadable == len(pictures.measures):
        return
    width, height, dark, light, contrast, sharpness = pictures.measures.T
    with np.errstate(invalid="ignore"):
        blurred = (robust_z(np.log(sharpness + 1)) < -FAR) & (sharpness < _SHARP)
        blank = ((contrast < _LOW_CONTRAST) | (dark > _LIGHT)) & (light >= _DARK)
        for row in np.flatnonzero(light < _DARK).tolist():
            text = f"95 % of its pixels are darker than {light[row]:.0%} of white"
            yield images.finding(REVIEW, "dark", row, 1 - light[row], text)
        for row in np.flatnonzero(blank).tolist():
            white = f"95 % of its pixels are lighter than {dark[row]:.0%} of white"
            text = white if dark[row] > _LIGHT else f"the standard deviation of its grey levels is {contrast[row]:.1%}"
            yield images.finding(REVIEW, "blank", row, 1 - contrast[row], text)
        for row in np.flatnonzero(blurred & ~blank & (light >= _DARK)).tolist():
            text = f"sharpness {sharpness[row]:.0f}; the median is {np.nanmedian(sharpness):.0f}"
            yield images.finding(REVIEW, "blurred", row, 1 - sharpness[row] / _SHARP, text)
        # Odd: size or aspect ratio off by a factor of two, and by more than the spread of the others explains.
        octaves = np.log2([np.sqrt(width * height), np.maximum(width, height) / np.minimum(width, height)])
        low, usual, high = np.nanpercentile(octaves, [25, 50, 75], axis=1)[:, :, np.newaxis]
        off = np.abs(octaves - usual)
        odd = (off > np.maximum(1, FAR * (high - low) / 1.349)).any(axis=0)
    side, aspect = 2 ** usual[:, 0]
    for row in np.flatnonzero(odd).tolist():
        text = (
            f"{width[row]:.0f} x {height[row]:.0f} pixels; usual are {side:.0f} x {side:.0f}, with an aspect ratio of"
            f" {aspect:.2f}"
        )
        yield images.finding(REVIEW, "odd-size", row, 1 - 0.5 ** off[:, row].max(), text)


def find_shortcuts(images: AuditedImages, pictures: Pictures | None) -> Iterator[Finding]:
    """Yield classes that one simple property separates from the others, by large, small or middling values."""
    from scipy.stats import rankdata

    properties = {"file size": images.store.index.sizes_mtimes[:, 0].astype(np.float64)}
    if pictures and not pictures.unreadable:
        width, height, _, light, _, sharpness = pictures.measures.T
        properties |= {"width": width, "height": height, "shape": width / height, "brightness": light}
        properties["sharpness"] = sharpness
    for name, values in properties.items():
        ranks = rankdata(values)
        for label in range(len(images.store.classes)):
            members = images.labels == label
            if not 2 * FEW <= members.sum() <= len(members) - 2 * FEW:
                continue
            by_size = _roc_auc(ranks, members)
            by_closeness = _roc_auc(rankdata(-np.abs(ranks - np.median(ranks[members]))), members)
            area = max(by_size, 1 - by_size, by_closeness)
            if area >= _SEPARATES:
                text = f"{name} alone separates this class from the others (area under the ROC curve {area:.2f})"
                yield Finding(REVIEW, "shortcut", "", label=images.store.classes[label], score=area, detail=text)


def _roc_auc(ranks: NDArray[np.float64], members: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve, from ranks (Mann and Whitney, 1947)."""
    count = int(members.sum())
    return float((ranks[members].sum() - count * (count + 1) / 2) / (count * (len(members) - count)))

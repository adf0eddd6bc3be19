"""What is wrong with the data, found in cached vectors and, where they are at hand, in the image files."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.features.duplicates import MIN_COLUMNS, Pairs, equal, join_groups, near_duplicates
from pipeline.features.neighbours import standardise, unit_rows
from pipeline.features.store import FeatureStore
from pipeline.features.weights import TUNED
from pipeline.heads.arrays import softmax
from pipeline.images.findings import EXCLUDE, KEEP, REVIEW, Finding
from pipeline.insight.pictures import Pictures, look_at, lost_note
from pipeline.metrics.losses import log_losses
from pipeline.wording import count_of

KINDS = {
    "label-error": "the vector fits another label",
    "contradiction": "what may be the same picture, under two labels",
    "leakage": "what may be the same picture, in two splits; the score may be too good",
    "exact-duplicate": "the same bytes as another image",
    "near-duplicate": "may be the picture of another image: resized, encoded anew, mirrored, taken twice",
    "outlier": "like no other image",
    "dark": "hardly any light",
    "blank": "nearly one colour",
    "blurred": "no sharp edge",
    "odd-size": "much smaller, larger, longer or flatter than the others",
    "small-class": "too few images to learn from, or to test with",
    "shortcut": "a class told apart by brightness or size alone",
}
"""What is looked for, the worst first."""

FOLDS = 5
_RIDGE = (0.3, 1.0, 3.0)
_NEIGHBOURS = 5
_FAR = 3.5  # robust standard deviations
_FEW = 10
_TELLS = 0.9  # area under the ROC curve
_PRIORITY = {"test": 0, "validation": 1, "train": 2, "": 3}
_AXES = 64
_DARK = 0.32  # cleanvision's bound
_LIGHT = 0.97
_SURE = 0.9  # cosine from which a near duplicate is the same photograph, and not one like it


@dataclass(frozen=True)
class Audit:
    """What was found.

    Parameters
    ----------
    findings : list of Finding
        Kind by kind, the worst first.
    images : int
        How many were looked at.
    notes : list of str
        What could not be checked, and why.
    seconds : float
    """

    findings: list[Finding]
    images: int
    notes: list[str]
    seconds: float

    def counts(self) -> dict[str, int]:
        """Count the findings of each kind, in the order of `KINDS`."""
        return {
            kind: count
            for kind in KINDS
            if (count := sum(finding.kind == kind and finding.action != KEEP for finding in self.findings))
        }


def audit(
    features: FeatureStore | str | os.PathLike[str],
    *,
    pictures: Pictures | None = None,
    images: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Look for label errors, duplicates, leakage, outliers, bad photographs, small classes and shortcuts.

    Parameters
    ----------
    features : FeatureStore or path
    pictures : Pictures or None
        What `pipeline.insight.pictures.look_at` has seen already.
    images : bool
        Whether image files are read (for dark, blurred and odd-sized ones) when `pictures` is None.
    seed : int
        Of the folds.
    progress : callable (done, total) or None
        Called while image files are read.

    Returns
    -------
    Audit

    Raises
    ------
    UsageError
        If the file holds no image.

    Examples
    --------
    >>> audit("artifacts/photos.h5").counts()  # doctest: +SKIP
    {'label-error': 12, 'near-duplicate': 3}
    """
    started = time.monotonic()
    store = features if isinstance(features, FeatureStore) else FeatureStore(features)
    if not len(store):
        raise UsageError(f"{store.path} holds no image; extract some first")
    notes: list[str] = []
    if pictures is None and images:
        pictures = look_at(store, progress=progress)
    if pictures is None:
        notes.append("image files were not read: nothing is known of dark, blurred and odd-sized ones")
    elif pictures.unreadable:
        notes.append(lost_note(pictures.unreadable, len(store), store.index.root))
    checks = _Checks(store, notes, seed)
    findings = [*checks.run(), *_photographs(checks, pictures), *_shortcuts(checks, pictures)]
    order = {kind: number for number, kind in enumerate(KINDS)}
    findings.sort(key=lambda finding: (order[finding.kind], -finding.score, finding.path))
    return Audit(findings, len(store), notes, round(time.monotonic() - started, 3))


class _Checks:
    """The checks that need vectors; they are read once."""

    def __init__(self, store: FeatureStore, notes: list[str], seed: int) -> None:
        self.store = store
        self.notes = notes
        self.seed = seed
        self.labels = store.labels.astype(np.int64)
        self.names = [store.classes[label] if label >= 0 else "" for label in self.labels.tolist()]

    def finding(self, action: str, kind: str, row: int, score: float, detail: str, **more: str) -> Finding:
        """Make a finding about a row."""
        store = self.store
        return Finding(
            action,
            kind,
            store.paths[row],
            label=self.names[row],
            split=store.splits[row],
            score=float(min(max(score, 0.0), 1.0)),
            detail=detail,
            **more,
        )

    def run(self) -> list[Finding]:
        vectors = self.store.take(np.arange(len(self.store)))[:, 0]
        if vectors.shape[1] < MIN_COLUMNS:
            self.notes.append(f"vectors of {vectors.shape[1]} numbers are too short to tell near duplicates")
        near = near_duplicates(vectors)
        copies = equal(digest.tobytes() for digest in self.store.index.digests)
        groups = join_groups(self.store.paths, [""] * len(self.store), copies, near)
        Z = standardise(vectors)
        del vectors
        outliers = list(self._outliers(Z))  # in full length: what is far from all others is often long
        Z = unit_rows(Z)
        return [
            *self._duplicates(copies, near, groups),
            *self._label_errors(Z, groups),
            *outliers,
            *self._small_classes(),
        ]

    def _duplicates(self, copies: Pairs, near: Pairs, groups: list[str]) -> Iterator[Finding]:
        """Give one finding an image, for the worst that its pairs show."""
        digests, splits = self.store.index.digests, self.store.splits
        kinds = list(KINDS)
        found: dict[int, tuple[int, float, int]] = {}
        for pairs in (copies, near):
            for first, second, cosine in zip(*(column.tolist() for column in pairs), strict=True):
                # The image that is kept is the one in the split that judges, else the earlier one.
                kept, other = sorted((first, second), key=lambda row: (_PRIORITY[splits[row]], row))
                if -1 != self.labels[first] != self.labels[second] != -1:
                    kind = "contradiction"
                elif splits[first] != splits[second] and splits[first] and splits[second]:
                    kind = "leakage"
                else:
                    kind = "exact-duplicate" if (digests[first] == digests[second]).all() else "near-duplicate"
                found[other] = min(found.get(other, (len(kinds), 0.0, 0)), (kinds.index(kind), -cosine, kept))
        for row, (number, cosine, kept) in found.items():
            kind = kinds[number]
            where = f" ({splits[kept]}, {self.names[kept] or 'no label'})"
            same = "the same bytes as" if (digests[row] == digests[kept]).all() else "may be the same picture as"
            yield self.finding(
                EXCLUDE if kind in ("leakage", "exact-duplicate") and -cosine >= _SURE else REVIEW,
                kind,
                row,
                -cosine,
                f"{same} {self.store.paths[kept]}{where}, cosine {-cosine:.2f}",
                suggestion=self.store.paths[kept],
                group=groups[row],
            )
        # Every member of a group is named, so that the group can be kept together.
        for row, group in enumerate(groups):
            if group and row not in found:
                yield self.finding(KEEP, "near-duplicate", row, 0.0, "kept; others of its group repeat it", group=group)

    def _label_errors(self, Z: NDArray[np.float32], groups: list[str]) -> Iterator[Finding]:
        units = np.unique(
            [group or path for group, path in zip(groups, self.store.paths, strict=True)], return_inverse=True
        )[1]
        enough = [
            label for label in range(len(self.store.classes)) if len(np.unique(units[self.labels == label])) >= FOLDS
        ]
        rows = np.flatnonzero(np.isin(self.labels, enough))
        if len(enough) < 2:
            self.notes.append(f"label errors need two classes of {FOLDS} images or more")
            return
        if self.store.recipe.weights == TUNED:
            self.notes.append(
                "the network was tuned on labels of these images, so it hides their errors; audit vectors from before"
            )
        y = np.searchsorted(enough, self.labels[rows])
        issues, p = label_issues(Z[rows], y, units[rows], self.seed)
        for each in issues.tolist():
            row, best = int(rows[each]), int(p[each].argmax())
            suggestion = self.store.classes[enough[best]]
            text = f"labelled {self.names[row]} ({p[each, y[each]]:.0%}), looks like {suggestion} ({p[each, best]:.0%})"
            yield self.finding(REVIEW, "label-error", row, 1 - p[each, y[each]], text, suggestion=suggestion)

    def _outliers(self, Z: NDArray[np.float32]) -> Iterator[Finding]:
        from sklearn.decomposition import PCA
        from sklearn.neighbors import NearestNeighbors

        if len(Z) < 4 * _NEIGHBOURS:
            return
        points = PCA(min(_AXES, *Z.shape), svd_solver="randomized", random_state=self.seed).fit_transform(Z)
        distances, _ = NearestNeighbors(n_neighbors=_NEIGHBOURS, algorithm="brute").fit(points).kneighbors()
        distance = distances.mean(axis=1)
        far = robust_z(distance)
        for row in np.flatnonzero(far > _FAR).tolist():
            text = f"its nearest images are {distance[row] / np.median(distance):.1f} times as far as is usual"
            yield self.finding(REVIEW, "outlier", row, 1 - np.median(distance) / distance[row], text)

    def _small_classes(self) -> Iterator[Finding]:
        splits = np.array(self.store.splits)
        present = [split for split in ("train", "validation", "test") if (splits == split).any()]
        for label, name in enumerate(self.store.classes):
            mine = self.labels == label
            counts = {split: int((mine & (splits == split)).sum()) for split in present} or {"": int(mine.sum())}
            learn = counts.get("train", counts.get("", 0))
            missing = [split for split, count in counts.items() if split and not count]
            if learn < _FEW or missing:
                text = ", ".join(
                    f"{count_of(count, split + ' image' if split else 'image')}" for split, count in counts.items()
                )
                yield Finding(REVIEW, "small-class", "", label=name, score=1 - min(learn, _FEW) / _FEW / 2, detail=text)


def label_issues(
    Z: NDArray[np.float32], y: NDArray[np.int64], units: NDArray[np.int64], seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find labels that are likely wrong, by confident learning on probabilities made out of fold.

    Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021, as in
    the package cleanlab; ranked by the probability of the given label.

    Parameters
    ----------
    Z, y, units, seed
        As for `out_of_fold`.

    Returns
    -------
    rows : ndarray of int, shape (issues,)
        The most likely error first.
    probabilities : ndarray of float64, shape (n, k)
    """
    from cleanlab.filter import find_label_issues

    p = out_of_fold(Z, y, units, seed)
    return np.asarray(find_label_issues(y, p, return_indices_ranked_by="self_confidence", n_jobs=1), np.int64), p


def out_of_fold(
    Z: NDArray[np.float32], y: NDArray[np.int64], units: NDArray[np.int64], seed: int = 0
) -> NDArray[np.float64]:
    """Say what each image's label looks like to a classifier that has not seen it.

    Ridge regression on the labels, whose strength is chosen by log loss, and a softmax of fitted temperature. With the
    products of the vectors summed up once, leaving out a fold is a subtraction, so that all folds cost
    little more than one fit; a logistic regression takes twenty times as long and finds no more label errors.

    Parameters
    ----------
    Z : ndarray of float32, shape (n, d)
        Centred vectors.
    y : ndarray of int, shape (n,)
        0 to k - 1, at least `FOLDS` units of each.
    units : ndarray of int, shape (n,)
        Rows of one unit (near duplicates) are left out together.
    seed : int

    Returns
    -------
    ndarray of float64, shape (n, k)
        Rows add up to 1.
    """
    from scipy.linalg import solve
    from sklearn.model_selection import StratifiedGroupKFold

    from pipeline.heads.temperature import fit_temperature

    folds = [out for _, out in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(Z, y, units)]
    targets = np.eye(y.max() + 1, dtype=np.float32)[y]
    decisions = np.empty((len(_RIDGE), *targets.shape))
    gram, cross = Z.T @ Z, Z.T @ targets
    scale = np.trace(gram) / len(gram)
    for out in folds:
        Zf, Tf = Z[out], targets[out]
        kept = len(Z) - len(out)
        share = (targets.sum(axis=0) - Tf.sum(axis=0)) / kept
        inner, outer = gram - Zf.T @ Zf, cross - Zf.T @ Tf
        for number, strength in enumerate(_RIDGE):
            ridge = inner + np.float32(strength * scale) * np.eye(len(gram), dtype=np.float32)
            decisions[number, out] = Zf @ solve(ridge, outer, assume_a="pos") + share
    fitted = [softmax(each / fit_temperature(each, y)) for each in decisions]
    return min(fitted, key=lambda p: float(log_losses(y, p).mean()))


def robust_z(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Tell by how many standard deviations values are off the median; the deviation is that of the middle half.

    >>> robust_z(np.array([1.0, 2.0, 3.0, 4.0, 50.0])).round(1).tolist()
    [-1.3, -0.7, 0.0, 0.7, 31.7]
    """
    low, middle, high = np.nanpercentile(values, [25, 50, 75])
    spread = (high - low) / 1.349
    return np.asarray((values - middle) / spread if spread > 0 else np.zeros(len(values)), np.float64)


def _photographs(checks: _Checks, pictures: Pictures | None) -> Iterator[Finding]:
    """Find dark, blank, blurred and odd-sized images; bounds are those of the eye, and of the other images.

    cleanvision, with which a test compares this, looks for edges at 64 pixels, where most blur is gone, and takes flat
    colours for it; where most images have one size, it calls every other size odd.
    """
    if pictures is None or pictures.unreadable == len(pictures.measures):
        return
    width, height, dark, light, contrast, sharpness = pictures.measures.T
    with np.errstate(invalid="ignore"):
        blurred = (robust_z(np.log(sharpness + 1)) < -_FAR) & (sharpness < 40)
        blank = ((contrast < 0.03) | (dark > _LIGHT)) & (light >= _DARK)
        for row in np.flatnonzero(light < _DARK).tolist():
            text = f"95 % of its pixels are darker than {light[row]:.0%} of white"
            yield checks.finding(REVIEW, "dark", row, 1 - light[row], text)
        for row in np.flatnonzero(blank).tolist():
            white = f"95 % of its pixels are lighter than {dark[row]:.0%} of white"
            text = white if dark[row] > _LIGHT else f"its grey levels vary by {contrast[row]:.1%}"
            yield checks.finding(REVIEW, "blank", row, 1 - contrast[row], text)
        for row in np.flatnonzero(blurred & ~blank & (light >= _DARK)).tolist():
            text = f"sharpness {sharpness[row]:.0f}; half of the images have more than {np.nanmedian(sharpness):.0f}"
            yield checks.finding(REVIEW, "blurred", row, 1 - sharpness[row] / 40, text)
        # In octaves: twice as large, or twice as long for its width, and more than the others differ among themselves.
        octaves = np.log2([np.sqrt(width * height), np.maximum(width, height) / np.minimum(width, height)])
        low, usual, high = np.nanpercentile(octaves, [25, 50, 75], axis=1)[:, :, np.newaxis]
        off = np.abs(octaves - usual)
        odd = (off > np.maximum(1, _FAR * (high - low) / 1.349)).any(axis=0)
    side, long = 2 ** usual[:, 0]
    for row in np.flatnonzero(odd).tolist():
        text = (
            f"{width[row]:.0f} x {height[row]:.0f} pixels; usual is {side:.0f} a side, {long:.2f} times as long as wide"
        )
        yield checks.finding(REVIEW, "odd-size", row, 1 - 0.5 ** off[:, row].max(), text)


def _shortcuts(checks: _Checks, pictures: Pictures | None) -> Iterator[Finding]:
    """Find classes that one plain property tells from the rest, as large, small or of one certain value."""
    from scipy.stats import rankdata

    properties = {"file size": checks.store.index.sizes_mtimes[:, 0].astype(np.float64)}
    if pictures and not pictures.unreadable:
        width, height, _, light, _, sharpness = pictures.measures.T
        properties |= {"width": width, "height": height, "shape": width / height, "brightness": light}
        properties["sharpness"] = sharpness
    for name, values in properties.items():
        ranks = rankdata(values)
        for label in range(len(checks.store.classes)):
            mine = checks.labels == label
            if not 2 * _FEW <= mine.sum() <= len(mine) - 2 * _FEW:
                continue
            one_side = _area(ranks, mine)
            middle = _area(rankdata(-np.abs(ranks - np.median(ranks[mine]))), mine)
            area = max(one_side, 1 - one_side, middle)
            if area >= _TELLS:
                text = f"{name} alone tells this class from the others (area under the ROC curve {area:.2f})"
                yield Finding(REVIEW, "shortcut", "", label=checks.store.classes[label], score=area, detail=text)


def _area(ranks: NDArray[np.float64], mine: NDArray[np.bool_]) -> float:
    """Area under the ROC curve, from ranks (Mann and Whitney, 1947)."""
    count = int(mine.sum())
    return float((ranks[mine].sum() - count * (count + 1) / 2) / (count * (len(mine) - count)))

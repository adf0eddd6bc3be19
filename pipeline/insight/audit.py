"""`audit`: look for what is wrong with the data, in cached vectors and, where they are at hand, in the image files."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UsageError
from pipeline.features.duplicates import MIN_COLUMNS
from pipeline.features.neighbours import standardise, unit_rows
from pipeline.features.store import FeatureStore
from pipeline.images.findings import KEEP, Finding
from pipeline.insight.audited import AuditedImages
from pipeline.insight.label_checks import find_label_errors, find_small_classes
from pipeline.insight.photograph_checks import find_bad_photographs, find_shortcuts
from pipeline.insight.pictures import Pictures, look_at, lost_note
from pipeline.insight.vector_checks import Duplicates, find_duplicates, find_outliers

KINDS = {
    "label-error": "another label is more likely",
    "contradiction": "likely the same picture with two different labels",
    "leakage": "likely the same picture in two splits; the score may be too high",
    "exact-duplicate": "the same bytes as another image",
    "near-duplicate": "likely the same picture as another image, for instance resized, recompressed or mirrored",
    "outlier": "unlike all other images",
    "dark": "very dark",
    "blank": "nearly a single colour",
    "blurred": "no sharp edges",
    "odd-size": "size or aspect ratio far from that of the other images",
    "small-class": "too few images to learn from, or none in a split",
    "shortcut": "a class that brightness, size or another simple property alone gives away",
}
"""The kinds of findings, the worst first."""


@dataclass(frozen=True)
class Audit:
    """The findings of an audit.

    Parameters
    ----------
    findings : list of Finding
        Sorted by kind, the worst first.
    images : int
        Number of images checked.
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
        From `pipeline.insight.pictures.look_at`, if image files have been read already.
    images : bool
        Whether to read image files, to find dark, blank, blurred and odd-sized ones, if `pictures` is None.
    seed : int
        Of the folds, and of the randomised PCA.
    progress : callable (done, total) or None
        Called while image files are read.

    Returns
    -------
    Audit

    Raises
    ------
    UsageError
        If the file holds no images.

    Examples
    --------
    >>> audit("artifacts/photos.h5").counts()
    {'outlier': 4, 'dark': 22, 'blank': 2}
    """
    started = time.monotonic()
    store = features if isinstance(features, FeatureStore) else FeatureStore(features)
    if not len(store):
        raise UsageError(f"{store.path} holds no images; extract some first")
    notes: list[str] = []
    if pictures is None and images:
        pictures = look_at(store, progress=progress)
    if pictures is None:
        notes.append("image files were not read, so dark, blank, blurred and odd-sized images were not looked for")
    elif pictures.unreadable:
        notes.append(lost_note(pictures.unreadable, len(store), store.index.root))
    findings = _run_checks(AuditedImages(store), pictures, notes, seed)
    severity = {kind: number for number, kind in enumerate(KINDS)}
    findings.sort(key=lambda finding: (severity[finding.kind], -finding.score, finding.path))
    return Audit(findings, len(store), notes, round(time.monotonic() - started, 3))


def _run_checks(images: AuditedImages, pictures: Pictures | None, notes: list[str], seed: int) -> list[Finding]:
    vectors = images.store.take(np.arange(len(images.store)))[:, 0]
    if vectors.shape[1] < MIN_COLUMNS:
        notes.append(f"near duplicates were not looked for: vectors of {vectors.shape[1]} numbers are too short for it")
    duplicates = Duplicates.of(images.store, vectors)
    Z = standardise(vectors)
    del vectors  # as large as the file
    outliers = list(find_outliers(images, Z, seed))
    Z = unit_rows(Z)
    return [
        *find_duplicates(images, duplicates),
        *find_label_errors(images, Z, duplicates.groups, notes, seed),
        *outliers,
        *find_small_classes(images),
        *find_bad_photographs(images, pictures),
        *find_shortcuts(images, pictures),
    ]

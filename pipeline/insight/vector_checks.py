"""Checks of the audit that compare vectors: duplicates and outliers."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.duplicates import Pairs, equal, join_groups, near_duplicates
from pipeline.features.store import FeatureStore
from pipeline.images.findings import EXCLUDE, KEEP, REVIEW, Finding
from pipeline.insight.audited import FAR, AuditedImages, robust_z

_NEIGHBOURS = 5
_AXES = 64  # principal axes in which distances are measured
_SAME_PHOTOGRAPH = 0.9  # cosine from which a near duplicate is the same photograph, not only a similar one
_KEPT_FIRST = {"test": 0, "validation": 1, "train": 2, "": 3}
_PAIR_KINDS = ("contradiction", "leakage", "exact-duplicate", "near-duplicate")  # the worst first


class Duplicates(NamedTuple):
    """Pairs of rows that show the same picture, and the groups that they form.

    Parameters
    ----------
    exact, near : Pairs
    groups : list of str
        Name of the group of each row, empty without one.
    """

    exact: Pairs
    near: Pairs
    groups: list[str]

    @classmethod
    def of(cls, store: FeatureStore, vectors: NDArray[np.floating]) -> "Duplicates":
        """Compare the checksums and the vectors (n, d) of all images."""
        near = near_duplicates(vectors)
        exact = equal(digest.tobytes() for digest in store.index.digests)
        return cls(exact, near, join_groups(store.paths, [""] * len(store), exact, near))


def find_duplicates(images: AuditedImages, duplicates: Duplicates) -> Iterator[Finding]:
    """Yield one finding for each image that repeats another one: the worst of its pairs.

    The images that are kept have findings with the action ``keep``, which name their group.
    """
    store, labels = images.store, images.labels
    digests, splits = store.index.digests, store.splits
    found: dict[int, tuple[int, float, int]] = {}  # row -> place in _PAIR_KINDS, negative cosine, row that is kept
    for pairs in (duplicates.exact, duplicates.near):
        for first, second, cosine in zip(*(column.tolist() for column in pairs), strict=True):
            kept, other = sorted((first, second), key=lambda row: (_KEPT_FIRST[splits[row]], row))
            if -1 != labels[first] != labels[second] != -1:
                kind = "contradiction"
            elif splits[first] != splits[second] and splits[first] and splits[second]:
                kind = "leakage"
            else:
                kind = "exact-duplicate" if (digests[first] == digests[second]).all() else "near-duplicate"
            worst = found.get(other, (len(_PAIR_KINDS), 0.0, 0))
            found[other] = min(worst, (_PAIR_KINDS.index(kind), -cosine, kept))
    for row, (number, negative_cosine, kept) in found.items():
        kind, cosine = _PAIR_KINDS[number], -negative_cosine
        where = f" ({splits[kept]}, {images.label_names[kept] or 'no label'})"
        same = "the same bytes as" if (digests[row] == digests[kept]).all() else "may be the same picture as"
        yield images.finding(
            EXCLUDE if kind in ("leakage", "exact-duplicate") and cosine >= _SAME_PHOTOGRAPH else REVIEW,
            kind,
            row,
            cosine,
            f"{same} {store.paths[kept]}{where}, cosine {cosine:.2f}",
            suggestion=store.paths[kept],
            group=duplicates.groups[row],
        )
    for row, group in enumerate(duplicates.groups):
        if group and row not in found:
            text = "kept; others of its group repeat it"
            yield images.finding(KEEP, "near-duplicate", row, 0.0, text, group=group)


def find_outliers(images: AuditedImages, Z: NDArray[np.float32], seed: int) -> Iterator[Finding]:
    """Yield images whose nearest neighbours are unusually far away.

    Parameters
    ----------
    images : AuditedImages
    Z : ndarray of float32, shape (n, d)
        Standardised vectors, not scaled to unit length: outliers are often long.
    seed : int
        Of the randomised PCA.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    if len(Z) < 4 * _NEIGHBOURS:
        return
    points = PCA(min(_AXES, *Z.shape), svd_solver="randomized", random_state=seed).fit_transform(Z)
    distances, _ = NearestNeighbors(n_neighbors=_NEIGHBOURS, algorithm="brute").fit(points).kneighbors()
    distance = distances.mean(axis=1)
    for row in np.flatnonzero(robust_z(distance) > FAR).tolist():
        text = f"its nearest images are {distance[row] / np.median(distance):.1f} times as far away as is usual"
        yield images.finding(REVIEW, "outlier", row, 1 - np.median(distance) / distance[row], text)

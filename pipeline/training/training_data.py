"""Training data from one or several feature files, joined by image, with splits and groups."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError, UsageError
from pipeline.features.duplicates import equal, join_groups, near_duplicates
from pipeline.features.store import FeatureStore
from pipeline.features.weights import TUNED
from pipeline.images.findings import Finding, excluded_paths, with_known_paths
from pipeline.images.splits import draw_splits
from pipeline.images.texts import Texts
from pipeline.wording import count_of

SPLITS = ("train", "validation", "test")
Features = FeatureStore | str | os.PathLike[str]


@dataclass(frozen=True)
class TrainingData:
    """Vectors and labels of images, joined from one or several feature files.

    Parameters
    ----------
    X : ndarray of float32, shape (n, v, sum of dims)
        The first of the v views of an image is not augmented.
    y : ndarray of int, shape (n,), or (n, l) with several labels per image
        Index into `classes`; every row is labelled. With several labels, 1 where an image has the label.
    splits, groups : ndarray of str, shape (n,)
    classes : tuple of str
    stores : tuple of FeatureStore
    notes : tuple of str
        For a person: images left out, splits drawn.
    paths : tuple of str, length n
        Relative to the root of the first store.
    """

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    splits: NDArray[np.str_]
    groups: NDArray[np.str_]
    classes: tuple[str, ...]
    stores: tuple[FeatureStore, ...]
    notes: tuple[str, ...]
    paths: tuple[str, ...] = ()

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a split."""
        return np.flatnonzero(self.splits == split)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of images of each split."""
        return {split: len(self.rows(split)) for split in SPLITS}

    @property
    def scored_on(self) -> str:
        """Where the score comes from: ``"test"``, else ``"validation"``, else ``"cross-validation"``."""
        return next((split for split in ("test", "validation") if self.counts[split]), "cross-validation")

    @property
    def tuned(self) -> bool:
        """Whether a network was tuned on the training images."""
        return any(store.recipe.weights == TUNED for store in self.stores)

    @cached_property
    def units(self) -> NDArray[np.int64]:
        """Group numbers of the rows, shape (n,): rows of one group have one number and stay in one fold."""
        own = [group or f"\0{row}" for row, group in enumerate(self.groups.tolist())]
        return np.unique(own, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def content(self) -> str:
        """SHA-256 of the sorted digests of all images, in hexadecimal: independent of their order and names."""
        first = self.stores[0]
        digests = first.index.digests[first.positions.find(Texts.of(self.paths))]
        return hashlib.sha256(b"".join(sorted(row.tobytes() for row in digests))).hexdigest()


def load_training_data(
    features: Features | Sequence[Features], seed: int = 0, findings: Sequence[Finding] = ()
) -> TrainingData:
    """Read and join feature files, drop images without a label, and draw splits if the first file has none.

    Images that `findings` exclude are dropped too. If splits are drawn, duplicates (images of the same bytes), near
    duplicates (by their vectors), and images of one group in the findings are put into the same split.

    Raises
    ------
    TrainingError
        If the files are of different images or classes, or no image has a label.
    """
    given: list[Any] = list(features) if isinstance(features, (list, tuple)) else [features]
    if not given:
        raise UsageError("no feature file was given; name at least one")
    names = [os.path.realpath(each.path if isinstance(each, FeatureStore) else each) for each in given]
    if len(set(names)) < len(names):
        raise UsageError("a feature file was given twice; give it once")
    stores = tuple(each if isinstance(each, FeatureStore) else FeatureStore(each) for each in given)
    first = stores[0]
    findings = with_known_paths(findings, first.positions)
    notes: list[str] = []
    rows = _joined_rows(stores, notes)
    labels = first.labels[rows[0]].astype(np.int64)
    labelled = np.flatnonzero(labels >= 0)
    if not len(labelled):
        raise TrainingError(
            f"{first.path} has no labels, so there is nothing to learn; extract a folder of class folders or a"
            " manifest with a label column"
        )
    if missing := len(labels) - len(labelled):
        notes.append(f"{missing} images without a label were left out")
    labelled = _not_excluded(first, rows[0], labelled, excluded_paths(findings), notes)
    rows = [each[labelled] for each in rows]
    _check_tuned_splits(stores, rows)
    blocks = [_vectors(store, each) for store, each in zip(stores, rows, strict=True)]
    picked = rows[0].tolist()
    groups = [first.index.groups[row] for row in picked]
    y = labels[labelled]
    if not any(first.splits[row] for row in picked):
        groups = _with_duplicates(first, rows[0], blocks[0][:, 0], findings, notes)
    splits, drawn = draw_splits(
        [first.paths[row] for row in picked],
        y.tolist(),
        groups,
        [first.splits[row] for row in picked],
        seed=seed,
        classes=first.classes,
    )
    return TrainingData(
        X=np.concatenate(blocks, axis=2) if len(blocks) > 1 else blocks[0],
        y=y,
        splits=np.array(splits),
        groups=np.array(groups),
        classes=first.classes,
        stores=stores,
        notes=(*notes, *drawn),
        paths=tuple(first.paths[row] for row in picked),
    )


def _check_tuned_splits(stores: Sequence[FeatureStore], rows: Sequence[NDArray[np.int64]]) -> None:
    """Check that no network that was tuned on some images would be scored on them."""
    splits = [[store.splits[row] for row in each] for store, each in zip(stores, rows, strict=True)]
    for store, own in zip(stores, splits, strict=True):
        if store.recipe.weights == TUNED and not any(own):
            raise TrainingError(
                f"the network of {store.path} was tuned, and drawing splits now could put its training images into the"
                " test split; use the feature file that finetune.py wrote, or a table with a column split"
            )
        if store.recipe.weights == TUNED and own != splits[0]:
            raise TrainingError(
                f"the network of {store.path} was tuned on its training images, and {stores[0].path} has other splits"
                f" or none; name {store.path} first"
            )


def _not_excluded(
    store: FeatureStore, rows: NDArray[np.int64], kept: NDArray[np.int64], excluded: set[str], notes: list[str]
) -> NDArray[np.int64]:
    """Return the kept rows whose images are not excluded, and add notes on those that are."""
    if not excluded:
        return kept
    if not excluded & set(store.paths):
        raise UsageError(
            f"none of the {count_of(len(excluded), 'image')} to exclude is in {store.path}; expected findings on this"
            " file, as CSV in UTF-8"
        )
    left = np.array([row for row in kept.tolist() if store.paths[rows[row]] not in excluded], np.int64)
    if not len(left):
        raise TrainingError(f"the findings exclude every image of {store.path}; keep some of them")
    notes.append(f"{count_of(len(kept) - len(left), 'image')} left out because the findings exclude them")
    gone = Counter(store.splits[rows[row]] for row in np.setdiff1d(kept, left).tolist())
    if scored := gone["validation"] + gone["test"]:
        notes.append(
            f"{count_of(scored, 'validation or test image')} among these, so scores cannot be compared with those"
            " on all images"
        )
    if unknown := len(excluded.difference(store.paths)):
        notes.append(f"{count_of(unknown, 'path')} of the findings not in {store.path}")
    return left


def _with_duplicates(
    store: FeatureStore,
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32],
    findings: Sequence[Finding],
    notes: list[str],
) -> list[str]:
    """Return the group of each row, merged with the groups of its duplicates and near duplicates."""
    paths = [store.paths[row] for row in rows.tolist()]
    groups = [store.index.groups[row] for row in rows.tolist()]
    found = {finding.path: finding.group for finding in findings if finding.group}
    copies = equal(digest.tobytes() for digest in store.index.digests[rows])
    joined = join_groups(paths, groups, copies, near_duplicates(vectors), equal(found.get(path, "") for path in paths))
    if together := sum(group != before for group, before in zip(joined, groups, strict=True)):
        notes.append(f"{count_of(together, 'image')} assigned to the split of duplicates or near duplicates")
    return joined


def _vectors(store: FeatureStore, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read the vectors (n, v, dim) of some rows of a file."""
    block = store.take(rows)
    if bad := np.count_nonzero(~np.isfinite(block).all(axis=(1, 2))):
        raise TrainingError(f"{bad} vectors of {store.path} are not finite; check the file with verify.py")
    return block


def _joined_rows(stores: Sequence[FeatureStore], notes: list[str]) -> list[NDArray[np.int64]]:
    """Return the rows of the images that all stores have, for each store, in the order of the first."""
    first = stores[0]
    found = [np.arange(len(first)), *(store.positions.find(first.paths) for store in stores[1:])]
    common = np.flatnonzero((np.array(found) >= 0).all(axis=0))
    joined = [rows[common] for rows in found]
    for store in stores[1:]:
        if store.classes != first.classes:
            raise TrainingError(
                f"{store.path} has classes {list(store.classes)}, {first.path} has {list(first.classes)};"
                " extract both from the same images"
            )
        if (views := store.recipe.views) != first.recipe.views:
            raise TrainingError(
                f"{store.path} has the views {views!r}, {first.path} has {first.recipe.views!r}; extract both with the"
                " same --views"
            )
    if not len(common):
        raise TrainingError(
            f"{', '.join(str(s.path) for s in stores)} have no image in common; extract the same folder for all"
        )
    for store, rows in zip(stores, joined, strict=True):
        same = (store.index.digests[rows] == first.index.digests[joined[0]]).all(axis=1)
        same &= store.labels[rows] == first.labels[joined[0]]
        if not same.all():
            example = first.paths[common[~same][0]]
            raise TrainingError(
                f"{example!r} has other content or another label in {store.path} than in {first.path};"
                " extract both again from the same folder"
            )
        if lost := len(store) - len(common):
            notes.append(f"{lost} images of {store.path} were left out because they are not in every file")
    return joined

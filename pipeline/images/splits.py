"""Draw the splits that a manifest does not give, so that they do not change when files are added.

The split of an image depends only on the SHA-256 of its relative path (or of its group): not on where
the folder is, and not on its other files.

>>> draw_splits(["a.jpg", "b.jpg"], [-1, -1], ["", ""], ["", "validation"])[0]
('test', 'validation')
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ManifestError, UsageError

__all__ = ["DEFAULT_FRACTIONS", "SPLITS", "draw_splits"]

SPLITS: tuple[str, ...] = ("train", "validation", "test")

DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.7, "validation": 0.15, "test": 0.15})

# The order in which a class too small for all splits gets them: fitting needs train, an unbiased score needs
# test, while cross-validation on train can replace validation.
_PRIORITY = tuple(SPLITS.index(name) for name in ("train", "test", "validation"))
_RANK = np.argsort(_PRIORITY)  # split -> its position in _PRIORITY


def draw_splits(
    paths: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[str],
    splits: Sequence[str],
    *,
    seed: int = 0,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    classes: Sequence[str] = (),
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw a split for every row without one; rows with a split keep it.

    The unit is the group, or the image if it has no group. The first 64 bits of the SHA-256 of seed
    and name, read as a number in [0, 1), select the split by its share of that interval. If some rows
    of a group have a split, the whole group gets it. If a class is then missing from a split, one of
    its drawn units moves there: the one with the smallest hash in the largest split of the class. This
    depends only on the units of this class, as long as no group has several classes. A class with too
    few units gets splits in the order train, test, validation.

    Parameters
    ----------
    paths : sequence of str, length n
        Relative to the root, unique.
    labels : sequence of int, length n
        Class of each row; -1 for none.
    groups : sequence of str, length n
        Rows of one group stay together; "" for none.
    splits : sequence of str, length n
        "train", "validation", "test", or "" to draw one.
    seed : int
        Another seed gives another draw.
    fractions : mapping of str to float
        Share of each split, adding up to 1. A split with the share 0 or without one is not drawn.
    classes : sequence of str
        Names of the classes for the notes, which otherwise use their numbers.

    Returns
    -------
    splits : tuple of str, length n
        One of "train", "validation", "test" in every row.
    notes : tuple of str
        One sentence for each class and split without it, whether or not a unit was moved there. Empty
        if every row already had a split.

    Raises
    ------
    UsageError
        If the lengths differ, or the fractions are not shares of these splits.
    ManifestError
        If rows of one group have different splits.

    Examples
    --------
    >>> names = [f"cat/{i}.jpg" for i in range(4)]
    >>> drawn, notes = draw_splits(names, [0] * 4, [""] * 4, [""] * 4, classes=["cat"])
    >>> drawn
    ('train', 'validation', 'test', 'train')
    >>> notes
    ("class 'cat' was missing from validation: image 'cat/1.jpg' was moved there from test.",)
    """
    _check_lengths(len(paths), labels=labels, groups=groups, splits=splits)
    bounds, drawable = _shares(fractions)
    if "" not in splits:
        return tuple(splits), ()
    units = _Units.of(paths, groups, splits, seed)
    drawn = drawable[np.searchsorted(bounds, units.hashes / 2.0**64, side="right")]
    units.split = np.where(units.given, units.split, drawn)
    notes = _fill_missing(units, np.asarray(labels, dtype=np.int64), set(drawable.tolist()), classes)
    final = units.split[units.of_row]
    return tuple(given or SPLITS[k] for given, k in zip(splits, final.tolist(), strict=True)), tuple(notes)


@dataclass
class _Units:
    """Groups and single images, in the order of their first row."""

    names: list[str]  # for the notes
    of_row: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    given: NDArray[np.bool_]  # whether the manifest gives the split
    split: NDArray[np.int64]  # index into SPLITS

    @classmethod
    def of(cls, paths: Sequence[str], groups: Sequence[str], splits: Sequence[str], seed: int) -> "_Units":
        number: dict[tuple[str, str], int] = {}
        keys = (("group", group) if group else ("image", path) for path, group in zip(paths, groups, strict=True))
        of_row = [number.setdefault(key, len(number)) for key in keys]
        split = np.full(len(number), -1, dtype=np.int64)
        for unit, name in zip(of_row, splits, strict=True):
            if name and split[unit] not in (-1, SPLITS.index(name)):
                group = list(number)[unit][1]
                raise ManifestError(
                    f"group {group!r} is in {SPLITS[split[unit]]} and in {name}: keep each group in one split"
                )
            if name:
                split[unit] = SPLITS.index(name)
        return cls(
            names=[f"{kind} {name!r}" for kind, name in number],
            of_row=np.array(of_row, dtype=np.int64),
            hashes=_hashes(number, seed),
            given=split >= 0,
            split=split,
        )


def _hashes(keys: Iterable[tuple[str, str]], seed: int) -> NDArray[np.uint64]:
    """Return the first 64 bits of the SHA-256 of seed, kind and name of each unit."""
    start = hashlib.sha256(f"{seed}\0".encode())
    digests = bytearray()
    for kind, name in keys:
        state = start.copy()
        state.update(f"{kind}\0{name}".encode("utf-8", "surrogateescape"))
        digests += state.digest()[:8]
    return np.frombuffer(bytes(digests), dtype=">u8").astype(np.uint64)


def _check_lengths(length: int, **columns: Sequence[object]) -> None:
    for name, column in columns.items():
        if len(column) != length:
            raise UsageError(f"{len(column)} {name} for {length} paths: give one for each path")


def _shares(fractions: Mapping[str, float]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the inner bounds of the shares in [0, 1), and the split of each interval between them."""
    unknown = sorted(set(fractions) - set(SPLITS))
    if unknown:
        raise UsageError(f"unknown split {unknown[0]!r} in the fractions: choose from {', '.join(SPLITS)}")
    shares = np.array([fractions.get(name, 0.0) for name in SPLITS], dtype=np.float64)
    if not (shares >= 0).all() or not abs(shares.sum() - 1) < 1e-6:
        raise UsageError(
            f"fractions {dict(fractions)} are not valid shares: give non-negative numbers that add up to 1"
        )
    drawable = np.flatnonzero(shares)
    return np.cumsum(shares[drawable])[:-1], drawable


def _fill_missing(units: _Units, labels: NDArray[np.int64], needed: set[int], classes: Sequence[str]) -> list[str]:
    """Move units so that every class is in every needed split, if possible; return notes on the moves."""
    membership = _Membership(units, labels)
    notes = []
    for label in membership.incomplete(needed):
        name = repr(classes[label]) if label < len(classes) else str(label)
        for split in (s for s in _PRIORITY if s in needed):
            if membership.counts[label, split]:
                continue
            unit = membership.donor(label, split)
            if unit is None:
                continue
            origin = SPLITS[units.split[unit]]
            membership.move(unit, split)
            notes.append(
                f"class {name} was missing from {SPLITS[split]}: {units.names[unit]} was moved there from {origin}."
            )
        missing = [SPLITS[s] for s in sorted(needed) if not membership.counts[label, s]]
        if missing:
            notes.append(
                f"class {name} is missing from {' and '.join(missing)}: "
                "it has too few images or groups that could be moved there."
            )
    return notes


class _Membership:
    """The classes of each unit, and the number of units of each class in each split."""

    def __init__(self, units: _Units, labels: NDArray[np.int64]) -> None:
        self.units = units
        self.width = int(labels.max(initial=-1)) + 1
        labelled = labels >= 0
        pairs = np.unique(units.of_row[labelled] * self.width + labels[labelled])
        self.unit, self.label = np.divmod(pairs, max(self.width, 1))
        by_label = np.argsort(self.label, kind="stable")
        self.sorted_label, self.sorted_unit = self.label[by_label], self.unit[by_label]
        self.counts = np.zeros((self.width, len(SPLITS)), dtype=np.int64)
        np.add.at(self.counts, (self.label, units.split[self.unit]), 1)

    def incomplete(self, needed: set[int]) -> list[int]:
        """Return the classes that are missing from a needed split, in order."""
        missing = (self.counts[:, sorted(needed)] == 0).any(axis=1)
        return [int(label) for label in np.flatnonzero(missing & self.counts.any(axis=1))]

    def donor(self, label: int, split: int) -> int | None:
        """Return the drawn unit of this class to move to ``split``, or None if no split can spare one."""
        start, stop = np.searchsorted(self.sorted_label, [label, label + 1])
        members = self.sorted_unit[start:stop]
        members = members[~self.units.given[members]]
        counts = self.counts[label]
        sources = sorted(range(len(SPLITS)), key=lambda s: (-counts[s], -_RANK[s]))
        for source in sources:
            # The last unit of a split moves only to a split of higher priority.
            if source == split or not (counts[source] > 1 or _RANK[source] > _RANK[split]):
                continue
            inside = members[self.units.split[members] == source]
            for unit in inside[np.argsort(self.units.hashes[inside], kind="stable")].tolist():
                if self._can_leave(unit, label):
                    return int(unit)
        return None

    def move(self, unit: int, split: int) -> None:
        labels = self._labels_of(unit)
        self.counts[labels, self.units.split[unit]] -= 1
        self.counts[labels, split] += 1
        self.units.split[unit] = split

    def _labels_of(self, unit: int) -> NDArray[np.int64]:
        start, stop = np.searchsorted(self.unit, [unit, unit + 1])
        return self.label[start:stop]

    def _can_leave(self, unit: int, label: int) -> bool:
        """Return whether the unit's other classes, if any, also have other units in its split."""
        others = self._labels_of(unit)
        others = others[others != label]
        return bool((self.counts[others, self.units.split[unit]] > 1).all())

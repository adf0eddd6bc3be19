"""Draw the splits that a manifest does not give, so that they stay put when files are added.

An image goes where the SHA-256 of its relative path (or of its group) sends it, and nothing else
counts: neither the folder's own place nor its other files.

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

# Whose need comes first when a class is too small for all: fit, then an honest report, then choosing,
# which cross-validation can do on train alone.
_PRIORITY = tuple(SPLITS.index(name) for name in ("train", "test", "validation"))
_RANK = np.argsort(_PRIORITY)  # split -> its place in _PRIORITY


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
    """Give every row without a split one; rows that have one keep it.

    The unit is the group, or the image where it has no group. The first 64 bits of the SHA-256 of
    seed and name, taken as a number in [0, 1), fall into the split's share of that interval. A group
    of which some rows have a split keeps that split. A class that would then be missing from a
    split is mended: of its drawn units in its largest split, the one with the smallest hash moves.
    That depends on the units of this class alone, as long as no group holds several classes. A
    class with too few units is served in the order train, test, validation.

    Parameters
    ----------
    paths : sequence of str, length n
        Relative to the root, unique.
    labels : sequence of int, length n
        Class of each row; -1 is none.
    groups : sequence of str, length n
        Rows of one group stay together; "" is none.
    splits : sequence of str, length n
        "train", "validation", "test", or "" where one is to be drawn.
    seed : int
        Another seed is another draw.
    fractions : mapping of str to float
        Share of each split; they add up to 1. A split with the share 0, or left out, is not drawn.
    classes : sequence of str
        Names of the classes, for the notes; without them the numbers are used.

    Returns
    -------
    splits : tuple of str, length n
        One of "train", "validation", "test" in every row.
    notes : tuple of str
        One sentence for each class that was, or still is, missing from a split. Empty where every
        row had a split already.

    Raises
    ------
    UsageError
        When the lengths differ, or the fractions are no shares of these splits.
    ManifestError
        When one group is given in two splits.

    Examples
    --------
    >>> names = [f"cat/{i}.jpg" for i in range(4)]
    >>> drawn, notes = draw_splits(names, [0] * 4, [""] * 4, [""] * 4, classes=["cat"])
    >>> drawn
    ('train', 'validation', 'test', 'train')
    >>> notes
    ("class 'cat' was missing from validation: image 'cat/1.jpg' was moved there from test.",)
    """
    _check(len(paths), labels=labels, groups=groups, splits=splits)
    bounds, drawable = _shares(fractions)
    if "" not in splits:
        return tuple(splits), ()
    units = _Units.of(paths, groups, splits, seed)
    drawn = drawable[np.searchsorted(bounds, units.hashes / 2.0**64, side="right")]
    units.split = np.where(units.given, units.split, drawn)
    notes = _mend(units, np.asarray(labels, dtype=np.int64), set(drawable.tolist()), classes)
    final = units.split[units.of_row]
    return tuple(given or SPLITS[k] for given, k in zip(splits, final.tolist(), strict=True)), tuple(notes)


@dataclass
class _Units:
    """Groups and single images, in the order of their first row."""

    names: list[str]  # as the notes call them
    of_row: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    given: NDArray[np.bool_]  # the split is the user's
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
                    f"group {group!r} is given in {SPLITS[split[unit]]} and in {name}: keep a group in one split"
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
    """First 64 bits of the SHA-256 of seed, kind and name of each unit."""
    start = hashlib.sha256(f"{seed}\0".encode())
    digests = bytearray()
    for kind, name in keys:
        state = start.copy()
        state.update(f"{kind}\0{name}".encode("utf-8", "surrogateescape"))
        digests += state.digest()[:8]
    return np.frombuffer(bytes(digests), dtype=">u8").astype(np.uint64)


def _check(length: int, **columns: Sequence[object]) -> None:
    for name, column in columns.items():
        if len(column) != length:
            raise UsageError(f"{len(column)} {name} for {length} paths: give one for each path")


def _shares(fractions: Mapping[str, float]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Inner bounds of the shares in [0, 1), and the splits which the shares between them belong to."""
    unknown = sorted(set(fractions) - set(SPLITS))
    if unknown:
        raise UsageError(f"unknown split {unknown[0]!r} in the fractions: choose from {', '.join(SPLITS)}")
    shares = np.array([fractions.get(name, 0.0) for name in SPLITS], dtype=np.float64)
    if not (shares >= 0).all() or not abs(shares.sum() - 1) < 1e-6:
        raise UsageError(f"fractions {dict(fractions)} are no shares: give numbers from 0 on that add up to 1")
    drawable = np.flatnonzero(shares)
    return np.cumsum(shares[drawable])[:-1], drawable


def _mend(units: _Units, labels: NDArray[np.int64], needed: set[int], classes: Sequence[str]) -> list[str]:
    """Move units until every class is in every needed split, as far as it can be; say what was done."""
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
                "it has too few images or groups that could move there."
            )
    return notes


class _Membership:
    """Which classes a unit holds, and how many units of a class each split holds."""

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
        """Classes that are missing from a needed split, in order."""
        missing = (self.counts[:, sorted(needed)] == 0).any(axis=1)
        return [int(label) for label in np.flatnonzero(missing & self.counts.any(axis=1))]

    def donor(self, label: int, split: int) -> int | None:
        """Return the drawn unit of this class that goes to ``split``, where one can be spared."""
        start, stop = np.searchsorted(self.sorted_label, [label, label + 1])
        members = self.sorted_unit[start:stop]
        members = members[~self.units.given[members]]
        counts = self.counts[label]
        sources = sorted(range(len(SPLITS)), key=lambda s: (-counts[s], -_RANK[s]))
        for source in sources:
            # The last unit of a split goes only where it is needed more.
            if source == split or not (counts[source] > 1 or _RANK[source] > _RANK[split]):
                continue
            inside = members[self.units.split[members] == source]
            for unit in inside[np.argsort(self.units.hashes[inside], kind="stable")].tolist():
                if self._spared(unit, label):
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

    def _spared(self, unit: int, label: int) -> bool:
        """Whether no other class of a mixed group would vanish from the split that the group leaves."""
        others = self._labels_of(unit)
        others = others[others != label]
        return bool((self.counts[others, self.units.split[unit]] > 1).all())

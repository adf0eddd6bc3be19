"""Columns of texts in compact arrays, for millions of paths: each Python string has an overhead of 50 bytes.

>>> paths = Texts.of(["b.jpg", "a.jpg"])
>>> paths[1], Positions(paths)["b.jpg"]
('a.jpg', 0)
"""

import itertools
import operator
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Positions", "Texts", "decode", "encode"]

_BLOCK = 1 << 16  # texts per step of an iteration


class Texts(Sequence[str]):
    """Read-only sequence of texts, stored as UTF-8 in one bytes object; equal to a list or tuple of the same texts.

    Parameters
    ----------
    data : bytes
        All texts, concatenated. Surrogate escapes are stored as the bytes that they represent.
    ends : ndarray of unsigned int, shape (n + 1,)
        Text i is ``data[ends[i]:ends[i + 1]]``.

    Examples
    --------
    >>> Texts.of(["a", "b"]) == ["a", "b"]
    True
    """

    def __init__(self, data: bytes, ends: NDArray[np.unsignedinteger]) -> None:
        self._data = data
        self._ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Return texts as a column; a column is returned unchanged."""
        return texts if isinstance(texts, Texts) else cls.of_bytes(map(encode, texts))

    @classmethod
    def of_bytes(cls, raws: Iterable[bytes]) -> "Texts":
        """Return encoded texts as a column."""
        data, ends = bytearray(), array("Q", [0])
        for raw in raws:
            data += raw
            ends.append(len(data))
        # The smallest sufficient type: one byte for a column of empty texts, usually four.
        return cls(bytes(data), np.frombuffer(ends, np.uint64).astype(np.min_scalar_type(len(data))))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, at: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: SupportsIndex | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        return decode(self.raw(range(len(self))[at]))

    def __iter__(self) -> Iterator[str]:
        return map(decode, self.raws())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return self._data == other._data and np.array_equal(self._ends, other._ends)
        if isinstance(other, list | tuple):
            return len(self) == len(other) and all(map(operator.eq, self, other))
        return NotImplemented

    def __repr__(self) -> str:
        return f"Texts.of({[*self[:3], ...] if len(self) > 3 else list(self)})"

    def raw(self, row: int) -> bytes:
        """Return the text of row `row` as UTF-8."""
        return self._data[self._ends[row] : self._ends[row + 1]]

    def raws(self) -> Iterator[bytes]:
        """Iterate over all texts as UTF-8."""
        for start in range(0, len(self), _BLOCK):
            for begin, end in itertools.pairwise(self._ends[start : start + _BLOCK + 1].tolist()):
                yield self._data[begin:end]

    def take(self, rows: NDArray[np.integer]) -> "Texts":
        """Return these rows as a column; self if they are all of them, in order."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return Texts.of_bytes(map(self.raw, rows))

    def lengths(self) -> NDArray[np.unsignedinteger]:
        """Return the number of bytes of each text, shape (n,)."""
        return np.diff(self._ends)


class Positions(Mapping[str, int]):
    """Mapping from the texts of a column to their rows, in 16 bytes per row.

    Parameters
    ----------
    texts : Texts

    Examples
    --------
    >>> Positions(Texts.of(["a", "b"])).find(Texts.of(["b", "c"])).tolist()
    [1, -1]
    """

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        hashes = _hashes(texts)
        self._order = np.argsort(hashes, kind="stable")
        hashes = self._hashes = hashes[self._order]
        equal = np.flatnonzero(hashes[1:] == hashes[:-1])
        rows = np.union1d(self._order[equal], self._order[equal + 1]).tolist()
        self._same_hash = [(texts.raw(row), row) for row in rows]  # repeated texts, and collisions

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __getitem__(self, text: str) -> int:
        row = int(self.find(Texts.of([text]))[0])
        if row < 0:
            raise KeyError(text)
        return row

    def find(self, wanted: Texts) -> NDArray[np.int64]:
        """Return the row of each wanted text, or -1."""
        if not len(self):
            return np.full(len(wanted), -1, np.int64)
        at = np.searchsorted(self._hashes, _hashes(wanted))
        rows = self._order[np.minimum(at, len(self) - 1, out=at)]
        same = map(operator.eq, map(self.texts.raw, rows), wanted.raws())
        rows[~np.fromiter(same, np.bool_, len(wanted))] = -1
        if self._same_hash:
            others = dict(reversed(self._same_hash))
            for number in np.flatnonzero(rows < 0).tolist():
                rows[number] = others.get(wanted.raw(number), -1)
        return rows

    def repeated(self) -> tuple[int, int] | None:
        """Return (earlier row, row) for the first row that repeats an earlier text, or None if all texts differ."""
        first: dict[bytes, int] = {}
        for raw, row in self._same_hash:
            if (earlier := first.setdefault(raw, row)) != row:
                return earlier, row
        return None


def encode(text: str) -> bytes:
    """Encode a text as UTF-8; surrogate escapes become the bytes that they represent."""
    return text.encode("utf-8", "surrogateescape")


def decode(raw: bytes) -> str:
    """Decode UTF-8; invalid bytes become surrogate escapes."""
    return raw.decode("utf-8", "surrogateescape")


def _hashes(texts: Texts) -> NDArray[np.int64]:
    return np.fromiter(map(hash, texts.raws()), np.int64, len(texts))

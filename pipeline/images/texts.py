"""Columns of texts in one piece of memory, for millions of paths: a Python string takes 50 bytes beside its letters.

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

_BLOCK = 1 << 16  # texts that are objects at a time


class Texts(Sequence[str]):
    """Texts as UTF-8, one after the other, and where each ends; equal to a list or tuple of the same.

    Parameters
    ----------
    data : bytes
        All texts. Surrogate escapes are the bytes that they stand for.
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
        """Make a column of any texts; one that is a column already stays itself."""
        return texts if isinstance(texts, Texts) else cls.of_bytes(map(encode, texts))

    @classmethod
    def of_bytes(cls, raws: Iterable[bytes]) -> "Texts":
        """Make a column of texts that are encoded already."""
        data, ends = bytearray(), array("Q", [0])
        for raw in raws:
            data += raw
            ends.append(len(data))
        # Numbers no wider than needed: one byte each in a column of empty texts, four in most.
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

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"Texts.of({[*self[:3], ...] if len(self) > 3 else list(self)})"

    def raw(self, row: int) -> bytes:
        """Return text `row`, from 0 on, as UTF-8."""
        return self._data[self._ends[row] : self._ends[row + 1]]

    def raws(self) -> Iterator[bytes]:
        """Go through all texts as UTF-8."""
        for start in range(0, len(self), _BLOCK):
            for begin, end in itertools.pairwise(self._ends[start : start + _BLOCK + 1].tolist()):
                yield self._data[begin:end]

    def take(self, rows: NDArray[np.integer]) -> "Texts":
        """Return the texts of some rows, in the order given; the column itself where these are all its rows in turn."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return Texts.of_bytes(map(self.raw, rows))

    def lengths(self) -> NDArray[np.unsignedinteger]:
        """Return the number of bytes of each text, shape (n,)."""
        return np.diff(self._ends)


class Positions(Mapping[str, int]):
    """The row of each text of a column: a dictionary in 16 bytes a row.

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
        alike = np.flatnonzero(hashes[1:] == hashes[:-1])
        rows = np.union1d(self._order[alike], self._order[alike + 1]).tolist()
        self._alike = [(texts.raw(row), row) for row in rows]  # of one hash: the same, or by chance not

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
        """Return the row of each wanted text, -1 where it is not there."""
        if not len(self):
            return np.full(len(wanted), -1, np.int64)
        at = np.searchsorted(self._hashes, _hashes(wanted))
        rows = self._order[np.minimum(at, len(self) - 1, out=at)]
        same = map(operator.eq, map(self.texts.raw, rows), wanted.raws())
        rows[~np.fromiter(same, np.bool_, len(wanted))] = -1
        if self._alike:
            others = dict(reversed(self._alike))
            for number in np.flatnonzero(rows < 0).tolist():
                rows[number] = others.get(wanted.raw(number), -1)
        return rows

    def repeated(self) -> tuple[int, int] | None:
        """Return the first row whose text an earlier row has, after that row; None where all differ."""
        first: dict[bytes, int] = {}
        for raw, row in self._alike:
            if (earlier := first.setdefault(raw, row)) != row:
                return earlier, row
        return None


def encode(text: str) -> bytes:
    """Return a text as UTF-8; surrogate escapes become the bytes that they stand for."""
    return text.encode("utf-8", "surrogateescape")


def decode(raw: bytes) -> str:
    """Return what `encode` was given."""
    return raw.decode("utf-8", "surrogateescape")


def _hashes(texts: Texts) -> NDArray[np.int64]:
    return np.fromiter(map(hash, texts.raws()), np.int64, len(texts))

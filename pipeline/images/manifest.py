"""Which images, in which order, with which label, split and group.

>>> manifest = Manifest.from_paths(["b.jpg", "a.jpg"])
>>> manifest.paths, manifest.labels
(('b.jpg', 'a.jpg'), (-1, -1))
"""

import csv
import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from pipeline.errors import ManifestError
from pipeline.images.decode import SUFFIXES
from pipeline.images.splits import SPLITS

__all__ = ["Manifest"]

_SPLIT_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}
_HIDDEN = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_COLUMNS = ("path", "label", "split", "group")

# Kinds of things that a folder scan passes over.
_KIND_HIDDEN = "hidden"
_KIND_NAME = "not an image name"
_KIND_SPECIAL = "not a regular file"
_KIND_BROKEN = "broken link"
_KIND_LOOP = "symlink loop"
_KIND_UNREADABLE = "cannot be read"
_KIND_EMPTY = "folder without images"
_KIND_LOOSE = "image beside the class folders"
_KIND_BESIDE = "image beside the split folders"


@dataclass(frozen=True)
class Manifest:
    """Ordered rows, one for each image.

    Parameters
    ----------
    root : pathlib.Path
        The folder that paths are relative to.
    paths : tuple of str, length n
        POSIX, relative to ``root`` or absolute, unique. Bytes of a name that are not UTF-8 are
        surrogates, as `os.fsdecode` makes them.
    labels : tuple of int, length n
        Index into ``classes``; -1 without a label.
    classes : tuple of str
        Names of the classes, sorted.
    splits : tuple of str, length n
        "train", "validation", "test", or "" where there is none.
    groups : tuple of str, length n
        Rows of one group belong in one split; "" where there is none.
    left_out : mapping of str to int
        What was passed over while a folder was read: how many, by kind.

    Raises
    ------
    ManifestError
        When the columns contradict each other; the message names the first row that does.

    Examples
    --------
    >>> Manifest(Path("photos"), ("cat/1.jpg",), (0,), ("cat",), ("",), ("",)).path_of(0)
    PosixPath('photos/cat/1.jpg')
    """

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("paths", "labels", "splits", "groups")}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise ManifestError(f"the columns differ in length ({counts}): give one value for each image")
        if list(self.classes) != sorted(set(self.classes)):
            raise ManifestError(f"classes {list(self.classes)} are not sorted and unique: sort them")
        self._check_rows()
        self._check_groups()

    def _check_rows(self) -> None:
        seen: set[str] = set()
        for path, label, split in zip(self.paths, self.labels, self.splits, strict=True):
            if not path or "\0" in path:
                raise ManifestError(f"path {path!r} names no file: give a path without NUL")
            if path in seen:
                raise ManifestError(f"path {path!r} is there twice: keep one of its rows")
            if not -1 <= label < len(self.classes):
                raise ManifestError(f"label {label} of {path!r} is out of range: there are {len(self.classes)} classes")
            if split and split not in SPLITS:
                raise ManifestError(f"unknown split {split!r} of {path!r}: use {', '.join(SPLITS)} or nothing")
            seen.add(path)

    def _check_groups(self) -> None:
        split_of: dict[str, str] = {}
        for path, group, split in zip(self.paths, self.groups, self.splits, strict=True):
            if group and split and split_of.setdefault(group, split) != split:
                raise ManifestError(
                    f"group {group!r} is in {split_of[group]} and, with {path!r}, in {split}: keep a group in one split"
                )

    def __len__(self) -> int:
        return len(self.paths)

    def path_of(self, index: int) -> Path:
        """Return where image ``index`` can be opened.

        Parameters
        ----------
        index : int
            Row of the image.

        Returns
        -------
        pathlib.Path
            ``root`` joined with the row's path.

        Examples
        --------
        >>> Manifest.from_paths(["/photos/a.jpg"]).path_of(0)
        PosixPath('/photos/a.jpg')
        """
        return self.root / self.paths[index]

    @classmethod
    def read(cls, source: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]") -> "Manifest":
        """Read a folder, a table or a list of paths, whichever ``source`` is.

        Parameters
        ----------
        source : str, os.PathLike or sequence of them
            A folder (see `from_folder`), a ``.csv`` or ``.parquet`` table (see `from_table`), or a
            sequence of paths (see `from_paths`).

        Returns
        -------
        Manifest

        Raises
        ------
        ManifestError
            When ``source`` does not exist or is none of these, or as the other constructors do.

        Examples
        --------
        >>> Manifest.read("no/such/folder")
        Traceback (most recent call last):
            ...
        pipeline.errors.ManifestError: 'no/such/folder' does not exist: give a folder, a .csv or a .parquet file
        """
        if not isinstance(source, str | os.PathLike):
            return cls.from_paths(source)
        return cls.from_folder(source) if stat.S_ISDIR(_mode_of(source)) else cls.from_table(source)

    @classmethod
    def from_paths(cls, paths: Iterable[str | os.PathLike[str]]) -> "Manifest":
        """List images without labels, in the given order.

        Parameters
        ----------
        paths : iterable of str or os.PathLike
            Relative to the current folder, or absolute. They need not exist.

        Returns
        -------
        Manifest
            With the current folder as root.

        Raises
        ------
        ManifestError
            When the list is empty, or has a path twice.

        Examples
        --------
        >>> len(Manifest.from_paths(["a.jpg", "../b.jpg"]))
        2
        """
        rows = [_Row(number, os.fspath(path)) for number, path in enumerate(paths, start=1)]
        if not rows:
            raise ManifestError("the list of paths is empty: give at least one image")
        return cls._from_rows(rows, Path.cwd(), "the list of paths")

    @classmethod
    def from_table(cls, path: str | os.PathLike[str]) -> "Manifest":
        r"""Read a CSV or Parquet table with the columns ``path[,label][,split][,group]``.

        Rows keep their order and other columns are ignored. Paths are relative to the folder of the
        table, or absolute; a file that does not exist keeps its row. An empty cell is no label, no
        split, no group. Splits may be written as the folders of `from_folder`.

        Parameters
        ----------
        path : str or os.PathLike
            A file whose name ends in ``.csv`` (UTF-8, comma-separated, with a header) or ``.parquet``.

        Returns
        -------
        Manifest

        Raises
        ------
        ManifestError
            When the table is missing, cannot be read, is empty, has no column ``path``, or has a row
            with no path, with the path of another row, or with an unknown split. Rows are numbered
            as a spreadsheet does it: the header of a CSV is row 1; a Parquet table starts at row 1.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder, "photos.csv")
        ...     _ = table.write_text("path,label\na.jpg,dog\nb.jpg,cat\nc.jpg,\n")
        ...     Manifest.from_table(table).labels
        (1, 0, -1)
        """
        table = Path(path)
        reader = _READERS.get(table.suffix.lower())
        if not stat.S_ISREG(_mode_of(table)) or reader is None:
            raise ManifestError(f"{str(table)!r} is no table: give a folder, a .csv or a .parquet file")
        rows = list(reader(table))
        if not rows:
            raise ManifestError(f"{str(table)!r} has no rows: give one row for each image")
        return cls._from_rows(rows, table.absolute().parent, repr(str(table)))

    @classmethod
    def _from_rows(cls, rows: Sequence["_Row"], root: Path, where: str) -> "Manifest":
        row_of: dict[str, int] = {}
        splits = []
        for row in rows:
            if not row.path:
                raise ManifestError(f"row {row.number} of {where} has no path: name an image")
            path = PurePath(row.path).as_posix()
            if path in row_of:
                raise ManifestError(
                    f"rows {row_of[path]} and {row.number} of {where} have the same path {path!r}: keep one"
                )
            row_of[path] = row.number
            if row.split and row.split.lower() not in _SPLIT_OF_FOLDER:
                raise ManifestError(
                    f"row {row.number} of {where} has the unknown split {row.split!r}: "
                    f"use {', '.join(SPLITS)} or nothing"
                )
            splits.append(_SPLIT_OF_FOLDER.get(row.split.lower(), ""))
        classes, labels = _indexed(row.label for row in rows)
        groups = tuple(row.group for row in rows)
        return cls(root, tuple(row_of), labels, classes, tuple(splits), groups)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, labelled: bool = True) -> "Manifest":
        """Find the images of a folder; the layout tells their labels and splits.

        - Folders with images are classes, and an image at any depth belongs to the topmost one.
        - When all of them are called train, training, validation, val, valid, test or testing (in
          any case), or two different splits are among them, these are splits, and the folders in
          them are classes.
        - Images with no class folder beside them have no label.

        Images are files whose suffix is in ``pipeline.images.decode.SUFFIXES``; links are followed.
        The rest is passed over and counted in ``left_out``: a folder without images makes no class;
        an image beside class folders gets no label, so it is no row.

        Parameters
        ----------
        folder : str or os.PathLike
            Becomes ``root``.
        labelled : bool
            False takes every image at any depth, without label and split, whatever the layout.

        Returns
        -------
        Manifest
            Sorted by the bytes of the paths.

        Raises
        ------
        ManifestError
            When the folder is missing, cannot be read, or holds no image.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("dog", "cat"):
        ...         Path(folder, name).mkdir()
        ...         Path(folder, name, "1.jpg").touch()
        ...     manifest = Manifest.from_folder(folder)
        >>> manifest.paths, manifest.classes, manifest.labels
        (('cat/1.jpg', 'dog/1.jpg'), ('cat', 'dog'), (0, 1))
        """
        if not stat.S_ISDIR(_mode_of(folder)):
            raise ManifestError(f"{os.fspath(folder)!r} is not a folder: give the folder of the images")
        root = Path(folder).absolute()
        scan = _Scan(root)
        images = _find(scan) if labelled else [_Image(path, "", "") for path in scan.images_below("")]
        found = sorted(images, key=lambda image: os.fsencode(image.path))
        if not found:
            raise ManifestError(_nothing_found(scan))
        classes, labels = _indexed(image.label for image in found)
        return cls(
            root,
            tuple(image.path for image in found),
            labels,
            classes,
            tuple(image.split for image in found),
            ("",) * len(found),
            scan.counts(),
        )


def _mode_of(path: str | os.PathLike[str]) -> int:
    name = repr(os.fspath(path))
    hint = "give a folder, a .csv or a .parquet file"
    try:
        return Path(path).stat().st_mode
    except FileNotFoundError:
        raise ManifestError(f"{name} does not exist: {hint}") from None
    except OSError as error:
        raise ManifestError(f"{name} cannot be read ({error.strerror}): {hint}") from error
    except ValueError as error:  # a NUL in the path
        raise ManifestError(f"{name} cannot be read ({error}): {hint}") from error


def _indexed(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Sorted classes, and the index of each name in them; "" is no class."""
    listed = list(names)
    classes = tuple(sorted(set(listed) - {""}))
    index = {name: number for number, name in enumerate(classes)} | {"": -1}
    return classes, tuple(index[name] for name in listed)


# Tables


class _Row(NamedTuple):
    number: int  # as messages call it
    path: str
    label: str = ""
    split: str = ""
    group: str = ""


def _csv_rows(table: Path) -> Iterator[_Row]:
    try:
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            columns = _columns(table, header)
            for number, cells in enumerate(reader, start=2):
                if any(cells[len(header) :]):
                    raise ManifestError(
                        f"row {number} of {str(table)!r} has {len(cells)} cells, the header has {len(header)}: "
                        "put values that hold a comma in double quotes"
                    )
                if cells:
                    cells += [""] * (len(header) - len(cells))
                    yield _row(number, {name: cells[column] for name, column in columns.items()})
    except (OSError, csv.Error) as error:
        raise ManifestError(f"{str(table)!r} cannot be read as CSV: {error}") from error


def _parquet_rows(table: Path) -> Iterator[_Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with table.open("rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            header = parquet.schema_arrow.names
            columns = _columns(table, header)
            number = 0
            for batch in parquet.iter_batches(columns=[header[column] for column in columns.values()]):
                values = {name: batch.column(header[column]).to_pylist() for name, column in columns.items()}
                for cells in zip(*values.values(), strict=True):
                    number += 1
                    yield _row(number, dict(zip(values, cells, strict=True)))
    except (OSError, pyarrow.ArrowException) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(f"{str(table)!r} cannot be read as Parquet: {first}") from error


_READERS = {".csv": _csv_rows, ".parquet": _parquet_rows}


def _columns(table: Path, header: Sequence[str]) -> dict[str, int]:
    """Which of our columns is where; spaces and case of the header do not matter."""
    names = [name.strip().lower() for name in header]
    twice = [name for name in _COLUMNS if names.count(name) > 1]
    if "path" not in names or twice:
        problem = f"has the column {twice[0]!r} twice" if twice else "has no column 'path'"
        raise ManifestError(
            f"{str(table)!r} {problem}: expected path[,label][,split][,group], found {','.join(header)!r}"
        )
    return {name: names.index(name) for name in _COLUMNS if name in names}


def _row(number: int, cells: Mapping[str, Any]) -> _Row:
    texts = {name: _text(value) for name, value in cells.items()}
    for name, text in texts.items():
        if name != "path" and not text.isprintable() and any("\udc80" <= letter <= "\udcff" for letter in text):
            raise ManifestError(f"row {number} has the {name} {text!r}, which is not UTF-8: save the table as UTF-8")
    # A file name may begin or end with a space, the other columns do not.
    return _Row(number, **{name: text if name == "path" else text.strip() for name, text in texts.items()})


def _text(value: object) -> str:
    if value is None or value != value:  # NaN, pandas' way to write "nothing"
        return ""
    if isinstance(value, float) and value.is_integer():  # what pandas makes of integers beside a NaN
        return str(int(value))
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


# Folders


class _Image(NamedTuple):
    path: str
    label: str
    split: str


class _Scan:
    """Lists folders below a root and counts what is no image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left_out: Counter[str] = Counter()
        self.suffixes: Counter[str] = Counter()

    def counts(self) -> dict[str, int]:
        """Return how much was left out, by kind."""
        return {kind: count for kind, count in sorted(self.left_out.items()) if count}

    def entries(self, relative: str = "") -> tuple[list[str], list[str]]:
        """Relative paths of the folders and images right inside a folder, sorted."""
        folders, images = [], []
        prefix = f"{relative}/" if relative else ""
        try:
            with os.scandir(self.root / relative) as entries:
                for entry in entries:
                    kind = self._kind(entry)
                    if kind == "folder":
                        folders.append(prefix + entry.name)
                    elif kind == "image":
                        images.append(prefix + entry.name)
                    else:
                        self.left_out[kind] += 1
        except OSError as error:
            if not relative:
                raise ManifestError(
                    f"{str(self.root)!r} cannot be read: {error.strerror}; check its permissions"
                ) from error
            self.left_out[_KIND_UNREADABLE] += 1
        return sorted(folders), images

    def _kind(self, entry: "os.DirEntry[str]") -> str:
        """Type of an entry; the folder listing knows it, only a link costs a look at its target."""
        name = entry.name
        if name.startswith(".") or name.lower() in _HIDDEN:
            return _KIND_HIDDEN
        try:
            if entry.is_dir():
                return "folder"
            if not entry.is_file():
                broken = entry.is_symlink() and not Path(entry.path).exists()
                return _KIND_BROKEN if broken else _KIND_SPECIAL
        except OSError as error:
            return _KIND_LOOP if error.errno == errno.ELOOP else _KIND_UNREADABLE
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path for each file takes seconds)
        if suffix in SUFFIXES:
            return "image"
        self.suffixes[suffix or "no suffix"] += 1
        return _KIND_NAME

    def images_below(self, folder: str) -> list[str]:
        """All images at any depth below a folder; a link back to a folder above is a loop."""
        parents = ["", *(folder[:at] for at, letter in enumerate(folder) if letter == "/")] if folder else []
        waiting = [(folder, frozenset(self._identity(parent) for parent in parents))]
        found: list[str] = []
        while waiting:
            folder, above = waiting.pop()
            identity = self._identity(folder)
            if identity is None:
                self.left_out[_KIND_UNREADABLE] += 1
            elif identity in above:
                self.left_out[_KIND_LOOP] += 1
            else:
                folders, images = self.entries(folder)
                found += images
                waiting += [(name, above | {identity}) for name in folders]
        return found

    def _identity(self, relative: str) -> tuple[int, int] | None:
        try:
            status = (self.root / relative).stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _find(scan: _Scan) -> list[_Image]:
    """Tell the layout from the names of the topmost folders and from where images are."""
    folders, loose = scan.entries()
    split_of = {name: _SPLIT_OF_FOLDER[name.lower()] for name in folders if name.lower() in _SPLIT_OF_FOLDER}
    below = {name: scan.images_below(name) for name in folders if name not in split_of}
    if any(below.values()) and len(set(split_of.values())) == 1:
        for name in split_of:
            if any(scan.images_below(inner) for inner in scan.entries(name)[0]):
                raise ManifestError(
                    f"{str(scan.root)!r} has {name!r}, a split with class folders, beside the folders"
                    f" {', '.join(repr(other) for other, images in below.items() if images)}: call these train,"
                    " validation or test, or move them away"
                )
    if not split_of or (any(below.values()) and len(set(split_of.values())) == 1):
        return _labelled(scan, below | {name: scan.images_below(name) for name in split_of}, loose, "")
    scan.left_out[_KIND_EMPTY] += sum(not images for images in below.values())
    scan.left_out[_KIND_BESIDE] += len(loose) + sum(map(len, below.values()))
    found = []
    for folder, split in split_of.items():
        folders, loose = scan.entries(folder)
        found += _labelled(scan, {name: scan.images_below(name) for name in folders}, loose, split)
    return found


def _labelled(scan: _Scan, below: Mapping[str, list[str]], loose: list[str], split: str) -> list[_Image]:
    """Label images by the folder they are below; loose ones count only where there is no such folder."""
    scan.left_out[_KIND_EMPTY] += sum(not images for images in below.values())
    found = [_Image(path, PurePosixPath(folder).name, split) for folder, images in below.items() for path in images]
    if not found:
        return [_Image(path, "", split) for path in loose]
    scan.left_out[_KIND_LOOSE] += len(loose)
    return found


def _nothing_found(scan: _Scan) -> str:
    suffixes = ", ".join(f"{suffix} {count}" for suffix, count in scan.suffixes.most_common(5))
    details = {_KIND_NAME: f" ({suffixes})"}
    there = ", ".join(f"{count} {kind}{details.get(kind, '')}" for kind, count in scan.counts().items())
    return (
        f"no images in {str(scan.root)!r}: looked for {' '.join(sorted(SUFFIXES))} at any depth, "
        f"found {there or 'an empty folder'}"
    )

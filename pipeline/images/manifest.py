"""The list of images, with their labels, splits and groups.

>>> manifest = Manifest.from_paths(["b.jpg", "a.jpg"])
>>> list(manifest.paths), manifest.labels
(['b.jpg', 'a.jpg'], (-1, -1))
"""

import itertools
import os
import stat
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from pipeline.errors import ManifestError
from pipeline.images.scan import SPLIT_OF_FOLDER, FoundFolder, Scan, find_images, no_images_message
from pipeline.images.splits import SPLITS
from pipeline.images.tables import READERS, Row
from pipeline.images.texts import Positions, Texts, encode

__all__ = ["Manifest"]


@dataclass(frozen=True)
class Manifest:
    """Ordered list of images, one row each.

    Parameters
    ----------
    root : pathlib.Path
        The folder that paths are relative to.
    paths : Texts or sequence of str, length n
        POSIX, relative to ``root`` or absolute, unique. Bytes of a name that are not UTF-8 are
        surrogates, as in `os.fsdecode`.
    labels : tuple of int, length n
        Index into ``classes``; -1 for no label.
    classes : tuple of str
        Names of the classes, sorted.
    splits : Texts or sequence of str, length n
        "train", "validation", "test", or "" for none.
    groups : Texts or sequence of str, length n
        Rows of one group belong in one split; "" for none.
    left_out : mapping of str to int
        Number of entries of a folder that are not images, by kind.

    Raises
    ------
    ManifestError
        When the columns contradict each other; the message names the first such row.

    Examples
    --------
    >>> Manifest(Path("photos"), ("cat/1.jpg",), (0,), ("cat",), ("",), ("",)).path_of(0)
    PosixPath('photos/cat/1.jpg')
    """

    root: Path
    paths: Texts
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    splits: Texts
    groups: Texts
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("paths", "splits", "groups"):
            object.__setattr__(self, name, Texts.of(getattr(self, name)))
        lengths = {name: len(getattr(self, name)) for name in ("paths", "labels", "splits", "groups")}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise ManifestError(f"the columns differ in length ({counts}): give one value for each image")
        if list(self.classes) != sorted(set(self.classes)):
            raise ManifestError(f"classes {list(self.classes)} are not sorted and unique: sort them")
        self._check_rows()
        self._check_groups()

    def _check_rows(self) -> None:
        for path, label, split in zip(self.paths, self.labels, self.splits, strict=True):
            if not path or "\0" in path:
                raise ManifestError(
                    f"path {path!r} cannot be a file: give a path that is not empty and has no NUL character"
                )
            if not -1 <= label < len(self.classes):
                raise ManifestError(f"label {label} of {path!r} is out of range: there are {len(self.classes)} classes")
            if split and split not in SPLITS:
                raise ManifestError(f"unknown split {split!r} of {path!r}: use {', '.join(SPLITS)} or nothing")
        if twice := Positions(self.paths).repeated():
            raise ManifestError(f"path {self.paths[twice[1]]!r} appears twice: keep one of its rows")

    def _check_groups(self) -> None:
        if not self.groups.lengths().any():
            return
        split_of: dict[str, str] = {}
        for path, group, split in zip(self.paths, self.groups, self.splits, strict=True):
            if group and split and split_of.setdefault(group, split) != split:
                raise ManifestError(
                    f"group {group!r} is in {split_of[group]}, but its image {path!r} is in {split}:"
                    " keep each group in one split"
                )

    def __len__(self) -> int:
        return len(self.paths)

    def path_of(self, index: int) -> Path:
        """Return the path to open image ``index``.

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
            When ``source`` does not exist or is none of these, and as in `from_folder`, `from_table` and `from_paths`.

        Examples
        --------
        >>> Manifest.read("no/such/folder")
        Traceback (most recent call last):
            ...
        pipeline.errors.ManifestError: 'no/such/folder' does not exist: give a folder, a .csv or a .parquet file
        """
        if not isinstance(source, str | os.PathLike):
            return cls.from_paths(source)
        if not os.fspath(source):
            raise ManifestError("the path is empty: give a folder, a .csv or a .parquet file (. is the current folder)")
        return cls.from_folder(source) if stat.S_ISDIR(_mode_of(source)) else cls.from_table(source)

    @classmethod
    def from_paths(cls, paths: Iterable[str | os.PathLike[str]]) -> "Manifest":
        """Make a manifest from paths, in their order and without labels.

        Parameters
        ----------
        paths : iterable of str or os.PathLike
            Relative to the current folder, or absolute. The files need not exist.

        Returns
        -------
        Manifest
            With the current folder as root.

        Raises
        ------
        ManifestError
            When the list is empty or repeats a path.

        Examples
        --------
        >>> len(Manifest.from_paths(["a.jpg", "../b.jpg"]))
        2
        """
        rows = (Row(number, os.fspath(path)) for number, path in enumerate(paths, start=1))
        manifest = cls._from_rows(rows, Path.cwd(), "the list of paths")
        if not len(manifest):
            raise ManifestError("the list of paths is empty: give at least one image")
        return manifest

    @classmethod
    def from_table(cls, path: str | os.PathLike[str]) -> "Manifest":
        r"""Read a CSV or Parquet table with the columns ``path[,label][,split][,group]``.

        Rows keep their order and other columns are ignored. Paths are relative to the folder of the
        table, or absolute; a file that does not exist keeps its row. An empty cell means no label,
        split or group. Splits may have any name that `from_folder` accepts.

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
            without a path, with the path of another row, or with an unknown split. Messages number
            rows as a spreadsheet does: the header of a CSV is row 1; a Parquet table starts at row 1.

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
        reader = READERS.get(table.suffix.lower())
        if not stat.S_ISREG(_mode_of(table)) or reader is None:
            raise ManifestError(f"{str(table)!r} is not a table: give a folder, a .csv or a .parquet file")
        manifest = cls._from_rows(reader(table), table.absolute().parent, repr(str(table)))
        if not len(manifest):
            raise ManifestError(f"{str(table)!r} has no rows: add one row for each image")
        return manifest

    @classmethod
    def _from_rows(cls, rows: Iterable[Row], root: Path, where: str) -> "Manifest":
        numbers, paths, labels, splits, groups = array("q"), [], [], [], []
        for row in rows:
            if not row.path:
                raise ManifestError(f"row {row.number} of {where} has no path: add the path of an image")
            if row.split and row.split.lower() not in SPLIT_OF_FOLDER:
                raise ManifestError(
                    f"row {row.number} of {where} has the unknown split {row.split!r}: "
                    f"use {', '.join(SPLITS)} or nothing"
                )
            numbers.append(row.number)
            paths.append(encode(PurePath(row.path).as_posix()))
            labels.append(sys.intern(row.label))  # millions of rows share a few labels
            splits.append(SPLIT_OF_FOLDER.get(row.split.lower(), ""))
            groups.append(sys.intern(row.group))
        column = Texts.of_bytes(paths)
        if twice := Positions(column).repeated():
            raise ManifestError(
                f"rows {numbers[twice[0]]} and {numbers[twice[1]]} of {where} have the same path"
                f" {column[twice[1]]!r}: keep one"
            )
        classes, numbered = _indexed(labels)
        return cls(root, column, numbered, classes, Texts.of(splits), Texts.of(groups))

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, labelled: bool = True) -> "Manifest":
        """Find the images in a folder; its layout gives their labels and splits.

        - Each top-level folder with images is a class, with all images at any depth below it.
        - If all of these are named train, training, validation, val, valid, test or testing (in any
          case), or if two different splits are among them, these are splits, and the folders
          inside them are classes.
        - If there are no class folders, the images have no label.

        Images are files whose suffix is in ``pipeline.images.decode.SUFFIXES``; links are followed.
        Everything else is counted in ``left_out``, including folders without images and images next
        to class folders.

        Parameters
        ----------
        folder : str or os.PathLike
            Becomes ``root``.
        labelled : bool
            False takes every image at any depth without label and split, and ignores the layout.

        Returns
        -------
        Manifest
            Sorted by the bytes of the paths.

        Raises
        ------
        ManifestError
            When the folder is missing, cannot be read, or contains no image.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("dog", "cat"):
        ...         Path(folder, name).mkdir()
        ...         Path(folder, name, "1.jpg").touch()
        ...     manifest = Manifest.from_folder(folder)
        >>> list(manifest.paths), manifest.classes, manifest.labels
        (['cat/1.jpg', 'dog/1.jpg'], ('cat', 'dog'), (0, 1))
        """
        if not stat.S_ISDIR(_mode_of(folder)):
            raise ManifestError(f"{os.fspath(folder)!r} is not a folder: give the folder of the images")
        root = Path(folder).absolute()
        scan = Scan(root)
        found = find_images(scan) if labelled else [FoundFolder("", scan.images_below(""))]
        # Enough to sort all images: those of a folder are sorted, and no folder is inside another.
        found.sort(key=lambda folder: encode(f"{folder.path}/"))

        def column(name: str) -> Iterator[str]:
            return (text for folder in found for text in itertools.repeat(getattr(folder, name), len(folder.images)))

        paths = Texts.of_bytes(raw for folder in found for raw in folder.images.raws())
        if not paths:
            raise ManifestError(no_images_message(scan))
        classes, labels = _indexed(column("label"))
        splits = Texts.of(column("split"))
        return cls(root, paths, labels, classes, splits, Texts.of(itertools.repeat("", len(paths))), scan.counts())


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
    """Return the sorted classes and each name's index in them; -1 for ""."""
    seen: dict[str, int] = {}
    numbers = [seen.setdefault(name, len(seen)) for name in names]
    classes = tuple(sorted(seen.keys() - {""}))
    index = {name: number for number, name in enumerate(classes)} | {"": -1}
    final = [index[name] for name in seen]
    return classes, tuple(final[number] for number in numbers)

"""`FeatureStore`: vectors, paths, labels, splits, digests and recipe in one HDF5 file.

HDF5 is not crash-safe, so no file is changed in place: rows are committed in small immutable parts (each a feature
file), and a finished file replaces the old one in a single rename. Checksums are in `pipeline.features.hdf5`.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError, StoreError
from pipeline.features import hdf5
from pipeline.features.recipe import Recipe
from pipeline.files import KEPT, publish, writing
from pipeline.images.texts import Positions, Texts

FORMAT = "twostage-features"
FORMAT_VERSION = 1
BLOCK_BYTES = 8 << 20  # of vectors that are read, written or committed at once


class Skipped(NamedTuple):
    """An image without a vector: its path, the reason, and its size and mtime_ns when it was read."""

    path: str
    reason: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Index:
    """Everything in a feature file except the vectors; row i of each field belongs to ``paths[i]``.

    Parameters
    ----------
    recipe : Recipe
    segments : dict of str to (int, int)
        Columns ``[start, stop)`` of each layer.
    paths : Texts, or any sequence of str, which becomes one
        Relative to `root`, POSIX; names that are not UTF-8 contain Python's surrogate escapes.
    digests : ndarray of uint8, shape (n, 32)
        SHA-256 of the bytes that were decoded.
    sizes_mtimes : ndarray of int64, shape (n, 2)
        File size in bytes and modification time in nanoseconds.
    labels : ndarray of int32, shape (n,)
        Index into `classes`, -1 without a label.
    splits, groups : Texts, or any sequence of str, which becomes one
        Empty for rows without one.
    classes : tuple of str
        Sorted names.
    root : str
        The folder that `paths` are relative to.
    skipped : tuple of Skipped
        Images without a vector.
    created_with : dict of str to str
        Versions of the libraries, and the engine.
    """

    recipe: Recipe
    segments: dict[str, tuple[int, int]]
    paths: Texts
    digests: NDArray[np.uint8]
    sizes_mtimes: NDArray[np.int64]
    labels: NDArray[np.int32]
    splits: Texts
    groups: Texts
    classes: tuple[str, ...] = ()
    root: str = ""
    skipped: tuple[Skipped, ...] = ()
    created_with: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("paths", "splits", "groups"):
            object.__setattr__(self, name, Texts.of(getattr(self, name)))

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return max(stop for _, stop in self.segments.values())

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of an image's row in the file: ``(dim,)``, or ``(views, dim)`` with several views."""
        views = self.recipe.pixels.views.count
        return (self.dim,) if views == 1 else (views, self.dim)

    def same_content(self, other: "Index") -> bool:
        """Return whether two indexes describe the same rows; versions and weights paths are ignored."""
        return (
            self.recipe == other.recipe
            and self.segments == other.segments
            and (self.root, self.classes, self.skipped) == (other.root, other.classes, other.skipped)
            and (self.paths, self.splits, self.groups) == (other.paths, other.splits, other.groups)
            and np.array_equal(self.labels, other.labels)
            and (self.digests is other.digests or np.array_equal(self.digests, other.digests))
            and np.array_equal(self.sizes_mtimes, other.sizes_mtimes)
        )


class FeatureStore:
    """A feature file, opened for reading.

    The open file stays as it was when a later extraction replaces it.

    Parameters
    ----------
    path : path
        The file. Use the store as a context manager, or call `close`.

    Attributes
    ----------
    path : Path
    index : Index
        Everything except the vectors.
    shape : tuple of int
        ``(n, dim)``, or ``(n, views, dim)`` with several views of each image.
    dtype : dtype
        ``float32`` or ``float16``.
    summary : object or None
        Of the extraction that returned this store.

    Raises
    ------
    StoreError
        If the file does not exist or cannot be read.
    IntegrityError
        If it is damaged or not a feature file.

    Examples
    --------
    >>> with FeatureStore("artifacts/photos.h5") as store:
    ...     X, y = store.features, store.labels
    >>> X.shape, y.shape
    ((24, 3), (24,))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.summary: Any = None
        with hdf5.guard(self.path):
            self._file = hdf5.open_file(self.path)
        try:
            with hdf5.guard(self.path):
                self.index = _read_index(self._file)
                self._features = hdf5.plain_dataset(self._file, "features", "f", 1 + len(self.index.row_shape))
                _check_consistency(self._features, self.index)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._features.shape[0])

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"FeatureStore({str(self.path)!r}: {shape} {self.dtype}, {self.recipe})"

    def __reduce__(self) -> tuple[type["FeatureStore"], tuple[Path]]:
        return type(self), (self.path,)

    def close(self) -> None:
        """Close the file; reading features afterwards fails."""
        self._file.close()

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, dim)``, or ``(n, views, dim)`` with several views of each image."""
        return tuple(int(length) for length in self._features.shape)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.index.dim

    @property
    def views(self) -> int:
        """Number of views of each image."""
        return self.index.recipe.pixels.views.count

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored vectors."""
        return np.dtype(self._features.dtype)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the vectors; a missing local weights file is also searched beside the feature file."""
        return self.index.recipe.near(self.path.parent)

    @property
    def paths(self) -> Texts:
        """Path of each row, relative to the root."""
        return self.index.paths

    @property
    def labels(self) -> NDArray[np.int32]:
        """Class index of each row, shape (n,); -1 without a label."""
        return self.index.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.index.classes

    @property
    def splits(self) -> Texts:
        """Split of each row, empty for rows without one."""
        return self.index.splits

    @property
    def skipped(self) -> dict[str, str]:
        """Reason for each image that has no vector."""
        return {row.path: row.reason for row in self.index.skipped}

    @cached_property
    def positions(self) -> Positions:
        """Row of each path."""
        return Positions(self.index.paths)

    @property
    def features(self) -> NDArray[np.float32]:
        """All vectors, shape (n, dim) or (n, views, dim), float32; see `blocks` for files larger than memory.

        Raises
        ------
        IntegrityError
            If a checksum does not match.
        """
        return self.rows(0, len(self))

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the vectors of rows ``[start, stop)`` as float32, shaped as `features`."""
        vectors = self._read(start, stop)
        return vectors[:, 0] if self.views == 1 else vectors

    def take(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the vectors of any rows, in the order given, as float32 of shape (n, views, dim)."""
        taken = np.empty((len(rows), self.views, self.dim), np.float32)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        # Consecutive rows are read in one call.
        breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
        for run in np.split(np.arange(len(rows)), breaks) if len(rows) else []:
            taken[order[run]] = self._read(int(ordered[run[0]]), int(ordered[run[-1]]) + 1)
        return taken

    def blocks(self, nbytes: int = BLOCK_BYTES) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield ``(start, vectors)`` over all rows, about `nbytes` at a time; vectors are (n, views, dim)."""
        step = block_rows(self.views * self.dim, nbytes)
        for start in range(0, len(self), step):
            yield start, self._read(start, min(start + step, len(self)))

    def _read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read rows ``[start, stop)`` as float32 of shape (n, views, dim)."""
        with hdf5.guard(self.path):
            vectors = np.asarray(self._features[start:stop], np.float32)
        return with_view_axis(vectors)


def block_rows(values: int, nbytes: int = BLOCK_BYTES) -> int:
    """Return how many rows of `values` float32 numbers fill about `nbytes`, at least one."""
    return max(1, nbytes // (4 * max(values, 1)))


def write_store(path: Path, index: Index, vectors: Iterable[NDArray[np.float32]], dtype: str = "float32") -> None:
    """Write a feature file to a temporary file, then rename it.

    Parameters
    ----------
    path : Path
        An existing file stays until the new one is complete and on disk.
    index : Index
    vectors : iterable of ndarray of float32, shape (any, dim) or (any, views, dim)
        Consecutive blocks, ``len(index.paths)`` rows in all.
    dtype : {"float32", "float16"}

    Raises
    ------
    StoreError
        If the disk is full, the folder is not writable, or a value does not fit into float16.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path, StoreError):
            with temporary.open("w+b") as raw, ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
                shield = hdf5.Shield(raw)
                # Signals raise in the main thread only: never within HDF5.
                work = writer.submit(_write_through, shield, index, vectors, dtype)
                try:
                    work.result()
                except BaseException as error:
                    shield.error = shield.error or error
                    raise
            publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_through(shield: hdf5.Shield, index: Index, vectors: Iterable[NDArray[np.float32]], dtype: str) -> None:
    try:
        with hdf5.new_file(shield) as file:
            _fill(file, index, shield.until_error(vectors), dtype)
    except RuntimeError as error:  # from HDF5, when a full disk keeps it from closing the file
        raise OSError(str(error)) from error
    if shield.error:
        raise shield.error


def write_part(path: Path, index: Index, vectors: NDArray[np.float32]) -> None:
    """Write a small feature file that is built in memory, so that HDF5 never meets a full disk.

    Raises
    ------
    StoreError
        If the disk is full or the folder is not writable.
    """
    image = io.BytesIO()
    with hdf5.new_file(image) as file:
        _fill(file, index, [vectors], "float32")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path, StoreError, KEPT):
            temporary.write_bytes(image.getbuffer())
            publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def with_view_axis(vectors: NDArray[Any]) -> NDArray[Any]:
    """Return vectors (n, dim) or (n, views, dim), as users and feature files have them, as (n, views, dim).

    >>> with_view_axis(np.zeros((5, 3))).shape
    (5, 1, 3)
    """
    return vectors[:, None] if vectors.ndim == 2 else vectors


def verify(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Read a whole feature file and report what is wrong with it.

    Parameters
    ----------
    path : path
    progress : callable (done, total) or None
        Called after each block of rows.

    Returns
    -------
    list of str
        One sentence per fault; empty if there is none.

    Raises
    ------
    StoreError
        If the file does not exist or cannot be read.

    Examples
    --------
    >>> verify("artifacts/photos.h5")
    []
    """
    problems = []
    try:
        with FeatureStore(path) as store:
            for start, vectors in store.blocks():
                bad = np.flatnonzero(~np.isfinite(vectors).all(axis=(1, 2)))
                problems += [f"row {row} ({store.paths[row]!r}) is not finite" for row in (start + bad).tolist()]
                if progress:
                    progress(start + len(vectors), len(store))
    except IntegrityError as error:
        problems.append(str(error))
    return problems


def _fill(file: hdf5.File, index: Index, vectors: Iterable[NDArray[np.float32]], dtype: str) -> None:
    count = len(index.paths)
    # Level 0 stores without compression but adds zlib's checksum: Fletcher-32 confuses 0x0000 and 0xFFFF.
    features = hdf5.create(file, "features", (count, *index.row_shape), np.dtype(dtype), level=0)
    start = 0
    for block in vectors:
        stored = _cast(block, dtype).reshape(len(block), *index.row_shape)
        features[start : start + len(block)] = stored
        start += len(block)
    if start != count:
        raise AssertionError(f"{start} vectors for {count} paths")
    for name in ("paths", "splits", "groups"):
        hdf5.write_strings(file, name, getattr(index, name))
    for name in ("labels", "digests", "sizes_mtimes"):
        array = getattr(index, name)
        hdf5.create(file, name, array.shape, array.dtype)[...] = array
    hdf5.write_strings(file, "skipped/paths", Texts.of(row.path for row in index.skipped))
    hdf5.write_strings(file, "skipped/reasons", Texts.of(row.reason for row in index.skipped))
    tried = np.array([[row.size, row.mtime_ns] for row in index.skipped], np.int64).reshape(-1, 2)
    hdf5.create(file, "skipped/sizes_mtimes", tried.shape, tried.dtype)[...] = tried
    attributes = {
        "format": FORMAT,
        "recipe": index.recipe.to_json(),
        "fingerprint": index.recipe.fingerprint,
        "classes": json.dumps(index.classes),
        "root": index.root,
        "segments": json.dumps(index.segments),
        "created_with": json.dumps(index.created_with, sort_keys=True),
    }
    for name, text in attributes.items():
        hdf5.write_attribute(file, name, text)
    file.attrs.create("format_version", FORMAT_VERSION)


def _cast(block: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "float16" and len(block) and np.abs(block).max() > np.finfo(np.float16).max:
        raise StoreError(
            f"a feature value of {np.abs(block).max():.3g} does not fit into float16 (65504 at most);"
            " use --dtype float32"
        )
    return block.astype(dtype, copy=False)


def _read_index(file: hdf5.File) -> Index:
    attributes = {name: file.attrs[name] for name in file.attrs}
    if hdf5.decode(attributes.get("format", b"")) != FORMAT:
        raise IntegrityError(f"this HDF5 file is not a feature file (attribute format is not {FORMAT!r})")
    if int(attributes["format_version"]) > FORMAT_VERSION:
        raise StoreError(
            f"format version {attributes['format_version']} is newer than {FORMAT_VERSION}; upgrade twostage-features"
        )
    recipe = Recipe.from_json(hdf5.decode(attributes["recipe"]))
    if recipe.fingerprint != hdf5.decode(attributes["fingerprint"]):
        raise IntegrityError("the fingerprint does not match the recipe")
    tried = hdf5.plain_dataset(file, "skipped/sizes_mtimes", "i", 2)[...].tolist()
    skipped = zip(
        hdf5.read_strings(file, "skipped/paths"), hdf5.read_strings(file, "skipped/reasons"), tried, strict=True
    )
    return Index(
        recipe=recipe,
        segments={name: (int(a), int(b)) for name, (a, b) in json.loads(hdf5.decode(attributes["segments"])).items()},
        paths=hdf5.read_strings(file, "paths"),
        digests=hdf5.plain_dataset(file, "digests", "u", 2)[...],
        sizes_mtimes=hdf5.plain_dataset(file, "sizes_mtimes", "i", 2)[...],
        labels=hdf5.plain_dataset(file, "labels", "i", 1)[...],
        splits=hdf5.read_strings(file, "splits"),
        groups=hdf5.read_strings(file, "groups"),
        classes=tuple(json.loads(hdf5.decode(attributes["classes"]))),
        root=hdf5.decode(attributes["root"]),
        skipped=tuple(Skipped(path, reason, size, mtime) for path, reason, (size, mtime) in skipped),
        created_with=json.loads(hdf5.decode(attributes["created_with"])),
    )


def _check_consistency(features: hdf5.Dataset, index: Index) -> None:
    count = len(features)
    lengths = {
        name: len(getattr(index, name)) for name in ("paths", "digests", "sizes_mtimes", "labels", "splits", "groups")
    }
    if set(lengths.values()) != {count}:
        raise IntegrityError(f"{count} vectors, but {lengths}")
    if Positions(index.paths).repeated():
        raise IntegrityError("a path occurs twice")
    if count and not -1 <= index.labels.min() <= index.labels.max() < len(index.classes):
        raise IntegrityError(
            f"labels range from {index.labels.min()} to {index.labels.max()}, with {len(index.classes)} classes"
        )
    stops = [0, *(stop for _, stop in index.segments.values())]
    if [start for start, _ in index.segments.values()] != stops[:-1] or features.shape[1:] != index.row_shape:
        raise IntegrityError(
            f"rows have shape {features.shape[1:]}, expected {index.row_shape} for segments {index.segments} and views"
            f" {index.recipe.views!r}"
        )

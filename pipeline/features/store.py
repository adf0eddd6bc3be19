"""`FeatureStore`: vectors, paths, labels, splits, digests and recipe together in one HDF5 file.

The only user of h5py. HDF5 is not crash-safe, so no file is ever changed in place: rows are
committed in small immutable parts (each a feature file of its own), and a finished file replaces
the old one in a single rename. Every dataset carries the checksums of Fletcher-32 and zlib, every string has a
fixed length (variable-length ones live in a heap without checksums), and ``libver="latest"`` gives
the metadata checksums too, so that a flipped bit is an error instead of a wrong value.
"""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError, StoreError
from pipeline.features.recipe import Recipe
from pipeline.images.views import parse_views

FORMAT = "twostage-features"
FORMAT_VERSION = 1
DTYPES = ("float32", "float16")
BLOCK_BYTES = 8 << 20  # what is read, written and committed at once
_CHUNK_BYTES = 256 << 10
_MAX_DEFLATE = 1100  # zlib cannot expand further; more is a forged shape


T = TypeVar("T")


class Skipped(NamedTuple):
    """An image without a vector: its path, the reason, and its size and mtime_ns when it was tried."""

    path: str
    reason: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Index:
    """Everything in a feature file but the vectors; row i of each field belongs to ``paths[i]``.

    Parameters
    ----------
    recipe : Recipe
    segments : dict of str to (int, int)
        Columns ``[start, stop)`` of each layer.
    paths : sequence of str
        Relative to `root`, POSIX; names that are not UTF-8 use Python's surrogate escapes.
    digests : ndarray of uint8, shape (n, 32)
        SHA-256 of the bytes that were decoded.
    sizes_mtimes : ndarray of int64, shape (n, 2)
        File size in bytes and modification time in nanoseconds.
    labels : ndarray of int32, shape (n,)
        Index into `classes`, -1 without a label.
    splits, groups : sequence of str
        Empty where there is none.
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
    paths: Sequence[str]
    digests: NDArray[np.uint8]
    sizes_mtimes: NDArray[np.int64]
    labels: NDArray[np.int32]
    splits: Sequence[str]
    groups: Sequence[str]
    classes: tuple[str, ...] = ()
    root: str = ""
    skipped: tuple[Skipped, ...] = ()
    created_with: dict[str, str] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return max(stop for _, stop in self.segments.values())

    @property
    def row_shape(self) -> tuple[int, ...]:
        """What the file holds for an image: ``(dim,)``, or ``(views, dim)`` with several views."""
        views = parse_views(self.recipe.views).count
        return (self.dim,) if views == 1 else (views, self.dim)

    def same_content(self, other: "Index") -> bool:
        """Say whether two indexes describe the same rows; versions and hints aside."""
        return (
            self.recipe == other.recipe
            and self.segments == other.segments
            and (self.root, self.classes, self.skipped) == (other.root, other.classes, other.skipped)
            and list(self.paths) == list(other.paths)
            and list(self.splits) == list(other.splits)
            and list(self.groups) == list(other.groups)
            and np.array_equal(self.labels, other.labels)
            and np.array_equal(self.digests, other.digests)
            and np.array_equal(self.sizes_mtimes, other.sizes_mtimes)
        )


class FeatureStore:
    """A feature file, opened for reading.

    The open handle keeps seeing the file as it was, also when a later extraction replaces it.

    Parameters
    ----------
    path : path
        The file. Use it as a context manager, or call `close`.

    Attributes
    ----------
    path : Path
    index : Index
        Everything but the vectors.
    shape : tuple of int
        ``(n, dim)``, or ``(n, views, dim)`` with several views of each image.
    dtype : dtype
        ``float32`` or ``float16``.
    summary : object or None
        What the extraction that returned this store did.

    Raises
    ------
    StoreError
        If there is no such file, or it may not be read.
    IntegrityError
        If it is not a sound feature file.

    Examples
    --------
    >>> with FeatureStore("photos.h5") as store:  # doctest: +SKIP
    ...     X, y = store.features, store.labels
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.summary: Any = None
        with _guard(self.path):
            self._file = _open(self.path)
        try:
            with _guard(self.path):
                self.index = _read_index(self._file)
                self._features = _plain_dataset(self._file, "features", "f", 1 + len(self.index.row_shape))
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
        return parse_views(self.recipe.views).count

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored vectors."""
        return np.dtype(self._features.dtype)

    @property
    def recipe(self) -> Recipe:
        """What made the vectors."""
        return self.index.recipe

    @property
    def paths(self) -> Sequence[str]:
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
    def splits(self) -> Sequence[str]:
        """Split of each row, empty where there is none."""
        return self.index.splits

    @property
    def skipped(self) -> dict[str, str]:
        """Reason for each image that has no vector."""
        return {row.path: row.reason for row in self.index.skipped}

    @cached_property
    def positions(self) -> dict[str, int]:
        """Row of each path."""
        return {path: row for row, path in enumerate(self.paths)}

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
        with _guard(self.path):
            return np.asarray(self._features[start:stop], np.float32)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of any rows, in the order given, as float32, shaped as `features`."""
        taken = np.empty((len(rows), *self.shape[1:]), np.float32)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        # Neighbours are read together: one call for each run of consecutive rows.
        breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
        for run in np.split(np.arange(len(rows)), breaks) if len(rows) else []:
            taken[order[run]] = self.rows(int(ordered[run[0]]), int(ordered[run[-1]]) + 1)
        return taken

    def blocks(self, nbytes: int = BLOCK_BYTES) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield ``(start, vectors)`` over all rows, about `nbytes` at a time."""
        step = block_rows(math.prod(self.shape[1:]), nbytes)
        for start in range(0, len(self), step):
            yield start, self.rows(start, min(start + step, len(self)))


def block_rows(values: int, nbytes: int = BLOCK_BYTES) -> int:
    """Return how many rows of `values` float32 numbers make about `nbytes`, at least one."""
    return max(1, nbytes // (4 * max(values, 1)))


def write_store(path: Path, index: Index, vectors: Iterable[NDArray[np.float32]], dtype: str = "float32") -> None:
    """Write a feature file beside its place, then move it there in one rename.

    Parameters
    ----------
    path : Path
        Where it ends up; what was there stays until the new file is complete and on disk.
    index : Index
    vectors : iterable of ndarray of float32, shape (any, dim) or (any, views, dim)
        Consecutive blocks, ``len(index.paths)`` rows in all.
    dtype : {"float32", "float16"}

    Raises
    ------
    StoreError
        If the disk is full or the folder cannot be written, or a value does not fit into float16.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w+b") as raw, ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            shield = _Shield(raw)
            # Python raises a signal's exception in the main thread alone: never in the midst of HDF5.
            work = writer.submit(_write_through, shield, index, vectors, dtype)
            try:
                work.result()
            except BaseException as error:
                shield.error = shield.error or error
                raise
        publish(temporary, path)
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}; make space or choose another --out"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


class _Shield:
    """The file that HDF5 writes through; HDF5 never learns of an error, such as a full disk.

    It would not survive it: an error while HDF5 closes a file can end the whole process. So the first
    error is kept, and whatever is written after it goes nowhere.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.error: BaseException | None = None
        self._file = file
        self._at = self._end = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset if whence == os.SEEK_SET else self._end + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: bytes) -> int:
        self._do(lambda: self._file.write(data))
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def readinto(self, buffer: bytearray) -> int:
        self._do(lambda: self._file.readinto(buffer))  # type: ignore[attr-defined]
        self._at += len(buffer)
        return len(buffer)

    def truncate(self, size: int) -> int:
        self._do(lambda: self._file.truncate(size))
        self._end = size
        return size

    def flush(self) -> None:
        self._do(self._file.flush)

    def while_sound(self, blocks: Iterable[T]) -> Iterator[T]:
        """Yield from `blocks`, and raise the error as soon as there is one."""
        for block in blocks:
            yield block
            if self.error:
                raise self.error

    def _do(self, work: Callable[[], object]) -> None:
        if self.error is None:
            try:
                self._file.seek(self._at)
                work()
            except Exception as error:  # noqa: BLE001 - none may get into HDF5
                self.error = error


def _write_through(shield: _Shield, index: Index, vectors: Iterable[NDArray[np.float32]], dtype: str) -> None:
    with _new_file(shield) as file:
        _fill(file, index, shield.while_sound(vectors), dtype)
    if shield.error:
        raise shield.error


def write_part(path: Path, index: Index, vectors: NDArray[np.float32]) -> None:
    """Write a small feature file, built whole in memory, so that a full disk never meets HDF5.

    Raises
    ------
    StoreError
        If the disk is full or the folder cannot be written.
    """
    image = io.BytesIO()
    with _new_file(image) as file:
        _fill(file, index, [vectors], "float32")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(image.getbuffer())
        publish(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write {path}: {error.strerror}; make space and run the command again, what was done is kept"
        ) from error


def publish(temporary: Path, path: Path) -> None:
    """Make a written file durable and give it its name: fsync, rename, fsync of the folder."""
    for target, then in ((temporary, lambda: temporary.replace(path)), (path.parent, lambda: None)):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        then()


def verify(path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Read a feature file through and say what is wrong with it.

    Parameters
    ----------
    path : path
    progress : callable (done, total) or None
        Called after each block of rows.

    Returns
    -------
    list of str
        One sentence for each fault; empty for a sound file.

    Raises
    ------
    StoreError
        If there is no such file, or it may not be read.

    Examples
    --------
    >>> verify("photos.h5")  # doctest: +SKIP
    []
    """
    problems = []
    try:
        with FeatureStore(path) as store:
            for start, vectors in store.blocks():
                bad = np.flatnonzero(~np.isfinite(vectors).reshape(len(vectors), -1).all(axis=1))
                problems += [f"row {row} ({store.paths[row]!r}) is not finite" for row in (start + bad).tolist()]
                if progress:
                    progress(start + len(vectors), len(store))
    except IntegrityError as error:
        problems.append(str(error))
    return problems


def is_replaceable(path: Path) -> bool:
    """Say whether --overwrite may replace a file: one that begins as HDF5 files do, damaged or not, or has no bytes."""
    with path.open("rb") as file:
        return file.read(8) in (b"\x89HDF\r\n\x1a\n", b"")


def _open(path: Path) -> h5py.File:
    # A look with Python's own open first: HDF5's messages hide the plain reasons.
    with path.open("rb"):
        pass
    return h5py.File(path, "r", locking=False)


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file raises into this package's errors."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise StoreError(
            f"cannot read the feature file {path}: {error.strerror}; make it with extract.py or check the path"
        ) from error
    except (IntegrityError, StoreError) as error:
        raise type(error)(f"{path}: {error}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        advice = "extract anew with --overwrite" if is_replaceable(path) else "choose another --out"
        raise IntegrityError(
            f"{path} is damaged or no feature file ({type(error).__name__}: {' '.join(str(error).split())[:160]});"
            f" restore it from a copy or {advice}"
        ) from error


def _new_file(raw: BinaryIO | _Shield) -> h5py.File:
    # Through the low-level interface, which alone can leave out the times that would make every file differ.
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, raw)
    file = h5py.File(h5py.h5f.create(b"new", h5py.h5f.ACC_EXCL, creation, access))
    group = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    group.set_obj_track_times(False)
    h5py.h5g.create(file.id, b"skipped", gcpl=group)
    return file


def _fill(file: h5py.File, index: Index, vectors: Iterable[NDArray[np.float32]], dtype: str) -> None:
    count = len(index.paths)
    # Not compressed, but wrapped by zlib for its checksum: to Fletcher-32, 0x0000 and 0xFFFF are the same.
    features = _create(file, "features", (count, *index.row_shape), np.dtype(dtype), level=0)
    start = 0
    for block in vectors:
        stored = _cast(block, dtype).reshape(len(block), *index.row_shape)
        features[start : start + len(block)] = stored
        start += len(block)
    if start != count:
        raise AssertionError(f"{start} vectors for {count} paths")
    for name in ("paths", "splits", "groups"):
        _write_strings(file, name, getattr(index, name))
    for name in ("labels", "digests", "sizes_mtimes"):
        array = getattr(index, name)
        _create(file, name, array.shape, array.dtype)[...] = array
    _write_strings(file, "skipped/paths", [row.path for row in index.skipped])
    _write_strings(file, "skipped/reasons", [row.reason for row in index.skipped])
    tried = np.array([[row.size, row.mtime_ns] for row in index.skipped], np.int64).reshape(-1, 2)
    _create(file, "skipped/sizes_mtimes", tried.shape, tried.dtype)[...] = tried
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
        encoded = np.bytes_(_encode(text))
        file.attrs.create(name, encoded, dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))
    file.attrs.create("format_version", FORMAT_VERSION)


def _cast(block: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "float16" and len(block) and np.abs(block).max() > np.finfo(np.float16).max:
        raise StoreError(
            f"a feature value of {np.abs(block).max():.3g} does not fit into float16 (65504 at most);"
            " use --dtype float32"
        )
    return block.astype(dtype, copy=False)


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any, level: int = 1) -> h5py.Dataset:
    row_bytes = max(1, np.dtype(dtype).itemsize * int(np.prod(shape[1:])))
    chunk = (max(1, min(shape[0], _CHUNK_BYTES // row_bytes)), *shape[1:])
    return file.create_dataset(
        name,
        shape,
        dtype,
        maxshape=(None, *shape[1:]),
        chunks=chunk,
        fletcher32=True,
        compression="gzip",
        compression_opts=level,
    )


def _write_strings(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    encoded = [_encode(text) for text in texts]
    length = max(map(len, encoded), default=1) or 1
    dtype = h5py.string_dtype("utf-8", length)
    dataset = _create(file, name, (len(encoded),), dtype)
    if encoded:
        dataset[...] = np.array(encoded, dtype)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode(raw: Any) -> str:
    return raw if isinstance(raw, str) else bytes(raw).decode("utf-8", "surrogateescape")


def _plain_dataset(file: h5py.File, name: str, kinds: str, rank: int) -> h5py.Dataset:
    """Return a dataset whose bytes lie in this very file and are checksummed; refuse any other kind."""
    node: Any = file
    for step in name.split("/"):
        link = node.get(step, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise IntegrityError(f"dataset {name!r} is {'missing' if link is None else 'a link out of the file'}")
        node = node[step]
    if not isinstance(node, h5py.Dataset) or node.is_virtual or node.external or not node.chunks:
        raise IntegrityError(f"{name!r} is not a chunked dataset stored in this file")
    if node.dtype.kind not in kinds or node.ndim != rank:
        raise IntegrityError(
            f"dataset {name!r} is {node.dtype} of {node.ndim} dimensions, expected {rank} of {kinds!r}"
        )
    if not node.fletcher32:
        raise IntegrityError(f"dataset {name!r} has no checksums")
    stored = node.id.get_storage_size()
    if node.nbytes > stored * (_MAX_DEFLATE if node.compression else 1):
        raise IntegrityError(f"dataset {name!r} claims {node.nbytes} bytes and holds {stored}")
    return node


def _read_strings(file: h5py.File, name: str) -> list[str]:
    return [_decode(raw) for raw in _plain_dataset(file, name, "S", 1)[...].tolist()]


def _read_index(file: h5py.File) -> Index:
    attributes = {name: file.attrs[name] for name in file.attrs}
    if _decode(attributes.get("format", b"")) != FORMAT:
        raise IntegrityError(f"this HDF5 file is no feature file (attribute format is not {FORMAT!r})")
    if int(attributes["format_version"]) > FORMAT_VERSION:
        raise StoreError(
            f"format version {attributes['format_version']} is newer than {FORMAT_VERSION}; upgrade twostage-features"
        )
    recipe = Recipe.from_json(_decode(attributes["recipe"]))
    if recipe.fingerprint != _decode(attributes["fingerprint"]):
        raise IntegrityError("the fingerprint does not belong to the recipe")
    tried = _plain_dataset(file, "skipped/sizes_mtimes", "i", 2)[...].tolist()
    skipped = zip(_read_strings(file, "skipped/paths"), _read_strings(file, "skipped/reasons"), tried, strict=True)
    return Index(
        recipe=recipe,
        segments={name: (int(a), int(b)) for name, (a, b) in json.loads(_decode(attributes["segments"])).items()},
        paths=_read_strings(file, "paths"),
        digests=_plain_dataset(file, "digests", "u", 2)[...],
        sizes_mtimes=_plain_dataset(file, "sizes_mtimes", "i", 2)[...],
        labels=_plain_dataset(file, "labels", "i", 1)[...],
        splits=_read_strings(file, "splits"),
        groups=_read_strings(file, "groups"),
        classes=tuple(json.loads(_decode(attributes["classes"]))),
        root=_decode(attributes["root"]),
        skipped=tuple(Skipped(path, reason, size, mtime) for path, reason, (size, mtime) in skipped),
        created_with=json.loads(_decode(attributes["created_with"])),
    )


def _check_consistency(features: h5py.Dataset, index: Index) -> None:
    count = len(features)
    lengths = {
        name: len(getattr(index, name)) for name in ("paths", "digests", "sizes_mtimes", "labels", "splits", "groups")
    }
    if set(lengths.values()) != {count}:
        raise IntegrityError(f"{count} vectors, but {lengths}")
    if len(set(index.paths)) != count:
        raise IntegrityError("a path occurs twice")
    if count and not -1 <= index.labels.min() <= index.labels.max() < len(index.classes):
        raise IntegrityError(
            f"labels reach from {index.labels.min()} to {index.labels.max()} with {len(index.classes)} classes"
        )
    stops = [0, *(stop for _, stop in index.segments.values())]
    if [start for start, _ in index.segments.values()] != stops[:-1] or features.shape[1:] != index.row_shape:
        raise IntegrityError(
            f"rows have shape {features.shape[1:]}, segments {index.segments} and views {index.recipe.views!r} expect"
            f" {index.row_shape}"
        )

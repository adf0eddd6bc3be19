"""HDF5 that survives accidents: checksummed datasets, strings of fixed length, errors in words, hostile files refused.

The only user of h5py. Every dataset carries Fletcher-32 checksums (and zlib's, because to Fletcher-32 zeros and ones
are the same), every string has a fixed length (variable-length ones live in a heap without checksums), and
``libver="latest"`` gives the metadata checksums too, so that a flipped bit is an error instead of a wrong value.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import h5py
import numpy as np

from pipeline.errors import IntegrityError, StoreError
from pipeline.images import texts
from pipeline.images.texts import Texts

File = h5py.File
Dataset = h5py.Dataset
_CHUNK_BYTES = 256 << 10
_BLOCK_BYTES = 4 << 20  # of texts at fixed length, at a time
_MAX_DEFLATE = 1100  # zlib cannot expand further; more is a forged shape

T = TypeVar("T")


def open_file(path: Path) -> h5py.File:
    """Open a file for reading, without a lock."""
    # A look with Python's own open first: HDF5's messages hide the plain reasons.
    with path.open("rb"):
        pass
    return h5py.File(path, "r", locking=False)


@contextlib.contextmanager
def guard(path: Path) -> Iterator[None]:
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


def is_replaceable(path: Path) -> bool:
    """Say whether --overwrite may replace a file: one that begins as HDF5 files do, damaged or not, or has no bytes."""
    with path.open("rb") as file:
        return file.read(8) in (b"\x89HDF\r\n\x1a\n", b"")


def marked(content: bytes, word: str) -> bytes:
    """Return an HDF5 file of whatever kind with a word in it, beside what it holds."""
    image = io.BytesIO(content)
    with h5py.File(image, "r+") as file:
        file.attrs[f"twostage_{word}"] = True
    return image.getvalue()


def is_marked(path: Path, word: str) -> bool:
    """Say whether `marked` left a word in a file; a file that is no HDF5 has none."""
    try:
        with h5py.File(path, "r") as file:
            return f"twostage_{word}" in file.attrs
    except OSError:
        return False


class Shield:
    """The file that HDF5 writes through; HDF5 never learns of an error, such as a full disk.

    It would not survive it: an error while HDF5 closes a file can end the whole process. So the first
    error is kept, and whatever is written after it goes nowhere.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.error: BaseException | None = None
        self._file = file
        self._at = self._end = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the file."""
        self._at = offset if whence == os.SEEK_SET else self._end + offset
        return self._at

    def tell(self) -> int:
        """Return the place in the file."""
        return self._at

    def write(self, data: bytes) -> int:
        """Write, unless there was an error; say that it was written."""
        self._do(lambda: self._file.write(data))
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def readinto(self, buffer: bytearray) -> int:
        """Read back, unless there was an error."""
        self._do(lambda: self._file.readinto(buffer))  # type: ignore[attr-defined]
        self._at += len(buffer)
        return len(buffer)

    def truncate(self, size: int) -> int:
        """Set the length, unless there was an error."""
        self._do(lambda: self._file.truncate(size))
        self._end = size
        return size

    def flush(self) -> None:
        """Flush, unless there was an error."""
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


def new_file(raw: BinaryIO | Shield) -> h5py.File:
    """Begin a feature file in a file object; nothing in it depends on when it is made."""
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


def create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any, level: int = 1) -> h5py.Dataset:
    """Make a chunked dataset with checksums, compressed by zlib at a level from 0 (only wrapped) to 9."""
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


def write_strings(file: h5py.File, name: str, texts: Texts) -> None:
    """Write texts as a dataset of fixed-length UTF-8."""
    length = int(texts.lengths().max(initial=1))
    dataset = create(file, name, (len(texts),), h5py.string_dtype("utf-8", length))
    raws = texts.raws()
    for block in _blocks(dataset):
        dataset[block] = np.fromiter(raws, dataset.dtype, block.stop - block.start)


def write_attribute(file: h5py.File, name: str, text: str) -> None:
    """Write a text of fixed length."""
    encoded = np.bytes_(texts.encode(text))
    file.attrs.create(name, encoded, dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))


def read_strings(file: h5py.File, name: str) -> Texts:
    """Read what `write_strings` wrote."""
    dataset = plain_dataset(file, name, "S", 1)
    return Texts.of_bytes(raw for block in _blocks(dataset) for raw in dataset[block].tolist())


def _blocks(dataset: h5py.Dataset) -> Iterator[slice]:
    """Cut a dataset along its chunks: all of it at fixed length would take as much for each text as for the longest."""
    step = dataset.chunks[0] * max(1, _BLOCK_BYTES // (dataset.chunks[0] * max(1, dataset.dtype.itemsize)))
    return (slice(start, min(start + step, len(dataset))) for start in range(0, len(dataset), step))


def plain_dataset(file: h5py.File, name: str, kinds: str, rank: int) -> h5py.Dataset:
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


def decode(raw: Any) -> str:
    """Return the text of an attribute, however h5py gives it."""
    return raw if isinstance(raw, str) else texts.decode(bytes(raw))

"""HDF5 files with checksums on everything, plain error messages, and checks against hostile files.

The only module that uses h5py. Every dataset has Fletcher-32 checksums (and zlib's, because Fletcher-32 cannot
distinguish 0x0000 from 0xFFFF), every string has a fixed length (variable-length ones are stored in a heap without
checksums), and ``libver="latest"`` adds checksums to the metadata. A flipped bit is an error, never a wrong value.
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
_BLOCK_BYTES = 4 << 20  # of fixed-length texts read or written at once
_MAX_DEFLATE = 1100  # largest ratio that zlib can reach; more means a forged shape

T = TypeVar("T")


def open_file(path: Path) -> h5py.File:
    """Open a file for reading, without a lock."""
    # Python's own open fails with a clearer message than HDF5 does.
    with path.open("rb"):
        pass
    return h5py.File(path, "r", locking=False)


@contextlib.contextmanager
def guard(path: Path) -> Iterator[None]:
    """Turn any error caused by a missing or damaged file into one of this package's errors."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise StoreError(
            f"cannot read the feature file {path}: {error.strerror}; make it with extract.py or check the path"
        ) from error
    except (IntegrityError, StoreError) as error:
        raise type(error)(f"{path}: {error}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        advice = "extract again with --overwrite" if is_replaceable(path) else "choose another --out"
        raise IntegrityError(
            f"{path} is damaged or not a feature file ({type(error).__name__}: {' '.join(str(error).split())[:160]});"
            f" restore it from a copy or {advice}"
        ) from error


def is_replaceable(path: Path) -> bool:
    """Return whether --overwrite may replace a file: it starts like an HDF5 file, damaged or not, or is empty."""
    with path.open("rb") as file:
        return file.read(8) in (b"\x89HDF\r\n\x1a\n", b"")


def tagged(content: bytes, tag: str) -> bytes:
    """Return the bytes of an HDF5 file with a tag added as an attribute."""
    image = io.BytesIO(content)
    with h5py.File(image, "r+") as file:
        file.attrs[f"twostage_{tag}"] = True
    return image.getvalue()


def has_tag(path: Path, tag: str) -> bool:
    """Return whether a file has a tag of `tagged`; False for a file that is not HDF5."""
    try:
        with h5py.File(path, "r") as file:
            return f"twostage_{tag}" in file.attrs
    except OSError:
        return False


class Shield:
    """A file object that hides write errors, such as a full disk, from HDF5.

    An error while HDF5 closes a file can crash the process. So the first error is kept in `error`, and everything
    written after it is discarded.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.error: BaseException | None = None
        self._file = file
        self._at = self._end = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in the file."""
        self._at = offset if whence == os.SEEK_SET else self._end + offset
        return self._at

    def tell(self) -> int:
        """Return the position in the file."""
        return self._at

    def write(self, data: bytes) -> int:
        """Write, unless there was an error; always report success."""
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

    def until_error(self, blocks: Iterable[T]) -> Iterator[T]:
        """Yield from `blocks`; raise the first write error as soon as it occurred."""
        for block in blocks:
            yield block
            if self.error:
                raise self.error

    def _do(self, work: Callable[[], object]) -> None:
        if self.error is None:
            try:
                self._file.seek(self._at)
                work()
            except Exception as error:  # noqa: BLE001 - none may reach HDF5
                self.error = error


def new_file(raw: BinaryIO | Shield) -> h5py.File:
    """Create an HDF5 file in a file object; equal content gives equal bytes."""
    # Only the low-level interface can leave out time stamps.
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
    """Create a chunked dataset with checksums, compressed by zlib at a level from 0 (stored) to 9."""
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
    """Write texts as a dataset of fixed-length UTF-8 strings."""
    length = int(texts.lengths().max(initial=1))
    dataset = create(file, name, (len(texts),), h5py.string_dtype("utf-8", length))
    raws = texts.raws()
    for block in _blocks(dataset):
        dataset[block] = np.fromiter(raws, dataset.dtype, block.stop - block.start)


def write_attribute(file: h5py.File, name: str, text: str) -> None:
    """Write a text as a fixed-length attribute."""
    encoded = np.bytes_(texts.encode(text))
    file.attrs.create(name, encoded, dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))


def read_strings(file: h5py.File, name: str) -> Texts:
    """Read what `write_strings` wrote."""
    dataset = plain_dataset(file, name, "S", 1)
    return Texts.of_bytes(raw for block in _blocks(dataset) for raw in dataset[block].tolist())


def _blocks(dataset: h5py.Dataset) -> Iterator[slice]:
    """Yield slices along the chunks, as a whole dataset needs the memory of the longest text for each text."""
    step = dataset.chunks[0] * max(1, _BLOCK_BYTES // (dataset.chunks[0] * max(1, dataset.dtype.itemsize)))
    return (slice(start, min(start + step, len(dataset))) for start in range(0, len(dataset), step))


def plain_dataset(file: h5py.File, name: str, kinds: str, rank: int) -> h5py.Dataset:
    """Return a dataset that is stored in this file with checksums; raise IntegrityError for any other."""
    node: Any = file
    for step in name.split("/"):
        link = node.get(step, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise IntegrityError(f"dataset {name!r} is {'missing' if link is None else 'a link to another place'}")
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
        raise IntegrityError(f"dataset {name!r} claims {node.nbytes} bytes but stores {stored}")
    return node


def decode(raw: Any) -> str:
    """Return the text of an attribute, which h5py returns as str or bytes."""
    return raw if isinstance(raw, str) else texts.decode(bytes(raw))

"""An index beside a feature file, for searches among millions of vectors."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LockedError, PipelineError, StoreError, UsageError
from pipeline.features.neighbours import nearest, unit_rows
from pipeline.features.store import FeatureStore
from pipeline.files import locked, replacing, writing

_FORMAT = "twostage-index 1"
_AXES = 128  # principal axes that are kept, a byte each
_FOR_AXES = 20_000  # rows that they are learned from
_FOR_A_CELL = 39  # rows that faiss wants for the centre of each cell
_RUN = 1 << 18  # bytes of neighbouring rows that are drawn together
_VISITED, _LEAST = 16, 32  # a search visits one cell of 16, and at least 32
_CANDIDATES = 10  # for each image asked for; their cosines are then computed from the file
_DIGEST = hashlib.sha256().digest_size


class VectorIndex:
    """Finds the nearest vectors of a feature file without reading all of them.

    Vectors of length 1 are kept along 128 principal axes with a byte each, in cells around k-means centres (an
    inverted file: Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011, by the
    package faiss). Those of the nearest cells are candidates, whose cosines are computed from the feature file:
    all that is returned is exact, but some neighbour may be missed.

    Parameters
    ----------
    store : FeatureStore
    index : faiss.Index

    Examples
    --------
    >>> store = FeatureStore("artifacts/photos.h5")  # doctest: +SKIP
    >>> VectorIndex.of(store).nearest(store.rows(16, 17)[0], k=2)  # doctest: +SKIP
    (array([16, 3]), array([1.  , 0.91], dtype=float32))
    """

    def __init__(self, store: FeatureStore, index: Any) -> None:
        self.store = store
        self._index = index

    @classmethod
    def of(
        cls, store: FeatureStore, seed: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> "VectorIndex":
        """Read the index beside a feature file, ``<file>.index``; make it where it is absent, damaged or out of date.

        Parameters
        ----------
        store : FeatureStore
        seed : int
            Of the rows that axes and centres are learned from.
        progress : callable (done, total) or None
            Called with the rows that a new index holds.

        Raises
        ------
        PipelineError
            If the package faiss is not installed.
        UsageError
            If the file holds no vectors.
        StoreError, LockedError
            If the index cannot be written, or another process writes it.
        """
        path, stamp = index_path(store), _stamp(store)
        index = _read(path, stamp)
        if index is None:
            if not len(store):
                raise UsageError(f"{store.path} holds no image; extract some first")
            try:
                with locked(path):
                    index = _build(store, seed, progress)
                    _write(path, stamp, index)
            except (StoreError, LockedError) as error:
                told = str(error).removesuffix("choose another --out").removesuffix("or ").rstrip(" ;")
                raise type(error)(f"{told}; or search without --index") from error
        return cls(store, index)

    def nearest(self, query: NDArray[np.floating], k: int = 12) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Find rows with the largest cosines to a vector of shape (d,), as `pipeline.features.neighbours.nearest`."""
        faiss = _faiss()
        cells = faiss.extract_index_ivf(self._index)
        cells.nprobe = min(cells.nlist, max(_LEAST, cells.nlist // _VISITED))
        _, candidates = self._index.search(unit_rows(np.asarray(query, np.float32)[None]), _CANDIDATES * k)
        rows = np.sort(candidates[candidates >= 0])
        best, cosines = nearest(query, [(0, self.store.take(rows)[:, 0])], k)
        return rows[best], cosines


def index_path(store: FeatureStore) -> Path:
    """Return where the index of a feature file lies."""
    return store.path.with_name(f"{store.path.name}.index")


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise PipelineError(
            "an index needs the package faiss; run: pip install twostage-features[index], or search without an index"
        ) from error
    return faiss


def _stamp(store: FeatureStore) -> str:
    """Name what an index depends on: the recipe and the images, row by row."""
    digest = hashlib.sha256(f"{store.recipe.fingerprint} {store.shape} {store.dtype}".encode())
    digest.update(np.ascontiguousarray(store.index.digests).data)
    return digest.hexdigest()


def _build(store: FeatureStore, seed: int, progress: Callable[[int, int], None] | None) -> Any:
    faiss = _faiss()
    rng = np.random.default_rng(seed)
    axes = faiss.PCAMatrix(store.dim, min(_AXES, store.dim, len(store)))
    axes.train(np.concatenate(list(_drawn(store, _FOR_AXES, rng))))
    count = max(1, min(int(4 * len(store) ** 0.5), len(store) // _FOR_A_CELL))
    cells = faiss.index_factory(axes.d_out, f"IVF{count},SQ8")
    cells.cp.min_points_per_centroid = 1  # it would warn of a few less
    drawn = _drawn(store, _FOR_A_CELL * count, rng)
    cells.train(np.concatenate([axes.apply(vectors) for vectors in drawn]))
    index = faiss.IndexPreTransform(axes, cells)
    for start, vectors in store.blocks():
        index.add(unit_rows(vectors[:, 0]))
        if progress:
            progress(start + len(vectors), len(store))
    return index


def _drawn(store: FeatureStore, count: int, rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Yield some `count` rows from all over the file, of length 1; neighbours are drawn together, which is faster."""
    length = max(1, min(_RUN // (4 * store.dim), count // 64))
    runs = np.arange(0, len(store), length)
    for start in np.sort(rng.permutation(runs)[: -(-count // length)]).tolist():
        yield unit_rows(store.take(np.arange(start, min(start + length, len(store))))[:, 0])


def _write(path: Path, stamp: str, index: Any) -> None:
    faiss = _faiss()
    digest = hashlib.sha256()
    with writing(path, StoreError, "make space"), replacing(path) as file:

        def write(content: bytes) -> int:
            digest.update(content)
            return file.write(content)

        write(_header(stamp))
        faiss.write_index(index, faiss.PyCallbackIOWriter(write))
        file.write(digest.digest())


def _read(path: Path, stamp: str) -> Any:
    """Return the index of a file, None if it is not there, not of this stamp, or not as it was written."""
    header = _header(stamp)
    try:
        with path.open("rb") as file:
            if file.read(len(header)) != header or not _sound(file):
                return None
            file.seek(len(header))
            faiss = _faiss()
            return faiss.read_index(faiss.PyCallbackIOReader(file.read))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; remove it, or search without --index") from error


def _header(stamp: str) -> bytes:
    return json.dumps({"format": _FORMAT, "stamp": stamp}).encode() + b"\n"


def _sound(file: BinaryIO) -> bool:
    digest = hashlib.sha256()
    left = os.fstat(file.fileno()).st_size - _DIGEST
    file.seek(0)
    while left > 0 and (content := file.read(min(left, _RUN))):
        digest.update(content)
        left -= len(content)
    return file.read() == digest.digest()

"""An index file beside a feature file, for searches among millions of vectors."""

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
_AXES = 128  # principal axes that are stored, one byte each
_FOR_AXES = 20_000  # rows from which they are computed
_FOR_A_CELL = 39  # rows that faiss recommends per cell for training
_RUN = 1 << 18  # bytes of consecutive rows that are drawn together
_VISITED, _LEAST = 16, 32  # a search visits one cell in 16, at least 32 cells
_CANDIDATES = 10  # per result; their cosines are then computed from the file
_DIGEST = hashlib.sha256().digest_size


class VectorIndex:
    """Finds the nearest vectors of a feature file without reading all of them.

    Vectors, scaled to length 1, are reduced to 128 principal axes of one byte each and assigned to k-means cells (an
    inverted file: Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011, in the
    package faiss). The vectors in the nearest cells are candidates; their cosines are computed from the feature
    file. Returned cosines are exact, but a neighbour may be missed.

    Parameters
    ----------
    store : FeatureStore
    index : faiss.Index

    Examples
    --------
    >>> store = FeatureStore("artifacts/photos.h5")
    >>> rows, cosines = VectorIndex.of(store).nearest(store.rows(16, 17)[0], k=2)
    >>> rows.tolist(), cosines.round(3).tolist()
    ([16, 17], [1.0, 1.0])
    """

    def __init__(self, store: FeatureStore, index: Any) -> None:
        self.store = store
        self._index = index

    @classmethod
    def of(
        cls, store: FeatureStore, seed: int = 0, progress: Callable[[int, int], None] | None = None
    ) -> "VectorIndex":
        """Read the index ``<file>.index`` of a feature file; build it if it is missing, damaged or out of date.

        Parameters
        ----------
        store : FeatureStore
        seed : int
            Of the sample from which axes and cells are computed.
        progress : callable (done, total) or None
            Called with the rows added to a new index.

        Raises
        ------
        PipelineError
            If the package faiss is not installed.
        UsageError
            If the file has no vectors.
        StoreError, LockedError
            If the index cannot be written, or another process is writing it.
        """
        path, stamp = index_path(store), _stamp(store)
        index = _read(path, stamp)
        if index is None:
            if not len(store):
                raise UsageError(f"{store.path} has no images; extract some first")
            try:
                with locked(path):
                    index = _build(store, seed, progress)
                    _write(path, stamp, index)
            except (StoreError, LockedError) as error:
                reason = str(error).removesuffix("choose another --out").removesuffix("or ").rstrip(" ;")
                raise type(error)(f"{reason}; or search without --index") from error
        return cls(store, index)

    def nearest(self, query: NDArray[np.floating], k: int = 12) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return rows and cosines of the nearest vectors to `query` (d,), as `pipeline.features.neighbours.nearest`."""
        faiss = _faiss()
        cells = faiss.extract_index_ivf(self._index)
        cells.nprobe = min(cells.nlist, max(_LEAST, cells.nlist // _VISITED))
        _, candidates = self._index.search(unit_rows(np.asarray(query, np.float32)[None]), _CANDIDATES * k)
        rows = np.sort(candidates[candidates >= 0])
        best, cosines = nearest(query, [(0, self.store.take(rows)[:, 0])], k)
        return rows[best], cosines


def index_path(store: FeatureStore) -> Path:
    """Return the path of a feature file's index."""
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
    """Return a digest of everything that an index depends on: the recipe, and the image of each row."""
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
    cells.cp.min_points_per_centroid = 1  # silences a warning about slightly fewer rows
    drawn = _drawn(store, _FOR_A_CELL * count, rng)
    cells.train(np.concatenate([axes.apply(vectors) for vectors in drawn]))
    index = faiss.IndexPreTransform(axes, cells)
    for start, vectors in store.blocks():
        index.add(unit_rows(vectors[:, 0]))
        if progress:
            progress(start + len(vectors), len(store))
    return index


def _drawn(store: FeatureStore, count: int, rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Yield a sample of about `count` rows, scaled to length 1; in runs of consecutive rows, which read faster."""
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
    """Return the index in a file, None if it is missing, damaged or has another stamp."""
    header = _header(stamp)
    try:
        with path.open("rb") as file:
            if file.read(len(header)) != header or not _is_intact(file):
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


def _is_intact(file: BinaryIO) -> bool:
    digest = hashlib.sha256()
    left = os.fstat(file.fileno()).st_size - _DIGEST
    file.seek(0)
    while left > 0 and (content := file.read(min(left, _RUN))):
        digest.update(content)
        left -= len(content)
    return file.read() == digest.digest()

"""The state of an extraction: rows of earlier runs, and images still to encode."""

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, IntegrityError, RecipeMismatchError, StoreError, UsageError
from pipeline.features.engines import Encoder
from pipeline.features.hdf5 import is_replaceable
from pipeline.features.image_encoder import Pixels
from pipeline.features.options import Storage
from pipeline.features.recipe import Recipe
from pipeline.features.store import FeatureStore, Index, write_part
from pipeline.images.decode import read_bytes
from pipeline.images.manifest import Manifest
from pipeline.images.texts import Positions, Texts

# Reasons that may disappear although size and time of the file stay the same.
TRANSIENT = ("missing", "unreadable", "timeout", "crashed")


class Found(NamedTuple):
    """The state of an image: stored in row `row` of source `source`, or skipped for a reason; as of `stamp`."""

    stamp: tuple[int, int]
    source: int = -1
    row: int = -1
    reason: str = ""


class Fresh(NamedTuple):
    """An image that must be encoded: its stamp and the SHA-256 of its bytes."""

    stamp: tuple[int, int]
    digest: bytes


class Parts:
    """The sources of rows: the finished file (if any), then the parts of a run.

    Parameters
    ----------
    target : Path
        The feature file; parts are in the folder ``<target>.parts``.
    recipe : Recipe
    storage : Storage
        With `overwrite`, what was made with another recipe is deleted instead of raising RecipeMismatchError.
    """

    def __init__(self, target: Path, recipe: Recipe, storage: Storage) -> None:
        self.folder = target.with_name(f"{target.name}.parts")
        self.recipe = recipe
        self.sources: list[Path] = []
        self.finished: FeatureStore | None = None
        self._made_with: dict[str, tuple[Path, Recipe]] = {}  # by fingerprint
        self._number = 0
        for path in [target, *sorted(self.folder.glob("part-*.h5"))]:
            if path.exists():
                self._add(path, storage, is_target=path == target)

    def _add(self, path: Path, storage: Storage, *, is_target: bool) -> None:
        if storage.overwrite and is_target:
            if not is_replaceable(path):
                raise UsageError(f"{path} is not a feature file, so it is not overwritten; choose another --out")
            return  # it stays in place, even if damaged, until the new file is complete
        try:
            store = FeatureStore(path)
        except IntegrityError:
            if not storage.overwrite:
                raise
            path.unlink()
            return
        with contextlib.ExitStack() as closing:
            closing.callback(store.close)
            if not self.recipe.same_as(store.recipe):
                if storage.overwrite:
                    path.unlink()
                    return
                raise RecipeMismatchError(
                    f"{path} was made with {store.recipe}, this run needs {self.recipe}"
                    f" ({self.recipe.differences(store.recipe)}); choose another --out or give --overwrite"
                )
            if is_target:
                if store.dtype != storage.dtype:
                    raise RecipeMismatchError(
                        f"{path} holds {store.dtype}, this run needs {storage.dtype}; choose another --out or give"
                        " --overwrite"
                    )
                self.finished = store
                closing.pop_all()  # keep it open
            else:
                self._number = int(path.stem.removeprefix("part-")) + 1
        self._made_with.setdefault(store.recipe.fingerprint, (path, store.recipe))
        self.sources.append(path)

    def use(self, encoder: Encoder) -> None:
        """Take over the encoder's recipe, which has the digest of random weights; check that stored rows match."""
        self.recipe = encoder.recipe
        for path, recipe in self._made_with.values():
            if not self.recipe.same_as(recipe):
                raise RecipeMismatchError(
                    f"{path} was made with {recipe}, this machine makes {self.recipe};"
                    " choose another --out or give --overwrite"
                )

    @contextlib.contextmanager
    def opened(self, source: int) -> Iterator[FeatureStore]:
        """Open a source temporarily: there may be more parts than the limit of open files."""
        if source == 0 and self.finished is not None:
            yield self.finished
        else:
            with FeatureStore(self.sources[source]) as part:
                yield part

    def digests(self) -> "Digests":
        """Read the digests of all sources."""
        known = []
        for source in range(len(self.sources)):
            with self.opened(source) as store:
                known.append(store.index.digests)
        return Digests(known)

    def commit(self, index: Index, vectors: NDArray[np.float32]) -> int:
        """Write the next part and return its number among the sources."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.folder}: {error.strerror}; make space") from error
        path = self.folder / f"part-{self._number:06d}.h5"
        try:
            write_part(path, index, vectors)
        finally:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # succeeds only if it is empty because nothing could be written
        self._number += 1
        self.sources.append(path)
        return len(self.sources) - 1

    def release(self) -> FeatureStore | None:
        """Return the finished file, still open, and forget it."""
        store, self.finished = self.finished, None
        return store

    def close(self) -> None:
        """Close the finished file."""
        if (store := self.release()) is not None:
            store.close()

    def remove(self) -> None:
        """Delete the parts, which are now in the finished file."""
        if self.folder.exists():
            shutil.rmtree(self.folder)


class Plan:
    """The state of each image of a manifest: stored in a source, skipped, or still to encode.

    Attributes
    ----------
    stamps : ndarray of int64, shape (n, 2)
        Size and mtime_ns of each image when it was last checked.
    sources, rows : ndarray of int32, shape (n,)
        Source and row of each image's vector; -1 while there is none.
    reasons : dict of int to str
        Why an image is skipped, by image.
    old, dropped : int
        Number of images in the finished file, and of those that are no longer in the manifest.
    """

    def __init__(self, manifest: Manifest, parts: Parts) -> None:
        self.manifest = manifest
        self.stamps = _stamps(manifest.root, manifest.paths)
        self.sources = np.full(len(manifest), -1, np.int32)
        self.rows = np.full(len(manifest), -1, np.int32)
        self.reasons: dict[int, str] = {}
        self.old = self.dropped = 0
        image_of = Positions(manifest.paths)
        for source in range(len(parts.sources)):
            with parts.opened(source) as store:
                self._add(source, store.index, image_of, is_old=bool(parts.finished) and source == 0)
        self.reasons = {image: reason for image, reason in self.reasons.items() if self.sources[image] < 0}

    def _add(self, source: int, index: Index, image_of: Positions, *, is_old: bool) -> None:
        """Find the images that have not changed since a source was written; later sources take precedence."""
        images = image_of.find(index.paths)
        unchanged = images >= 0
        for column in (0, 1):
            unchanged &= self.stamps[images, column] == index.sizes_mtimes[:, column]
        rows = np.flatnonzero(unchanged)
        self.sources[images[rows]] = source
        self.rows[images[rows]] = rows
        skipped = image_of.find(Texts.of(each.path for each in index.skipped))
        for image, each in zip(skipped.tolist(), index.skipped, strict=True):
            touched = image < 0 or self.stamps[image].tolist() != [each.size, each.mtime_ns]
            if not touched and each.reason.split(":")[0] not in TRANSIENT:
                self.reasons[image] = each.reason
        if is_old:
            self.old = len(images) + len(skipped)
            self.dropped = int((images < 0).sum() + (skipped < 0).sum())

    def todo(self) -> NDArray[np.int64]:
        """Return the images whose file is new or has changed."""
        todo = self.sources < 0
        todo[list(self.reasons)] = False
        return np.flatnonzero(todo)

    def settle(self, image: int, found: Found) -> None:
        """Record the state of an image."""
        self.stamps[image] = found.stamp
        self.sources[image], self.rows[image] = found.source, found.row
        if found.reason:
            self.reasons[image] = found.reason


class Digests:
    """Finds stored rows by the SHA-256 of the image; made from the digests (n, 32) of each source."""

    def __init__(self, sources: list[NDArray[np.uint8]]) -> None:
        self._starts = np.cumsum([0, *map(len, sources)])
        joined = sources[0] if len(sources) == 1 else np.concatenate([np.empty((0, 32), np.uint8), *sources])
        self._digests = np.ascontiguousarray(joined).view("S32").ravel()
        self._order = np.argsort(self._digests, kind="stable")

    def find(self, digest: bytes) -> tuple[int, int] | None:
        """Return source and row of a digest, the last of equal ones; None if it is not stored."""
        wanted = np.frombuffer(digest, "S32")
        at = np.searchsorted(self._digests, wanted, "right", self._order) - 1
        if at[0] < 0 or self._digests[self._order[at]] != wanted:
            return None
        row = int(self._order[at[0]])
        source = int(np.searchsorted(self._starts, row, "right")) - 1
        return source, row - int(self._starts[source])


def examine(path: Path, known: Digests, decode: Callable[[bytes], Pixels]) -> Found | tuple[Fresh, Pixels]:
    """Read a file; find its content among the stored rows, decode it, or return why it cannot be decoded."""
    stamp = stamp_of(path)
    try:
        content = read_bytes(path)
        digest = hashlib.sha256(content).digest()
        if place := known.find(digest):
            return Found(stamp, *place)
        return Fresh(stamp, digest), decode(content)
    except ImageError as error:
        return Found(stamp, reason=str(error))


def _stamps(root: Path, paths: Texts) -> NDArray[np.int64]:
    """Return the stamp of each file, shape (n, 2)."""
    try:
        # Relative to an open folder, files are found faster than by full paths.
        folder = os.open(root, getattr(os, "O_PATH", os.O_RDONLY))
    except OSError:
        folder = -1  # the folder does not exist; absolute paths do not need it
    try:
        stamps = (stamp_of(path, folder) for path in paths)
        return np.fromiter(itertools.chain.from_iterable(stamps), np.int64, 2 * len(paths)).reshape(-1, 2)
    finally:
        if folder >= 0:
            os.close(folder)


def stamp_of(path: str | os.PathLike[str], folder: int | None = None) -> tuple[int, int]:
    """Return size in bytes and mtime in nanoseconds, (-1, -1) if the file does not exist."""
    try:
        status = os.stat(path, dir_fd=folder)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns

"""What an extraction starts from: the rows that earlier runs left, and what is still to do."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, IntegrityError, RecipeMismatchError, StoreError, UsageError
from pipeline.features.engines import Encoder
from pipeline.features.hdf5 import is_replaceable
from pipeline.features.recipe import Recipe
from pipeline.features.store import FeatureStore, Index, write_part
from pipeline.images.decode import read_bytes
from pipeline.images.manifest import Manifest

# Reasons that may pass without the file's size or time changing.
TRANSIENT = ("missing", "unreadable", "timeout", "crashed")


class Found(NamedTuple):
    """Where an image stands: stored in row `row` of source `source`, or skipped; as of `stamp`."""

    stamp: tuple[int, int]
    source: int = -1
    row: int = -1
    reason: str = ""


class Fresh(NamedTuple):
    """An image that must go through the network: pixels are uint8 of shape (views, size, size, 3)."""

    stamp: tuple[int, int]
    digest: bytes
    pixels: NDArray[np.uint8]


class Parts:
    """The sources that rows can come from: the finished file (if any), then the parts of a run.

    Parameters
    ----------
    target : Path
        The feature file; parts lie in the folder ``<target>.parts``.
    recipe : Recipe
    dtype : str
    overwrite : bool
        Throw away what was made with another recipe instead of raising RecipeMismatchError.
    """

    def __init__(self, target: Path, recipe: Recipe, dtype: str, *, overwrite: bool) -> None:
        self.folder = target.with_name(f"{target.name}.parts")
        self.recipe = recipe
        self.sources: list[FeatureStore] = []
        self.finished: FeatureStore | None = None
        self._number = 0
        for path in [target, *sorted(self.folder.glob("part-*.h5"))]:
            if path.exists():
                self._add(path, is_target=path == target, dtype=dtype, overwrite=overwrite)

    def _add(self, path: Path, *, is_target: bool, dtype: str, overwrite: bool) -> None:
        if overwrite and is_target:
            if not is_replaceable(path):
                raise UsageError(f"{path} is no feature file, so it is not overwritten; choose another --out")
            return  # sound or damaged, it stays in place until the new file is complete
        try:
            store = FeatureStore(path)
        except IntegrityError:
            if not overwrite:
                raise
            path.unlink()
            return
        if not self.recipe.same_as(store.recipe):
            store.close()
            if overwrite:
                path.unlink()
                return
            raise RecipeMismatchError(
                f"{path} was made with {store.recipe}, asked for is {self.recipe}"
                f" ({self.recipe.differences(store.recipe)}); choose another --out or give --overwrite"
            )
        if is_target:
            if store.dtype != dtype:
                store.close()
                raise RecipeMismatchError(
                    f"{path} holds {store.dtype}, asked for is {dtype}; choose another --out or give --overwrite"
                )
            self.finished = store
        else:
            self._number = int(path.stem.removeprefix("part-")) + 1
        self.sources.append(store)

    def settle(self, encoder: Encoder) -> None:
        """Adopt the encoder's recipe, whose random weights are known; refuse rows made with others."""
        self.recipe = encoder.recipe
        for store in self.sources:
            if not self.recipe.same_as(store.recipe):
                raise RecipeMismatchError(
                    f"{store.path} was made with {store.recipe}, this machine makes {self.recipe};"
                    " choose another --out or give --overwrite"
                )

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
                self.folder.rmdir()  # goes only when it is empty: nothing could be written
        self._number += 1
        self.sources.append(FeatureStore(path))
        return len(self.sources) - 1

    def close(self) -> None:
        """Close all files."""
        for store in self.sources:
            store.close()

    def remove(self) -> None:
        """Delete the parts, which the finished file now holds."""
        if self.folder.exists():
            shutil.rmtree(self.folder)


class Plan:
    """Which image of a manifest is where: stored in a source, known to be bad, or still to do.

    Attributes
    ----------
    found : list of Found or None
        For each image of the manifest; None while it is to do.
    old, dropped : int
        Images of the finished file, and those of them that the manifest no longer has.
    """

    def __init__(self, manifest: Manifest, parts: Parts) -> None:
        self.manifest = manifest
        self._known: dict[str, Found] = {}
        self._by_digest: dict[bytes, Found] = {}
        for number, store in enumerate(parts.sources):
            self._learn(number, store.index)
        finished = parts.finished.index if parts.finished else None
        old = {*finished.paths, *(row.path for row in finished.skipped)} if finished else set()
        self.old = len(old)
        self.dropped = len(old.difference(manifest.paths))
        self.found: list[Found | None] = [self._untouched(i) for i in range(len(manifest))]

    def _learn(self, number: int, index: Index) -> None:
        for row, (path, stamp) in enumerate(zip(index.paths, index.sizes_mtimes.tolist(), strict=True)):
            known = Found((stamp[0], stamp[1]), number, row)
            self._known[path] = known
            self._by_digest[index.digests[row].tobytes()] = known
        for skipped in index.skipped:
            if skipped.reason.split(":")[0] not in TRANSIENT:
                self._known[skipped.path] = Found((skipped.size, skipped.mtime_ns), reason=skipped.reason)

    def _untouched(self, image: int) -> Found | None:
        known = self._known.get(self.manifest.paths[image])
        return known if known and known.stamp == stamp_of(self.manifest.path_of(image)) else None

    def todo(self) -> list[int]:
        """Return the images whose file is new or was touched."""
        return [image for image, found in enumerate(self.found) if found is None]

    def examine(self, image: int, recipe: Recipe, decode: Callable[..., NDArray[np.uint8]]) -> Found | Fresh:
        """Read one file: find its bytes among the stored rows, else decode it, else say why not."""
        path = self.manifest.path_of(image)
        stamp = stamp_of(path)
        try:
            content = read_bytes(path)
            digest = hashlib.sha256(content).digest()
            if known := self._by_digest.get(digest):
                return known._replace(stamp=stamp)
            return Fresh(stamp, digest, decode(content, recipe.size, recipe.resize, recipe.views))
        except ImageError as error:
            return Found(stamp, reason=str(error))


def stamp_of(path: Path) -> tuple[int, int]:
    """Return size in bytes and mtime in nanoseconds, (-1, -1) for a file that is not there."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns

"""Stage 1: a manifest of images to a feature store; incremental, and resumed after an interruption.

Images are decoded ahead of the network; vectors are committed in parts; the finished file replaces the old one in
one rename. Memory holds one part and a few batches, never all vectors, and about 200 bytes per image for its path
and some numbers (`pipeline.images.texts`).
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreError, UsageError, installed_versions
from pipeline.features.engines import Encoder, make_encoder
from pipeline.features.image_encoder import ImageEncoder, Pixels
from pipeline.features.options import RecipeOptions, Speed, Storage
from pipeline.features.plan import Found, Fresh, Parts, Plan, examine
from pipeline.features.recipe import Recipe
from pipeline.features.store import FeatureStore, Index, Skipped, block_rows, write_store
from pipeline.files import locked
from pipeline.images.manifest import Manifest
from pipeline.images.texts import Texts
from pipeline.option_groups import accepts_fields
from pipeline.parallel import Progress
from pipeline.wording import count_of

PART_SECONDS = 20.0  # a killed run loses at most the vectors since the last part


@dataclass(frozen=True)
class Summary:
    """Result of an extraction: counts of images, and seconds.

    ``images == stored + skipped`` and ``stored == extracted + reused``; `dropped` images were in the old file and
    are no longer in the input.
    """

    images: int
    stored: int
    extracted: int
    reused: int
    skipped: int
    dropped: int
    left_out: dict[str, int]
    seconds: float
    images_per_second: float
    reasons: dict[str, int] = field(default_factory=dict)


@accepts_fields
def extract(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Manifest,
    out: str | os.PathLike[str],
    backbone: str | os.PathLike[str] = "mobilenetv2",
    *,
    recipe: RecipeOptions = RecipeOptions(),
    storage: Storage = Storage(),
    speed: Speed = Speed(),
    progress: Progress | None = None,
) -> FeatureStore:
    """Send every image through a truncated network once and cache the vectors.

    A second run encodes only new and changed images, and finishes a run that was interrupted.

    Parameters
    ----------
    images : path, list of paths or Manifest
        A folder of class folders, a folder with train / validation / test of class folders, a folder
        of images, a CSV or Parquet manifest ``path[,label][,split][,group]``.
    out : path
        The feature file.
    backbone : str or path
        See `Recipe.create`.
    recipe : RecipeOptions
        weights, layers, pooling, size, resize, precision, views; these, and the fields of the next two groups,
        may be given as keywords.
    storage : Storage
        dtype, overwrite.
    speed : Speed
        engine, batch_size, workers.
    progress : callable (done, total) or None
        Called after each image.

    Returns
    -------
    FeatureStore
        With a `Summary` in ``summary``; images that could not be read are in ``skipped``.

    Raises
    ------
    UsageError, ManifestError, WeightsError, EngineError
        If the options, the images or the weights cannot be used.
    RecipeMismatchError
        If `out` was made with another recipe and `overwrite` is False.
    LockedError
        If another process is writing `out`.
    IntegrityError, StoreError
        If `out` is damaged or cannot be written.

    Examples
    --------
    >>> store = extract("photos/", out="artifacts/photos.h5", backbone="mobilenetv2")
    >>> store.summary.images, store.classes
    (24, ('cat', 'dog'))
    """
    manifest = images if isinstance(images, Manifest) else Manifest.read(images)
    made = Recipe.create(backbone, recipe)
    return fill_store(
        manifest,
        out,
        made,
        make_encoder=lambda: make_encoder(made, speed),
        threads=speed.threads(),
        storage=storage,
        progress=progress,
    )


@accepts_fields
def fill_store(
    manifest: Manifest,
    out: str | os.PathLike[str],
    recipe: Recipe,
    *,
    make_encoder: Callable[[], Encoder],
    threads: int = 2,
    storage: Storage = Storage(),
    progress: Progress | None = None,
) -> FeatureStore:
    """Do what `extract` does with a given recipe and encoder.

    `make_encoder` is called only if an image must be encoded.
    """
    storage.check()
    if not len(manifest):
        raise UsageError("the manifest has no images; give at least one")
    started = time.monotonic()
    target = Path(out)
    if not target.name:
        raise UsageError(f"out {str(out)!r} names no file; give one such as artifacts/photos.h5")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {target.parent}: {error.strerror}; choose another --out") from error
    with locked(target):
        parts = Parts(target, recipe, storage)
        try:
            plan = Plan(manifest, parts)
            _check_same_images(plan, target)
            extracted = _run(plan, parts, make_encoder, threads, progress)
            written = _assemble(plan, parts, target, storage.dtype)
            store = None if written else parts.release()
            dropped = plan.dropped
            del plan  # frees memory before the written file is opened
        finally:
            parts.close()
        parts.remove()
    store = FeatureStore(target) if store is None else store
    seconds = time.monotonic() - started
    reasons: dict[str, int] = {}
    for row in store.index.skipped:
        kind = row.reason.split(":")[0]
        reasons[kind] = reasons.get(kind, 0) + 1
    store.summary = Summary(
        images=len(manifest),
        stored=len(store),
        extracted=extracted,
        reused=len(store) - extracted,
        skipped=len(store.index.skipped),
        dropped=dropped,
        left_out=dict(manifest.left_out),
        seconds=round(seconds, 3),
        images_per_second=round(extracted / seconds, 1),
        reasons=dict(sorted(reasons.items())),
    )
    return store


def _run(
    plan: Plan,
    parts: Parts,
    make_encoder: Callable[[], Encoder],
    threads: int,
    progress: Progress | None,
) -> int:
    """Encode the images that need it, part by part; return how many were encoded."""
    todo, manifest = plan.todo(), plan.manifest
    if not len(todo):
        return 0
    known = parts.digests()
    writer = PartWriter(plan, parts, make_encoder)

    def fresh(images: ImageEncoder) -> Iterator[tuple[tuple[int, Fresh], Pixels]]:
        """Yield the images that must be encoded; settle the others."""
        examined = images.decoded(map(int, todo), lambda image: examine(manifest.path_of(image), known, images.decode))
        for done, (image, result) in enumerate(examined, start=len(manifest) - len(todo) + 1):
            if isinstance(result, Found):
                plan.settle(image, result)
            else:
                yield (image, result[0]), result[1]
            if progress:
                progress(done, len(manifest))

    # Networks are made late: files that were only touched, or cannot be read, need none.
    with ImageEncoder([parts.recipe], writer.make_encoders, threads) as images:
        try:
            for batch in images.encoded(fresh(images)):
                writer.add(batch)
        finally:
            writer.commit()  # also when interrupted: the next run continues from here
    return writer.extracted


def _check_same_images(plan: Plan, target: Path) -> None:
    if plan.dropped and plan.dropped == plan.old:
        raise UsageError(
            f"none of the {count_of(plan.old, 'image')} in {target} is in {plan.manifest.root}, so all its vectors"
            " would be deleted; check the folder, choose another --out or give --overwrite"
        )


class PartWriter:
    """Collects encoded images and writes them as parts."""

    def __init__(self, plan: Plan, parts: Parts, make_encoder: Callable[[], Encoder]) -> None:
        self.plan = plan
        self.parts = parts
        self.extracted = 0
        self._make_encoder = make_encoder
        self._rows: list[tuple[int, Fresh]] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._since = time.monotonic()

    def make_encoders(self) -> list[Encoder]:
        """Make the encoder and check that stored rows match it."""
        self.encoder = self._make_encoder()
        self.parts.use(self.encoder)
        self._since = time.monotonic()
        return [self.encoder]

    def add(self, batch: Sequence[tuple[tuple[int, Fresh], NDArray[np.float32]]]) -> None:
        """Take the vectors (views, dim) of some images; commit when a part is full or overdue."""
        for (image, fresh), vectors in batch:
            if np.isfinite(vectors).all():
                self._rows.append((image, fresh))
                self._vectors.append(vectors)
            else:
                self.plan.settle(image, Found(fresh.stamp, reason="not-finite: the network gave no finite vector"))
        overdue = time.monotonic() - self._since > PART_SECONDS
        if len(self._rows) >= block_rows(batch[0][1].size) or overdue:
            self.commit()

    def commit(self) -> None:
        """Write the collected vectors as the next part."""
        if not self._rows:
            return
        paths = self.plan.manifest.paths
        count = len(self._rows)
        index = Index(
            recipe=self.encoder.recipe,
            segments=self.encoder.segments,
            paths=Texts.of(paths[image] for image, _ in self._rows),
            digests=np.frombuffer(b"".join(fresh.digest for _, fresh in self._rows), np.uint8).reshape(-1, 32),
            sizes_mtimes=np.array([fresh.stamp for _, fresh in self._rows], np.int64),
            labels=np.full(count, -1, np.int32),
            splits=Texts.of([""] * count),
            groups=Texts.of([""] * count),
            created_with=_versions(self.encoder.name),
        )
        number = self.parts.commit(index, np.array(self._vectors, np.float32))
        for row, (image, fresh) in enumerate(self._rows):
            self.plan.settle(image, Found(fresh.stamp, number, row))
        self.extracted += count
        self._rows, self._vectors = [], []
        self._since = time.monotonic()


def _versions(engine: str) -> dict[str, str]:
    names = ("twostage-features", "numpy", "h5py", "Pillow", "keras", "openvino", "tensorflow")
    return {"engine": engine, **installed_versions(*names)}


def _assemble(plan: Plan, parts: Parts, target: Path, dtype: str) -> bool:
    """Write the finished file in the manifest's order; return False if it is already up to date."""
    manifest = plan.manifest
    if missing := len(plan.todo()):
        raise AssertionError(f"{missing} images are unaccounted for")
    if not parts.sources:
        raise StoreError(
            f"none of the {len(manifest)} images could be read (the first: {plan.reasons[0]}), so {target} was not"
            " written; check the folder"
        )
    kept = np.flatnonzero(plan.sources >= 0)
    with parts.opened(len(parts.sources) - 1) as latest:
        example = latest.index
    step = block_rows(math.prod(example.row_shape))
    index = Index(
        recipe=parts.recipe if parts.recipe.weights_sha256 else example.recipe,
        segments=example.segments,
        paths=manifest.paths.take(kept),
        digests=_digests(plan, parts, kept, step),
        sizes_mtimes=plan.stamps[kept],
        labels=np.array(manifest.labels, np.int32)[kept],
        splits=manifest.splits.take(kept),
        groups=manifest.groups.take(kept),
        classes=manifest.classes,
        root=os.fspath(manifest.root),
        skipped=tuple(
            Skipped(manifest.paths[image], reason, *plan.stamps[image].tolist())
            for image, reason in sorted(plan.reasons.items())
        ),
        created_with=example.created_with,
    )
    if parts.finished and len(parts.sources) == 1 and parts.finished.index.same_content(index):
        return False
    write_store(target, index, _gather(plan, parts, kept, step, FeatureStore.take), dtype)
    return True


def _digests(plan: Plan, parts: Parts, images: NDArray[np.int64], step: int) -> NDArray[np.uint8]:
    """Return the digests of some images, shape (n, 32)."""
    finished = parts.finished if len(parts.sources) == 1 else None
    if finished and np.array_equal(plan.rows[images], np.arange(len(finished))):
        return finished.index.digests  # all rows are in their old places
    digests = np.empty((len(images), 32), np.uint8)
    blocks = _gather(plan, parts, images, step, lambda store, rows: store.index.digests[rows])
    for start, block in zip(range(0, len(images), step), blocks, strict=True):
        digests[start : start + step] = block
    return digests


def _gather(
    plan: Plan,
    parts: Parts,
    images: NDArray[np.int64],
    step: int,
    read: Callable[[FeatureStore, NDArray[np.integer]], NDArray[Any]],
) -> Iterator[NDArray[Any]]:
    """Yield what `read` returns for the stored rows of some images, in blocks of `step` images."""
    for start in range(0, len(images), step):
        block = images[start : start + step]
        sources, rows = plan.sources[block], plan.rows[block]
        values = []
        for source in np.unique(sources).tolist():
            with parts.opened(source) as store:
                values.append(read(store, rows[sources == source]))
        by_source = np.concatenate(values)
        ordered = np.empty_like(by_source)
        ordered[np.argsort(sources, kind="stable")] = by_source
        yield ordered

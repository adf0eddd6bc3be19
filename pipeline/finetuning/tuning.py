"""Fine-tuning: the last blocks of a network are trained further, at a low learning rate, on cached feature maps.

The layers before those blocks are frozen, so their output is cached once per image (stage 1 with an earlier layer), and
an epoch costs no more than the last blocks do. The result is a backbone with new weights: vectors are extracted with
it, and a head is trained on them as usual.
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import DESCRIPTION, Bundle
from pipeline.errors import IntegrityError, RecipeMismatchError, TrainingError, UsageError
from pipeline.features.engines import make_encoder
from pipeline.features.extraction import fill_store
from pipeline.features.options import Speed
from pipeline.features.recipe import LAST, Recipe
from pipeline.features.store import FeatureStore
from pipeline.features.weights import TUNED, file_sha256
from pipeline.finetuning.last_blocks import LastBlocks, smoothed_loss
from pipeline.finetuning.options import Tuning
from pipeline.heads.classifiers import AUTO
from pipeline.images.manifest import Manifest
from pipeline.images.texts import Positions, Texts
from pipeline.option_groups import accepts_fields
from pipeline.parallel import ahead, one_blas_thread
from pipeline.training.provenance import asked_of, training_data_of
from pipeline.training.report import Report
from pipeline.training.single_label import train_head
from pipeline.training.training_data import TrainingData
from pipeline.trust.abstention import images_needed
from pipeline.trust.options import Trust
from pipeline.wording import count_of

__all__ = ["Places", "Tuning", "best_epoch", "fine_tune"]

Progress = Callable[[int, int], None]
Phases = Callable[[str], AbstractContextManager[Progress | None]]

_CHECKED = 64  # validation images for which feature maps and vectors must give the same probabilities
_TOLERANCE = 0.05  # largest difference of these probabilities
_SOFT = 1e-3  # C of the head that tuning starts from: a confident head has vanishing gradients


@dataclass(frozen=True)
class Places:
    """The files of a tuned bundle, side by side.

    Examples
    --------
    >>> Places.of("artifacts/tuned.bundle").features
    PosixPath('artifacts/tuned.h5')
    """

    bundle: Path
    features: Path
    weights: Path
    maps: Path

    @classmethod
    def of(cls, out: str | os.PathLike[str]) -> "Places":
        """Return the files that belong to a bundle."""
        bundle = Path(out)
        if not bundle.name:
            raise UsageError(f"{str(out)!r} does not name a folder; give a path such as artifacts/tuned.bundle")
        if bundle.suffix in (".h5", ".hdf5") or (bundle.parent / DESCRIPTION).exists():
            raise UsageError(f"{out} cannot be a bundle; give a path such as artifacts/tuned.bundle")
        stem = bundle.name.removesuffix(".bundle")
        return cls(bundle, *(bundle.with_name(stem + ending) for ending in (".h5", ".weights.h5", ".maps.h5")))

    def check(self, inputs: Sequence[Path], *, overwrite: bool) -> None:
        """Raise UsageError if a file is an input, or exists and must not be replaced."""
        for path in (self.bundle, self.features, self.weights):
            if any(path.exists() and each.exists() and path.samefile(each) for each in inputs):
                raise UsageError(f"{path} is an input of the fine-tuning; choose another --out")
            if path.exists() and not overwrite and not self.maps.exists():  # maps are left by an interrupted run
                raise UsageError(f"{path} already exists; choose another --out or give --overwrite")


@accepts_fields
def fine_tune(
    bundle: Bundle | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    features: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    tuning: Tuning = Tuning(),
    overwrite: bool = False,
    speed: Speed = Speed(),
    phases: Phases = lambda unit: contextlib.nullcontext(),
) -> tuple[Bundle, Report]:
    """Train the last blocks of a bundle's network on its training images, then a new head on the new vectors.

    Yosinski, Clune, Bengio and Lipson, "How transferable are features in deep neural networks?", NeurIPS 2014. As in
    Keras' guide "Transfer learning & fine-tuning", batch normalisation is frozen, and training starts from a fitted
    head. The training, validation and test splits stay as they were.

    Parameters
    ----------
    bundle : Bundle or path
        Of the last layer of one network, with one label per image.
    out : path
        The new bundle. The tuned weights (``tuned.weights.h5``) and their vectors (``tuned.h5``) are written beside it;
        the cached feature maps (``tuned.maps.h5``) are deleted at the end.
    features : path or sequence of path
        The feature file that the bundle was trained on; by default at its path of then.
    tuning : Tuning
    overwrite : bool
        Whether to replace files of an earlier fine-tuning.
    speed : Speed
        Of the extractions.
    phases : callable (unit) -> context manager of a callable (done, total)
        Shows the progress of feature maps, batches and vectors, each in turn.

    Returns
    -------
    bundle : Bundle
        As saved at `out`.
    report : Report
        With the learning curves in ``history`` and the options used in ``provenance["tuning"]``.

    Raises
    ------
    UsageError
        If the bundle cannot be fine-tuned, the layer does not exist or is bypassed, or a file exists already.
    TrainingError
        If too few photographs can be read, photographs have changed, there are too few validation images, or training
        diverges.

    Examples
    --------
    >>> bundle, report = fine_tune("artifacts/photos.bundle", "artifacts/tuned.bundle")
    >>> sorted(report.history)
    ['accuracy', 'loss', 'val_accuracy', 'val_loss']
    """
    started = time.monotonic()
    tuning.check()
    start = _Start.of(bundle)
    places = Places.of(out)
    given = [features] if isinstance(features, (str, os.PathLike)) else list(features)
    data = training_data_of(start.bundle, given)
    places.check([*start.files, *(store.path for store in data.stores)], overwrite=overwrite)
    _check_validation(data, asked_of(start.bundle).get("abstain"))
    extraction = _Extraction(_manifest_of(data), speed, phases)
    blocks = LastBlocks(start.recipe, tuning.after, tuning.seed)
    history = _tune_blocks(blocks, data, extraction, places.maps, tuning)
    recipe = _save_weights(blocks, start.recipe, places.weights)
    with extraction.fill(places.features, recipe, str(data.stores[0].dtype)) as store:
        tuned, report = train_head(store, **start.head_options())
        skipped = store.skipped
    facts = start.facts(tuning, blocks, best_epoch(history))
    report = replace(
        report,
        history=history,
        notes=[*report.notes, *_notes(start.bundle, report, facts, skipped)],
        provenance={**report.provenance, "tuning": facts},
        seconds=round(time.monotonic() - started, 3),
    )
    tuned = replace(tuned, report=report.without_times(), provenance=report.provenance)
    tuned.save(places.bundle)
    places.maps.unlink()
    return tuned, report


def best_epoch(history: Mapping[str, Sequence[float]]) -> int:
    """Return the epoch with the lowest validation loss, counted from 1."""
    return int(np.argmin(history["val_loss"])) + 1


@dataclass(frozen=True)
class _Start:
    """The bundle that fine-tuning starts from, with its path (empty for a bundle in memory) and its only recipe."""

    bundle: Bundle
    path: str
    recipe: Recipe

    @classmethod
    def of(cls, bundle: Bundle | str | os.PathLike[str]) -> "_Start":
        """Load a bundle; raise UsageError if it cannot be fine-tuned."""
        if isinstance(bundle, Bundle):
            return cls(bundle, "", _only_recipe(bundle))
        loaded = Bundle.load(bundle)
        return cls(loaded, str(Path(bundle).absolute()), _only_recipe(loaded))

    @property
    def files(self) -> list[Path]:
        """The bundle and the weights of its network."""
        return [Path(path) for path in (self.path, self.recipe.weights_path) if path]

    def head_options(self) -> dict[str, Any]:
        """Return the options of `train_head`, without those that need images the network was not tuned on."""
        options = asked_of(self.bundle)
        trust = {name: options[name] for name in ("calibration", "abstain", "novelty") if name in options}
        return {
            "head": self.bundle.head_name if options["head"] == AUTO else options["head"],
            "params": options["params"],
            "seed": options["seed"],
            "average_views": self.bundle.average_views,
            "trust": Trust(**trust),
        }

    def facts(self, tuning: Tuning, blocks: LastBlocks, best: int) -> dict[str, Any]:
        """Return what the new bundle keeps in ``provenance["tuning"]``."""
        return {
            **asdict(tuning),
            "bundle": self.path,
            "after": blocks.after,
            "weights": blocks.count,
            "best_epoch": best,
        }


def _only_recipe(bundle: Bundle) -> Recipe:
    if len(bundle.recipes) != 1:
        raise UsageError(f"the bundle joins {len(bundle.recipes)} networks; tune a bundle of one of them")
    (recipe,) = bundle.recipes
    if recipe.weights.startswith("random"):
        raise UsageError("the bundle's network has random weights, so there is nothing to tune; take trained weights")
    if recipe.layers != (LAST,):
        raise UsageError(f"the bundle uses the layers {'+'.join(recipe.layers)}; tune a bundle of the last layer only")
    if recipe.row is None:
        raise UsageError(
            "the bundle's network is a .keras model; tune it with Keras, or take a bundle of a built-in backbone"
        )
    if bundle.multi_label:
        raise UsageError("the bundle predicts several labels per image; tune a bundle with one label per image")
    return recipe


def _check_validation(data: TrainingData, abstain: float | None) -> None:
    """Raise TrainingError if there are too few validation images to stop training and to set the threshold."""
    count = len(data.rows("validation"))
    if not count:
        raise TrainingError(
            "fine-tuning needs validation images to decide when to stop; train the bundle on a file with a validation"
            " split, or on one without splits, so that one is drawn"
        )
    if abstain is not None and count < images_needed(abstain):
        raise TrainingError(
            f"the bundle abstains, and to guarantee an accuracy of {abstain:g} after tuning takes"
            f" {images_needed(abstain)} validation images, not {count}; add some, or train the bundle without --abstain"
        )


def _manifest_of(data: TrainingData) -> Manifest:
    """Return the images of the training data with their splits."""
    return Manifest(
        root=Path(data.stores[0].index.root),
        paths=Texts.of(data.paths),
        labels=tuple(data.y.tolist()),
        classes=data.classes,
        splits=Texts.of(data.splits.tolist()),
        groups=Texts.of(data.groups.tolist()),
    )


@dataclass(frozen=True)
class _Extraction:
    """Makes feature files of the images of a training."""

    manifest: Manifest
    speed: Speed
    phases: Phases

    def fill(self, path: Path, recipe: Recipe, dtype: str) -> FeatureStore:
        """Return a feature file, made or completed; one of another recipe, or damaged, is replaced."""
        with self.phases(" images") as progress:
            run = functools.partial(
                fill_store,
                self.manifest,
                path,
                recipe,
                make_encoder=lambda: make_encoder(recipe, self.speed),
                threads=self.speed.threads(),
                dtype=dtype,
                progress=progress,
            )
            try:
                store = run()
            except (RecipeMismatchError, IntegrityError):
                store = run(overwrite=True)
        if not set(store.splits) >= {"train", "validation"}:
            raise TrainingError(
                f"too few images of {self.manifest.root} can be read ({len(store.skipped):,} of"
                f" {len(self.manifest):,} cannot); fine-tuning needs the photographs at their original paths"
            )
        return store


def _tune_blocks(
    blocks: LastBlocks, data: TrainingData, extraction: _Extraction, path: Path, tuning: Tuning
) -> dict[str, list[float]]:
    """Cache the feature maps at `path`, start from a fitted head and train the blocks; return the learning curves."""
    with extraction.fill(path, blocks.input_recipe(tuning.views), "float16") as maps:
        head = _soft_head(data)
        blocks.attach(head, tuning.learning_rate)
        _check_start(blocks, maps, head, data)
        with extraction.phases(" batches") as progress:
            return _train(blocks, _Samples(maps, head.classes_), tuning, progress)


def _save_weights(blocks: LastBlocks, recipe: Recipe, path: Path) -> Recipe:
    """Write the tuned weights; return the recipe of their vectors."""
    blocks.save(path)
    return replace(recipe, weights=TUNED, weights_sha256=file_sha256(path), weights_path=str(path.absolute()))


def _soft_head(data: TrainingData) -> Any:
    """Fit the head that tuning starts from on the vectors of the training images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = data.rows("train")
    with one_blas_thread():
        head = make_pipeline(StandardScaler(), LogisticRegression(C=_SOFT, max_iter=500))
        return head.fit(data.X[train, 0], data.y[train])


def _check_start(blocks: LastBlocks, maps: FeatureStore, head: Any, data: TrainingData) -> None:
    """Check that `blocks` gives for feature maps the probabilities that `head` gives for the stored vectors."""
    store, paths = data.stores[0], maps.index.paths
    changed = (maps.index.digests != store.index.digests[store.positions.find(paths)]).any(axis=1)
    if changed.any():
        raise TrainingError(
            f"{count_of(int(changed.sum()), 'photograph')} changed since the extraction, the first"
            f" {paths[int(changed.argmax())]!r}; extract the features and train the bundle again"
        )
    rows = np.flatnonzero(np.array(maps.splits) == "validation")[:_CHECKED]
    vectors = data.X[Positions(Texts.of(data.paths)).find(paths.take(rows)), 0]
    own = maps.take(rows)[:, 0]
    if (difference := np.abs(blocks.probabilities(own) - head.predict_proba(vectors)).max()) > _TOLERANCE:
        raise TrainingError(
            f"feature maps after {blocks.after} give other probabilities than the stored vectors (difference"
            f" {difference:.2f}): its values may be outside the range of float16; name another layer with --after"
        )


class _Samples:
    """Feature maps and targets of the images whose class has training images; each view is a separate sample."""

    def __init__(self, maps: FeatureStore, classes: NDArray[np.int64]) -> None:
        self._maps = maps
        self._codes = np.searchsorted(classes, maps.labels)
        self._targets = np.eye(len(classes), dtype=np.float32)
        self._known = np.isin(maps.labels, classes)
        self._splits = np.array(maps.splits)

    def of(self, split: str, *, views: bool = False) -> NDArray[np.int64]:
        """Return the samples of a split: of all views, or only of the images themselves."""
        rows = np.flatnonzero(self._known & (self._splits == split)) * self._maps.views
        return np.add.outer(rows, np.arange(self._maps.views)).ravel() if views else rows

    def read(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the feature maps (n, d) and targets (n, k) of samples."""
        rows, view = np.divmod(samples, self._maps.views)
        maps = self._maps.take(rows)
        return maps[np.arange(len(rows)), view], self._targets[self._codes[rows]]


def _train(blocks: LastBlocks, samples: _Samples, tuning: Tuning, progress: Progress | None) -> dict[str, list[float]]:
    """Train until the validation loss stops falling, restore the best weights and return the learning curves."""
    rng = np.random.default_rng(tuning.seed)
    train, validation = samples.of("train", views=True), samples.of("validation")
    history: dict[str, list[float]] = {name: [] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
    steps = -(-len(train) // tuning.batch_size)
    best: list[NDArray[np.float32]] = []
    with ThreadPoolExecutor(1) as pool:  # reads the next batch during a training step
        for epoch in range(tuning.epochs):
            batches = np.array_split(rng.permutation(train), steps)
            for number, (_, batch) in enumerate(ahead(pool, batches, samples.read, 2)):
                seen = blocks.step(*batch, first=number == 0)
                if progress:
                    progress(epoch * steps + number + 1, tuning.epochs * steps)
            seen |= _validate(blocks, samples, validation, tuning.batch_size)
            if not np.isfinite(list(seen.values())).all():
                raise TrainingError(f"training diverged with learning_rate={tuning.learning_rate:g}; give a lower one")
            for name, values in history.items():
                values.append(seen[name])
            if best_epoch(history) == epoch + 1:
                best = blocks.weights()
            elif epoch + 1 - best_epoch(history) >= tuning.patience:
                break
    blocks.restore(best)
    return history


def _validate(blocks: LastBlocks, samples: _Samples, rows: NDArray[np.int64], batch_size: int) -> dict[str, float]:
    losses, right = [], []
    for start in range(0, len(rows), batch_size):
        maps, targets = samples.read(rows[start : start + batch_size])
        proba = blocks.probabilities(maps)
        losses.append(smoothed_loss(proba, targets))
        right.append(proba.argmax(axis=1) == targets.argmax(axis=1))
    return {"val_loss": float(np.concatenate(losses).mean()), "val_accuracy": float(np.concatenate(right).mean())}


def _notes(start: Bundle, report: Report, facts: Mapping[str, Any], skipped: Mapping[str, str]) -> list[str]:
    text = f"tuned {facts['weights']:,} weights after {facts['after']}, best epoch {facts['best_epoch']}"
    if before := start.report.get("metrics", {}).get(report.scored_on):
        text += f"; before tuning, accuracy was {before['accuracy']:.3f} and log loss {before['log_loss']:.3f}"
    if not skipped:
        return [text]
    first = next(iter(skipped))
    return [text, f"no longer readable and left out: {count_of(len(skipped), 'image')}, the first {first!r}"]

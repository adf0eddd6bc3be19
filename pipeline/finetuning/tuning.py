"""Fine-tuning: the last blocks of a network trained on, at a low rate, from cached feature maps.

What lies before those blocks stays as it is, so its output is cached once for each image (stage 1, with an
earlier layer), and an epoch costs no more than the last blocks do. The result is a backbone with weights of its own:
vectors are extracted anew, and a head is trained on them as ever.
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
from pipeline.features.engines import Speed, make_encoder
from pipeline.features.extraction import fill_store
from pipeline.features.recipe import LAST, Recipe
from pipeline.features.store import FeatureStore
from pipeline.features.weights import TUNED, file_sha256
from pipeline.finetuning.last_blocks import LastBlocks, smoothed_loss
from pipeline.heads.classifiers import AUTO
from pipeline.images.manifest import Manifest
from pipeline.images.texts import Positions, Texts
from pipeline.images.views import ONE, parse_views
from pipeline.parallel import ahead, one_blas_thread
from pipeline.training.provenance import asked_of, training_data_of
from pipeline.training.report import Report
from pipeline.training.single_label import train_head
from pipeline.training.training_data import TrainingData
from pipeline.trust.abstention import needed
from pipeline.trust.options import Trust
from pipeline.wording import count_of

Progress = Callable[[int, int], None]
Phases = Callable[[str], AbstractContextManager[Progress | None]]

_CHECKED, _TOLERANCE = 64, 0.05  # images whose maps are compared with their vectors before the start; in probability
_SOFT = 1e-3  # C of the head that tuning starts with: one that is sure of itself would leave nothing to learn


@dataclass(frozen=True)
class Tuning:
    """How a network is tuned.

    Parameters
    ----------
    after : str or None
        The layer after which weights may change; None for the last quarter or so of the convolutions.
    epochs : int
        At most; the weights of the epoch with the least loss on the validation images are kept.
    patience : int
        Epochs without a lesser loss after which it ends.
    learning_rate : float
        Of Adam.
    batch_size : int
        Feature maps a step.
    views : str
        Augmented versions of each training image to learn from, as for an extraction.
    seed : int
        Of the order of the images and of dropout.
    """

    after: str | None = None
    epochs: int = 20
    patience: int = 3
    learning_rate: float = 3e-4
    batch_size: int = 32
    views: str = ONE
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError if a value cannot be used."""
        for name in ("epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} is too few; give 1 or more")
        if not 0 < self.learning_rate < 1:
            raise UsageError(f"learning_rate {self.learning_rate:g} is not between 0 and 1; give one such as 3e-4")
        parse_views(self.views)


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
        """Name them after the bundle."""
        bundle = Path(out)
        if not bundle.name:
            raise UsageError(f"{str(out)!r} names no folder; give one such as artifacts/tuned.bundle")
        if bundle.suffix in (".h5", ".hdf5") or (bundle.parent / DESCRIPTION).exists():
            raise UsageError(f"{out} is no place for a bundle; give one such as artifacts/tuned.bundle")
        stem = bundle.name.removesuffix(".bundle")
        return cls(bundle, *(bundle.with_name(stem + ending) for ending in (".h5", ".weights.h5", ".maps.h5")))

    def check(self, inputs: Sequence[Path], *, overwrite: bool) -> None:
        """Raise UsageError if one of them is an input, or is there and may not be replaced."""
        for path in (self.bundle, self.features, self.weights):
            if any(path.exists() and each.exists() and path.samefile(each) for each in inputs):
                raise UsageError(f"{path} is what the tuning starts from; choose another --out")
            if path.exists() and not overwrite and not self.maps.exists():  # else a tuning was interrupted here
                raise UsageError(f"{path} is already there; choose another --out or give --overwrite")


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

    Yosinski, Clune, Bengio and Lipson, "How transferable are features in deep neural networks?", NeurIPS 2014; as in
    Keras' guide "Transfer learning & fine-tuning", batch normalisation keeps its statistics, and the network starts
    under a head that is already trained. Images that chose (validation) and judge (test) stay what they were.

    Parameters
    ----------
    bundle : Bundle or path
        Of one network, its last feature map, and one label an image.
    out : path
        The new bundle. Beside it the tuned weights (``tuned.weights.h5``) and their vectors (``tuned.h5``) are written;
        the cached feature maps (``tuned.maps.h5``) go when all is done.
    features : path
        The feature file of the training; by default as the bundle remembers it.
    tuning : Tuning
    overwrite : bool
        Whether to replace files of an earlier tuning.
    speed : Speed
        Of the extractions.
    phases : callable (unit) -> context manager of a callable (done, total)
        Shows the progress of each of the three phases.

    Returns
    -------
    bundle : Bundle
        As saved at `out`.
    report : Report
        With the curves of the tuning in ``history`` and what was done in ``provenance["tuning"]``.

    Raises
    ------
    UsageError
        If the bundle cannot be tuned, a layer does not exist or is bypassed, or a file is in the way.
    TrainingError
        If the photographs are gone, or there are no validation images to say when to stop.

    Examples
    --------
    >>> fine_tune("artifacts/photos.bundle", "artifacts/tuned.bundle")  # doctest: +SKIP
    """
    started = time.monotonic()
    tuning.check()
    start = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    recipe = _tunable(start)
    places = Places.of(out)
    given = [features] if isinstance(features, (str, os.PathLike)) else list(features)
    data = training_data_of(start, given)
    inputs = [store.path for store in data.stores] + ([] if isinstance(bundle, Bundle) else [Path(bundle)])
    places.check([*inputs, Path(recipe.weights_path)], overwrite=overwrite)
    _check_judges(data, asked_of(start).get("abstain"))
    blocks = LastBlocks(recipe, tuning.after, tuning.seed)
    extraction = _Extraction(_manifest_of(data), speed, phases)
    with extraction.fill(places.maps, blocks.input_recipe(tuning.views), "float16") as maps:
        head = _soft_head(data)
        blocks.attach(head, tuning.learning_rate)
        _check_start(blocks, maps, head, data)
        with phases(" batches") as progress:
            history = _train(blocks, _Samples(maps, head.classes_), tuning, progress)
    blocks.save(places.weights)
    digest, path = file_sha256(places.weights), str(places.weights.absolute())
    tuned = replace(recipe, weights=TUNED, weights_sha256=digest, weights_path=path)
    with extraction.fill(places.features, tuned, str(data.stores[0].dtype)) as store:
        made, report = train_head(store, **_asked(start))
        lost = store.skipped
    facts = {
        **asdict(tuning),
        "bundle": "" if isinstance(bundle, Bundle) else str(Path(bundle).absolute()),
        "after": blocks.after,
        "weights": blocks.count,
        "best_epoch": best_epoch(history),
    }
    report = replace(
        report,
        history=history,
        notes=[*report.notes, *_told(start, report, facts, lost)],
        provenance={**report.provenance, "tuning": facts},
        seconds=round(time.monotonic() - started, 3),
    )
    made = replace(made, report=report.without_times(), provenance=report.provenance)
    made.save(places.bundle)
    places.maps.unlink()
    return made, report


def best_epoch(history: Mapping[str, Sequence[float]]) -> int:
    """Return the epoch whose weights were kept, the first being 1."""
    return int(np.argmin(history["val_loss"])) + 1


def _tunable(bundle: Bundle) -> Recipe:
    if len(bundle.recipes) != 1:
        raise UsageError(f"the bundle joins {len(bundle.recipes)} networks; tune a bundle of one of them")
    (recipe,) = bundle.recipes
    if recipe.weights.startswith("random"):
        raise UsageError("the bundle's network has random weights, so there is nothing to tune; take trained ones")
    if recipe.layers != (LAST,):
        raise UsageError(f"the bundle's features are the layers {'+'.join(recipe.layers)}; tune one of the last layer")
    if recipe.row is None:
        raise UsageError("the bundle's network is a .keras model; tune it with Keras, or a network of the table here")
    if bundle.multi_label:
        raise UsageError("the bundle has several labels for an image; tune one with a single label each")
    return recipe


def _asked(bundle: Bundle) -> dict[str, Any]:
    """Return what the head's training was asked for, without what would ask images that the network now knows."""
    asked = asked_of(bundle)
    trust = {name: asked[name] for name in ("calibration", "abstain", "novelty") if name in asked}
    return {
        "head": bundle.head_name if asked["head"] == AUTO else asked["head"],
        "params": asked["params"],
        "seed": asked["seed"],
        "average_views": bundle.average_views,
        "trust": Trust(**trust),
    }


def _check_judges(data: TrainingData, abstain: float | None) -> None:
    """Raise TrainingError where there are too few validation images for what they must decide."""
    count = len(data.rows("validation"))
    if not count:
        raise TrainingError(
            "no validation images say when tuning must stop; train the bundle on a file that has some, or that has no"
            " splits, so that they are drawn"
        )
    if abstain is not None and count < needed(abstain):
        raise TrainingError(
            f"the bundle abstains, and to promise an accuracy of {abstain:g} after tuning takes {needed(abstain)}"
            f" validation images, not {count}; add some, or train the bundle without --abstain"
        )


def _manifest_of(data: TrainingData) -> Manifest:
    """Return the images of a training, in the splits that they had there."""
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
    """Feature files of the images of a training."""

    manifest: Manifest
    speed: Speed
    phases: Phases

    def fill(self, path: Path, recipe: Recipe, dtype: str) -> FeatureStore:
        """Make a feature file, or finish one that an interrupted tuning left."""
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
                f" {len(self.manifest):,} cannot); tuning needs the photographs where they were"
            )
        return store


def _soft_head(data: TrainingData) -> Any:
    """Fit the head that tuning begins with on the vectors of the training images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train = data.rows("train")
    with one_blas_thread():
        head = make_pipeline(StandardScaler(), LogisticRegression(C=_SOFT, max_iter=500))
        return head.fit(data.X[train, 0], data.y[train])


def _check_start(blocks: LastBlocks, maps: FeatureStore, head: Any, data: TrainingData) -> None:
    """Raise TrainingError unless the blocks say of feature maps what the head says of the network's vectors."""
    store, paths = data.stores[0], maps.index.paths
    changed = (maps.index.digests != store.index.digests[store.positions.find(paths)]).any(axis=1)
    if changed.any():
        raise TrainingError(
            f"{count_of(int(changed.sum()), 'photograph')} changed since the extraction, the first"
            f" {paths[int(changed.argmax())]!r}; extract and train the bundle anew"
        )
    rows = np.flatnonzero(np.array(maps.splits) == "validation")[:_CHECKED]
    vectors = data.X[Positions(Texts.of(data.paths)).find(paths.take(rows)), 0]
    own = maps.take(rows)[:, 0]
    if (away := np.abs(blocks.probabilities(own) - head.predict_proba(vectors)).max()) > _TOLERANCE:
        raise TrainingError(
            f"feature maps after {blocks.after} lead to other probabilities than the stored vectors do (by {away:.2f}):"
            " the layer's numbers may be too small for float16; name another layer with --after"
        )


class _Samples:
    """Feature maps and targets of the images whose class has training images; each view is a sample of its own."""

    def __init__(self, maps: FeatureStore, classes: NDArray[np.int64]) -> None:
        self._maps = maps
        self._codes = np.searchsorted(classes, maps.labels)
        self._targets = np.eye(len(classes), dtype=np.float32)
        self._known = np.isin(maps.labels, classes)
        self._splits = np.array(maps.splits)

    def of(self, split: str, *, views: bool = False) -> NDArray[np.int64]:
        """Return the samples of a split: of all views, or of the images as they are."""
        rows = np.flatnonzero(self._known & (self._splits == split)) * self._maps.views
        return np.add.outer(rows, np.arange(self._maps.views)).ravel() if views else rows

    def read(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the feature maps (n, d) and targets (n, k) of samples."""
        rows, view = np.divmod(samples, self._maps.views)
        maps = self._maps.take(rows)
        return maps[np.arange(len(rows)), view], self._targets[self._codes[rows]]


def _train(blocks: LastBlocks, samples: _Samples, tuning: Tuning, progress: Progress | None) -> dict[str, list[float]]:
    """Train until the validation loss has stopped falling, and put the best weights back; return the curves."""
    rng = np.random.default_rng(tuning.seed)
    train, validation = samples.of("train", views=True), samples.of("validation")
    history: dict[str, list[float]] = {name: [] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
    steps = -(-len(train) // tuning.batch_size)
    best: list[NDArray[np.float32]] = []
    with ThreadPoolExecutor(1) as pool:  # reads the next batch while the network learns from this one
        for epoch in range(tuning.epochs):
            batches = np.array_split(rng.permutation(train), steps)
            for number, (_, batch) in enumerate(ahead(pool, batches, samples.read, 2)):
                seen = blocks.step(*batch, first=number == 0)
                if progress:
                    progress(epoch * steps + number + 1, tuning.epochs * steps)
            seen |= _judge(blocks, samples, validation, tuning.batch_size)
            if not np.isfinite(list(seen.values())).all():
                raise TrainingError(f"tuning with learning_rate={tuning.learning_rate:g} ran away; give a lower one")
            for name, values in history.items():
                values.append(seen[name])
            if best_epoch(history) == epoch + 1:
                best = blocks.weights()
            elif epoch + 1 - best_epoch(history) >= tuning.patience:
                break
    blocks.restore(best)
    return history


def _judge(blocks: LastBlocks, samples: _Samples, rows: NDArray[np.int64], batch_size: int) -> dict[str, float]:
    losses, right = [], []
    for start in range(0, len(rows), batch_size):
        maps, targets = samples.read(rows[start : start + batch_size])
        proba = blocks.probabilities(maps)
        losses.append(smoothed_loss(proba, targets))
        right.append(proba.argmax(axis=1) == targets.argmax(axis=1))
    return {"val_loss": float(np.concatenate(losses).mean()), "val_accuracy": float(np.concatenate(right).mean())}


def _told(start: Bundle, report: Report, facts: Mapping[str, Any], lost: Mapping[str, str]) -> list[str]:
    text = f"tuned {facts['weights']:,} weights after {facts['after']}, best in epoch {facts['best_epoch']}"
    if before := start.report.get("metrics", {}).get(report.scored_on):
        text += f"; before that, accuracy was {before['accuracy']:.3f} and log loss {before['log_loss']:.3f}"
    if not lost:
        return [text]
    first = next(iter(lost))
    return [text, f"{count_of(len(lost), 'image')} could not be read any more and took no part, the first {first!r}"]

"""Stage 2: cached vectors to a fitted head, an honest report, and a bundle."""

import contextlib
import importlib.metadata
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError, TrainingError, UsageError, count_of
from pipeline.features.neighbours import equal, join_groups, near_duplicates
from pipeline.features.store import FeatureStore
from pipeline.heads.bundle import Bundle
from pipeline.heads.classifiers import HEADS, make_head
from pipeline.heads.evaluation import evaluate, format_confusion, format_table
from pipeline.images.findings import Finding, excluded_paths, read_findings
from pipeline.images.splits import draw_splits

SPLITS = ("train", "validation", "test")
DEFAULT_FOLDS = 5

Features = FeatureStore | str | os.PathLike[str]


@dataclass(frozen=True)
class TrainingData:
    """Vectors and labels of images, joined from one or several feature files.

    Parameters
    ----------
    X : ndarray of float32, shape (n, sum of dims)
    y : ndarray of int, shape (n,)
        Index into `classes`; every row is labelled.
    splits, groups : ndarray of str, shape (n,)
    classes : tuple of str
    stores : tuple of FeatureStore
    notes : tuple of str
        What a person should know: images left out, splits drawn.
    paths : tuple of str, length n
        Relative to the root of the first store.
    """

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    splits: NDArray[np.str_]
    groups: NDArray[np.str_]
    classes: tuple[str, ...]
    stores: tuple[FeatureStore, ...]
    notes: tuple[str, ...]
    paths: tuple[str, ...] = ()

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a split."""
        return np.flatnonzero(self.splits == split)


@dataclass(frozen=True, repr=False)
class Report:
    """What a training found, as plain data.

    Parameters
    ----------
    head : str
    params : dict
        Parameters given or chosen.
    scored_on : str
        ``"test"``, ``"validation"`` or ``"cross-validation"``: where `accuracy` comes from.
    metrics : dict of str to dict
        For each split that was scored, see `pipeline.heads.evaluation.evaluate`.
    candidates : list of dict
        What was tried: ``{"params", "accuracy", "log_loss"}``, with the split or folds that judged.
    chosen_on : str
        ``"validation"``, ``"cross-validation"`` or ``""`` when nothing was chosen.
    counts : dict of str to int
        Images of each split.
    notes : list of str
    seconds : float
        Wall-clock time of fitting and choosing.
    history : dict of str to list of float
        Curves of a Keras head, else empty.
    provenance : dict
        Recipes, seed and versions.
    """

    head: str
    params: dict[str, Any]
    scored_on: str
    metrics: dict[str, dict[str, Any]]
    candidates: list[dict[str, Any]]
    chosen_on: str
    counts: dict[str, int]
    notes: list[str]
    seconds: float
    history: dict[str, list[float]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Accuracy on `scored_on`, from 0 to 1."""
        return float(self.metrics[self.scored_on]["accuracy"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"Report({self.head} {self.params}: accuracy {self.accuracy:.3f} on {self.scored_on})"

    def table(self, width: int = 80) -> str:
        """Return the per-class table, the verdict and the confusions for a terminal."""
        metrics = self.metrics[self.scored_on]
        lines = [format_table(metrics, width)]
        if "cross-validation" in self.metrics and self.scored_on != "cross-validation":
            folded = self.metrics["cross-validation"]
            lines.append(f"cross-validated accuracy {folded['accuracy']:.3f} on {folded['n']} training images")
        return "\n".join([*lines, "", format_confusion(metrics, width)])


def train_head(
    features: Features | Sequence[Features],
    head: str = "logreg",
    *,
    params: Mapping[str, Any] | None = None,
    cv: int | None = None,
    seed: int = 0,
    exclude: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Bundle, Report]:
    """Fit on the training split, choose on validation, report on test.

    A file without splits gets a stable hold-out, drawn class by class from the hash of each path. The
    strength of a head (the ``C`` of logreg, say) that is not given in `params` is chosen on the validation
    split, or by cross-validation inside the training split when `cv` is given.

    Parameters
    ----------
    features : FeatureStore, path, or a sequence of them
        Several files of the same images (other backbones, layers, sizes) are joined by image.
    head : str
        A name of the table of heads, or the import path of a scikit-learn classifier.
    params : mapping or None
        Parameters of the classifier, by plain name.
    cv : int or None
        Folds for choosing and for a cross-validated score.
    seed : int
        Of the splits drawn, the folds, and the head.
    exclude : path or None
        Findings of the audit: images whose action is ``exclude`` are left out, those of one group share
        their split when splits are drawn.
    progress : callable (done, total) or None
        Called after each fit.

    Returns
    -------
    bundle : Bundle
    report : Report

    Raises
    ------
    TrainingError
        If there is nothing to train on: no labels, a single class, vectors that are not finite.
    UsageError
        If the head or a parameter does not exist.

    Examples
    --------
    >>> bundle, report = train_head("artifacts/photos.h5", head="logreg")  # doctest: +SKIP
    """
    params = dict(params or {})
    make_head(head, params, seed)  # a wrong name or parameter is an error before files are read
    findings = read_findings(exclude) if exclude else []
    data = load_training_data(features, seed, findings)
    started = time.monotonic()
    train, validation = data.rows("train"), data.rows("validation")
    notes = list(data.notes)
    smallest = _check_trainable(data, train, cv)
    if cv is None and not len(validation) and not len(data.rows("test")):
        cv = min(DEFAULT_FOLDS, smallest)
        notes.append(f"every image is in the training split, so scores come from {cv} folds of it")
    notes += [
        f"class {data.classes[label]!r} has no training image and is never predicted"
        for label in sorted(set(range(len(data.classes))) - set(data.y[train].tolist()))
    ]
    with _told(head) as warned:
        chosen = _choose(data, head, params, cv, seed, progress)
        fitted = chosen.fitted or _fit(data, make_head(head, chosen.params, seed), train, validation)
    majority = int(np.bincount(data.y[train]).argmax())
    metrics = {}
    for split in ("validation", "test"):
        rows = data.rows(split)
        if len(rows):
            proba = _full_probabilities(fitted, data.X[rows], len(data.classes))
            metrics[split] = evaluate(data.y[rows], proba, data.classes, majority=majority)
    if chosen.folded is not None:
        metrics["cross-validation"] = evaluate(data.y[train], chosen.folded, data.classes, majority=majority)
    scored_on = next(name for name in ("test", "validation", "cross-validation") if name in metrics)
    if scored_on == chosen.chosen_on == "validation":
        notes.append("the validation images also chose the parameters, so this score is a little too good")
    elif scored_on == "validation" and hasattr(fitted[-1], "keras_model"):
        notes.append("the validation images also chose when to stop, so this score is a little too good")
    notes += sorted(warned)
    recipes = [store.recipe for store in data.stores]
    provenance = {
        "seed": seed,
        "fingerprints": [recipe.fingerprint for recipe in recipes],
        "recipes": [str(recipe) for recipe in recipes],
        "images": len(data.y),
        "features": [str(store.path.absolute()) for store in data.stores],
        "cv": cv,
        "findings": [finding._asdict() for finding in findings],
        "versions": _versions(),
    }
    report = Report(
        head=head,
        params=chosen.params,
        scored_on=scored_on,
        metrics=metrics,
        candidates=chosen.candidates,
        chosen_on=chosen.chosen_on,
        counts={split: len(data.rows(split)) for split in SPLITS},
        notes=notes,
        seconds=round(time.monotonic() - started, 3),
        history=dict(getattr(fitted[-1], "history_", {})),
        provenance=provenance,
    )
    bundle = Bundle(
        recipes=tuple(recipes),
        dims=tuple(store.shape[1] for store in data.stores),
        classes=data.classes,
        head=fitted,
        head_name=head,
        params=chosen.params,
        report=report.to_dict(),
        provenance=provenance,
    )
    return bundle, report


def load_training_data(
    features: Features | Sequence[Features], seed: int = 0, findings: Sequence[Finding] = ()
) -> TrainingData:
    """Read and join feature files; drop rows without label; draw splits where there are none.

    Images that `findings` exclude are dropped too. Where splits are drawn, duplicates and near duplicates
    share one: those of the same bytes, of close vectors, and those of one group in the findings.

    Raises
    ------
    TrainingError
        If the files do not belong together, or nothing is labelled.
    """
    given: list[Any] = list(features) if isinstance(features, (list, tuple)) else [features]
    if not given:
        raise UsageError("no feature file was given; name at least one")
    names = [os.path.realpath(each.path if isinstance(each, FeatureStore) else each) for each in given]
    if len(set(names)) < len(names):
        raise UsageError("a feature file was given twice; give it once")
    stores = tuple(each if isinstance(each, FeatureStore) else FeatureStore(each) for each in given)
    first = stores[0]
    notes: list[str] = []
    rows = _joined_rows(stores, notes)
    labels = first.labels[rows[0]].astype(np.int64)
    labelled = np.flatnonzero(labels >= 0)
    if not len(labelled):
        raise TrainingError(
            f"{first.path} has no labels, so there is nothing to learn; extract a folder of class folders or a"
            " manifest with a label column"
        )
    if missing := len(labels) - len(labelled):
        notes.append(f"{missing} images without a label were left out")
    labelled = _not_excluded(first, rows[0], labelled, excluded_paths(findings), notes)
    rows = [each[labelled] for each in rows]
    blocks = [store.take(each) for store, each in zip(stores, rows, strict=True)]
    for store, block in zip(stores, blocks, strict=True):
        if bad := np.count_nonzero(~np.isfinite(block).all(axis=1)):
            raise TrainingError(f"{bad} vectors of {store.path} are not finite; check it with verify.py")
    picked = rows[0].tolist()
    groups = [first.index.groups[row] for row in picked]
    y = labels[labelled]
    if not any(first.splits[row] for row in picked):
        groups = _with_duplicates(first, rows[0], blocks[0], findings, notes)
    splits, drawn = draw_splits(
        [first.paths[row] for row in picked],
        y.tolist(),
        groups,
        [first.splits[row] for row in picked],
        seed=seed,
        classes=first.classes,
    )
    return TrainingData(
        X=np.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0],
        y=y,
        splits=np.array(splits),
        groups=np.array(groups),
        classes=first.classes,
        stores=stores,
        notes=(*notes, *drawn),
        paths=tuple(first.paths[row] for row in picked),
    )


def _not_excluded(
    store: FeatureStore, rows: NDArray[np.int64], kept: NDArray[np.int64], excluded: set[str], notes: list[str]
) -> NDArray[np.int64]:
    if not excluded:
        return kept
    if not excluded & set(store.paths):
        raise UsageError(
            f"none of the {count_of(len(excluded), 'image')} to exclude is in {store.path}; give this file's findings"
        )
    left = np.array([row for row in kept.tolist() if store.paths[rows[row]] not in excluded], np.int64)
    if not len(left):
        raise TrainingError(f"the findings exclude every image of {store.path}; keep some")
    notes.append(f"{count_of(len(kept) - len(left), 'image')} left out, as the findings say")
    return left


def _with_duplicates(
    store: FeatureStore,
    rows: NDArray[np.int64],
    vectors: NDArray[np.float32],
    findings: Sequence[Finding],
    notes: list[str],
) -> list[str]:
    """Return the group of each row, joined with those of its duplicates and near duplicates."""
    paths = [store.paths[row] for row in rows.tolist()]
    groups = [store.index.groups[row] for row in rows.tolist()]
    own = vectors if vectors.ndim == 2 else vectors[:, 0]  # the first view is the image itself
    told = {finding.path: finding.group for finding in findings if finding.group}
    copies = equal(digest.tobytes() for digest in store.index.digests[rows])
    joined = join_groups(paths, groups, copies, near_duplicates(own), equal(told.get(path, "") for path in paths))
    if together := sum(group != before for group, before in zip(joined, groups, strict=True)):
        notes.append(f"{count_of(together, 'image')} with duplicates or near duplicates share the split of these")
    return joined


def _joined_rows(stores: Sequence[FeatureStore], notes: list[str]) -> list[NDArray[np.int64]]:
    """Return, for each store, the rows of the images that all have, in the order of the first."""
    first = stores[0]
    common = [path for path in first.paths if all(path in store.positions for store in stores[1:])]
    for store in stores[1:]:
        if store.classes != first.classes:
            raise TrainingError(
                f"{store.path} has classes {list(store.classes)}, {first.path} has {list(first.classes)};"
                " extract both from the same images"
            )
    if not common:
        raise TrainingError(
            f"{', '.join(str(s.path) for s in stores)} have no image in common; extract the same folder"
        )
    joined = [np.array([store.positions[path] for path in common], np.int64) for store in stores]
    for store, rows in zip(stores, joined, strict=True):
        same = (store.index.digests[rows] == first.index.digests[joined[0]]).all(axis=1)
        same &= store.labels[rows] == first.labels[joined[0]]
        if not same.all():
            example = common[int(np.flatnonzero(~same)[0])]
            raise TrainingError(
                f"{example!r} has other content or another label in {store.path} than in {first.path};"
                " extract both anew from the same folder"
            )
        if lost := len(store) - len(common):
            notes.append(f"{lost} images of {store.path} are not in every file and were left out")
    return joined


@contextlib.contextmanager
def _told(head: str) -> Iterator[set[str]]:
    """Turn what scikit-learn raises while fitting into this package's errors, and its warnings into notes."""
    from sklearn.utils._param_validation import InvalidParameterError

    notes: set[str] = set()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield notes
        notes.update(f"{head}: {str(each.message).strip().splitlines()[0]}" for each in caught)
    except PipelineError:
        raise
    except InvalidParameterError as error:
        raise UsageError(f"head {head!r}: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, FloatingPointError, np.linalg.LinAlgError) as error:
        raise TrainingError(
            f"head {head!r} cannot be fitted on these vectors ({' '.join(str(error).split())[:200]}); change its"
            " parameters or choose another --head"
        ) from error


def _check_trainable(data: TrainingData, train: NDArray[np.int64], cv: int | None) -> int:
    """Return the number of training units (groups, or images) of the rarest class."""
    counts = Counter(data.y[train].tolist())
    if not counts:
        raise TrainingError("the training split is empty; check the split column or the folder names")
    if len(counts) < 2:
        only = data.classes[next(iter(counts))]
        raise TrainingError(f"all training images are of the class {only!r}; a classifier needs at least two classes")
    if cv is not None and cv < 2:
        raise UsageError(f"cv {cv} makes no folds; give 2 or more")
    # An image of a group counts with its group, which no fold may cut.
    units = {(label, group or row) for row, label, group in _rows_with_groups(data, train)}
    unit = "training group" if any(isinstance(unit, str) for _, unit in units) else "training image"
    rarest, smallest = min(Counter(label for label, _ in units).items(), key=lambda item: item[1])
    needed = cv or (2 if len(train) == len(data.y) else 1)
    if smallest < needed:
        raise TrainingError(
            f"class {data.classes[rarest]!r} has {count_of(smallest, unit)}, too few for {needed} folds; add images"
            + (", or leave out --cv" if cv else "")
        )
    return smallest


def _rows_with_groups(data: TrainingData, rows: NDArray[np.int64]) -> Iterator[tuple[int, int, str]]:
    return zip(rows.tolist(), data.y[rows].tolist(), data.groups[rows].tolist(), strict=True)


@dataclass(frozen=True)
class _Choice:
    params: dict[str, Any]
    candidates: list[dict[str, Any]]
    chosen_on: str
    fitted: Any = None
    folded: NDArray[np.float64] | None = None  # out-of-fold probabilities of the training rows


def _choose(
    data: TrainingData,
    head: str,
    params: dict[str, Any],
    cv: int | None,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> _Choice:
    """Try the head's search path, as far as the user left it open, and take the best."""
    train, validation = data.rows("train"), data.rows("validation")
    search = HEADS[head].search if head in HEADS else {}
    open_names = [name for name in search if name not in params]
    grid = [{**params, name: value} for name in open_names[:1] for value in search[name]]
    judged_on = "cross-validation" if cv else "validation" if len(validation) else ""
    if not grid or not judged_on:
        if not cv:
            return _Choice(params, [], "")
        grid = [params]
    results: list[tuple[dict[str, Any], Any, NDArray[np.float64], dict[str, float]]] = []
    for number, candidate in enumerate(grid):
        fitted = None
        if cv:
            proba, accuracies = _cross_validate(data, head, candidate, train, cv, seed)
            truth = data.y[train]
        else:
            fitted = _fit(data, make_head(head, candidate, seed), train, validation)
            proba, accuracies = _full_probabilities(fitted, data.X[validation], len(data.classes)), []
            truth = data.y[validation]
        results.append((candidate, fitted, proba, _score(truth, proba, accuracies)))
        if progress:
            progress(number + 1, len(grid))
    best, fitted, proba, _ = max(results, key=lambda result: (result[3]["accuracy"], -result[3]["log_loss"]))
    candidates = [{"params": candidate, **score} for candidate, _, _, score in results]
    return _Choice(best, candidates, judged_on if len(grid) > 1 else "", fitted, proba if cv else None)


def _score(truth: NDArray[np.int64], proba: NDArray[np.float64], accuracies: list[float]) -> dict[str, float]:
    own = np.clip(proba[np.arange(len(truth)), truth], 1e-15, 1.0)
    score = {"accuracy": float((proba.argmax(axis=1) == truth).mean()), "log_loss": float(-np.log(own).mean())}
    if accuracies:
        score["accuracy_sd"] = float(np.std(accuracies, ddof=1))
    return score


def _cross_validate(
    data: TrainingData, head: str, params: dict[str, Any], train: NDArray[np.int64], cv: int, seed: int
) -> tuple[NDArray[np.float64], list[float]]:
    """Return out-of-fold probabilities (len(train), K) and the accuracy of each fold."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    groups = data.groups[train].tolist()
    # An image without a group is a group of its own.
    units = [group or f"\0{row}" for row, group in zip(train.tolist(), groups, strict=True)] if any(groups) else None
    kind = StratifiedGroupKFold if units else StratifiedKFold
    proba = np.zeros((len(train), len(data.classes)))
    accuracies = []
    for inner, outer in kind(cv, shuffle=True, random_state=seed).split(train, data.y[train], units):
        fitted = _fit(data, make_head(head, params, seed), train[inner], np.empty(0, np.int64))
        proba[outer] = _full_probabilities(fitted, data.X[train[outer]], len(data.classes))
        accuracies.append(float((proba[outer].argmax(axis=1) == data.y[train[outer]]).mean()))
    return proba, accuracies


def _fit(data: TrainingData, head: Any, train: NDArray[np.int64], validation: NDArray[np.int64]) -> Any:
    """Fit a pipeline; a head that stops early is shown the validation rows."""
    X, y = data.X[train], data.y[train]
    validation = validation[np.isin(data.y[validation], y)]  # an unknown class cannot tell when to stop
    if len(validation) and hasattr(head[-1], "keras_model"):
        before = head[:-1]
        X = before.fit_transform(X, y)
        head[-1].fit(X, y, validation_data=(before.transform(data.X[validation]), data.y[validation]))
        return head
    return head.fit(X, y)


def _full_probabilities(head: Any, X: NDArray[np.float32], n_classes: int) -> NDArray[np.float64]:
    full = np.zeros((len(X), n_classes))
    full[:, np.asarray(head.classes_, int)] = head.predict_proba(X)
    return full


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("twostage-features", "numpy", "scikit-learn", "skops", "keras", "tensorflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions

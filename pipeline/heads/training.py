"""Stage 2: cached vectors to a fitted head, an honest report, and a bundle."""

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError, TrainingError, UsageError, count_of, installed_versions
from pipeline.heads.bundle import Bundle
from pipeline.heads.classifiers import make_head
from pipeline.heads.evaluation import evaluate, format_confusion, format_table
from pipeline.heads.fitting import Fitter, one_blas_thread
from pipeline.heads.joining import Features, TrainingData, load_training_data
from pipeline.heads.learning_curve import format_curve, learning_curve
from pipeline.heads.search import AUTO, DEFAULT_BUDGET, DEFAULT_FOLDS, TIMES, choose, format_leaderboard, race

SPLITS = ("train", "validation", "test")


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
        What was tried: ``{"head", "params", "accuracy", "log_loss"}``. Where folds judged, the best first, with
        ``accuracy_sd`` over the ``folds``, mean ``fit_seconds`` of a fold, ``predict_seconds_per_1000`` images,
        and for the finalists of a race ``validation_accuracy`` and ``validation_log_loss``.
    chosen_on : str
        ``"validation"``, ``"cross-validation"`` or ``""`` when nothing was chosen.
    counts : dict of str to int
        Images of each split.
    notes : list of str
    seconds : float
        Wall-clock time of fitting and choosing.
    history : dict of str to list of float
        Curves of a Keras head, else empty.
    curve : dict
        Accuracy against images per class, see `pipeline.heads.learning_curve.learning_curve`; else empty.
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
    curve: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Accuracy on `scored_on`, from 0 to 1."""
        return float(self.metrics[self.scored_on]["accuracy"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return asdict(self)

    def without_times(self) -> dict[str, Any]:
        """Return the same without what the clock said, for a bundle that depends on data and seed alone."""
        data = self.to_dict()
        del data["seconds"]
        for row in data["candidates"]:
            for name in TIMES:
                row.pop(name, None)
        return data

    def __repr__(self) -> str:
        return f"Report({self.head} {self.params}: accuracy {self.accuracy:.3f} on {self.scored_on})"

    def table(self, width: int = 80) -> str:
        """Return the per-class table, the verdict and the confusions for a terminal."""
        metrics = self.metrics[self.scored_on]
        lines = [format_table(metrics, width)]
        if "cross-validation" in self.metrics and self.scored_on != "cross-validation":
            folded = self.metrics["cross-validation"]
            lines.append(f"cross-validated accuracy {folded['accuracy']:.3f} on {folded['n']} training images")
        lines += ["", format_confusion(metrics, width)]
        if len({each["head"] for each in self.candidates}) > 1:
            lines += ["", format_leaderboard(self.candidates, width)]
        if self.curve:
            lines += ["", format_curve(self.curve, width)]
        return "\n".join(lines)


def train_head(
    features: Features | Sequence[Features],
    head: str = "logreg",
    *,
    params: Mapping[str, Any] | None = None,
    cv: int | None = None,
    seed: int = 0,
    budget: float | None = None,
    average_views: bool = False,
    curve: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Bundle, Report]:
    """Fit on the training split, choose on validation, report on test.

    A file without splits gets a stable hold-out, drawn class by class from the hash of each path. The
    strength of a head (the ``C`` of logreg, say) that is not given in `params` is chosen on the validation
    split, or by cross-validation inside the training split when `cv` is given. Where images have several
    views, each view of a training image is a sample of its own.

    Parameters
    ----------
    features : FeatureStore, path, or a sequence of them
        Several files of the same images (other backbones, layers, sizes) are joined by image.
    head : str
        A name of the table of heads, the import path of a scikit-learn classifier, or ``"auto"``: many heads
        race, see `pipeline.heads.search.race`.
    params : mapping or None
        Parameters of the classifier, by plain name.
    cv : int or None
        Folds for choosing and for a cross-validated score.
    seed : int
        Of the splits drawn, the folds, and the head.
    budget : float or None
        Seconds that the race of ``"auto"`` may take; None for 60.
    average_views : bool
        Whether predictions are the mean over the views of an image, instead of that of its first.
    curve : bool
        Whether to measure how accuracy grows with the training images, see `pipeline.heads.learning_curve`.
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
        If the head or a parameter does not exist, or options do not go together.

    Examples
    --------
    >>> bundle, report = train_head("artifacts/photos.h5", head="logreg")  # doctest: +SKIP
    """
    params = dict(params or {})
    _check_options(head, params, cv, seed, budget)
    data = load_training_data(features, seed)
    fitter = Fitter(data, seed, average_views)
    started = time.monotonic()
    train, validation = data.rows("train"), data.rows("validation")
    smallest = _check_trainable(data, train, cv)
    if average_views and data.X.shape[1] == 1:
        raise UsageError("average_views needs several views of each image; extract with --views first")
    notes = list(data.notes)
    if cv is None and not len(validation) and not len(data.rows("test")):
        cv = min(DEFAULT_FOLDS, smallest)
        notes.append(f"every image is in the training split, so scores come from {cv} folds of it")
    notes += [
        f"class {data.classes[label]!r} has no training image and is never predicted"
        for label in sorted(set(range(len(data.classes))) - set(data.y[train].tolist()))
    ]
    with _told(head) as warned, one_blas_thread():
        if head == AUTO:
            chosen = race(fitter, cv, DEFAULT_BUDGET if budget is None else budget, progress)
        else:
            chosen = choose(fitter, head, params, cv, progress)
        fitted = chosen.fitted or next(fitter.fit(chosen.head, [chosen.params], train, watched=validation))
        growth = learning_curve(fitter, chosen.head, chosen.params) if curve else {}
    notes += chosen.notes
    metrics = _metrics(fitter, fitted, chosen.folded)
    scored_on = next(name for name in ("test", "validation", "cross-validation") if name in metrics)
    if scored_on == chosen.chosen_on:
        images = "validation images" if scored_on == "validation" else "folds"
        notes.append(f"the {images} also chose the parameters, so this score is a little too good")
    elif scored_on == "validation" and hasattr(fitted[-1], "keras_model"):
        notes.append("the validation images also chose when to stop, so this score is a little too good")
    notes += sorted(warned)
    recipes = [store.recipe for store in data.stores]
    provenance = {
        "seed": seed,
        "fingerprints": [recipe.fingerprint for recipe in recipes],
        "recipes": [str(recipe) for recipe in recipes],
        "images": len(data.y),
        "versions": installed_versions("twostage-features", "numpy", "scikit-learn", "skops", "keras", "tensorflow"),
    }
    report = Report(
        head=chosen.head,
        params=chosen.params,
        scored_on=scored_on,
        metrics=metrics,
        candidates=chosen.candidates,
        chosen_on=chosen.chosen_on,
        counts={split: len(data.rows(split)) for split in SPLITS},
        notes=notes,
        seconds=round(time.monotonic() - started, 3),
        history=dict(getattr(fitted[-1], "history_", {})),
        curve=growth,
        provenance=provenance,
    )
    bundle = Bundle(
        recipes=tuple(recipes),
        dims=tuple(store.shape[-1] for store in data.stores),
        classes=data.classes,
        head=fitted,
        head_name=chosen.head,
        params=chosen.params,
        report=report.without_times(),
        provenance=provenance,
        average_views=average_views,
    )
    return bundle, report


def _check_options(head: str, params: Mapping[str, Any], cv: int | None, seed: int, budget: float | None) -> None:
    """Refuse what is wrong before files are read."""
    if head == AUTO and params:
        raise UsageError("head 'auto' chooses the parameters itself; name a head, or leave out the parameters")
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed {seed} is no random_state of scikit-learn; give a whole number from 0 to {2**32 - 1}")
    if head != AUTO:
        make_head(head, params, seed)
    if budget is not None and head != AUTO:
        raise UsageError(f"a budget is for head 'auto', not for {head!r}; leave it out")
    if budget is not None and not 0 < budget < float("inf"):
        raise UsageError(f"budget {budget} is no time; give seconds above 0, such as 60")
    if cv is not None and cv < 2:
        raise UsageError(f"cv {cv} makes no folds; give 2 or more")


def _metrics(fitter: Fitter, fitted: Any, folded: NDArray[np.float64] | None) -> dict[str, dict[str, Any]]:
    """Score the fitted head on the splits that it has not seen, and what the folds said of the training split."""
    data, train = fitter.data, fitter.data.rows("train")
    majority = int(np.bincount(data.y[train]).argmax())
    asked = {split: data.rows(split) for split in ("validation", "test")}
    answers = {split: fitter.probabilities(fitted, rows) for split, rows in asked.items() if len(rows)}
    if folded is not None:
        asked["cross-validation"], answers["cross-validation"] = train, folded
    return {
        name: evaluate(data.y[asked[name]], proba, data.classes, majority=majority, units=data.units[asked[name]])
        for name, proba in answers.items()
    }


@contextlib.contextmanager
def _told(head: str) -> Iterator[set[str]]:
    """Turn what scikit-learn raises while fitting into this package's errors, and its warnings into notes."""
    from sklearn.utils._param_validation import InvalidParameterError

    from pipeline.heads.softmax_head import HARMLESS

    notes: set[str] = set()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for message in HARMLESS:
                warnings.filterwarnings("ignore", message=message)
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
    # An image of a group counts with its group, which no fold may cut.
    units = set(zip(data.y[train].tolist(), data.units[train].tolist(), strict=True))
    unit = "training group" if data.groups[train].any() else "training image"
    rarest, smallest = min(Counter(label for label, _ in units).items(), key=lambda item: item[1])
    needed = cv or (2 if len(train) == len(data.y) else 1)
    if smallest < needed:
        raise TrainingError(
            f"class {data.classes[rarest]!r} has {count_of(smallest, unit)}, too few for {needed} folds; add images"
            + (", or leave out --cv" if cv else "")
        )
    return smallest

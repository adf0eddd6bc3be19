"""Stage 2: cached vectors to a fitted head, an honest report, and a bundle."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Bundle
from pipeline.errors import TrainingError, UsageError
from pipeline.features.weights import TUNED
from pipeline.heads.classifiers import AUTO, find_head, make_head
from pipeline.heads.sklearn_errors import told
from pipeline.images.findings import read_findings
from pipeline.metrics.binary import two_class_facts
from pipeline.metrics.evaluation import evaluate
from pipeline.options import accepts_fields
from pipeline.parallel import one_blas_thread
from pipeline.training.fitting import Fitter
from pipeline.training.held_out import _answers, _of_folds, _of_validation, _units_of_classes, _validation_calibrates
from pipeline.training.learning_curve import learning_curve
from pipeline.training.options import Training
from pipeline.training.provenance import _plain, provenance_of
from pipeline.training.race import DEFAULT_BUDGET, race
from pipeline.training.report import Report
from pipeline.training.search import DEFAULT_FOLDS, Choice, choose
from pipeline.training.training_data import Features, TrainingData, load_training_data
from pipeline.training.tuned import _check_tuned, _trust_of_tuned, _tuned_note
from pipeline.trust.novelty import FALSE_ALARMS, Novelty
from pipeline.trust.options import Trust
from pipeline.trust.safeguards import HeldOut, Safeguards, learn_safeguards, trust_facts
from pipeline.wording import count_of

SPLITS = ("train", "validation", "test")


@accepts_fields
def train_head(
    features: Features | Sequence[Features],
    head: str = "logreg",
    *,
    params: Mapping[str, Any] | None = None,
    training: Training = Training(),
    trust: Trust = Trust(),
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
        race, see `pipeline.training.race.race`.
    params : mapping or None
        Parameters of the classifier, by plain name.
    training : Training
    trust : Trust
        The fields of both may also be given one by one, as keywords: ``train_head(store, cv=5, novelty=True)``.
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
    params, asked_trust, cv, seed = dict(params or {}), trust, training.cv, training.seed
    training.check()
    trust.check()
    _check_head(head, params, training)
    findings = read_findings(training.exclude) if training.exclude else []
    data = load_training_data(features, seed, findings)
    tuned = any(store.recipe.weights == TUNED for store in data.stores)
    if tuned:
        _check_tuned(data, head, cv, training.curve)
        trust = _trust_of_tuned(data, trust)
    fitter = Fitter(data, seed, training.average_views)
    started = time.monotonic()
    train, validation = data.rows("train"), data.rows("validation")
    smallest = _check_trainable(data, train, cv)
    if training.average_views and data.X.shape[1] == 1:
        raise UsageError("average_views needs several views of each image; extract with --views first")
    notes = list(data.notes)
    if cv is None and not len(validation) and not len(data.rows("test")):
        cv = min(DEFAULT_FOLDS, smallest)
        notes.append(f"every image is in the training split, so scores come from {cv} folds of it")
    notes += [
        f"class {data.classes[label]!r} has no training image and is never predicted"
        for label in sorted(set(range(len(data.classes))) - set(data.y[train].tolist()))
    ]
    with told(head) as warned, one_blas_thread():
        if head == AUTO:
            chosen = race(fitter, cv, DEFAULT_BUDGET if training.budget is None else training.budget, progress)
        else:
            chosen = choose(fitter, head, params, cv, progress)
        fitted = chosen.fitted or next(fitter.fit(chosen.head, [chosen.params], train, watched=validation))
        growth = learning_curve(fitter, chosen.head, chosen.params) if training.curve else {}
        # Calibration changes the head in place where it ends in a softmax.
        raw = _answers(fitter, fitted)
        by_validation = tuned or _validation_calibrates(data, chosen, trust)

        def held_out() -> HeldOut | None:  # folds cost fits, and images that the network has learned from make none
            classes = fitted.classes_
            return _of_validation(data, raw, classes) if by_validation else _of_folds(fitter, chosen, classes)

        safeguards, said = learn_safeguards(trust, fitted, held_out, seed)
    if trust.novelty:
        safeguards = with_novelty(safeguards, data, seed)
    metrics = _metrics(fitter, fitted, chosen, safeguards, raw)
    scored_on = next(name for name in ("test", "validation", "cross-validation") if name in metrics)
    notes += [*chosen.notes, *said]
    if tuned:
        notes.append(_tuned_note(trust, scored_on))
    elif by_validation:
        notes.append("calibration learned from the validation images, which also chose when to stop")
    if scored_on == chosen.chosen_on:
        images = "validation images" if scored_on == "validation" else "folds"
        notes.append(f"the {images} also chose the parameters, so this score is a little too good")
    elif scored_on == "validation" and find_head(chosen.head).early_stopping:
        notes.append("the validation images also chose when to stop, so this score is a little too good")
    notes += sorted(warned)
    provenance = {
        **provenance_of(data, seed),
        "asked": _plain({"head": head, "params": params, "cv": training.cv, "seed": seed, **asdict(training), **asdict(asked_trust)}),
        "cv": cv,
        "findings": [each._asdict() for each in findings],
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
        trust=safeguards.to_dict(),
    )
    bundle = Bundle(
        recipes=tuple(store.recipe for store in data.stores),
        dims=tuple(store.dim for store in data.stores),
        classes=data.classes,
        head=fitted,
        head_name=chosen.head,
        params=chosen.params,
        report=report.without_times(),
        provenance=provenance,
        average_views=training.average_views,
        safeguards=safeguards,
    )
    return bundle, report


def with_novelty(safeguards: Safeguards, data: TrainingData, seed: int) -> Safeguards:
    """Add a novelty score learned from the training images as they are, without their augmented views."""
    train = data.rows("train")
    novelty = Novelty.fit(data.X[train, 0], data.groups[train].tolist(), seed)
    facts = {**safeguards.facts, "novelty": {"false_alarms": FALSE_ALARMS, "threshold": novelty.threshold}}
    return replace(safeguards, novelty=novelty, facts=facts)


def _check_head(head: str, params: Mapping[str, Any], training: Training) -> None:
    """Raise UsageError where head, parameters and budget do not go together, before files are read."""
    if head == AUTO and params:
        raise UsageError("head 'auto' chooses the parameters itself; name a head, or leave out the parameters")
    if training.budget is not None and head != AUTO:
        raise UsageError(f"a budget is for head 'auto', not for {head!r}; leave it out")
    if head != AUTO:
        make_head(head, params, training.seed)  # last, because it imports scikit-learn


def _metrics(
    fitter: Fitter, fitted: Any, chosen: Choice, safeguards: Safeguards, raw: Mapping[str, NDArray[np.float64]]
) -> dict[str, dict[str, Any]]:
    """Score the fitted head on the splits that it has not seen, and what the folds said of the training split."""
    data = fitter.data
    majority = int(np.bincount(data.y[data.rows("train")]).argmax())
    asked = {split: data.rows(split) for split in raw}
    answers = _answers(fitter, fitted, safeguards.calibrate)
    if chosen.folded is not None:
        asked["cross-validation"], answers["cross-validation"] = chosen.folded_rows, chosen.folded
    metrics = {}
    for name, proba in answers.items():
        y, units = data.y[asked[name]], data.units[asked[name]]
        metrics[name] = evaluate(y, proba, data.classes, majority=majority, units=units)
        metrics[name] |= two_class_facts(y, proba, data.classes)
        if name in raw:
            metrics[name] |= trust_facts(safeguards, y, raw[name], proba)
    return metrics


def _check_trainable(data: TrainingData, train: NDArray[np.int64], cv: int | None) -> int:
    """Return the number of training units (groups, or images) of the rarest class."""
    counts = Counter(data.y[train].tolist())
    if not counts:
        raise TrainingError("the training split is empty; check the split column or the folder names")
    if len(counts) < 2:
        only = data.classes[next(iter(counts))]
        raise TrainingError(f"all training images are of the class {only!r}; a classifier needs at least two classes")
    unit = "training group" if data.groups[train].any() else "training image"
    rarest, smallest = min(_units_of_classes(data, train).items(), key=lambda item: item[1])
    needed = cv or (2 if len(train) == len(data.y) else 1)
    if smallest < needed:
        raise TrainingError(
            f"class {data.classes[rarest]!r} has {count_of(smallest, unit)}, too few for {needed} folds; add images"
            + (", or leave out --cv" if cv else "")
        )
    return smallest

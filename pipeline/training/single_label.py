"""Stage 2: cached vectors to a fitted head, a report on images that it has not seen, and a bundle."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pipeline.bundles.bundle import Bundle
from pipeline.errors import TrainingError, UsageError
from pipeline.heads.classifiers import AUTO, find_head, make_head
from pipeline.heads.sklearn_errors import sklearn_errors
from pipeline.images.findings import Finding, read_findings
from pipeline.metrics.binary import two_class_facts
from pipeline.metrics.evaluation import evaluate
from pipeline.option_groups import accepts_fields
from pipeline.parallel import one_blas_thread
from pipeline.training.candidates import DEFAULT_FOLDS, Choice, Progress
from pipeline.training.fitting import Fitter
from pipeline.training.held_out import (
    BySplit,
    of_folds,
    of_validation,
    plan_calibration,
    units_of_classes,
    unseen_probabilities,
)
from pipeline.training.learning_curve import learning_curve
from pipeline.training.options import Training
from pipeline.training.outcome import make_bundle, optimism_notes, with_novelty
from pipeline.training.provenance import as_json, provenance_of
from pipeline.training.race import DEFAULT_BUDGET, race
from pipeline.training.report import Report
from pipeline.training.search import choose
from pipeline.training.training_data import Features, TrainingData, load_training_data
from pipeline.training.tuned import check_tuned_request, tuned_note
from pipeline.trust.options import Trust
from pipeline.trust.safeguards import HeldOut, Safeguards, learn_safeguards, trust_facts
from pipeline.wording import count_of


@accepts_fields
def train_head(
    features: Features | Sequence[Features],
    head: str = "logreg",
    *,
    params: Mapping[str, Any] | None = None,
    training: Training = Training(),
    trust: Trust = Trust(),
    progress: Progress = None,
) -> tuple[Bundle, Report]:
    """Fit on the training split, choose on validation, report on test.

    A file without splits gets a stable hold-out, drawn class by class from the hash of each path. The
    main parameter of a head (the ``C`` of logreg, say), unless it is given in `params`, is chosen on the validation
    split, or by cross-validation inside the training split if `cv` is given. Where images have several
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
    >>> bundle, report = train_head("artifacts/photos.h5", head="logreg")
    >>> report.scored_on, bundle.classes
    ('test', ('cat', 'dog'))
    """
    params = dict(params or {})
    _check_options(head, params, training, trust)
    findings = read_findings(training.exclude) if training.exclude else []
    data, cv = _load(features, head, training, findings)
    started = time.monotonic()
    fitter = Fitter(data, training.seed, training.average_views)
    with sklearn_errors(head) as warnings, one_blas_thread():
        choice = _choose(fitter, head, params, replace(training, cv=cv), progress)
        curve = learning_curve(fitter, choice.head, choice.params) if training.curve else {}
        unseen = unseen_probabilities(fitter, choice.fitted)
        fitted, safeguards, trust_notes = _learn_safeguards(fitter, choice, unseen, trust)
    if trust.novelty:
        safeguards = with_novelty(safeguards, data, training.seed)
    metrics = _score(fitter, fitted, choice, unseen, safeguards)
    report = Report(
        head=choice.head,
        params=choice.params,
        scored_on=data.scored_on,
        metrics=metrics,
        candidates=choice.candidates,
        chosen_on=choice.chosen_on,
        counts=data.counts,
        notes=[
            *data.notes,
            *choice.notes,
            *trust_notes,
            *optimism_notes(choice, data.scored_on),
            *sorted(warnings),
        ],
        seconds=round(time.monotonic() - started, 3),
        history=dict(getattr(fitted[-1], "history_", {})),
        curve=curve,
        provenance={
            **provenance_of(data, training.seed),
            "asked": _asked(head, params, training, trust),
            "cv": cv,
            "findings": [each._asdict() for each in findings],
        },
        trust=safeguards.to_dict(),
    )
    return make_bundle(report, data, fitted, safeguards, average_views=training.average_views), report


def _check_options(head_name: str, params: Mapping[str, Any], training: Training, trust: Trust) -> None:
    """Check values and combinations of options before files are read."""
    training.check()
    trust.check()
    if head_name == AUTO and params:
        raise UsageError("head 'auto' chooses the parameters itself; name a head, or leave out the parameters")
    if training.budget is not None and head_name != AUTO:
        raise UsageError(f"a budget is for head 'auto', not for {head_name!r}; leave it out")
    if head_name != AUTO:
        make_head(head_name, params, training.seed)  # last, because it imports scikit-learn


def _load(
    features: Features | Sequence[Features], head_name: str, training: Training, findings: Sequence[Finding]
) -> tuple[TrainingData, int | None]:
    """Read the data and check that a head can be trained on them; return them, and the number of folds if there are."""
    data = load_training_data(features, training.seed, findings)
    if data.tuned:
        check_tuned_request(data, head_name, training)
    cv, smallest = training.cv, _check_trainable(data, training.cv)
    if training.average_views and data.X.shape[1] == 1:
        raise UsageError("average_views needs several views of each image; extract with --views first")
    notes = list(data.notes)
    if cv is None and data.scored_on == "cross-validation":
        cv = min(DEFAULT_FOLDS, smallest)
        notes.append(f"every image is in the training split, so scores come from {cv} folds of it")
    absent = sorted(set(range(len(data.classes))) - set(data.y[data.rows("train")].tolist()))
    notes += [f"class {data.classes[label]!r} has no training image and is never predicted" for label in absent]
    return replace(data, notes=tuple(notes)), cv


def _check_trainable(data: TrainingData, cv: int | None) -> int:
    """Return the number of training units (groups, or images) of the rarest class."""
    train = data.rows("train")
    counts = units_of_classes(data, train)
    if not counts:
        raise TrainingError("the training split is empty; check the split column or the folder names")
    if len(counts) < 2:
        only = data.classes[next(iter(counts))]
        raise TrainingError(f"all training images are of the class {only!r}; a classifier needs at least two classes")
    unit = "training group" if data.groups[train].any() else "training image"
    rarest, smallest = min(counts.items(), key=lambda item: item[1])
    needed = cv or (2 if len(train) == len(data.y) else 1)
    if smallest < needed:
        raise TrainingError(
            f"class {data.classes[rarest]!r} has {count_of(smallest, unit)}, too few for {needed} folds; add images"
            + (", or leave out --cv" if cv else "")
        )
    return smallest


def _choose(fitter: Fitter, head_name: str, params: dict[str, Any], training: Training, progress: Progress) -> Choice:
    """Choose head and parameters, and fit them on the whole training split."""
    if head_name == AUTO:
        budget = DEFAULT_BUDGET if training.budget is None else training.budget
        return race(fitter, training.cv, budget, progress)
    choice = choose(fitter, head_name, params, training.cv, progress)
    if choice.fitted is not None:
        return choice
    train, validation = fitter.data.rows("train"), fitter.data.rows("validation")
    return replace(choice, fitted=next(fitter.fit(choice.head, [choice.params], train, validation=validation)))


def _learn_safeguards(
    fitter: Fitter, choice: Choice, unseen: BySplit, trust: Trust
) -> tuple[Any, Safeguards, list[str]]:
    """Calibrate the chosen head and learn its threshold; return the calibrated head, the safeguards, and notes."""
    from pipeline.heads.softmax_head import SoftmaxHead

    data, classes = fitter.data, choice.fitted.classes_
    plan = plan_calibration(
        trust,
        find_head(choice.head),
        data.counts,
        tuned=data.tuned,
        folded=choice.folded is not None,
        has_temperature=isinstance(choice.fitted[-1], SoftmaxHead),
    )

    def held_out() -> HeldOut | None:
        if plan.images == "validation":
            return of_validation(data, unseen, classes)
        return of_folds(fitter, choice, classes)

    head, safeguards, notes = learn_safeguards(plan.method, trust.abstain, choice.fitted, held_out, fitter.seed)
    if data.tuned:
        notes.append(tuned_note(plan.method, trust.abstain, data.scored_on))
    elif plan.images == "validation":
        notes.append("the validation images, which chose when to stop, also calibrated the probabilities")
    return head, safeguards, notes


def _score(
    fitter: Fitter, head: Any, choice: Choice, unseen: BySplit, safeguards: Safeguards
) -> dict[str, dict[str, Any]]:
    """Score the calibrated head on the splits that it has not seen, and the out-of-fold probabilities."""
    data = fitter.data
    majority = int(np.bincount(data.y[data.rows("train")]).argmax())
    rows = {split: data.rows(split) for split in unseen}
    probabilities = unseen_probabilities(fitter, head, safeguards.calibrate)
    if choice.folded is not None:
        rows["cross-validation"], probabilities["cross-validation"] = choice.folded_rows, choice.folded
    metrics = {}
    for name, proba in probabilities.items():
        y, units = data.y[rows[name]], data.units[rows[name]]
        metrics[name] = evaluate(y, proba, data.classes, majority=majority, units=units)
        metrics[name] |= two_class_facts(y, proba, data.classes)
        if name in unseen:
            metrics[name] |= trust_facts(safeguards, y, unseen[name], proba)
    return metrics


def _asked(head_name: str, params: Mapping[str, Any], training: Training, trust: Trust) -> dict[str, Any]:
    """Return the options as given, as JSON reads them back."""
    first = {"head": head_name, "params": params, "cv": training.cv, "seed": training.seed}
    return as_json({**first, **asdict(training), **asdict(trust)})

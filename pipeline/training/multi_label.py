"""Stage 2 for several labels per image: cached vectors to a bundle that names all labels over a threshold."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from pipeline.bundles.bundle import Bundle
from pipeline.errors import TrainingError, UsageError
from pipeline.heads.classifiers import AUTO, find_head, make_head
from pipeline.heads.multilabel import MultiLabel, choose, label_matrix, one_vs_rest
from pipeline.heads.sklearn_errors import told
from pipeline.metrics.label_sets import evaluate_labels
from pipeline.options import accepts_fields, flag_of
from pipeline.training.options import Training
from pipeline.training.provenance import provenance_of
from pipeline.training.report import Report
from pipeline.training.single_label import SPLITS, with_novelty
from pipeline.training.training_data import Features, load_training_data
from pipeline.trust.options import Trust
from pipeline.trust.safeguards import Safeguards


@accepts_fields
def train_multi_label(
    features: Features | Sequence[Features],
    separator: str = ";",
    head: str = "logreg",
    *,
    params: Mapping[str, Any] | None = None,
    training: Training = Training(),
    trust: Trust = Trust(),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Bundle, Report]:
    """Fit one classifier a label against the rest; choose on validation, report on test.

    Parameters
    ----------
    features : FeatureStore, path, or a sequence of them
        Their labels are written together: ``cat;dog``.
    separator : str
        What stands between them.
    head, params, progress
        As in `pipeline.train_head`; not ``auto`` or ``dense``.
    training, trust
        Of their fields, `seed` and `novelty` can be given.

    Returns
    -------
    bundle : Bundle
        Its `classes` are the labels; probabilities of a row need not add up to 1.
    report : Report
        `accuracy` is the share of images whose labels are all right and none too many.

    Raises
    ------
    TrainingError
        If there are no two labels, no training images, or none to judge on.
    UsageError
        If the separator, the head or a parameter cannot be used.

    Examples
    --------
    >>> bundle, report = train_multi_label("artifacts/photos.h5", ";")  # doctest: +SKIP
    """
    how, params, seed = MultiLabel(separator), dict(params or {}), training.seed
    if head == AUTO:
        raise UsageError("head 'auto' does not support several labels per image; name one head, such as logreg")
    training.check()
    _check_unused(training, trust)
    one_vs_rest(make_head(head, params, seed))  # a wrong name or parameter is an error before files are read
    data = load_training_data(features, seed)
    started = time.monotonic()
    names, matrix = label_matrix(data.classes, separator)
    if matrix.sum(axis=1).max() < 2:
        raise TrainingError(
            f"no label holds {separator!r}, so no image has several; check the separator, or leave out --multi-label"
        )
    Y = matrix[data.y]
    X = data.X[:, 0]
    rows = {split: data.rows(split) for split in SPLITS}
    judged = [split for split in ("validation", "test") if len(rows[split])]
    if not len(rows["train"]) or not judged:
        raise TrainingError(
            "several labels per image take training images and some to judge on, in validation or test; there are "
            + ", ".join(f"{len(rows[split])} {split}" for split in SPLITS)
        )
    train, validation = rows["train"], rows["validation"]
    notes = [
        *data.notes,
        *(f"label {name!r} is on no training image and is never predicted" for name in _absent(names, Y[train])),
    ]
    search = find_head(head).search
    free = next((name for name in search if name not in params), None) if len(validation) else None
    grid = [{**params, free: value} for value in search[free]] if free else [params]
    done = iter(range(1, len(grid) + 1))

    def fit(candidate: dict[str, Any]) -> Any:
        fitted = one_vs_rest(make_head(head, candidate, seed)).fit(X[train], Y[train])
        if progress:
            progress(next(done), len(grid))
        return fitted

    with told(head) as warned:
        fits = [functools.partial(fit, candidate) for candidate in grid]
        if len(grid) > 1:
            best, fitted, scores = choose(fits, X[validation], Y[validation])
        else:
            best, fitted, scores = 0, fits[0](), [{}]
    notes += sorted(note for note in warned if "present in all training examples" not in note)
    metrics = {
        split: evaluate_labels(Y[rows[split]], fitted.predict_proba(X[rows[split]]), names, how.threshold)
        for split in judged
    }
    safeguards = Safeguards()
    if trust.novelty:
        safeguards = with_novelty(safeguards, data, seed)
    provenance = provenance_of(data, seed)
    scored_on = judged[-1]
    if scored_on == "validation" and len(grid) > 1:
        notes.append("the validation images also chose the parameters, so this score is a little too good")
    report = Report(
        head=head,
        params=grid[best],
        scored_on=scored_on,
        metrics=metrics,
        candidates=[{"head": head, "params": each, **score} for each, score in zip(grid, scores, strict=True) if score],
        chosen_on="validation" if len(grid) > 1 else "",
        counts={split: len(each) for split, each in rows.items()},
        notes=notes,
        seconds=round(time.monotonic() - started, 3),
        provenance=provenance,
        trust={"multi_label": asdict(how), **safeguards.to_dict()},
    )
    bundle = Bundle(
        recipes=tuple(store.recipe for store in data.stores),
        dims=tuple(store.dim for store in data.stores),
        classes=names,
        head=fitted,
        head_name=head,
        params=grid[best],
        report=report.without_times(),
        provenance=provenance,
        safeguards=safeguards,
        multi_label=how,
    )
    return bundle, report


def _check_unused(training: Training, trust: Trust) -> None:
    """Raise UsageError, which names every option given that has no effect on several labels per image."""
    given = [
        flag_of(each)
        for group in (training, trust)
        for each in fields(group)
        if each.name not in ("seed", "novelty") and getattr(group, each.name) != each.default
    ]
    if given:
        raise UsageError(f"--multi-label does not support {', '.join(given)}; leave out one or the other")


def _absent(names: Sequence[str], Y: Any) -> list[str]:
    return [name for name, seen in zip(names, Y.any(axis=0).tolist(), strict=True) if not seen]

"""Stage 2 for several labels per image: cached vectors to a bundle that names all labels over a threshold."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Bundle
from pipeline.errors import TrainingError, UsageError
from pipeline.heads.classifiers import AUTO, make_head
from pipeline.heads.multi_label import MultiLabel, label_matrix, one_vs_rest
from pipeline.heads.sklearn_errors import sklearn_errors
from pipeline.metrics.label_sets import average_precisions, evaluate_labels, mean_average_precision
from pipeline.metrics.losses import label_log_losses
from pipeline.option_groups import accepts_fields, flag_of
from pipeline.parallel import one_blas_thread
from pipeline.training.candidates import Choice, Progress, parameter_grid
from pipeline.training.fitting import Fitter
from pipeline.training.held_out import unseen_probabilities
from pipeline.training.options import Training
from pipeline.training.outcome import make_bundle, optimism_notes, with_novelty
from pipeline.training.provenance import provenance_of
from pipeline.training.report import Report
from pipeline.training.training_data import Features, TrainingData, load_training_data
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
    progress: Progress = None,
) -> tuple[Bundle, Report]:
    """Fit one classifier per label against the rest; choose on validation, report on test.

    Parameters
    ----------
    features : FeatureStore, path, or a sequence of them
        The labels of an image are written together: ``cat;dog``. Of several views the first is used.
    separator : str
        What stands between them.
    head, params, progress
        As in `pipeline.train_head`; not ``auto`` or ``dense``.
    training, trust
        Of their fields, `seed` and `novelty` can be given.

    Returns
    -------
    bundle : Bundle
        Its `classes` are the labels; the probabilities of an image need not add up to 1.
    report : Report
        `accuracy` is the share of images whose labels are exactly right.

    Raises
    ------
    TrainingError
        If there are fewer than two labels, no training images, or neither validation nor test images.
    UsageError
        If the separator, the head, a parameter or an option cannot be used.

    Examples
    --------
    >>> bundle, report = train_multi_label("artifacts/tagged.h5", ";")
    >>> bundle.classes
    ('beach', 'sunset')
    """
    params, how = dict(params or {}), MultiLabel(separator)
    _check_options(head, params, training, trust)
    data = _load(features, how, training.seed)
    started = time.monotonic()
    fitter = Fitter(data, training.seed)
    with sklearn_errors(head) as warnings, one_blas_thread():
        choice = _choose(fitter, head, params, progress)
    safeguards = with_novelty(Safeguards(), data, training.seed) if trust.novelty else Safeguards()
    metrics = {
        split: evaluate_labels(data.y[data.rows(split)], probabilities, data.classes, how.threshold)
        for split, probabilities in unseen_probabilities(fitter, choice.fitted).items()
    }
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
            *sorted(each for each in warnings if "present in all training examples" not in each),
            *optimism_notes(choice, data.scored_on),
        ],
        seconds=round(time.monotonic() - started, 3),
        provenance=provenance_of(data, training.seed),
        trust={"multi_label": asdict(how), **safeguards.to_dict()},
    )
    return make_bundle(report, data, choice.fitted, safeguards, multi_label=how), report


def _check_options(head_name: str, params: Mapping[str, Any], training: Training, trust: Trust) -> None:
    """Check values and combinations of options before files are read."""
    if head_name == AUTO:
        raise UsageError("head 'auto' does not support several labels per image; name one head, such as logreg")
    training.check()
    unsupported = [
        flag_of(field)
        for group in (training, trust)
        for field in fields(group)
        if field.name not in ("seed", "novelty") and getattr(group, field.name) != field.default
    ]
    if unsupported:
        raise UsageError(f"--multi-label does not support {', '.join(unsupported)}; leave out one or the other")
    one_vs_rest(make_head(head_name, params, training.seed))  # last, because it imports scikit-learn


def _load(features: Features | Sequence[Features], how: MultiLabel, seed: int) -> TrainingData:
    """Read the data; return their first views, with the matrix of labels (n, l) as `y` and their names as `classes`."""
    data = load_training_data(features, seed)
    names, matrix = label_matrix(data.classes, how.separator)
    if matrix.sum(axis=1).max() < 2:
        raise TrainingError(
            f"no label contains {how.separator!r}, so no image has several; check the separator, or leave out"
            " --multi-label"
        )
    if not data.counts["train"] or data.scored_on == "cross-validation":
        raise TrainingError(
            "several labels per image need training images, and validation or test images for the score; there are "
            + ", ".join(f"{count} {split}" for split, count in data.counts.items())
        )
    Y = matrix[data.y]
    absent = [names[column] for column in np.flatnonzero(~Y[data.rows("train")].any(axis=0))]
    notes = [f"label {name!r} is on no training image and is never predicted" for name in absent]
    return replace(data, X=data.X[:, :1], y=Y, classes=names, notes=(*data.notes, *notes))


def _choose(fitter: Fitter, head_name: str, params: dict[str, Any], progress: Progress) -> Choice:
    """Fit each value of the head's main parameter, unless it is given, and take the smallest log loss on validation.

    The ranking alone, as in mean average precision, would not see probabilities on the wrong side of the threshold.
    """
    train, validation = fitter.data.rows("train"), fitter.data.rows("validation")
    tried = parameter_grid(head_name, params) if len(validation) else []
    grid = tried or [params]
    heads = []
    for fitted in fitter.fit(head_name, grid, train):
        heads.append(fitted)
        if progress:
            progress(len(heads), len(grid))
    if not tried:
        return Choice(head_name, params, fitted=heads[0])
    Y = fitter.data.y[validation]
    scores = [_scores(Y, fitter.probabilities(each, validation)) for each in heads]
    best = min(range(len(heads)), key=lambda number: scores[number]["log_loss"])
    rows = [{"head": head_name, "params": each, **score} for each, score in zip(grid, scores, strict=True)]
    return Choice(head_name, grid[best], rows, "validation", heads[best])


def _scores(Y: NDArray[np.int64], probabilities: NDArray[np.float64]) -> dict[str, float]:
    return {
        "log_loss": float(label_log_losses(Y, probabilities).mean()),
        "mean_average_precision": mean_average_precision(average_precisions(Y, probabilities)),
    }

"""Checks of the audit that concern labels: likely label errors and small classes."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.features.weights import TUNED
from pipeline.heads.arrays import softmax
from pipeline.images.findings import REVIEW, Finding
from pipeline.insight.audited import FEW, AuditedImages
from pipeline.metrics.losses import log_losses
from pipeline.wording import count_of

FOLDS = 5
RIDGE = (0.3, 1.0, 3.0)  # penalties, in multiples of the mean eigenvalue of the Gram matrix


def find_label_errors(
    images: AuditedImages, Z: NDArray[np.float32], groups: list[str], notes: list[str], seed: int
) -> Iterator[Finding]:
    """Yield images whose label is likely wrong.

    Parameters
    ----------
    images : AuditedImages
    Z : ndarray of float32, shape (n, d)
        Standardised vectors of unit length.
    groups : list of str
        Images of one group are in one fold; empty without a group.
    notes : list of str
        Gets the reason why nothing could be checked, or how the result is limited.
    seed : int
        Of the folds.
    """
    store = images.store
    units = np.unique([group or path for group, path in zip(groups, store.paths, strict=True)], return_inverse=True)[1]
    enough = [label for label in range(len(store.classes)) if len(np.unique(units[images.labels == label])) >= FOLDS]
    if len(enough) < 2:
        notes.append(f"label errors were not checked: that takes two classes of at least {FOLDS} images each")
        return
    if store.recipe.weights == TUNED:
        notes.append(
            "the network was fine-tuned on these labels, so label errors may be missed; audit the feature file from"
            " before fine-tuning"
        )
    rows = np.flatnonzero(np.isin(images.labels, enough))
    y = np.searchsorted(enough, images.labels[rows])
    issues, p = label_issues(Z[rows], y, units[rows], seed)
    for each in issues.tolist():
        row, best = int(rows[each]), int(p[each].argmax())
        suggestion = store.classes[enough[best]]
        label = images.label_names[row]
        text = f"labelled {label} ({p[each, y[each]]:.0%}), looks like {suggestion} ({p[each, best]:.0%})"
        yield images.finding(REVIEW, "label-error", row, 1 - p[each, y[each]], text, suggestion=suggestion)


def label_issues(
    Z: NDArray[np.float32], y: NDArray[np.int64], units: NDArray[np.int64], seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find likely label errors by confident learning on out-of-fold probabilities.

    Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021, as
    implemented in cleanlab; ranked by the probability of the given label.

    Parameters
    ----------
    Z, y, units, seed
        As for `out_of_fold`.

    Returns
    -------
    rows : ndarray of int, shape (issues,)
        The most likely error first.
    probabilities : ndarray of float64, shape (n, k)
    """
    from cleanlab.filter import find_label_issues

    p = out_of_fold(Z, y, units, seed)
    return np.asarray(find_label_issues(y, p, return_indices_ranked_by="self_confidence", n_jobs=1), np.int64), p


def out_of_fold(
    Z: NDArray[np.float32], y: NDArray[np.int64], units: NDArray[np.int64], seed: int = 0
) -> NDArray[np.float64]:
    """Return out-of-fold class probabilities of ridge regression on one-hot labels.

    The penalty is chosen by log loss, and a temperature is fitted for the softmax. The Gram matrix is computed once,
    and leaving out a fold is a subtraction from it, so that all folds cost little more than one fit. Logistic
    regression takes twenty times as long and finds no more label errors.

    Parameters
    ----------
    Z : ndarray of float32, shape (n, d)
        Centred vectors.
    y : ndarray of int, shape (n,)
        0 to k - 1, at least `FOLDS` units of each.
    units : ndarray of int, shape (n,)
        Rows of one unit (near duplicates) are in the same fold.
    seed : int

    Returns
    -------
    ndarray of float64, shape (n, k)
        Rows add up to 1.
    """
    from scipy.linalg import solve
    from sklearn.model_selection import StratifiedGroupKFold

    from pipeline.heads.temperature import fit_temperature

    folds = [out for _, out in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(Z, y, units)]
    targets = np.eye(y.max() + 1, dtype=np.float32)[y]
    decisions = np.empty((len(RIDGE), *targets.shape))
    gram, cross = Z.T @ Z, Z.T @ targets
    scale = np.trace(gram) / len(gram)
    for out in folds:
        Z_out, targets_out = Z[out], targets[out]
        class_shares = (targets.sum(axis=0) - targets_out.sum(axis=0)) / (len(Z) - len(out))
        gram_in, cross_in = gram - Z_out.T @ Z_out, cross - Z_out.T @ targets_out
        for number, strength in enumerate(RIDGE):
            penalised = gram_in + np.float32(strength * scale) * np.eye(len(gram), dtype=np.float32)
            decisions[number, out] = Z_out @ solve(penalised, cross_in, assume_a="pos") + class_shares
    fitted = [softmax(each / fit_temperature(each, y)) for each in decisions]
    return min(fitted, key=lambda p: float(log_losses(y, p).mean()))


def find_small_classes(images: AuditedImages) -> Iterator[Finding]:
    """Yield classes with few training images, or with none in one of the splits."""
    splits = np.array(images.store.splits)
    present = [split for split in ("train", "validation", "test") if (splits == split).any()]
    for label, name in enumerate(images.store.classes):
        members = images.labels == label
        counts = {split: int((members & (splits == split)).sum()) for split in present} or {"": int(members.sum())}
        training = counts.get("train", counts.get("", 0))
        missing = [split for split, count in counts.items() if split and not count]
        if training < FEW or missing:
            text = ", ".join(
                f"{count_of(count, split + ' image' if split else 'image')}" for split, count in counts.items()
            )
            yield Finding(REVIEW, "small-class", "", label=name, score=1 - min(training, FEW) / FEW / 2, detail=text)

"""Choose the main parameter of one head: on the validation split, or by folds of the training split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.heads.classifiers import find_head
from pipeline.heads.folds import Folds
from pipeline.parallel import cores, in_threads
from pipeline.training.candidates import (
    Choice,
    FoldScore,
    Progress,
    close_to_best,
    make_candidates,
    parameter_grid,
    past_the_best,
    score,
    score_fold,
)
from pipeline.training.fitting import Fitter


def choose(
    fitter: Fitter, head_name: str, params: Mapping[str, Any], cv: int | None, progress: Progress = None
) -> Choice:
    """Try the values of a head's main parameter, unless it is given, and take the best.

    That is the one with the smallest log loss among those whose accuracy is not clearly worse than the best.

    Parameters
    ----------
    fitter : Fitter
    head_name : str
    params : mapping
        Given by the user.
    cv : int or None
        Folds of the training split to choose by; None to choose on the validation split.
    progress : callable (done, total) or None
    """
    train, validation = fitter.data.rows("train"), fitter.data.rows("validation")
    grid = parameter_grid(head_name, params)
    if cv:
        return _choose_by_folds(fitter, head_name, grid or [dict(params)], fitter.folds(cv, train), progress)
    if not grid or not len(validation):
        return Choice(head_name, dict(params))
    truth = fitter.data.y[validation]
    scores: list[dict[str, float]] = []
    answers, heads = [], []
    for number, fitted in enumerate(fitter.fit(head_name, grid, train, validation=validation), start=1):
        heads.append(fitted)
        answers.append(fitter.probabilities(fitted, validation))
        scores.append(score(truth, answers[-1]))
        over = find_head(head_name).search_stops and past_the_best(scores)
        if progress:
            progress(number, number if over else len(grid))
        if over:
            break
    best = close_to_best(answers, truth)[0]
    rows = [{"head": head_name, "params": params, **result} for params, result in zip(grid, scores, strict=False)]
    return Choice(head_name, grid[best], rows, "validation", heads[best])


def _choose_by_folds(
    fitter: Fitter, head_name: str, grid: Sequence[dict[str, Any]], folds: Folds, progress: Progress
) -> Choice:
    candidates = make_candidates(fitter, head_name, grid)

    def run(fold: int) -> tuple[int, list[FoldScore]]:
        return fold, score_fold(fitter, candidates, *folds[fold])

    jobs = 1 if find_head(head_name).path is None else cores()  # the others use all cores themselves
    for done, (fold, results) in enumerate(in_threads(jobs, run, [(fold,) for fold in range(len(folds))]), start=1):
        for each, result in zip(candidates, results, strict=True):
            each.add(folds[fold][1], result)
        if progress:
            progress(done, len(folds))
    y, train = fitter.data.y, fitter.data.rows("train")
    best = candidates[close_to_best([each.proba[train] for each in candidates], y[train])[0]]
    chosen_on = "cross-validation" if len(grid) > 1 else ""
    rows = np.flatnonzero(best.judged)
    board = [each.row(y) for each in candidates]
    return Choice(head_name, best.params, board, chosen_on, folded=best.proba[rows], folded_rows=rows)

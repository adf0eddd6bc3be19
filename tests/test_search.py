"""Folds, fitting on views, and the race of heads."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import make_data, make_store
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import TrainingError, UsageError
from pipeline.heads.classifiers import HEADS
from pipeline.heads.folds import make_folds
from pipeline.training import race as racing
from pipeline.training.candidates import Candidate, close_to_best
from pipeline.training.fitting import Fitter
from pipeline.training.leaderboard import format_leaderboard
from pipeline.training.race import race
from pipeline.training.search import choose
from pipeline.training.single_label import train_head

QUICK = ("logreg", "ridge", "lda", "nearest-centroid", "knn", "svm")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(racing, "RACERS", QUICK)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 4), st.booleans())
def test_folds_part_no_unit_and_lose_no_row(seed, k, alike):
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(30), 3) if alike else np.sort(rng.integers(0, 30, 90))
    y = (units if alike else rng.permutation(90)) % 3
    folds = make_folds(y, k, seed, units)
    assert sorted(np.concatenate([outer for _, outer in folds]).tolist()) == list(range(90))
    for inner, outer in folds:
        assert not set(units[inner]) & set(units[outer])
        assert sorted([*inner, *outer]) == list(range(90))
        if alike:
            assert np.ptp(np.bincount(y[outer], minlength=3)) <= 6


def test_every_view_of_an_image_is_a_sample_and_all_lie_in_one_fold():
    data = make_data(views=3)
    fitter = Fitter(data)
    (head,) = fitter.fit("logreg", [{"C": 0.1}], np.arange(50))
    rows = data.X[:50].reshape(150, 6)
    np.testing.assert_allclose(head["standardise"].mean_, rows.mean(axis=0), rtol=1e-4, atol=1e-5)
    (alone,) = Fitter(dataclasses.replace(data, X=data.X[:, :1])).fit("logreg", [{"C": 0.1}], np.arange(50))
    assert np.abs(alone[-1].coef_ - head[-1].coef_).max() > 1e-3
    first, mean = (Fitter(data, average_views=each).probabilities(head, np.arange(100)) for each in (False, True))
    np.testing.assert_allclose(first, head.predict_proba(data.X[:100, 0]))
    np.testing.assert_allclose(mean, np.mean([head.predict_proba(data.X[:100, v]) for v in range(3)], axis=0))


def test_views_make_no_temperature_too_sure():
    """Copies of an image in other folds would tell its class."""
    data = make_data(n=90, dim=60, noise=4.0)
    copied = dataclasses.replace(data, X=np.repeat(data.X, 4, axis=1))
    temperatures = []
    for each in (data, copied):
        (head,) = Fitter(each).fit("ridge", [{"alpha": 1e-3}], np.arange(90))
        temperatures.append(head[-1].temperature_)
    assert temperatures[1] == pytest.approx(temperatures[0], rel=0.3)


def test_the_race_finds_a_good_head_and_says_how(quick):
    data = make_data(n=200, splits=["train"] * 150 + ["validation"] * 50)
    seen = []
    found = race(Fitter(data), progress=lambda *each: seen.append(each))
    assert found.chosen_on == "cross-validation"
    assert "raced" in found.notes[0]
    assert "5 folds of the training images" in found.notes[0]
    assert found.notes[-1] == f"the folds chose {found.head}"
    board = found.candidates
    json.dumps(board, allow_nan=False)
    whole = [each for each in board if each["folds"] == 5]
    (chosen,) = (each for each in board if each["chosen"])
    assert (chosen["head"], chosen["params"]) == (found.head, found.params)
    assert chosen["log_loss"] == min(each["log_loss"] for each in whole)
    assert whole[0]["accuracy"] == max(each["accuracy"] for each in whole)
    assert whole[0]["accuracy"] > 0.75
    assert {each["head"] for each in board} <= set(QUICK)
    assert all(each["fit_seconds"] > 0 and each["predict_seconds_per_1000"] > 0 for each in board)
    assert seen[-1][0] == seen[-1][1]
    # the winner's out-of-fold probabilities are those of fits that did not see the image
    assert (found.folded.argmax(axis=1) == data.y[:150]).mean() == pytest.approx(chosen["accuracy"])


@pytest.mark.parametrize("name", ["ridge", "svm"])
def test_the_winner_keeps_the_temperature_of_the_folds(quick, monkeypatch, name):
    monkeypatch.setattr(racing, "RACERS", (name,))
    data = make_data(n=300)
    found = race(Fitter(data))
    (alone,) = Fitter(data).fit(name, [found.params], np.arange(300))
    assert type(found.fitted[-1].estimator_) is type(alone[-1].estimator_)
    assert found.fitted[-1].temperature_ == pytest.approx(alone[-1].temperature_, rel=0.3)
    np.testing.assert_allclose(
        found.fitted[-1].decision_function(data.X[:9, 0]), alone[-1].decision_function(data.X[:9, 0]), atol=1e-6
    )


def test_log_loss_chooses_only_among_accuracies_that_chance_could_swap():
    truth = np.zeros(400, int)
    sure_but_worse = np.tile([0.9, 0.1], (400, 1))
    sure_but_worse[:60] = [0.45, 0.55]
    unsure = np.tile([0.51, 0.49], (400, 1))
    assert close_to_best([unsure, sure_but_worse], truth) == [0]
    close = sure_but_worse.copy()
    close[2:60] = [0.9, 0.1]
    assert close_to_best([unsure, close], truth) == [1, 0]


def test_a_strength_that_another_of_its_head_outdoes_drops_out():
    truth = np.zeros(400, int)
    sure, unsure, wrong = (np.tile([p, 1 - p], (400, 1)) for p in (0.9, 0.6, 0.4))
    sure[:40], unsure[:40] = wrong[:40], wrong[:40]

    def candidate(head, strength, proba):
        return Candidate(head, {"s": strength}, proba, np.ones(400, bool), {0: 0.9})

    started = [candidate("a", 1, unsure), candidate("a", 2, sure), candidate("b", 1, unsure), candidate("b", 2, wrong)]
    left = racing._survivors(started, truth)
    assert [each.params["s"] for each in left["a"]] == [2]
    assert [each.params["s"] for each in left["b"]] == [1], "another head's log loss is no reason to drop out"
    right = unsure.copy()
    right[0] = [0.6, 0.4]  # more accurate by an image, so accuracy may yet choose it
    started[0].proba = right
    assert [each.params["s"] for each in racing._survivors(started, truth)["a"]] == [1, 2]


def test_clearly_worse_candidates_drop_out(quick, monkeypatch):
    monkeypatch.setattr(racing, "RACERS", (*QUICK, "dummy"))
    found = race(Fitter(make_data(n=300)))
    assert "dummy: dropped, clearly worse than logreg on a quarter of a fold's images" in found.notes
    assert "dummy" not in {each["head"] for each in found.candidates}
    monkeypatch.setattr(racing, "RACERS", QUICK)
    noisy = make_data(n=300, dim=60, noise=3.0)
    board = race(Fitter(noisy)).candidates
    assert {each["folds"] for each in board} == {1, 5}, "nobody dropped out after a fold"


def test_a_head_that_is_clearly_better_than_the_first_is_not_dropped(quick, monkeypatch):
    data = make_data(n=300)
    perfect, poor = np.eye(3)[data.y], np.full((300, 3), 1 / 3)
    probabilities = {"logreg": poor, "nearest-centroid": perfect}
    monkeypatch.setattr(racing, "RACERS", tuple(probabilities))
    monkeypatch.setattr(racing, "_pilot", lambda _, each, __, outer: (0.0, probabilities[each[0].head][outer]))
    assert "nearest-centroid" in {each["head"] for each in race(Fitter(data)).candidates}


def test_the_validation_images_choose_where_test_images_are_left(quick):
    splits = ["train"] * 120 + ["validation"] * 40 + ["test"] * 40
    found = race(Fitter(make_data(n=200, splits=splits)))
    assert found.chosen_on == "validation"
    finalists = [each for each in found.candidates if "validation_accuracy" in each]
    assert 2 <= len(finalists) <= 3
    best = min(finalists, key=lambda each: each["validation_log_loss"])
    assert found.head == best["head"]
    assert best["validation_accuracy"] > max(each["validation_accuracy"] for each in finalists) - 0.1
    assert found.notes[-1].startswith(f"the validation images chose {found.head} among the finalists")


def test_no_test_image_is_looked_at_while_choosing(quick):
    splits = ["train"] * 120 + ["validation"] * 40 + ["test"] * 40
    data = make_data(n=200, splits=splits)
    spoilt = dataclasses.replace(data, X=data.X.copy(), y=data.y.copy())
    spoilt.X[160:], spoilt.y[160:] = np.nan, 0
    one, two = race(Fitter(data)), race(Fitter(spoilt))
    assert (one.head, one.params) == (two.head, two.params)


def test_a_spent_budget_says_what_was_not_tried(quick):
    found = race(Fitter(make_data()), budget=1e-6)
    assert found.head == "logreg"
    assert {each["head"] for each in found.candidates} == {"logreg"}
    assert "knn: not tried, because the budget was spent" in found.notes
    assert "logreg: not finished, because the budget was spent" in "; ".join(found.notes)


def test_a_head_that_would_take_too_long_is_left_out(quick, monkeypatch):
    fair, seconds = np.full((120, 3), 1 / 3), (0.0, 1000.0)
    monkeypatch.setattr(racing, "_pilot", lambda _, each, __, outer: (seconds[each[0].head == "svm"], fair[outer]))
    found = race(Fitter(make_data()), budget=30)
    assert "svm: not tried, because the budget was spent and a fold takes 1000.0 s" in found.notes
    assert "svm" not in {each["head"] for each in found.candidates}


def test_a_head_that_fails_does_not_end_the_race(quick, monkeypatch):
    real = racing.score_fold

    def fails(fitter, candidates, *rest, **more):
        if candidates[0].head == "lda":
            raise ValueError("no\nway")
        return real(fitter, candidates, *rest, **more)

    monkeypatch.setattr(racing, "score_fold", fails)
    found = race(Fitter(make_data()))
    assert "lda: cannot be fitted (no way)" in found.notes
    monkeypatch.setattr(racing, "RACERS", ("lda",))
    with pytest.raises(TrainingError, match="no head can be fitted on these vectors: lda: cannot be fitted"):
        race(Fitter(make_data()))


def test_groups_stay_together_in_the_race(quick):
    """A class that only repeats inside groups cannot be recognised across folds."""
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 1, 4)), 3, axis=0).astype(np.float32)
    y = np.repeat(rng.integers(0, 2, 40), 3)
    data = dataclasses.replace(make_data(k=2), X=X, y=y)
    loose = race(Fitter(data))
    grouped = race(Fitter(dataclasses.replace(data, groups=np.array([f"g{i // 3}" for i in range(120)]))))
    assert max(each["accuracy"] for each in loose.candidates) > 0.9
    assert max(each["accuracy"] for each in grouped.candidates) < 0.75


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # train_head keeps it from its notes
def test_odd_data_race_too(quick):
    data = make_data(n=100)
    data.X[:, :, 0] = 5.0  # a constant column
    data.y[:] = np.where(np.arange(100) == 0, 2, np.arange(100) % 2)  # a class of one image
    found = race(Fitter(data))
    assert found.folded.shape == (100, 3)
    single = dataclasses.replace(make_data(n=3), y=np.arange(3))
    with pytest.raises(TrainingError, match="every class has a single training image or group"):
        race(Fitter(single))


def test_logistic_regression_stops_where_weaker_regularisation_only_hurts():
    data = make_data(n=150, dim=60, noise=4.0, splits=["train"] * 90 + ["validation"] * 60)
    found = choose(Fitter(data), "logreg", {}, None)
    tried = [each["params"]["C"] for each in found.candidates]
    values = HEADS["logreg"].search["C"]
    assert tried == list(values[: len(tried)])
    assert len(tried) < len(values)
    assert found.params["C"] in tried[:-2]


def test_the_race_through_train_head(quick, tmp_path):
    store = make_store(tmp_path / "f.h5", noise=1.5)
    bundle, report = train_head(store, "auto", seed=1)
    assert report.scored_on == "test"
    assert bundle.head_name == report.head
    assert report.head in QUICK
    assert "candidate" in report.table()
    assert max(map(len, report.table().splitlines())) <= 80
    again, same = train_head(store, "auto", seed=1)
    assert (same.head, same.params) == (report.head, report.params)
    np.testing.assert_array_equal(again.probabilities(store.features), bundle.probabilities(store.features))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "auto", "params": {"C": 1.0}}, "head 'auto' chooses the parameters itself; name a head"),
        ({"budget": 5.0}, "a budget is for head 'auto', not for 'logreg'; leave it out"),
        ({"head": "auto", "budget": -1.0}, "budget -1.0 is not a time; give seconds above 0, such as 60"),
        ({"head": "auto", "budget": float("nan")}, "budget nan is not a time"),
        ({"average_views": True}, "average_views needs several views of each image; extract with --views first"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        train_head(make_store(tmp_path / "f.h5"), **options)


def test_a_leaderboard_fits_the_terminal():
    row = {
        "head": "an-extremely-long-name-of-a-head",
        "params": {"some_long_parameter": 0.123456789},
        "accuracy": 0.5,
        "accuracy_sd": None,
        "log_loss": 1.0,
        "fit_seconds": 123.456,
        "predict_seconds_per_1000": 0.1,
    }
    lines = format_leaderboard([row] * 14).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "and 2 more"


def test_logreg_and_the_race_never_import_tensorflow(tmp_path):
    import subprocess
    import sys

    make_store(tmp_path / "f.h5")
    code = (
        "import sys; from pipeline import train_head;"
        "[train_head(sys.argv[1], head)[0].save(sys.argv[2]) for head in ('logreg', 'auto')];"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "f.h5"), str(tmp_path / "b")], check=True)

"""Calibration, abstention and the novelty score: on made-up numbers whose truth is known, and end to end."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import FIXTURES, QUICK, make_store
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from pipeline.bundles.bundle import Bundle
from pipeline.errors import IntegrityError, TrainingError, UsageError
from pipeline.heads.classifiers import HEADS, make_head
from pipeline.heads.temperature import temper
from pipeline.metrics.reliability_curve import reliability
from pipeline.prediction import predict, write_predictions
from pipeline.training.fitting import Fitter
from pipeline.training.single_label import train_head
from pipeline.trust.abstention import accepted, learn_threshold
from pipeline.trust.calibration import Calibration, across_halves, fit_calibration, fit_temperature_to
from pipeline.trust.novelty import Novelty
from pipeline.trust.safeguards import Safeguards, Trust


def drawn(seed, n=4000, k=5, sharpness=1.0):
    """Labels drawn from probabilities, and those probabilities made too sure (above 1) or too shy (below 1)."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet(np.full(k, 0.5), n)
    y = np.array([rng.choice(k, p=row) for row in true])
    told = true**sharpness
    return y, told / told.sum(axis=1, keepdims=True)


def test_the_error_of_a_case_worked_by_hand():
    p = np.array([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.35, 0.65]])
    found = reliability(np.array([0, 1, 0, 0]), p)
    assert found["error"] == pytest.approx((2 * abs(0.95 - 0.5) + 2 * abs(0.65 - 0.5)) / 4)
    assert [(row["n"], row["accuracy"]) for row in found["bins"]] == [(2, 0.5), (2, 0.5)]
    assert [row["from"] < row["probability"] <= row["to"] for row in found["bins"]] == [True, True]
    assert reliability(np.array([0]), np.array([[1.0, 0.0]]))["bins"][0]["to"] == 1.0
    json.dumps(found, allow_nan=False)


def test_chance_is_what_a_perfect_head_shows():
    errors, chances = zip(
        *((r["error"], r["chance"]) for r in (reliability(*drawn(s, 300)) for s in range(40))), strict=True
    )
    assert np.mean(errors) == pytest.approx(np.mean(chances), rel=0.1)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
@pytest.mark.parametrize("sharpness", [3.0, 0.4])
def test_calibration_mends_what_was_too_sure_or_too_shy(method, sharpness):
    y, p = drawn(0, sharpness=sharpness)
    calibration = fit_calibration(method, y, p)
    y, p = drawn(1, sharpness=sharpness)
    before, after = reliability(y, p)["error"], reliability(y, calibration.apply(p))["error"]
    assert before > 0.1
    assert after < 0.04
    if method == "temperature":
        assert calibration.temperature == pytest.approx(sharpness, rel=0.1)
        np.testing.assert_array_equal(calibration.apply(p).argmax(axis=1), p.argmax(axis=1))


def test_isotonic_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(600, 4)), rng.integers(0, 3, 600)
    X[:, 0] += y
    forest = make_head("random-forest", {"n_estimators": 20}).fit(X[:300], y[:300])
    theirs = CalibratedClassifierCV(FrozenEstimator(forest), method="isotonic").fit(X[300:], y[300:])
    ours = fit_calibration("isotonic", y[300:], forest.predict_proba(X[300:]))
    fresh = rng.normal(size=(200, 4))
    np.testing.assert_allclose(ours.apply(forest.predict_proba(fresh)), theirs.predict_proba(fresh), atol=1e-12)


def test_votes_of_nothing_become_possible():
    """Neighbours that vote 5 : 0 and err one time in four: no temperature alone can say so."""
    p = np.eye(4)[np.zeros(400, int)]
    y = np.repeat([0, 1, 2, 3], [300, 40, 30, 30])
    calibrated = fit_calibration("temperature", y, p).apply(p)
    np.testing.assert_allclose(calibrated[0], [0.75, 1 / 12, 1 / 12, 1 / 12], atol=0.01)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["temperature", "isotonic"]), st.integers(2, 6), st.integers(4, 40))
def test_what_always_holds_of_a_calibration(seed, method, k, n):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(k, 0.3), n).round(2)
    p[:, 0] += 1 - p.sum(axis=1)
    p = np.clip(p, 0, 1)
    calibration = fit_calibration(method, rng.integers(0, k, n), p)
    found = calibration.apply(p)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=0.05)
    assert found.min() >= 0
    again = Calibration.from_bytes(calibration.to_bytes())
    np.testing.assert_array_equal(again.apply(p), found)
    if method == "temperature":
        best = p.argmax(axis=1)
        np.testing.assert_allclose(found.max(axis=1), found[np.arange(n), best])


def test_halves_do_not_see_themselves():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 60)
    y = rng.integers(0, 3, 60)
    honest, seen = across_halves("isotonic", y, p), fit_calibration("isotonic", y, p).apply(p)
    assert reliability(y, honest)["error"] > reliability(y, seen)["error"] + 0.05


def test_a_temperature_goes_into_the_head():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 3)).astype(np.float32)
    y = rng.integers(0, 3, 90)
    for name in ("logreg", "ridge", "dense"):
        head = make_head(name, QUICK.get(name, {})).fit(X, y)
        before = head.predict_proba(X)
        tempered = temper(head, 2.5)
        np.testing.assert_allclose(tempered.predict_proba(X), Calibration(temperature=2.5).apply(before), atol=1e-5)
        np.testing.assert_array_equal(head.predict_proba(X), before)
    head = make_head("knn").fit(X, y)
    assert temper(head, 2.5) is None


def test_a_threshold_keeps_its_promise():
    """Over many draws the true accepted accuracy falls short of what was asked in at most 10 % of them."""
    short, coverage = 0, []
    rng = np.random.default_rng(0)
    for _ in range(200):
        sure = rng.uniform(0.5, 1.0, 600)
        try:
            threshold = learn_threshold(rng.uniform(size=600) < sure, sure, 0.85)
        except TrainingError:  # bad luck among the surest images
            threshold = 1.0
        truth = (1 + max(threshold, 0.5)) / 2  # mean of a uniform variable above the threshold
        short += truth < 0.85
        coverage.append(2 * (1 - max(threshold, 0.5)))
    assert short <= 26  # 10 % of 200, and two standard deviations
    assert np.mean(coverage) > 0.4  # 0.6 would be the best that a clairvoyant could do


def test_thresholds_at_the_ends():
    sure = np.linspace(0.5, 1.0, 400)
    assert learn_threshold(np.ones(400, bool), sure, 0.95) == 0.0
    with pytest.raises(
        TrainingError, match=r"no threshold gives an accuracy of 0\.95 with 90% confidence: of the 90 most confident"
    ):
        learn_threshold(np.arange(400) % 2 == 0, sure, 0.95)
    with pytest.raises(
        TrainingError, match=r"takes at least 90 held-out images, and there are 80; ask for a lower accuracy, add"
    ):
        learn_threshold(np.ones(80, bool), sure[:80], 0.95)
    with pytest.raises(UsageError, match=r"abstain 1\.0 is not an accuracy"):
        learn_threshold(np.ones(400, bool), sure, 1.0)
    nobody = accepted(np.ones(3, bool), np.full(3, 0.5), 0.9)
    assert (nobody["accuracy"], nobody["coverage"]) == (None, 0.0)


def test_equal_probabilities_are_accepted_together():
    sure = np.repeat([0.9, 0.6], [200, 200])
    right = np.r_[np.ones(200, bool), np.arange(200) % 2 == 0]
    threshold = learn_threshold(right, sure, 0.9)
    assert threshold == pytest.approx(0.9)
    assert accepted(right, sure, threshold)["accepted"] == 200


def test_novelty_tells_strangers_and_raises_few_false_alarms():
    rng = np.random.default_rng(0)
    X = np.abs(rng.normal(1, 0.3, (2500, 30))).astype(np.float32)
    novelty = Novelty.fit(X[:1500])
    assert novelty.bank.shape == (1000, 30)
    assert 0.001 <= (novelty.score(X[1500:]) > 1).mean() <= 0.03
    strange = X[1500:1600] * np.where(np.arange(30) % 2, 3, 0.2)
    assert (novelty.score(strange) > 1).all()
    again = Novelty.from_bytes(novelty.to_bytes(), 30)
    np.testing.assert_array_equal(again.score(strange), novelty.score(strange))
    with pytest.raises(IntegrityError, match=r"holds vectors of shape \(1000, 30\); train the bundle again"):
        Novelty.from_bytes(novelty.to_bytes(), 31)


def test_distances_are_those_of_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(1)
    X, Q = rng.normal(size=(80, 6)), rng.normal(size=(9, 6))
    novelty = Novelty.fit(X)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    expected = (
        NearestNeighbors(n_neighbors=5).fit(unit).kneighbors(Q / np.linalg.norm(Q, axis=1, keepdims=True))[0][:, 4]
    )
    np.testing.assert_allclose(novelty.score(Q) * novelty.threshold, expected, rtol=2e-3)


def test_images_of_a_group_are_not_each_others_neighbours():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 5)), 10, axis=0) + rng.normal(0, 1e-3, (400, 5))
    alone = Novelty.fit(X)
    grouped = Novelty.fit(X, [f"g{i // 10}" for i in range(400)])
    assert grouped.threshold > 20 * alone.threshold


def test_few_or_equal_vectors():
    assert Novelty.fit(np.ones((2, 3))).score(np.ones((1, 3)))[0] < 1
    assert Novelty.fit(np.tile(np.linspace(0, 1, 999), (9, 1))).score(np.linspace(0, 1, 999)[None])[0] < 1
    assert Novelty.fit(np.ones((50, 3))).score(np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]])).tolist()[1] > 1
    assert Novelty.fit(np.zeros((5, 3))).score(np.zeros((0, 3))).shape == (0,)


@pytest.mark.parametrize("head", list(HEADS))
@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_every_head_is_calibrated_and_saved(tmp_path, head, method):
    store = make_store(tmp_path / "f.h5", noise=2.0)
    params = QUICK.get(head, {}) | ({"C": 0.1} if head == "logreg" else {})
    plain, _ = train_head(store, head, params=params, trust=Trust("none"))
    bundle, report = train_head(store, head, params=params, trust=Trust(method))
    assert report.trust["calibration"] == method
    assert plain.report["trust"] == {"threshold": None, "calibration": "none"}
    X = store.features
    assert not np.array_equal(plain.probabilities(X), bundle.probabilities(X))
    again = Bundle.load(bundle.save(tmp_path / "b"))
    np.testing.assert_array_equal(again.probabilities(X), bundle.probabilities(X))
    if method == "temperature":
        np.testing.assert_array_equal(bundle.probabilities(X).argmax(axis=1), plain.probabilities(X).argmax(axis=1))
        folded = head in ("logreg", "dense") or HEADS[head].softmax
        assert (bundle.safeguards.calibration is None) == folded
        if folded:  # the estimator itself is calibrated
            np.testing.assert_allclose(again.estimator().predict_proba(X), again.probabilities(X), atol=1e-6)


def test_auto_leaves_heads_alone_that_have_a_temperature(tmp_path):
    store = make_store(tmp_path / "f.h5")
    _, report = train_head(store, "lda")
    assert report.trust["calibration"] == "none"
    _, report = train_head(store, "logreg", params={"C": 0.001})
    assert report.trust["calibration"] == "temperature"
    assert set(report.trust["error_out_of_fold"]) == {"before", "after"}
    assert report.metrics["test"]["calibration"]["before"]["n"] == 15


def test_a_network_with_many_validation_images_is_fitted_once(tmp_path, monkeypatch):
    store = make_store(tmp_path / "f.h5", noise=2.0)
    note = "the validation images, which chose when to stop, also calibrated the probabilities"
    params, folds = {**QUICK["dense"], "epochs": 5}, 2
    monkeypatch.setattr("pipeline.training.held_out.TRUST_FOLDS", folds)
    fits, real = [], Fitter.fit
    monkeypatch.setattr(Fitter, "fit", lambda self, *args, **how: fits.append(args[0]) or real(self, *args, **how))

    def held_out(trust, **options):
        fits.clear()
        _, report = train_head(store, "dense", params=params, trust=trust, **options)
        assert (note in report.notes) == (len(fits) == 1)
        return report.trust["held_out"], len(fits)

    assert held_out(Trust()) == (60, 1 + folds)
    monkeypatch.setattr("pipeline.training.held_out.ENOUGH", 15)
    assert held_out(Trust()) == (15, 1)
    assert held_out(Trust("isotonic")) == (60, 1 + folds)
    assert held_out(Trust(abstain=0.5)) == (60, 1 + folds)
    store = make_store(tmp_path / "f.h5", noise=2.0, splits=["train"] * 60 + ["validation"] * 30)
    assert held_out(Trust()) == (60, 1 + folds), "the score would come from images that calibrated"


def test_abstain_and_novel_end_to_end(tmp_path, capsys):
    store = make_store(tmp_path / "f.h5", n=900, noise=1.5)
    bundle, report = train_head(store, params={"C": 0.1}, trust=Trust(abstain=0.9, novelty=True))
    found = report.metrics["test"]["abstain"]
    assert 0.2 < found["coverage"] < 1
    assert found["interval"][1] >= 0.9
    assert report.accuracy < found["accuracy"]
    assert "abstains below a probability of 0." in report.table()
    assert max(len(line) for line in report.table().splitlines()) <= 80
    bundle = Bundle.load(bundle.save(tmp_path / "b"))
    assert sorted(path.name for path in (tmp_path / "b").iterdir() if path.suffix == ".npz") == [
        "head.npz",
        "novelty.npz",
    ]
    rows = list(predict(bundle, store))
    top = bundle.probabilities(store.features).max(axis=1)
    for row, sure in zip(rows, top, strict=True):
        expected = "novel" if row.novelty > 1 else "abstain" if sure < bundle.safeguards.threshold else "ok"
        assert row.status == expected
        assert row.labels
    counts = write_predictions(rows, tmp_path / "p.csv", novelty=True)
    assert counts["abstain"] > 0
    with (tmp_path / "p.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["path", "status", "label", "probability", "novelty"]
    assert float(table[0]["novelty"]) == pytest.approx(rows[0].novelty, abs=1e-6)
    statuses, scores = bundle.safeguards.judge(np.full((1, 4), -3, np.float32), np.array([[0.3, 0.3, 0.4]]))
    assert statuses == ["novel"]
    assert scores[0] > 1


def test_abstaining_without_folds_is_an_error(tmp_path):
    splits = ["train"] * 4 + ["validation"] * 86
    store = make_store(tmp_path / "f.h5", splits=splits)
    bundle, report = train_head(store)
    assert any("too few images of each class to make folds" in note for note in report.notes)
    assert bundle.safeguards.calibration is None
    with pytest.raises(TrainingError, match=r"an accuracy of 0\.95 takes at least 90 held-out images, and there are 0"):
        train_head(store, trust=Trust(abstain=0.95))


@pytest.mark.parametrize(
    ("trust", "words"),
    [
        (Trust("platt"), "calibration 'platt' is unknown; expected one of auto, none, temperature, isotonic"),
        (
            Trust(abstain=1.2),
            r"abstain 1\.2 is not an accuracy that can be guaranteed; give a number above 0 and below 1",
        ),
    ],
)
def test_wrong_requests_are_errors_before_files_are_read(trust, words):
    with pytest.raises(UsageError, match=words):
        train_head("nothing.h5", trust=trust)


def test_damaged_arrays_are_refused():
    with pytest.raises(IntegrityError, match="the calibration cannot be read"):
        Calibration.from_bytes(b"zip")
    with pytest.raises(IntegrityError, match="the calibration contains invalid numbers"):
        Calibration.from_bytes(Calibration(temperature=-1.0).to_bytes())
    with pytest.raises(IntegrityError, match="the novelty score cannot be read"):
        Novelty.from_bytes(b"zip", 3)
    curves = fit_calibration("isotonic", *drawn(0, 100))
    with pytest.raises(IntegrityError, match="has 5 curves for 3 classes"):
        curves.apply(np.full((1, 3), 1 / 3))
    assert Safeguards.read({}, {}, 3).threshold is None


def test_the_same_seed_gives_the_same_safeguards(tmp_path):
    store = make_store(tmp_path / "f.h5", n=600, noise=1.5)
    files = [
        train_head(store, "knn", trust=Trust("isotonic", 0.8, novelty=True), seed=3)[0].safeguards for _ in range(2)
    ]
    assert files[0].to_files() == files[1].to_files()
    assert files[0].to_dict() == files[1].to_dict()


def test_a_column_that_is_constant_and_a_class_of_one_image(tmp_path):
    store = make_store(tmp_path / "f.h5", n=300)
    labels = store.labels.copy()
    labels[labels == 2] = 0
    labels[2] = 2  # one image, in the training split
    store = make_store(tmp_path / "g.h5", n=300, labels=labels, noise=0.5)
    bundle, report = train_head(store, trust=Trust(abstain=0.8, novelty=True))
    assert report.trust["calibration"] == "temperature"
    assert np.isfinite(bundle.probabilities(store.features)).all()
    vectors = np.c_[store.features, np.full(300, 7.0)].astype(np.float32)
    from pipeline.features.store import FeatureStore, write_store

    write_store(tmp_path / "c.h5", dataclasses.replace(store.index, segments={"last": (0, 5)}), [vectors])
    for head in ("logreg", "lda", "svm", "knn"):
        bundle, _ = train_head(FeatureStore(tmp_path / "c.h5"), head, trust=Trust("temperature", novelty=True))
        assert np.isfinite(bundle.probabilities(vectors)).all()


def test_temperature_of_probabilities_is_that_of_logits():
    from pipeline.heads.temperature import fit_temperature

    y, p = drawn(0, sharpness=2.0)
    assert fit_temperature_to(y, p) == pytest.approx(fit_temperature(np.log(p), y), rel=1e-3)


def test_schema_2_stays_readable(tmp_path):
    """Made once (see fixtures/README.md) and never written again."""
    shutil.copytree(FIXTURES / "schema2.bundle", tmp_path / "b")
    bundle = Bundle.load(tmp_path / "b")
    assert (bundle.classes, bundle.head_name, bundle.multi_label) == (("ant", "bee"), "knn", None)
    X = np.array([[0.0, 4.0], [4.0, 0.0], [2.0, 2.2], [-4.0, -4.0]], np.float32)
    assert bundle.probabilities(X).argmax(axis=1).tolist()[:2] == [0, 1]
    assert bundle.safeguards.calibration is not None
    statuses, scores = bundle.safeguards.judge(X, bundle.probabilities(X))
    assert statuses == ["ok", "ok", "abstain", "novel"]
    assert scores[3] > 1

"""Stage 2: fit, choose, report; joining files; what cannot be trained on."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from attacks.fake import RECIPE
from helpers import make_index, make_store

from pipeline.errors import TrainingError, UsageError
from pipeline.features.store import FeatureStore, write_store
from pipeline.training.single_label import train_head
from pipeline.training.training_data import load_training_data
from pipeline.trust.safeguards import Trust


def test_fit_on_train_choose_on_validation_report_on_test(tmp_path):
    store = make_store(tmp_path / "f.h5")
    bundle, report = train_head(store)
    assert report.scored_on == "test"
    assert report.chosen_on == "validation"
    assert report.counts == {"train": 60, "validation": 15, "test": 15}
    assert report.accuracy > 0.9
    assert {name for each in report.candidates for name in each["params"]} == {"C"}
    assert report.params in [each["params"] for each in report.candidates]
    best = min(each["log_loss"] for each in report.candidates)
    assert next(each["log_loss"] for each in report.candidates if each["params"] == report.params) == best
    assert report.params["C"] == bundle.head[-1].C
    # fitted on the training rows alone
    train = load_training_data(store).rows("train")
    np.testing.assert_allclose(bundle.head["standardise"].mean_, store.features[train].mean(axis=0), rtol=1e-5)
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_numbers_are_those_of_scikit_learn(tmp_path):
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    store = make_store(tmp_path / "f.h5", noise=2.0)
    bundle, report = train_head(store, "lda", params={"shrinkage": 0.1})
    rows = load_training_data(store).rows("test")
    predicted = bundle.head.predict(store.features[rows])
    truth = store.labels[rows]
    assert report.accuracy == accuracy_score(truth, predicted)
    assert report.metrics["test"]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert report.chosen_on == ""


def test_without_test_images_the_validation_score_is_marked(tmp_path):
    store = make_store(tmp_path / "f.h5", splits=["train"] * 60 + ["validation"] * 30)
    _, report = train_head(store)
    assert report.scored_on == "validation"
    assert any("this score is slightly too optimistic" in note for note in report.notes)
    _, report = train_head(store, params={"C": 1.0})
    assert not any("too optimistic" in note for note in report.notes)
    _, report = train_head(store, cv=3)
    assert (report.scored_on, report.chosen_on) == ("validation", "cross-validation")
    assert not any("too optimistic" in note for note in report.notes)
    assert report.metrics["cross-validation"]["n"] == 60
    assert all("accuracy_sd" in each for each in report.candidates)


def test_without_splits_a_stable_hold_out_is_drawn(tmp_path):
    store = make_store(tmp_path / "f.h5", splits=[""] * 90)
    data = load_training_data(store)
    assert set(data.splits) == {"train", "validation", "test"}
    again = load_training_data(store)
    np.testing.assert_array_equal(data.splits, again.splits)
    assert not np.array_equal(data.splits, load_training_data(store, seed=1).splits)
    for split in ("train", "validation", "test"):
        assert set(data.y[data.rows(split)]) == {0, 1, 2}


def test_only_training_images_are_cross_validated(tmp_path):
    _, report = train_head(make_store(tmp_path / "f.h5", splits=["train"] * 90))
    assert report.scored_on == "cross-validation"
    assert report.accuracy > 0.9
    assert any("scores come from 5 folds" in note for note in report.notes)


def test_few_images_get_as_many_folds_as_they_can(tmp_path):
    _, report = train_head(make_store(tmp_path / "f.h5", n=9, splits=["train"] * 9))
    assert any("scores come from 3 folds" in note for note in report.notes)
    with pytest.raises(TrainingError, match=r"has 1 training image, too few for 2 folds; add images"):
        train_head(make_store(tmp_path / "f.h5", n=3, splits=["train"] * 3))
    with pytest.raises(TrainingError, match=r"has 1 training group, too few for 2 folds"):
        train_head(make_store(tmp_path / "f.h5", splits=["train"] * 90, groups=["one"] * 90))


def test_a_file_given_twice(tmp_path):
    store = make_store(tmp_path / "f.h5")
    with pytest.raises(UsageError, match="was given twice; give it once"):
        train_head([store, tmp_path / "f.h5"])


def test_groups_stay_in_one_fold(tmp_path, monkeypatch):
    """A class that only repeats inside groups cannot be recognised across folds."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(30, 4)), 3, axis=0).astype(np.float32)
    labels = np.repeat(rng.integers(0, 2, 30), 3).astype(np.int32)
    index = make_index(
        [f"{i}.png" for i in range(90)],
        4,
        labels=labels,
        splits=["train"] * 90,
        groups=[f"g{i // 3}" for i in range(90)],
    )
    write_store(tmp_path / "f.h5", index, [vectors])
    _, grouped = train_head(tmp_path / "f.h5", "knn", params={"n_neighbors": 1}, cv=5)
    assert grouped.accuracy < 0.85
    write_store(tmp_path / "f.h5", dataclasses.replace(index, groups=[""] * 90), [vectors])
    _, loose = train_head(tmp_path / "f.h5", "knn", params={"n_neighbors": 1}, cv=5)
    assert loose.accuracy > 0.95


def test_files_are_joined_by_image(tmp_path):
    first = make_store(tmp_path / "1.h5")
    order = np.random.default_rng(0).permutation(90)[:80]
    vectors = np.arange(90 * 2, dtype=np.float32).reshape(90, 2)
    index = first.index
    picked = dataclasses.replace(
        index,
        segments={"last": (0, 2)},
        recipe=dataclasses.replace(RECIPE, size=9),
        paths=[index.paths[i] for i in order],
        digests=index.digests[order],
        sizes_mtimes=index.sizes_mtimes[order],
        labels=index.labels[order],
        splits=[index.splits[i] for i in order],
        groups=[""] * 80,
    )
    write_store(tmp_path / "2.h5", picked, [vectors[order]])
    data = load_training_data([first, tmp_path / "2.h5"])
    assert data.X.shape == (80, 1, 6)
    kept = sorted(order)
    np.testing.assert_array_equal(data.X[:, 0, :4], first.features[kept])
    np.testing.assert_array_equal(data.X[:, 0, 4:], vectors[kept])
    assert any("10 images of" in note and "not in every file" in note for note in data.notes)
    bundle, _ = train_head([first, tmp_path / "2.h5"])
    assert bundle.dims == (4, 2)
    assert [recipe.size for recipe in bundle.recipes] == [8, 9]


def test_files_of_other_images_are_not_joined(tmp_path):
    first = make_store(tmp_path / "1.h5")
    make_store(tmp_path / "2.h5", paths=[f"x/{i}" for i in range(90)])
    with pytest.raises(TrainingError, match="have no image in common; extract the same folder"):
        load_training_data([first, tmp_path / "2.h5"])
    make_store(tmp_path / "3.h5", digests=first.index.digests ^ 1)
    with pytest.raises(TrainingError, match=r"'a/0\.png' has other content or another label in .*3\.h5"):
        load_training_data([first, tmp_path / "3.h5"])
    make_store(tmp_path / "4.h5", classes=("a", "b", "d"))
    with pytest.raises(TrainingError, match=r"has classes \['a', 'b', 'd'\]"):
        load_training_data([first, tmp_path / "4.h5"])


def test_rows_without_label_are_left_out(tmp_path):
    labels = (np.arange(90) % 3).astype(np.int32)
    labels[:7] = -1
    data = load_training_data(make_store(tmp_path / "f.h5", labels=labels))
    assert len(data.y) == 83
    assert "7 images without a label were left out" in data.notes


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"labels": np.full(90, -1, np.int32)}, {}, TrainingError, "has no labels, so there is nothing to learn"),
        ({"labels": np.full(90, 1, np.int32)}, {}, TrainingError, "all training images are of the class 'b'"),
        ({"splits": ["test"] * 90}, {}, TrainingError, "the training split is empty"),
        ({}, {"head": "logrek"}, UsageError, "logrek"),
        ({}, {"params": {"c": 1}}, UsageError, "'c'"),
        ({}, {"cv": 1}, UsageError, "cv 1 is too few folds; give 2 or more"),
        (
            {},
            {"cv": 21},
            TrainingError,
            "has 20 training images, too few for 21 folds; add images, or leave out --cv",
        ),
    ],
)
def test_what_cannot_be_trained_on(tmp_path, changes, options, error, message):
    store = make_store(tmp_path / "f.h5", **changes)
    with pytest.raises(error, match=message):
        train_head(store, **options)


@pytest.mark.parametrize("options", ["head='logrge'", "trust=Trust('platt')", "cv=1", "head='auto', budget=0.0"])
def test_wrong_options_are_refused_before_scikit_learn_is_imported(options):
    code = (
        "import sys; from pipeline import train_head; from pipeline.errors import UsageError;"
        f"from pipeline.trust.safeguards import Trust\ntry: train_head('nothing.h5', {options})\n"
        "except UsageError: assert not {'sklearn', 'scipy'} & set(sys.modules)\nelse: raise SystemExit('not refused')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_vectors_that_are_not_finite_are_named(tmp_path):
    vectors = np.ones((90, 4), np.float32)
    vectors[5, 1] = np.nan
    index = make_store(tmp_path / "f.h5").index
    write_store(tmp_path / "f.h5", index, [vectors])
    with pytest.raises(TrainingError, match=r"1 vectors of .*f\.h5 are not finite; check the file with verify\.py"):
        train_head(tmp_path / "f.h5")


def test_a_class_seen_only_in_the_test_split(tmp_path):
    labels = (np.arange(90) % 3).astype(np.int32)
    labels[:75] %= 2
    bundle, report = train_head(make_store(tmp_path / "f.h5", labels=labels))
    assert np.sum(report.metrics["test"]["confusion"], axis=1).tolist() == [5, 5, 5]
    assert bundle.probabilities(np.zeros((2, 4), np.float32))[:, 2].tolist() == [0, 0]
    assert any("'c' has no training image" in note for note in report.notes)


def test_the_same_seed_gives_the_same_head(tmp_path):
    store = make_store(tmp_path / "f.h5", splits=[""] * 90, noise=2.0)
    for head in ("logreg", "random-forest"):
        one, _ = train_head(store, head, seed=3)
        two, _ = train_head(store, head, seed=3)
        X = store.features
        np.testing.assert_array_equal(one.probabilities(X), two.probabilities(X))


def test_a_dense_head_stops_early_on_validation(tmp_path):
    store = make_store(tmp_path / "f.h5")
    bundle, report = train_head(
        store,
        "dense",
        params={"hidden": (8,), "epochs": 30, "patience": 4, "learning_rate": 0.05},
        trust=Trust("none"),
    )
    assert set(report.history) == {"loss", "val_loss", "accuracy", "val_accuracy"}
    assert 1 <= len(report.history["loss"]) <= 30
    assert report.accuracy > 0.8
    data = load_training_data(store)
    rows = data.rows("validation")
    probabilities = bundle.probabilities(data.X[rows, 0])
    log_loss = -np.log(probabilities[np.arange(len(rows)), data.y[rows]]).mean()
    assert log_loss == pytest.approx(min(report.history["val_loss"]), rel=1e-3), "not the best weights, or other rows"


def test_progress_counts_fits(tmp_path):
    seen = []
    _, report = train_head(make_store(tmp_path / "f.h5"), progress=lambda *each: seen.append(each))
    fits = len(report.candidates)
    assert [done for done, _ in seen] == list(range(1, fits + 1))
    assert seen[-1] == (fits, fits)


def with_views(path, views="flip", noise=2.0, seed=5, **changes):
    """As make_store, with a second view of each image that has other noise."""
    first = make_store(path, noise=noise, dim=12)
    other = np.random.default_rng(seed).normal(0, noise, (90, 12)) + np.eye(3, 12)[first.labels] * 3
    index = dataclasses.replace(first.index, recipe=dataclasses.replace(RECIPE, views=views), **changes)
    write_store(path, index, [np.stack([first.features, other], axis=1).astype(np.float32)])
    return FeatureStore(path)


def test_views_are_samples_in_training_and_averaged_only_when_asked(tmp_path):
    store = with_views(tmp_path / "f.h5")
    data = load_training_data(store)
    assert data.X.shape == (90, 2, 12)
    trust = Trust(calibration="none")
    plain, report = train_head(store, params={"C": 0.1}, trust=trust)
    averaged, _ = train_head(store, params={"C": 0.1}, trust=trust, average_views=True)
    np.testing.assert_array_equal(plain.head[-1].coef_, averaged.head[-1].coef_)
    train, test = data.rows("train"), data.rows("test")
    np.testing.assert_allclose(
        plain.head["standardise"].mean_, data.X[train].reshape(-1, 12).mean(axis=0), rtol=1e-4, atol=1e-5
    )
    assert (plain.average_views, averaged.average_views) == (False, True)
    predicted = plain.probabilities(data.X[test, 0]).argmax(axis=1)
    assert report.accuracy == (predicted == data.y[test]).mean()
    again = type(averaged).load(averaged.save(tmp_path / "b"))
    assert again.average_views
    mean = np.mean([averaged.head.predict_proba(data.X[test, view]) for view in (0, 1)], axis=0)
    np.testing.assert_allclose(again.probabilities(data.X[test]), mean, atol=1e-6)


def test_files_with_views_are_joined_view_by_view(tmp_path):
    one, two = with_views(tmp_path / "1.h5"), with_views(tmp_path / "2.h5", seed=6)
    assert load_training_data([one, two]).X.shape == (90, 2, 24)
    bundle, _ = train_head([one, two], "ridge", cv=3, average_views=True)
    assert bundle.dims == (12, 12)
    other = with_views(tmp_path / "3.h5", views="2")
    with pytest.raises(TrainingError, match=r"3\.h5 has the views '2', .*1\.h5 has 'flip'; extract both with the"):
        train_head([one, other])


def test_clothes(data, tmp_path, monkeypatch):
    """Real photographs, a real network: a head learns far more than the majority class."""
    from pipeline.features.extraction import extract

    monkeypatch.setenv("KERAS_HOME", str(data / "keras_home"))
    rows = ["path,label,split"]
    for split, count in (("train", 30), ("validation", 12)):
        for label in ("hat", "shoes", "pants"):
            files = sorted((data / "clothing" / split / label).iterdir())[:count]
            rows += [f"{file},{label},{split}" for file in files]
    (tmp_path / "clothes.csv").write_text("\n".join(rows))
    with extract(tmp_path / "clothes.csv", tmp_path / "f.h5", "mobilenet_0.25", size=128) as store:
        assert len(store) == 126
        _, report = train_head(store)
    assert report.accuracy > 0.85
    assert report.metrics["validation"]["majority"]["accuracy"] < 0.4

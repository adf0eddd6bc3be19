"""Several labels per image: taken apart, learned, judged, named, saved."""

import csv
import json

import numpy as np
import pytest
import sklearn.metrics as skm
from click.testing import CliRunner
from helpers import QUICK, make_index
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import cli
from pipeline.bundles.bundle import Bundle
from pipeline.bundles.card import model_card
from pipeline.errors import IntegrityError, TrainingError, UsageError
from pipeline.features.store import FeatureStore, write_store
from pipeline.heads.multi_label import MultiLabel, label_matrix
from pipeline.metrics.label_sets import evaluate_labels, format_labels
from pipeline.prediction import predict
from pipeline.training.multi_label import train_multi_label
from pipeline.wording import display_width


def tagged_store(path, n=240, noise=0.4, separator=";"):
    """Three labels, each a column that is up when the label is there; images without any have no label at all."""
    rng = np.random.default_rng(0)
    Y = rng.integers(0, 2, (n, 3))
    Y[~Y.any(axis=1), 0] = 1
    sets = [separator.join(name for name, on in zip(("ant", "bee", "cow"), row, strict=True) if on) for row in Y]
    classes = tuple(sorted(set(sets)))
    vectors = np.c_[Y * 2.0 + rng.normal(0, noise, Y.shape), rng.normal(size=(n, 2))].astype(np.float32)
    index = make_index(
        [f"{i}.png" for i in range(n)],
        5,
        labels=np.array([classes.index(each) for each in sets], np.int32),
        classes=classes,
        splits=["train" if i < n // 2 else "validation" if i < 3 * n // 4 else "test" for i in range(n)],
    )
    write_store(path, index, [vectors])
    return FeatureStore(path), Y


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sets(st.sampled_from("abcde"), min_size=1), min_size=2, max_size=9), st.sampled_from([";", ", ", "||"])
)
def test_what_is_put_together_is_taken_apart(sets, separator):
    names = sorted(set().union(*sets))
    texts = [separator.join(sorted(each)) for each in sets]
    if len(names) < 2:
        with pytest.raises(TrainingError, match="there is only the label"):
            label_matrix(texts, separator)
        return
    found, matrix = label_matrix(texts, separator)
    assert list(found) == names
    assert [{name for name, on in zip(names, row, strict=True) if on} for row in matrix] == sets
    how = MultiLabel(separator)
    assert [how.answer(row.astype(float), found)[0] for row in matrix] == texts


def test_the_numbers_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    Y = rng.integers(0, 2, (80, 4))
    p = np.clip(rng.normal(0.4 + 0.2 * Y, 0.25), 0, 1)
    found = evaluate_labels(Y, p, list("abcd"), 0.5)
    named = p >= 0.5
    assert found["accuracy"] == skm.accuracy_score(Y, named)
    assert found["mean_average_precision"] == pytest.approx(skm.average_precision_score(Y, p))
    assert found["micro_f1"] == pytest.approx(skm.f1_score(Y, named, average="micro"))
    assert found["macro_f1"] == pytest.approx(skm.f1_score(Y, named, average="macro"))
    json.dumps(found, allow_nan=False)
    absent = evaluate_labels(np.c_[Y, np.zeros(80, int)], np.c_[p, np.zeros(80)], list("abcde"))
    assert absent["per_class"][4]["average_precision"] is None
    assert absent["mean_average_precision"] == found["mean_average_precision"]
    assert absent["macro_f1"] == found["macro_f1"]
    assert "-" in format_labels(absent).splitlines()[5]


def test_end_to_end(tmp_path):
    store, _ = tagged_store(tmp_path / "f.h5", noise=0.2)
    bundle, report = train_multi_label(store, novelty=True)
    assert bundle.classes == ("ant", "bee", "cow")
    assert (report.scored_on, report.chosen_on) == ("test", "validation")
    assert report.accuracy > 0.9
    assert report.metrics["test"]["mean_average_precision"] > 0.98
    assert report.params in [each["params"] for each in report.candidates]
    again = Bundle.load(bundle.save(tmp_path / "b"))
    p = again.probabilities(store.features)
    np.testing.assert_array_equal(p, bundle.probabilities(store.features))
    rows = list(predict(again, store))
    assert np.mean([row.labels[0] == store.classes[label] for row, label in zip(rows, store.labels, strict=True)]) > 0.9
    for row, probabilities in zip(rows, p, strict=True):
        named = [name for name, sure in zip(again.classes, probabilities, strict=True) if sure >= 0.5]
        assert row.labels == (";".join(named),)
        assert row.probabilities[0] == pytest.approx(
            min(probabilities[probabilities >= 0.5], default=1 - max(probabilities))
        )
        assert row.novelty is not None
    with pytest.raises(UsageError, match="top-k 2 does not apply where all labels above a threshold are named"):
        predict(again, store, top_k=2)
    assert "mean average precision" in model_card(again.description(), again.report)
    assert report.table() == format_labels(report.metrics["test"])
    assert max(display_width(line) for line in report.table().splitlines()) <= 80


@pytest.mark.parametrize("head", ["knn", "lda", "svm", "random-forest", "hist-gradient-boosting", "dummy"])
def test_every_head_that_can_is_saved(tmp_path, head):
    store, _ = tagged_store(tmp_path / "f.h5")
    bundle, report = train_multi_label(store, head=head, params=QUICK.get(head, {}))
    again = Bundle.load(bundle.save(tmp_path / "b"))
    np.testing.assert_array_equal(again.probabilities(store.features), bundle.probabilities(store.features))
    assert report.accuracy > (0.7 if head != "dummy" else -1)


def test_a_forest_of_a_label_that_points_outside_is_refused(tmp_path):
    store, _ = tagged_store(tmp_path / "f.h5")
    bundle, _ = train_multi_label(store, head="random-forest", params=QUICK["random-forest"])
    bundle.head[-1].estimators_[1].estimators_[0].tree_.children_left[0] = 10**6
    with pytest.raises(IntegrityError, match="has invalid nodes"):
        Bundle.load(bundle.save(tmp_path / "b"))


def test_a_label_without_training_images_or_on_all_of_them(tmp_path):
    store, _ = tagged_store(tmp_path / "f.h5")
    sets = ["ant;bee"] * 60 + ["ant"] * 60 + ["ant;cow"] * 120
    classes = tuple(sorted(set(sets)))
    index = make_index(
        store.paths,
        5,
        labels=np.array([classes.index(each) for each in sets], np.int32),
        classes=classes,
        splits=store.splits,
    )
    write_store(tmp_path / "g.h5", index, [store.features])
    bundle, report = train_multi_label(tmp_path / "g.h5")
    assert "label 'cow' is on no training image and is never predicted" in report.notes
    p = Bundle.load(bundle.save(tmp_path / "b")).probabilities(store.features)
    assert set(p[:, 0]) == {1.0}
    assert set(p[:, 2]) == {0.0}


def test_wrong_requests(tmp_path):
    store, _ = tagged_store(tmp_path / "f.h5")
    with pytest.raises(UsageError, match="head 'dense' does not support several labels per image; choose another"):
        train_multi_label(store, head="dense")
    for unused in ({"cv": 3}, {"average_views": True}, {"calibration": "isotonic"}, {"exclude": "findings.csv"}):
        (name,) = unused
        with pytest.raises(UsageError, match=f"--multi-label does not support --{name.replace('_', '-')}; leave"):
            train_multi_label(store, **unused)
    with pytest.raises(UsageError, match="the separator ' ' cannot separate labels; give one such as ;"):
        train_multi_label(store, " ")
    index = make_index(["a", "b"], 5, labels=np.array([0, 1], np.int32), classes=("x;y", "y"), splits=["train"] * 2)
    write_store(tmp_path / "g.h5", index, [np.eye(2, 5, dtype=np.float32)])
    with pytest.raises(TrainingError, match="validation or test images for the score; there are 2 train, 0 validation"):
        train_multi_label(tmp_path / "g.h5")
    with pytest.raises(UsageError, match="'nought'"):
        train_multi_label(store, params={"nought": 1})


def test_the_command(tmp_path):
    store, _ = tagged_store(tmp_path / "f.h5", separator="+")

    def invoke(*words):
        return CliRunner().invoke(cli.main, [str(word) for word in words])

    words = ["train-head", store.path, "--out", tmp_path / "b", "--multi-label", "+"]
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert "mean average precision" in result.stdout
    result = invoke(*words, "--abstain", "0.9", "--seed", "3", "--cv", "2", "--novelty", "--average-views")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --multi-label does not support --cv, --average-views, --abstain; leave out one or the other\n",
    )
    result = invoke(*words, "--head", "auto")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: head 'auto' does not support several labels per image; name one head, such as logreg\n",
    )
    assert invoke("predict", tmp_path / "b", store.path, "--out", tmp_path / "p.csv").exit_code == 0
    with (tmp_path / "p.csv").open() as file:
        labels = {row["label"] for row in csv.DictReader(file)}
    assert "ant+bee" in labels

"""Two classes, and classes of very different size."""

import dataclasses

import numpy as np
import pytest
import sklearn.metrics as skm
from helpers import QUICK, make_index, make_store

from pipeline.errors import UsageError
from pipeline.features.store import FeatureStore, write_store
from pipeline.metrics.binary import format_two_class, two_class_facts
from pipeline.training.single_label import train_head
from pipeline.trust.safeguards import Trust
from pipeline.wording import display_width


def two_class_store(path, counts=(100, 100), noise=1.2, **changes):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], counts).astype(np.int32)
    n = len(labels)
    vectors = (labels[:, None] * [1.0, -1.0, 0.5, 0.0] + rng.normal(0, noise, (n, 4))).astype(np.float32)
    paths = [f"{'cat' if not label else 'dog'}/{i}.png" for i, label in enumerate(labels)]
    index = make_index(paths, 4, labels=labels, classes=("cat", "dog"), splits=[""] * n)
    write_store(path, dataclasses.replace(index, **changes), [vectors])
    return FeatureStore(path)


def test_a_hundred_and_a_hundred(tmp_path):
    _, report = train_head(two_class_store(tmp_path / "f.h5"))
    metrics = report.metrics["test"]
    assert metrics["positive"] == "dog"
    assert 0.6 < metrics["roc_auc"] <= 1
    table = report.table()
    assert f"ROC AUC {metrics['roc_auc']:.3f}; thresholds on the probability of dog" in table
    assert sum(line.split()[:1] == [f"0.{i}"] for i in range(1, 10) for line in table.splitlines()) == 9
    _, folded = train_head(two_class_store(tmp_path / "g.h5", splits=["train"] * 200))
    assert folded.metrics["cross-validation"]["roc_auc"] > 0.6


def test_the_numbers_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    score = np.clip(rng.normal(0.35 + 0.3 * y, 0.2), 0, 1)
    found = two_class_facts(y, np.stack([1 - score, score], axis=1), ["a", "b"])
    assert found["roc_auc"] == pytest.approx(skm.roc_auc_score(y, score))
    for row in found["thresholds"]:
        yes = score >= row["threshold"]
        assert row["precision"] == pytest.approx(skm.precision_score(y, yes))
        assert row["recall"] == pytest.approx(skm.recall_score(y, yes))
        assert row["specificity"] == pytest.approx(skm.recall_score(y, yes, pos_label=0))


def test_undefined_numbers_are_dashes():
    p = np.array([[0.95, 0.05], [0.7, 0.3]])
    found = two_class_facts(np.array([0, 0]), p, ["a", "帽" * 90])
    assert found["roc_auc"] is None
    assert found["thresholds"][8] == {"threshold": 0.9, "precision": None, "recall": None, "specificity": 1.0}
    lines = format_two_class(found)
    assert "ROC AUC -" in lines[1]
    assert max(display_width(line) for line in lines) <= 80
    assert two_class_facts(np.array([0]), np.eye(3)[:1], list("abc")) == {}
    assert format_two_class({}) == []


@pytest.mark.parametrize(
    "head", ["logreg", "ridge", "linear-svm", "svm", "random-forest", "hist-gradient-boosting", "dense"]
)
def test_balanced_class_weights_find_the_rare_class(tmp_path, head):
    """200 to 20 images that overlap: without weights the rare class is hardly ever named."""
    splits = ["train" if i % 2 else "test" for i in range(220)]
    store = two_class_store(tmp_path / "f.h5", (200, 20), 1.5, splits=splits)
    params = QUICK.get(head, {}) | ({"min_samples_leaf": 10} if "forest" in head else {})
    recall = {}
    for weight in (None, "balanced"):
        _, report = train_head(store, head, params={**params, "class_weight": weight}, trust=Trust("none"))
        recall[weight] = report.metrics["test"]["per_class"][1]["recall"]
    assert recall["balanced"] > recall[None]


def test_a_head_without_class_weights_says_so(tmp_path):
    with pytest.raises(UsageError, match="the head 'knn' has no parameter 'class_weight'"):
        train_head(make_store(tmp_path / "f.h5"), "knn", params={"class_weight": "balanced"})

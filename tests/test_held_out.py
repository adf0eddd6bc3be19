"""Who calibrates a head, and by which method: one decision."""

import pytest

from pipeline.heads.classifiers import HEADS
from pipeline.training.held_out import ENOUGH, CalibrationPlan, plan_calibration
from pipeline.trust.options import Trust

MANY = {"train": 2000, "validation": ENOUGH, "test": 10}
FEW = {**MANY, "validation": ENOUGH - 1}
UNTESTED = {**MANY, "test": 0}


@pytest.mark.parametrize(
    ("trust", "head", "counts", "facts", "expected"),
    [
        (Trust(), "logreg", MANY, {}, ("temperature", "folds")),
        (Trust("none"), "logreg", MANY, {}, ("none", "folds")),
        (Trust("isotonic"), "knn", FEW, {}, ("isotonic", "folds")),
        (Trust(), "ridge", MANY, {"has_temperature": True}, ("none", "folds")),
        (Trust("temperature"), "ridge", MANY, {"has_temperature": True}, ("temperature", "folds")),
        (Trust(), "dense", MANY, {}, ("temperature", "validation")),
        (Trust("temperature"), "dense", MANY, {}, ("temperature", "validation")),
        (Trust(), "dense", FEW, {}, ("temperature", "folds")),
        (Trust(), "dense", UNTESTED, {}, ("temperature", "folds")),
        (Trust(), "dense", MANY, {"folded": True}, ("temperature", "folds")),
        (Trust(abstain=0.9), "dense", MANY, {}, ("temperature", "folds")),
        (Trust("isotonic"), "dense", MANY, {}, ("isotonic", "folds")),
        (Trust(), "logreg", MANY, {"tuned": True}, ("temperature", "validation")),
        (Trust(), "ridge", MANY, {"tuned": True, "has_temperature": True}, ("temperature", "validation")),
        (Trust("isotonic", 0.9), "logreg", MANY, {"tuned": True}, ("isotonic", "validation")),
        (Trust(), "logreg", FEW, {"tuned": True}, ("none", "validation")),
        (Trust("isotonic", 0.9), "logreg", UNTESTED, {"tuned": True}, ("none", "validation")),
        (Trust("none"), "logreg", MANY, {"tuned": True}, ("none", "validation")),
    ],
)
def test_who_calibrates(trust, head, counts, facts, expected):
    facts = {"tuned": False, "folded": False, "has_temperature": False, **facts}
    assert plan_calibration(trust, HEADS[head], counts, **facts) == CalibrationPlan(*expected)

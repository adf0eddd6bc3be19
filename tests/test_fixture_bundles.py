"""Bundles made by version 0.1.0 before its modules moved (see fixtures/README.md) load and answer as they did then."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import Bundle

FOLDER = Path(__file__).parent / "fixtures" / "heads"
NAMES = sorted(path.stem for path in FOLDER.glob("*.bundle"))
TOLERANCE = {"dense": 1e-6, "svm": 1e-12, "random-forest": 1e-15}  # the others are the same to the last bit of a sum


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "predictions.npz") as arrays:
        return dict(arrays)


def test_every_kind_of_head_has_a_bundle():
    assert NAMES == [
        "dense",
        "isotonic",
        "joined",
        "multi-label",
        "random-forest",
        "ridge",
        "safeguards",
        "svm",
        "tuned",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_probabilities_are_those_of_then(name, expected):
    bundle = Bundle.load(FOLDER / f"{name}.bundle")
    found = bundle.probabilities(expected[f"{name}/X"])
    np.testing.assert_allclose(found, expected[f"{name}/p"], rtol=0, atol=TOLERANCE.get(name, 1e-14))
    assert (found.argmax(axis=1) == expected[f"{name}/p"].argmax(axis=1)).all()
    assert bundle.estimator() is not None


def test_the_statuses_and_novelty_scores_are_those_of_then(expected):
    bundle = Bundle.load(FOLDER / "safeguards.bundle")
    X = expected["safeguards/X"]
    statuses, scores = bundle.safeguards.judge(X, bundle.probabilities(X))
    assert set(statuses) == {"ok", "abstain", "novel"}
    assert statuses == expected["safeguards/statuses"].tolist()
    np.testing.assert_allclose(scores, expected["safeguards/novelty"], rtol=1e-6)

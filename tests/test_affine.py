"""Heads as plain arrays: equal to scikit-learn's, and without it."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from helpers import QUICK, make_store

from pipeline.bundles.bundle import Bundle
from pipeline.errors import IntegrityError
from pipeline.heads.affine import AffineHead
from pipeline.heads.classifiers import HEADS
from pipeline.training.single_label import train_head
from pipeline.trust.options import Trust

AFFINE = {"logreg", "ridge", "linear-svm", "lda"}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_equal_to_scikit_learn(tmp_path, head, classes):
    labels = (np.arange(90) % classes).astype(np.int32)
    store = make_store(tmp_path / "f.h5", noise=2.0, labels=labels, classes=("a", "b", "c")[:classes])
    trust = Trust("none") if head == "dense" else Trust()  # whose folds are three more networks
    bundle, _ = train_head(store, head, params=QUICK.get(head, {}), trust=trust)
    assert (bundle.affine is not None) == (head in AFFINE)
    if bundle.affine:
        expected = bundle.head.predict_proba(store.features)
        np.testing.assert_allclose(bundle.affine.predict_proba(store.features), expected, rtol=1e-4, atol=1e-6)
        again = Bundle.load(bundle.save(tmp_path / "b"))
        assert again.head is None
        np.testing.assert_array_equal(again.probabilities(store.features), bundle.probabilities(store.features))
        np.testing.assert_array_equal(again.estimator().predict_proba(store.features), expected)
        final = Bundle.load(Bundle.load(tmp_path / "b").save(tmp_path / "c"))
        np.testing.assert_array_equal(final.estimator().predict_proba(store.features), expected)


def test_predicting_from_vectors_imports_no_scikit_learn(tmp_path):
    store = make_store(tmp_path / "f.h5")
    train_head(store, params={"C": 1.0})[0].save(tmp_path / "b")
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "bad = {'sklearn', 'skops', 'scipy', 'keras', 'tensorflow', 'pyarrow'} & set(sys.modules); assert not bad, bad"
    )
    words = ["predict", str(tmp_path / "b"), str(tmp_path / "f.h5"), "--out", str(tmp_path / "p.csv")]
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


def test_other_arrays_are_refused():
    head = AffineHead(np.zeros((3, 2)), np.zeros(2), np.arange(2))
    assert AffineHead.from_bytes(head.to_bytes()).matrix.shape == (3, 2)
    for change in ({"offset": np.zeros(3)}, {"matrix": np.zeros(3)}, {"matrix": np.zeros((3, 2), np.float32)}):
        with pytest.raises(IntegrityError, match="the arrays of the head have shapes"):
            AffineHead.from_bytes(dataclasses.replace(head, **change).to_bytes())
    with pytest.raises(IntegrityError, match="cannot be read"):
        AffineHead.from_bytes(dataclasses.replace(head, offset=np.array([{}, {}])).to_bytes())
    with pytest.raises(IntegrityError, match="cannot be read"):
        AffineHead.from_bytes(b"no")

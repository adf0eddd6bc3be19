"""The bundle: what is saved is what is loaded, and nothing in it is run."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from helpers import FIXTURES, QUICK, make_store

from pipeline.bundles.bundle import Bundle
from pipeline.errors import BundleError, IntegrityError, UsageError, WeightsError
from pipeline.features.recipe import Recipe
from pipeline.heads.classifiers import HEADS
from pipeline.training.single_label import train_head


@pytest.fixture
def bundle(tmp_path):
    return train_head(make_store(tmp_path / "f.h5"), params={"C": 0.1})[0]


@pytest.mark.parametrize("head", [*HEADS, "sklearn.ensemble.ExtraTreesClassifier", "sklearn.naive_bayes.GaussianNB"])
def test_every_head_is_loaded_as_it_was_saved(tmp_path, head):
    store = make_store(tmp_path / "f.h5")
    bundle, report = train_head(store, head, params=QUICK.get(head, {}), seed=1)
    again = Bundle.load(bundle.save(tmp_path / "b"))
    X = store.features
    np.testing.assert_array_equal(again.probabilities(X), bundle.probabilities(X))
    np.testing.assert_allclose(again.probabilities(X).sum(axis=1), 1, rtol=1e-6)
    for name in ("recipes", "dims", "classes", "head_name", "provenance"):
        assert getattr(again, name) == getattr(bundle, name), name
    assert again.report == json.loads(json.dumps(report.without_times()))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_class_without_training_images_keeps_its_column(tmp_path):
    labels = (np.arange(90) % 3).astype(np.int32)
    labels[labels == 1] = 0
    bundle, _ = train_head(make_store(tmp_path / "f.h5", labels=labels), params={"C": 1.0})
    again = Bundle.load(bundle.save(tmp_path / "b"))
    assert again.probabilities(np.ones((2, 4), np.float32)).shape == (2, 3)
    assert again.probabilities(np.ones((2, 4), np.float32))[:, 1].tolist() == [0, 0]


def test_vectors_of_another_length_are_refused(bundle):
    with pytest.raises(UsageError, match=r"features have shape \(2, 5\), expected \(n, 4\): vectors of mobilenet"):
        bundle.probabilities(np.zeros((2, 5), np.float32))
    assert bundle.probabilities(np.zeros((0, 4), np.float32)).shape == (0, 3)


def test_saving_replaces_a_bundle_and_nothing_else(bundle, tmp_path):
    bundle.save(tmp_path / "b")
    (tmp_path / "b" / "note.txt").write_text("old")
    bundle.save(tmp_path / "b")
    assert not (tmp_path / "b" / "note.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(BundleError, match="mine exists and is not a bundle; choose another --out"):
        bundle.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"


@pytest.mark.parametrize("kernel", [True, False])
def test_a_rename_that_fails_leaves_the_old_bundle(bundle, tmp_path, monkeypatch, kernel):
    from pipeline.bundles import bundle as module

    if not kernel:
        monkeypatch.setattr(module.ctypes, "CDLL", lambda _: None)
    target = bundle.save(tmp_path / "b")
    before = (target / "bundle.json").read_bytes()
    rename = os.rename

    def failing(source, to, **options):
        if str(source).endswith("new"):
            raise OSError(5, "Input/output error")
        return rename(source, to, **options)

    monkeypatch.setattr(os, "rename", failing)
    if kernel:
        assert bundle.save(target) == target  # no rename that could fail half-way
    else:
        with pytest.raises(BundleError, match=r"cannot write .*Input/output error"):
            bundle.save(target)
        assert (target / "bundle.json").read_bytes() == before
    assert Bundle.load(target).classes == bundle.classes
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_head_with_foreign_types_is_refused_before_it_is_saved(bundle, tmp_path):
    class Own(type(bundle.head[-1])):
        pass

    bundle.head.steps[-1] = ("head", Own())
    bundle.head[-1].__dict__.update(train_head(make_store(tmp_path / "g.h5"))[0].head[-1].__dict__)
    with pytest.raises(
        BundleError, match=r"a Own cannot be stored safely: it contains the types .*Own.*; choose another"
    ):
        bundle.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["bundle.json", "head.skops", "report.json"])
def test_changed_bytes_are_noticed(bundle, tmp_path, name):
    path = bundle.save(tmp_path / "b") / name
    raw = path.read_bytes()
    for at in (0, len(raw) // 2, len(raw) - 2):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises((IntegrityError, BundleError), match=name):
            Bundle.load(tmp_path / "b")
    path.unlink()
    with pytest.raises((IntegrityError, BundleError)):
        Bundle.load(tmp_path / "b")


def forge(folder, change):
    """Change the description and make its digest fit, as somebody who means harm would."""
    from pipeline.bundles import bundle as module

    path = folder / "bundle.json"
    content = json.loads(path.read_text())
    change(content)
    for name in content["files"]:
        if (folder / name).is_file() and "/" not in name:
            content["files"][name] = module._sha256((folder / name).read_bytes())
    content["digest"] = module._digest(content)
    path.write_text(json.dumps(content))


def test_a_path_that_climbs_out_is_refused(bundle, tmp_path):
    folder = bundle.save(tmp_path / "b")
    (tmp_path / "secret").write_text("x")
    forge(folder, lambda content: content["files"].update({"../secret": "0" * 64}))
    with pytest.raises(IntegrityError, match=r"lists the unknown file '\.\./secret'"):
        Bundle.load(folder)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def test_a_pickle_is_not_run(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "boom"))
    folder = bundle.save(tmp_path / "b")
    (folder / "head.skops").write_bytes(pickle.dumps(Bomb()))
    forge(folder, lambda content: None)
    with pytest.raises(IntegrityError):
        Bundle.load(folder).estimator()
    assert not (tmp_path / "boom").exists()


def test_a_skops_file_with_an_unknown_type_is_refused(bundle, tmp_path):
    folder = bundle.save(tmp_path / "b")
    path = folder / "head.skops"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = (
        files["schema.json"]
        .replace(b'"LogisticRegression"', b'"Popen"')
        .replace(b'"sklearn.linear_model._logistic"', b'"subprocess"')
    )
    assert schema != files["schema.json"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {"schema.json": schema}).items():
            archive.writestr(name, content)
    forge(folder, lambda content: None)
    with pytest.raises(IntegrityError, match=r"contains the types subprocess\.Popen, which may not be loaded"):
        Bundle.load(folder).estimator()


@pytest.mark.parametrize("head", ["random-forest", "hist-gradient-boosting"])
def test_a_tree_that_points_outside_is_refused(tmp_path, head):
    bundle, _ = train_head(make_store(tmp_path / "f.h5"), head, params=QUICK[head])
    last = bundle.head[-1]
    if head == "random-forest":
        # tree_ hands out views of its own memory
        last.estimators_[0].tree_.children_left[0] = 10**6
    else:
        last._predictors[0][0].nodes["left"][0] = 10**6
    with pytest.raises(IntegrityError, match="has invalid nodes"):
        Bundle.load(bundle.save(tmp_path / "b"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda c: c.update(schema_version=3),
            BundleError,
            "has schema version 3, this package reads up to 2; upgrade",
        ),
        (lambda c: c.update(format="zip"), IntegrityError, "is not a description of a bundle"),
        (lambda c: c.pop("head"), IntegrityError, "does not describe a bundle"),
        (lambda c: c["recipes"][0].update(size="big"), IntegrityError, "not a recipe"),
    ],
)
def test_other_descriptions_are_refused(bundle, tmp_path, change, error, message):
    folder = bundle.save(tmp_path / "b")
    forge(folder, change)
    with pytest.raises(error, match=message):
        Bundle.load(folder)


def test_no_bundle_there(tmp_path):
    with pytest.raises(
        BundleError, match=r"nothing is not a bundle: it has no bundle\.json; make one with train_head\.py"
    ):
        Bundle.load(tmp_path / "nothing")


def test_weights_that_changed_after_training_are_noticed(tmp_path, bundle):
    """A bundle made with random weights of this seed refuses other arrays under the same name."""
    recipe = dataclasses.replace(Recipe("mobilenet_0.25", "random:0", size=32), weights_sha256="0" * 64)
    bundle.recipes = (recipe,)
    again = Bundle.load(bundle.save(tmp_path / "b"))
    with pytest.raises(WeightsError, match="gives other weights"):
        again.predict(np.zeros((40, 40, 3), np.uint8))


def test_a_bundle_is_a_backbone(bundle, tmp_path):
    folder = bundle.save(tmp_path / "b")
    recipe = Recipe.create(folder, pooling="max", size=16)
    assert (recipe.backbone, recipe.weights_sha256) == ("mobilenet", "0" * 64)
    assert (recipe.pooling, recipe.size) == ("max", 16)
    assert Recipe.create(folder) == bundle.recipes[0]
    with pytest.raises(UsageError, match="contains its own weights"):
        Recipe.create(folder, weights="random")


def test_schema_1_stays_readable(tmp_path):
    """Made once by version 0.1.0 (see fixtures/README.md) and never written again."""
    shutil.copytree(FIXTURES / "schema1.bundle", tmp_path / "b")
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.classes == ("ant", "bee")
    assert bundle.head_name == "logreg"
    probabilities = bundle.probabilities(np.array([[0.0, 0.0], [4.0, 4.0]], np.float32))
    assert probabilities.argmax(axis=1).tolist() == [0, 1]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    """Also in another process, where everything has another address."""
    make_store(tmp_path / "f.h5")
    code = """
import sys
from pathlib import Path
from pipeline import train_head
params = {"random-forest": {"n_estimators": 5, "n_jobs": 1}}
for head in ("logreg", "ridge", "random-forest", "knn", "nearest-centroid"):
    train_head(sys.argv[1], head, params=params.get(head, {}), seed=4)[0].save(Path(sys.argv[2]) / head)
"""
    bundles = []
    for number in range(2):
        folder = tmp_path / str(number)
        subprocess.run([sys.executable, "-c", code, tmp_path / "f.h5", folder], check=True)
        bundles.append({file.relative_to(folder): file.read_bytes() for file in folder.glob("*/*")})
    assert len({path.parent for path in bundles[0]}) == 5
    for path, content in bundles[0].items():
        assert bundles[1][path] == content, path
    assert bundles[0].keys() == bundles[1].keys()

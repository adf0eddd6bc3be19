"""Projection, plots, heat maps, similar images, Parquet: on painted images and the fake encoder, or a small network."""

import importlib.util
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from attacks.fake import RECIPE
from helpers import paint
from PIL import Image

from pipeline.bundles.bundle import Bundle
from pipeline.errors import PipelineError, UsageError
from pipeline.features.options import Speed
from pipeline.features.recipe import Recipe
from pipeline.features.store import FeatureStore
from pipeline.heads.affine import AffineHead
from pipeline.insight import projection
from pipeline.insight.explain import Explainer, overlay
from pipeline.insight.page_text import show, verdict
from pipeline.insight.plots import Scored, make_plots
from pipeline.metrics.evaluation import evaluate
from pipeline.metrics.reliability_curve import reliability


@pytest.mark.parametrize("method", ["pca", "tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_the_map_keeps_clusters_apart_and_is_the_same_again(method, monkeypatch, tmp_path, capfd):
    if method == "umap" and not importlib.util.find_spec("umap"):
        pytest.skip("the extra umap is not installed")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 20)) + 20 * np.eye(3, 20)[np.arange(60) % 3]
    points = projection.project(X, method)
    assert points.shape == (60, 2)
    assert points.min() == 0
    assert points.max() == 1
    centres = np.array([points[i::3].mean(axis=0) for i in range(3)])
    own = np.linalg.norm(points - centres[np.arange(60) % 3], axis=1).max()
    assert min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > own
    monkeypatch.setitem(projection.METHODS, method, None)  # so the second answer can only come from the cache
    np.testing.assert_array_equal(projection.project(X, method), points)
    monkeypatch.undo()
    monkeypatch.setenv("TWOSTAGE_CACHE", str(tmp_path))  # nothing is kept here: made once more from the seed
    np.testing.assert_allclose(projection.project(X, method), points, atol=1e-5)
    assert "".join(capfd.readouterr()) == ""


def test_few_points_and_unknown_methods():
    assert projection.project(np.ones((2, 3))).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(UsageError, match="map 'tsn' is unknown; did you mean tsne"):
        projection.project(np.eye(4), "tsn")


def test_umap_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(PipelineError, match=r"run: pip install twostage-features\[umap\]"):
        projection.project(np.random.default_rng(0).random((9, 4)), "umap")


def a_report(classes=("cat", "dog"), **more):
    rng = np.random.default_rng(0)
    y = rng.integers(0, len(classes), 60)
    p = rng.dirichlet(np.ones(len(classes)), 60) + np.eye(len(classes))[y]
    p /= p.sum(axis=1, keepdims=True)
    metrics = {"test": evaluate(y, p, classes, majority=0)}
    report = {"metrics": metrics, "scored_on": "test", "head": "logreg", "params": {"C": 1.0}, **more}
    return report, Scored(y, p, tuple(classes), "test")


def test_plots_are_drawn_where_there_is_something_to_draw(tmp_path):
    plots = make_plots(*a_report())
    assert [plot.name for plot in plots] == ["confusion", "reliability", "coverage", "roc", "precision_recall"]
    more = {
        "history": {
            "loss": [2, 1, 0.5],
            "val_loss": [2, 1, 1.5],
            "accuracy": [0.1, 0.5, 0.9],
            "val_accuracy": [0, 1, 1],
        },
        "candidates": [{"params": {"C": c}, "accuracy": 0.5, "log_loss": 1.0} for c in (0.1, 1.0)],
        "curve": {
            "points": [{"images": 2**i, "accuracy": 0.1 * i, "interval": [0, 1]} for i in range(5)],
            "extrapolation": [{"images": 64, "accuracy": 0.7, "interval": [0.5, 0.9]}],
            "verdict": "more images would help",
        },
        "chosen_on": "validation",
    }
    plots = make_plots(*a_report(classes=("$a_{", "b\n<", "ç帽"), **more))
    assert [plot.name for plot in plots] == [
        "confusion", "history", "candidates", "learning_curve", "reliability", "coverage",
    ]  # fmt: skip
    assert "epoch 2 of 3 were kept" in plots[1].caption
    assert plots[3].caption == "more images would help"
    for plot in plots:
        assert plot.svg().startswith("<svg")
        assert "prefers-color-scheme:dark" in plot.svg()
        png, svg = plot.save(tmp_path)
        assert size_of(png)[0] > 300
        assert svg.read_text().count("</svg>") == 1


@pytest.mark.parametrize("name", ["reliability", "coverage"])
def test_svg_is_the_same_each_time(name):
    first, second = ({plot.name: plot for plot in make_plots(*a_report())}[name].svg() for _ in range(2))
    assert first == second


def test_the_verdict_names_the_baseline_and_the_worst_confusion():
    p = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.9, 0.1]])
    text = verdict(evaluate(np.array([0, 0, 1, 0]), p, ["50% wool", "dog"], majority=0), "validation")
    assert text == (
        "Correct on 2 of 4 validation images: accuracy 50.0 % (95 % confidence interval: 15.0 % to 85.0 %). Always"
        " answering 50% wool would reach 75.0 %. Most frequent mistake: 50% wool predicted as dog (2 of 3)."
    )
    sound = evaluate(np.array([0, 1]), np.eye(2), ["a", "b"], majority=0)
    assert verdict(sound, "test").endswith("There were no mistakes.")


def test_names_are_shown_without_their_odd_characters():
    assert show("a\n\udc80<b>") == r"a\n\udc80<b>"


@pytest.fixture(scope="module")
def small_bundle():
    """A real, small network with random weights, and an affine head on it."""
    recipe = Recipe("mobilenet_0.25", "random:0", size=96)
    rng = np.random.default_rng(0)
    head = AffineHead(rng.standard_normal((256, 3)), rng.standard_normal(3), np.array([0, 1, 2]))
    return Bundle((recipe,), (256,), ("a", "b", "c"), None, "logreg", affine=head)


def size_of(path):
    with Image.open(path) as image:
        return image.size


def photograph():
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8))


def test_the_mean_of_a_heat_map_is_the_logit(small_bundle):
    explainer = Explainer(small_bundle, Speed("openvino"))
    assert explainer.method == "cam"
    image = photograph()
    probability = small_bundle.predict_proba([image], Speed("openvino"))[0]
    maps = [explainer.map(image, label) for label in range(3)]
    assert maps[0].shape == (3, 3)
    logits = np.array([each.mean() for each in maps]) + small_bundle.affine.offset
    odds = np.exp(logits - logits.max())
    np.testing.assert_allclose(odds / odds.sum(), probability, atol=1e-4)


def test_other_heads_are_explained_by_hiding_parts(fake_engine, monkeypatch):
    class Redness:
        classes_ = np.array([0, 1])

        def predict_proba(self, X):
            return np.column_stack([1 - X[:, 0] / 255, X[:, 0] / 255])

    monkeypatch.setattr("pipeline.heads.affine.AffineHead.of", lambda _: None)
    bundle = Bundle((RECIPE,), (3,), ("dull", "red"), Redness(), "knn")
    explainer = Explainer(bundle)
    assert explainer.method == "occlusion"
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[40:56, 8:24, 0] = 255
    heat = explainer.map(pixels, 1)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert heat.shape == (8, 8)
    assert 5 <= row <= 6
    assert 1 <= column <= 2
    assert heat.min() > -0.05


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_colours_lie_where_the_evidence_is(resize):
    heat = np.full((4, 4), -1, np.float32)
    heat[0, 0] = 5
    image = np.asarray(overlay(Image.new("RGB", (80, 40), "black"), heat, resize)).sum(axis=2)
    assert image.shape == (40, 80)
    lit = np.argwhere(image > 200)
    assert (lit[:, 0] < 20).all()
    left, right = {"squash": (0, 30), "crop": (20, 40), "pad": (0, 30)}[resize]
    assert (lit[:, 1] >= left).all()
    assert (lit[:, 1] < right).all()


def test_similar_prints_the_nearest_and_draws_a_sheet(run, made, tmp_path):
    features, _, photos = made
    image = paint(tmp_path / "new.png", (81, 1, 7))
    code, out, err = run("similar", features, image, "--top-k", 3, "--out", tmp_path / "s.png")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "path,label,cosine"
    assert lines[1] == "bee/1.png,bee,1.0000"
    assert size_of(tmp_path / "s.png") == (5 * 188 + 8, 230)
    (photos / "bee" / "1.png").unlink()  # gone since; the search does not need it
    data = json.loads(run("similar", features, image, "--top-k", 99, "--json")[1])
    assert len(data["similar"]) == 15


def test_vectors_become_a_table(run, made, tmp_path):
    features, _, photos = made
    code, out, _ = run("export-vectors", features, "--out", tmp_path / "v.parquet")
    assert (code, out) == (0, f"{tmp_path}/v.parquet: 15 rows\n")
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["path", "image", "label", "split", "group", "vector"]
    store = FeatureStore(features)
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), store.features)
    assert table["path"].to_pylist() == list(store.paths)
    assert table["image"][0].as_py() == str(photos / store.paths[0])
    assert table["label"].to_pylist() == [store.classes[label] for label in store.labels]
    assert run("export-vectors", features, "--out", tmp_path / "v.csv")[0] == 2


def test_predict_writes_heat_maps(run, made, tmp_path):
    _, bundle, photos = made
    (photos / "bee" / "bad.png").write_text("no")
    code, out, err = run("predict", bundle, photos / "bee", "--explain", tmp_path / "heat", "--max-bad", 1)
    assert code == 0, err
    assert len(out.splitlines()) == 7
    assert sorted(path.name for path in (tmp_path / "heat").iterdir()) == [f"{i + 1:06d}_{i}.png" for i in range(5)]
    assert size_of(tmp_path / "heat" / "000001_0.png") == (960, 400)


def test_photographs_that_moved_or_changed_are_told(run, made, tmp_path):
    features, bundle, photos = made
    image = paint(tmp_path / "new.png", (81, 1, 7))
    (photos / "bee" / "1.png").unlink()
    paint(photos / "bee" / "2.png", (9, 9, 9))
    lost = (
        f"missing, unreadable or changed since the extraction: 2 of 15 image files in {photos}; restore them or extract"
    )
    code, _, err = run("similar", features, image, "--out", tmp_path / "s.png", "--top-k", 15)
    assert code == 0
    assert f"note: {lost}" in err
    code, _, err = run("predict", bundle, features, "--explain", tmp_path / "heat", "--out", tmp_path / "p.csv")
    assert code == 0
    assert f"note: no heat maps: {lost}" in err
    assert len(list((tmp_path / "heat").iterdir())) == 13


def test_a_sheet_has_room_for_so_many(run, made, tmp_path, monkeypatch):
    features, _, photos = made
    monkeypatch.setattr("pipeline.insight.similar._MAX_CELLS", 10)
    words = ["similar", features, photos / "bee" / "1.png", "--out", tmp_path / "s.png", "--top-k", 15, "--json"]
    data = json.loads(run(*words)[1])
    assert len(data["similar"]) == 15
    assert data["notes"] == ["the sheet shows the first 9 of 15 images"]
    assert size_of(tmp_path / "s.png")[1] == 2 * 222 + 8


def test_the_calibration_error_is_that_of_the_training():
    report, scored = a_report()
    plots = {plot.name: plot.caption for plot in make_plots(report, scored)}
    assert (
        f"expected calibration error {reliability(scored.y, scored.probabilities)['error']:.3f};"
        in plots["reliability"]
    )
    row = {"from": 0.5, "to": 0.6, "n": 60, "probability": 0.55, "accuracy": 0.5}
    report["metrics"]["test"]["calibration"] = {"after": {"error": 0.05, "chance": 0.01, "n": 60, "bins": [row]}}
    plots = {plot.name: plot.caption for plot in make_plots(report, scored)}
    assert plots["reliability"].startswith("expected calibration error 0.050;")


def test_plots_name_the_class_and_shorten_a_long_name(tmp_path):
    plots = {plot.name: plot for plot in make_plots(*a_report(classes=("cat", "d" * 180)))}
    assert plots["confusion"].figure.axes[0].get_xticklabels()[1].get_text() == "d" * 23 + "…"
    assert plots["roc"].figure.axes[0].get_xlabel() == f"False Positive Rate ({'d' * 23}…)"
    assert plots["precision_recall"].figure.axes[0].get_ylabel() == f"Precision ({'d' * 23}…)"

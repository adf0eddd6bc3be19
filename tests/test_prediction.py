"""Batch prediction: one row per image, in order, from files as from vectors."""

import csv
import dataclasses
import io
import json
import shutil
import tracemalloc

import numpy as np
import pyarrow.parquet
import pytest
from attacks.fake import RECIPE
from helpers import paint
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.errors import PipelineError, UsageError
from pipeline.features.options import Speed
from pipeline.features.store import FeatureStore, write_store
from pipeline.prediction import Prediction, columns, list_images, predict, write_predictions
from pipeline.training.single_label import train_head

pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.fixture
def bundle(store):
    return train_head(store, "nearest-centroid", cv=2)[0]


def files(photos, store):
    return [str(photos / path) for path in store.paths]


def test_from_files_as_from_vectors(photos, store, bundle):
    one = list(predict(bundle, files(photos, store), top_k=3))
    two = list(predict(bundle, store, top_k=3))
    assert [row._replace(path="") for row in one] == [row._replace(path="") for row in two]
    assert [row.path for row in two] == list(store.paths)
    assert [row.labels[0] for row in one] == [path.split("/")[0] for path in store.paths]
    for row in one:
        assert sum(row.probabilities) == pytest.approx(1)
        assert list(row.probabilities) == sorted(row.probabilities, reverse=True)


def test_bundle_predict_agrees(photos, store, bundle):
    paths = files(photos, store)
    rows = list(predict(bundle, paths))
    assert bundle.predict(paths).tolist() == [row.labels[0] for row in rows]
    np.testing.assert_array_equal(bundle.predict_proba(paths).max(axis=1), [row.probabilities[0] for row in rows])
    assert bundle.predict(paths[0]).tolist() == [rows[0].labels[0]]
    assert bundle.predict(np.full((9, 9, 3), 85, np.uint8)).shape == (1,)


def test_a_bad_image_keeps_its_place(photos, store, bundle):
    paths = files(photos, store)
    (photos / "bad.jpg").write_text("hello")
    asked = [paths[0], str(photos / "bad.jpg"), paths[14], str(photos / "gone.png"), paths[7]]
    for batch_size in (1, 2, 32):
        rows = list(predict(bundle, asked, speed=Speed(batch_size=batch_size)))
        assert [row.path for row in rows] == asked
        assert [row.status.split(":")[0] for row in rows] == ["ok", "not-an-image", "ok", "missing", "ok"]
        assert [row.labels for row in rows] == [("ant",), (), ("cow",), (), ("bee",)]


def test_only_bad_images(tmp_path, bundle):
    assert [row.labels for row in predict(bundle, [str(tmp_path / "a"), str(tmp_path / "b")])] == [(), ()]
    assert list(predict(bundle, [])) == []


def test_the_same_image_twice(photos, store, bundle):
    path = files(photos, store)[0]
    assert len(list(predict(bundle, [path, path]))) == 2


def test_joined_bundles_decode_once_per_size(photos, store, tmp_path):
    other = tmp_path / "g.h5"
    index = dataclasses.replace(store.index, recipe=dataclasses.replace(RECIPE, size=16))
    write_store(other, index, [store.features])
    bundle, _ = train_head([store, FeatureStore(other)], "nearest-centroid", cv=2)
    rows = list(predict(bundle, files(photos, store)))
    assert [row.labels[0] for row in rows] == [path.split("/")[0] for path in store.paths]
    with pytest.raises(UsageError, match=r"none was made with .* at 16 px .*; predict from the images instead"):
        predict(bundle, store)


def test_joined_bundles_predict_from_feature_files_by_image(photos, store, tmp_path):
    def write(name, rows, **changes):
        index = dataclasses.replace(
            store.index,
            recipe=dataclasses.replace(RECIPE, size=16),
            **{each: [getattr(store.index, each)[row] for row in rows] for each in ("paths", "splits", "groups")},
            **{each: getattr(store.index, each)[rows] for each in ("labels", "digests", "sizes_mtimes")},
        )
        write_store(tmp_path / name, dataclasses.replace(index, **changes), [store.features[rows]])
        return FeatureStore(tmp_path / name)

    other = write("g.h5", list(range(15))[::-1])
    bundle, _ = train_head([store, other], "nearest-centroid", cv=2)
    expected = list(predict(bundle, files(photos, store)))
    for both in ([store, other], [other, store]):
        rows = {row.path: row for row in predict(bundle, both)}
        assert list(rows) == list(store.paths)  # the order of the file that the bundle names first
        assert [(row.labels, row.status) for row in rows.values()] == [(row.labels, row.status) for row in expected]
        np.testing.assert_allclose([r.probabilities for r in rows.values()], [r.probabilities for r in expected])
    digests = store.index.digests[1:].copy()
    digests[0] += 1
    rows = list(predict(bundle, [store, write("lacking.h5", list(range(1, 15)), digests=digests)]))
    assert [row.status.split(":")[0] for row in rows] == ["missing", "changed", *["ok"] * 13]
    assert rows[0].labels == ()
    assert rows[5].labels == expected[5].labels
    with pytest.raises(UsageError, match="a feature file was given twice; give it once"):
        predict(bundle, [store, other, store])
    with pytest.raises(UsageError, match=r"copy\.h5 was made with .*, the bundle expects .*; leave it out"):
        predict(bundle, [store, other, FeatureStore(shutil.copy(store.path, tmp_path / "copy.h5"))])
    with pytest.raises(UsageError, match="a path is empty"):
        list(list_images(["a.jpg", ""]))


def test_wrong_requests(store, bundle):
    with pytest.raises(UsageError, match="top-k 4 is out of range; the bundle has 3 classes"):
        predict(bundle, [], top_k=4)
    with pytest.raises(UsageError, match=r"cannot tell the format of 'x\.txt'; end it in \.csv, \.jsonl, \.parquet"):
        write_predictions([], "x.txt")


def test_memory_does_not_grow_with_the_images(photos, store, bundle):
    def peak(count):
        path = files(photos, store)[0]
        tracemalloc.start()
        assert sum(1 for _ in predict(bundle, (path for _ in range(count)))) == count
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    peak(100)
    assert peak(3000) < 2 * peak(300)


def test_folders_files_manifests_and_lines(photos, tmp_path, monkeypatch):
    table = photos.parent / "t.csv"
    table.write_text("path\nphotos/ant/1.png\n")
    monkeypatch.chdir(photos.parent)
    lines = io.TextIOWrapper(io.BytesIO(b"photos/bee/0.png\r\n\nodd \xff name.png\n"))
    monkeypatch.setattr("sys.stdin", lines)
    assert list(list_images(["photos/cow", "x.jpg", "t.csv", "-"])) == [
        *[f"photos/cow/{i}.png" for i in range(5)],
        "x.jpg",
        "photos/ant/1.png",
        "photos/bee/0.png",
        "odd \udcff name.png",
    ]


ROWS = [
    Prediction("a.jpg", "ok", ("cat", "dog"), (0.75, 0.25)),
    Prediction('we"ird,\n\udcff.jpg', "truncated: no end"),
    Prediction("<img onerror=x>.jpg", "ok", ("dog", "cat"), (1.0, 0.0)),
]


def test_csv(tmp_path):
    counts = write_predictions(iter(ROWS), tmp_path / "new" / "p.csv", top_k=2)
    assert counts == {"ok": 2, "truncated": 1}
    with (tmp_path / "new" / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == columns(2)
    assert [row["path"] for row in rows] == ["a.jpg", 'we"ird,\n\\udcff.jpg', "<img onerror=x>.jpg"]
    assert rows[0]["probability"] == "0.750000"
    assert rows[1] == {"path": rows[1]["path"], "status": "truncated: no end"} | dict.fromkeys(columns(2)[2:], "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.csv"]


def test_json_lines(tmp_path):
    write_predictions(ROWS, tmp_path / "p.jsonl", top_k=2)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == [row.path for row in ROWS]
    assert rows[1]["label"] is None
    assert rows[0]["probability_2"] == 0.25


def test_parquet(tmp_path):
    write_predictions(ROWS, tmp_path / "p.parquet", top_k=2)
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table.column_names == columns(2)
    assert table["label"].to_pylist() == ["cat", None, "dog"]
    assert table["probability"].to_pylist() == [0.75, None, 1.0]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=5))
def test_any_name_survives_csv(tmp_path_factory, names):
    out = tmp_path_factory.mktemp("csv") / "p.csv"
    write_predictions([Prediction(name, "ok", ("x",), (1.0,)) for name in names], out)
    with out.open(encoding="utf-8", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == names


def test_a_failure_leaves_the_old_table(tmp_path):
    (tmp_path / "p.csv").write_text("old")

    def rows():
        yield ROWS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_predictions(rows(), tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match=r"cannot write .*; make space or choose another --out"):
        write_predictions(ROWS, tmp_path / "file" / "p.csv")


def test_the_six_lines_of_the_readme(photos, tmp_path, monkeypatch):
    """`extract`, `train_head`, `Bundle` under their public names."""
    store = pipeline.extract(photos, out=tmp_path / "p.h5", backbone="mobilenet", weights="random", size=32)
    bundle, _ = pipeline.train_head(store, head="lda", cv=2)
    bundle.save(tmp_path / "p.bundle")
    paint(tmp_path / "new.png", (161, 1, 7))
    assert pipeline.Bundle.load(tmp_path / "p.bundle").predict([tmp_path / "new.png"]).tolist() == ["cow"]
    shutil.rmtree(tmp_path / "p.bundle")

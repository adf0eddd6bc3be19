"""The index beside a feature file, against the exact search."""

import dataclasses
import sys

import numpy as np
import pytest
from helpers import make_index, paint

from pipeline.errors import LockedError, PipelineError, StoreError, UsageError
from pipeline.features import vector_index
from pipeline.features.neighbours import nearest
from pipeline.features.store import FeatureStore, write_store
from pipeline.features.vector_index import VectorIndex, index_path
from pipeline.files import locked

pytest.importorskip("faiss")


def store_of(path, X, **changes):
    index = make_index([f"{i:05d}.jpg" for i in range(len(X))], X.shape[-1])
    write_store(path, dataclasses.replace(index, **changes), [X])
    return FeatureStore(path)


def clusters(n, d=160, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, d))
    return (centres[np.arange(n) % 20] + rng.standard_normal((n, d))).astype(np.float32)


@pytest.fixture
def built(monkeypatch):
    """Every store whose index was built."""
    stores, build = [], vector_index._build
    monkeypatch.setattr(vector_index, "_build", lambda store, *rest: stores.append(store) or build(store, *rest))
    return stores


def test_it_finds_what_the_exact_search_finds(tmp_path):
    X = clusters(6000)
    store = store_of(tmp_path / "f.h5", X)
    seen = []
    index = VectorIndex.of(store, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6000, 6000)
    found = 0
    for query in clusters(40, seed=0) + 0.3:
        rows, cosines = index.nearest(query, 10)
        exact, _ = nearest(query, [(0, X)], 10)
        true = X[rows] @ query / np.linalg.norm(X[rows], axis=1) / np.linalg.norm(query)
        np.testing.assert_allclose(cosines, true, rtol=1e-5)
        assert (np.diff(cosines) <= 0).all()
        found += len(set(rows.tolist()) & set(exact.tolist()))
    assert found >= 0.95 * 400


def test_small_files(tmp_path):
    for n in (1, 2, 50):
        X = clusters(n, d=9)
        rows, cosines = VectorIndex.of(store_of(tmp_path / f"{n}.h5", X)).nearest(X[0], 99)
        assert sorted(rows.tolist()) == list(range(n))
        assert rows[0] == 0
        assert cosines[0] == pytest.approx(1)
    with pytest.raises(UsageError, match=r"0\.h5 has no images; extract some first"):
        VectorIndex.of(store_of(tmp_path / "0.h5", np.empty((0, 9), np.float32)))


def test_it_is_kept_until_the_images_change(tmp_path, built):
    X = clusters(300)
    store = store_of(tmp_path / "f.h5", X)
    rows, _ = VectorIndex.of(store).nearest(X[7])
    again, _ = VectorIndex.of(store).nearest(X[7])
    assert rows.tolist() == again.tolist()
    assert len(built) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"f.h5", "f.h5.index"}
    labelled = store_of(tmp_path / "f.h5", X, labels=np.zeros(300, np.int32), classes=("a",))
    VectorIndex.of(labelled)
    assert len(built) == 1
    fewer = store_of(tmp_path / "f.h5", X[:200])
    rows, _ = VectorIndex.of(fewer).nearest(X[250], 200)
    assert len(built) == 2
    assert rows.max() < 200


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_index_is_made_anew(tmp_path, built, damage):
    X = clusters(300)
    store = store_of(tmp_path / "f.h5", X)
    VectorIndex.of(store)
    path = index_path(store)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    changed = {"flip": bytes(content), "cut": path.read_bytes()[:-9], "empty": b"", "foreign": b"{}\n" * 99}
    path.write_bytes(changed[damage])
    assert VectorIndex.of(store).nearest(X[7])[0][0] == 7
    assert len(built) == 2


def test_the_image_as_it_is_stands_for_its_views(tmp_path):
    X = np.stack([clusters(50), clusters(50, seed=1)], axis=1)
    index = make_index([f"{i}.jpg" for i in range(50)], 160)
    recipe = dataclasses.replace(index.recipe, views="flip")
    store = store_of(tmp_path / "f.h5", X, recipe=recipe)
    assert VectorIndex.of(store).nearest(X[7, 0], 1)[0].tolist() == [7]


def test_a_folder_in_its_place(tmp_path):
    store = store_of(tmp_path / "f.h5", clusters(50))
    index_path(store).mkdir()
    with pytest.raises(StoreError, match=r"f\.h5\.index: Is a directory; remove it, or search without --index"):
        VectorIndex.of(store)


def test_faiss_says_nothing(tmp_path, capfd):
    VectorIndex.of(store_of(tmp_path / "f.h5", clusters(208)))
    assert capfd.readouterr() == ("", "")


def test_one_process_makes_it(tmp_path):
    store = store_of(tmp_path / "f.h5", clusters(50))
    with (
        locked(index_path(store)),
        pytest.raises(LockedError, match=r"f\.h5\.index is being written by .*wait for it; or search without"),
    ):
        VectorIndex.of(store)


def test_without_its_package_it_says_what_to_install(tmp_path, monkeypatch):
    store = store_of(tmp_path / "f.h5", clusters(50))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(PipelineError, match=r"needs the package faiss; run: pip install twostage-features\[index\]"):
        VectorIndex.of(store)
    assert not index_path(store).exists()


def test_similar_by_index(run, made, tmp_path):
    features, _, _ = made
    image = paint(tmp_path / "new.png", (81, 1, 7))
    exact = run("similar", features, image, "--top-k", 3)
    indexed = run("similar", features, image, "--top-k", 3, "--index")
    assert indexed[0] == 0, indexed[2]
    assert indexed[1] == exact[1]
    assert features.with_name(f"{features.name}.index").exists()

"""The feature file: round trip, plain h5py, damage, hostile files, old formats."""

import hashlib
import json
import pickle
import random
import shutil

import h5py
import numpy as np
import pytest
from attacks.fake import RECIPE
from helpers import FIXTURES, make_index
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import IntegrityError, StoreError
from pipeline.features.store import FeatureStore, Skipped, verify, write_part, write_store

NAMES = (
    st.binary(min_size=1, max_size=40)
    .filter(lambda raw: b"\0" not in raw)
    .map(lambda raw: raw.decode("utf-8", "surrogateescape"))
)


@pytest.fixture
def sound(tmp_path):
    """A sound feature file of 40 rows."""
    index = make_index([f"a/{i}.jpg" for i in range(40)], dim=5)
    vectors = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    path = tmp_path / "sound.h5"
    write_store(path, index, [vectors])
    return path, index, vectors


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    paths=st.lists(NAMES, unique=True, max_size=12),
    dim=st.integers(1, 9),
    text=st.lists(NAMES, unique=True, max_size=3),
    data=st.data(),
)
def test_what_is_written_is_read(tmp_path, paths, dim, text, data):
    vectors = data.draw(arrays(np.float32, (len(paths), dim), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
    index = make_index(
        paths,
        dim,
        classes=tuple(sorted({"x", "y", *text})),
        groups=[path[:3] for path in paths],
        skipped=tuple(Skipped(each, "unreadable: " + each, -1, -1) for each in text),
    )
    target = tmp_path / "s.h5"
    write_store(target, index, [vectors[:1], vectors[1:]])
    with FeatureStore(target) as store:
        assert store.index.same_content(index)
        assert store.index.created_with == index.created_with
        np.testing.assert_array_equal(store.features, vectors)
        order = np.array(data.draw(st.lists(st.integers(0, len(paths) - 1), max_size=9)) if paths else [], np.int64)
        np.testing.assert_array_equal(store.take(order), vectors[order, None])
    assert verify(target) == []
    assert [each.name for each in tmp_path.iterdir()] == ["s.h5"], "a temporary file was left"


def test_a_part_is_a_feature_file_too(tmp_path, sound):
    _, index, vectors = sound
    write_part(tmp_path / "part.h5", index, vectors)
    with FeatureStore(tmp_path / "part.h5") as store:
        assert store.index.same_content(index)
        np.testing.assert_array_equal(store.features, vectors)


def test_plain_h5py_reads_the_documented_names(sound):
    path, _, vectors = sound
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features"][:], vectors)
        assert file["features"].dtype == np.float32
        assert file["paths"][0] == b"a/0.jpg"
        assert file["labels"].dtype == np.int32
        assert file["digests"].shape == (40, 32)
        assert file["digests"].dtype == np.uint8
        assert file["sizes_mtimes"].dtype == np.int64
        assert set(file["splits"][:]) == {b"train"}
        assert file["skipped/paths"][:].tolist() == [b"bad.jpg"]
        assert file["skipped/reasons"][:].tolist() == [b"truncated: in row 3"]
        assert file.attrs["format_version"] == 1
        assert json.loads(file.attrs["classes"]) == ["ant", "bee"]
        assert json.loads(file.attrs["segments"]) == {"last": [0, 5]}
        canonical = json.dumps(RECIPE.identity(), sort_keys=True, separators=(",", ":"))
        assert file.attrs["fingerprint"] == hashlib.sha256(canonical.encode()).hexdigest().encode()
        file.visititems(lambda name, node: isinstance(node, h5py.Group) or _is_safe(name, node))


def _is_safe(name, dataset):
    assert dataset.fletcher32, name
    assert h5py.check_string_dtype(dataset.dtype) is None or h5py.check_string_dtype(dataset.dtype).length, name


def test_float16_halves_and_refuses_what_overflows(tmp_path):
    index = make_index(["a", "b"])
    write_store(tmp_path / "h.h5", index, [np.full((2, 3), 1.5, np.float32)], "float16")
    with FeatureStore(tmp_path / "h.h5") as store:
        assert store.dtype == np.float16
        assert store.features.dtype == np.float32
        np.testing.assert_array_equal(store.features, 1.5)
    with pytest.raises(StoreError, match=r"7e\+04 does not fit into float16 .* use --dtype float32"):
        write_store(tmp_path / "h.h5", index, [np.full((2, 3), 7e4, np.float32)], "float16")
    with FeatureStore(tmp_path / "h.h5") as store:  # the old file is untouched
        np.testing.assert_array_equal(store.features, 1.5)


def test_large_attributes(tmp_path):
    classes = tuple(f"class number {i:06d}" for i in range(20_000))
    write_store(tmp_path / "c.h5", make_index(["a"], classes=classes), [np.zeros((1, 3), np.float32)])
    with FeatureStore(tmp_path / "c.h5") as store:
        assert store.classes == classes


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path, sound):
    path, index, vectors = sound
    raw = path.read_bytes()
    rng = random.Random(0)
    target, noticed = tmp_path / "flipped.h5", 0
    for _ in range(300):
        flipped = bytearray(raw)
        flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        target.write_bytes(flipped)
        try:
            with FeatureStore(target) as store:
                assert store.index.same_content(index)
                np.testing.assert_array_equal(store.features, vectors)
        except IntegrityError:
            noticed += 1
    assert noticed > 200


@pytest.mark.parametrize("shift", [0, 1])
def test_zeros_that_became_ones_are_noticed(tmp_path, shift):
    """As an erased flash block has them; Fletcher-32 alone takes 0xFFFF for 0x0000."""
    path, vectors = tmp_path / "z.h5", np.zeros((40, 64), np.float32)
    vectors[::3] = 7
    write_store(path, make_index([str(i) for i in range(40)], 64), [vectors])
    with h5py.File(path) as file:
        chunk = file["features"].id.get_chunk_info(0)
        assert chunk.filter_mask == 0, "a filter was left out"
    raw = bytearray(path.read_bytes())
    start = chunk.byte_offset + 600 + shift
    assert not any(raw[start : start + 8])
    raw[start : start + 8] = b"\xff" * 8
    path.write_bytes(raw)
    with FeatureStore(path) as store, pytest.raises(IntegrityError, match=r"z\.h5 is damaged"):
        _ = store.features


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 5000, -1])
def test_a_truncated_file_is_an_error(tmp_path, sound, keep):
    path, _, _ = sound
    target = tmp_path / "short.h5"
    target.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match=r"short\.h5"):
        FeatureStore(target)
    assert len(verify(target)) == 1


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(StoreError, match=r"cannot read .*no\.h5: No such file .* make it with extract\.py"):
        FeatureStore(tmp_path / "no.h5")
    with pytest.raises(StoreError, match="Is a directory"):
        FeatureStore(tmp_path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(IntegrityError, match="not a feature file"):
        FeatureStore(tmp_path / "other.h5")


def _replace(file, name, **how):
    del file[name]
    if "link" in how:
        file[name] = how["link"]
    else:
        file.create_dataset(name, **how)


HOSTILE = {
    "a soft link": (lambda f: _replace(f, "features", link=h5py.SoftLink("/labels")), "a link to another place"),
    "an external link": (
        lambda f: _replace(f, "paths", link=h5py.ExternalLink("x.h5", "/y")),
        "a link to another place",
    ),
    "external storage": (
        lambda f: _replace(f, "features", shape=(40, 5), dtype="f4", external=[("/etc/hostname", 0, 800)]),
        "not a chunked dataset stored in this file",
    ),
    "no checksums": (lambda f: _replace(f, "labels", data=np.zeros(40, np.int32), chunks=(40,)), "has no checksums"),
    "an absurd shape": (
        lambda f: _replace(f, "features", shape=(2**40, 5), dtype="f4", chunks=(1, 5), fletcher32=True),
        "claims 21990232555520 bytes but stores 0",
    ),
    "fewer labels": (
        lambda f: _replace(f, "labels", data=np.zeros(39, np.int32), chunks=(39,), fletcher32=True),
        "40 vectors, but",
    ),
    "labels without class": (
        lambda f: _replace(f, "labels", data=np.full(40, 2, np.int32), chunks=(40,), fletcher32=True),
        "labels range from 2 to 2, with 2 classes",
    ),
    "another recipe": (lambda f: f.attrs.modify("fingerprint", np.bytes_("0" * 64)), "fingerprint does not match"),
    "a newer format": (lambda f: f.attrs.modify("format_version", 2), "newer than 1; upgrade"),
    "another format": (lambda f: f.attrs.modify("format", np.bytes_("csv")), "is not a feature file"),
    "wrong segments": (lambda f: f.attrs.modify("segments", np.bytes_('{"last":[0,4]}')), "expected .* for segments"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path, sound, name):
    change, message = HOSTILE[name]
    target = tmp_path / "hostile.h5"
    shutil.copy(sound[0], target)
    with h5py.File(target, "r+", libver="latest") as file:
        change(file)
    with pytest.raises(StoreError if "newer" in name else IntegrityError, match=message):
        FeatureStore(target)


def test_a_virtual_dataset_is_refused(tmp_path, sound):
    target = tmp_path / "virtual.h5"
    shutil.copy(sound[0], target)
    with h5py.File(target, "r+", libver="latest") as file:
        layout = h5py.VirtualLayout((40, 5), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "gone.h5"), "features", (40, 5))
        del file["features"]
        file.create_virtual_dataset("features", layout, fillvalue=7)
    with pytest.raises(IntegrityError, match="not a chunked dataset stored in this file"):
        FeatureStore(target)


def test_verify_names_rows_that_are_not_finite(tmp_path):
    vectors = np.ones((3, 3), np.float32)
    vectors[1, 2] = np.nan
    write_store(tmp_path / "n.h5", make_index(["a", "b", "c"]), [vectors])
    seen = []
    assert verify(tmp_path / "n.h5", lambda done, total: seen.append((done, total))) == ["row 1 ('b') is not finite"]
    assert seen == [(3, 3)]


def test_a_reader_keeps_the_old_file(sound):
    path, index, vectors = sound
    with FeatureStore(path) as store:
        write_store(path, index, [vectors + 1])
        np.testing.assert_array_equal(store.features, vectors)
    with FeatureStore(path) as store:
        np.testing.assert_array_equal(store.features, vectors + 1)


def test_a_store_can_be_pickled(sound):
    with FeatureStore(sound[0]) as store, pickle.loads(pickle.dumps(store)) as again:
        assert again.index.same_content(store.index)


def test_format_1_stays_readable():
    """Made once by the code of format 1 (see fixtures/README.md) and never written again."""
    with FeatureStore(FIXTURES / "format1.h5") as store:
        assert store.paths == ["ant/0.png", "ant/caf\udce9\n.png", "bee/1.png"]
        assert store.labels.tolist() == [0, 0, 1]
        assert store.classes == ("ant", "bee")
        assert list(store.splits) == ["train", "validation", ""]
        assert list(store.index.groups) == ["g", "", ""]
        assert store.recipe.backbone == "mobilenet_0.25"
        assert store.recipe.fingerprint == "0dc1e4326d6c999c41a004848824858cf8046d4929befbf9590766dcee3533e2"
        assert store.skipped == {"bee/bad.png": "truncated: in row 3"}
        np.testing.assert_array_equal(store.features, np.arange(6, dtype=np.float32).reshape(3, 2) / 4)
    assert verify(FIXTURES / "format1.h5") == []

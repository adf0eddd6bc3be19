"""Engine openvino: equal to Keras; a cache that is checked, rebuilt, shared, and makes TensorFlow unnecessary."""

import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipeline import files
from pipeline.errors import EngineError
from pipeline.features import openvino_engine
from pipeline.features.engines import Speed, choose_engine, make_encoder
from pipeline.features.keras_engine import KerasEncoder, has_gpu
from pipeline.features.openvino_engine import OpenVinoEncoder, cached_network
from pipeline.features.recipe import Recipe

SMALL = Recipe("mobilenet_0.25", "random:0", size=32)
PIXELS = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of this test's own."""
    monkeypatch.setenv("TWOSTAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "networks"


@pytest.fixture(scope="module")
def network():
    """The small network as it is converted; conversion takes seconds, so the tests of the cache share it."""
    return openvino_engine._convert(SMALL)


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pooling": "max"},
        {"layers": ("conv_pw_5_relu", "last")},
        {"layers": ("conv_pw_5_relu",), "pooling": "flatten"},
    ],
    ids=str,
)
def test_equal_to_keras(changes):
    recipe = dataclasses.replace(SMALL, **changes)
    keras, ours = KerasEncoder(recipe, 4), OpenVinoEncoder(recipe, 4)
    assert ours.segments == keras.segments
    assert ours.recipe == keras.recipe
    assert relative(ours.encode(PIXELS), keras.encode(PIXELS)) < 1e-4


def test_batch_order_and_repetition_do_not_change_a_row():
    encoder = OpenVinoEncoder(SMALL, 8)
    rows = encoder.encode(PIXELS)
    np.testing.assert_array_equal(encoder.encode(PIXELS[::-1])[::-1], rows)
    np.testing.assert_array_equal(encoder.encode(PIXELS[[3, 3]])[1], rows[3])
    for batch_size in (1, 7, 32):
        assert relative(OpenVinoEncoder(SMALL, batch_size).encode(PIXELS), rows) < 1e-5
    assert encoder.encode(PIXELS[:0]).shape == (0, 256)


def test_the_cached_network_needs_no_keras(cache):
    code = (
        "import sys, numpy as np; from pipeline.features.openvino_engine import OpenVinoEncoder\n"
        "from pipeline.features.recipe import Recipe\n"
        "OpenVinoEncoder(Recipe('mobilenet_0.25', 'random:0', size=32), 4).encode(np.zeros((2, 32, 32, 3), np.uint8))\n"
        "print(sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert outputs == ["['keras', 'tensorflow']\n", "[]\n"]
    assert [path.name.startswith(".") for path in cache.iterdir()] == [False]


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "network.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_cache_is_rebuilt_never_used(cache, network, monkeypatch, name, damage):
    converted = []
    monkeypatch.setattr(openvino_engine, "_convert", lambda recipe: converted.append(recipe) or network)
    expected = OpenVinoEncoder(SMALL, 4).encode(PIXELS)
    assert len(converted) == 1
    (folder,) = cache.iterdir()
    path = folder / name
    sound = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(sound) // 2
        flipped = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
        path.write_bytes(flipped if damage == "flip" else sound[:middle])
    np.testing.assert_array_equal(OpenVinoEncoder(SMALL, 4).encode(PIXELS), expected)
    assert len(converted) == 2
    OpenVinoEncoder(SMALL, 4)
    assert len(converted) == 2, "the rebuilt network was not kept"


def test_every_part_of_the_recipe_has_its_own_network(cache, network, monkeypatch):
    monkeypatch.setattr(openvino_engine, "_convert", lambda recipe: network)
    for changes in ({}, {"weights": "random:1"}, {"pooling": "max"}, {"layers": ("conv_pw_5_relu",)}):
        cached_network(dataclasses.replace(SMALL, **changes))
    assert len(list(cache.iterdir())) == 4
    cached_network(dataclasses.replace(SMALL, resize="pad"))
    assert len(list(cache.iterdir())) == 4, "the resize policy is no part of the network"


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, network, monkeypatch):
    monkeypatch.setattr(openvino_engine, "_convert", lambda recipe: network)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TWOSTAGE_CACHE", str(tmp_path / "file"))
    assert OpenVinoEncoder(SMALL, 4).encode(PIXELS).shape == (11, 256)


def test_two_processes_may_fill_the_cache_at_once(cache, network):
    folder = cache / "one"
    openvino_engine._write(network, folder)
    openvino_engine._write(network, folder)
    assert openvino_engine._read(folder) == network
    shutil.rmtree(folder)
    assert openvino_engine._read(folder) is None


def test_bfloat16_where_the_processor_has_it():
    recipe = dataclasses.replace(SMALL, precision="bfloat16")
    try:
        encoder = OpenVinoEncoder(recipe, 4)
    except EngineError as error:
        assert "not BF16; use --precision float32" in str(error)  # noqa: PT017
        pytest.skip("this processor has no bfloat16")
    ours, exact = encoder.encode(PIXELS), OpenVinoEncoder(SMALL, 4).encode(PIXELS)
    assert 1e-5 < np.linalg.norm(ours - exact) / np.linalg.norm(exact) < 0.1
    assert encoder.recipe.precision == "bfloat16"
    assert encoder.recipe.fingerprint != OpenVinoEncoder(SMALL, 4).recipe.fingerprint


def test_bfloat16_is_refused_where_the_processor_lacks_it(monkeypatch):
    class Core:
        def get_property(self, *_):
            return ["FP32", "INT8"]

    monkeypatch.setattr("openvino.Core", Core)
    with pytest.raises(EngineError, match=r"this CPU supports FP32, INT8, not BF16; use --precision float32"):
        OpenVinoEncoder(dataclasses.replace(SMALL, precision="bfloat16"), 4)


def test_auto_is_openvino_without_a_gpu(monkeypatch):
    monkeypatch.setattr("pathlib.Path.glob", lambda *_: iter([]))
    assert choose_engine() == "openvino"
    monkeypatch.setattr("pathlib.Path.glob", lambda *_: iter(["nvidia0"]))
    assert choose_engine() == "keras"


def test_both_engines_by_name():
    for name in ("keras", "openvino"):
        assert make_encoder(SMALL, Speed(name)).name == name


def test_the_folder_of_the_cache(monkeypatch):
    monkeypatch.setenv("TWOSTAGE_CACHE", "/somewhere")
    assert os.fspath(files.cache_folder()) == "/somewhere"
    monkeypatch.delenv("TWOSTAGE_CACHE")
    assert "twostage" in os.fspath(files.cache_folder())


def test_float16_needs_a_gpu():
    half = dataclasses.replace(SMALL, precision="float16")
    with pytest.raises(EngineError, match="does not compute float16; use --precision float32 or bfloat16"):
        OpenVinoEncoder(half, 4)
    if not has_gpu():
        with pytest.raises(
            EngineError, match=r"computes float16 on a GPU only, and TensorFlow finds none; use --engine"
        ):
            KerasEncoder(half, 4)


def test_a_gpu_gives_the_vectors_of_the_processor():
    if not has_gpu():
        pytest.skip("TensorFlow sees no GPU here")
    exact = OpenVinoEncoder(SMALL, 4).encode(PIXELS)
    assert relative(KerasEncoder(SMALL, 4).encode(PIXELS), exact) < 1e-3
    half = KerasEncoder(dataclasses.replace(SMALL, precision="float16"), 4).encode(PIXELS)
    assert np.linalg.norm(half - exact) / np.linalg.norm(exact) < 0.05

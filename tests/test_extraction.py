"""Stage 1 with the fake encoder: order, resume, increment, skips, kills; and with real networks."""

import contextlib
import os
import resource
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from attacks.fake import Factory
from helpers import fill, paint
from hypothesis import given
from hypothesis import strategies as st

import pipeline.features.extraction as extraction
from pipeline import files
from pipeline.errors import IntegrityError, LockedError, ManifestError, RecipeMismatchError, StoreError, UsageError
from pipeline.features import image_encoder
from pipeline.features.extraction import extract, fill_store
from pipeline.features.options import Speed
from pipeline.features.plan import Digests
from pipeline.files import locked
from pipeline.images.manifest import Manifest
from pipeline.parallel import ahead


def colours(folder, store):
    """What the fake encoder must give for each stored path of the fixture `photos`."""
    label = {"ant": 0, "bee": 1, "cow": 2}
    expected = []
    for path in store.paths:
        name, file = path.split("/")
        i = int(file.removesuffix(".png"))
        expected.append((80 * label[name] + i, i, 7))
    return np.array(expected, np.float32)


def test_rows_follow_the_manifest(photos, tmp_path):
    with fill(photos, tmp_path / "f.h5") as store:
        assert store.paths == [f"{name}/{i}.png" for name in ("ant", "bee", "cow") for i in range(5)]
        np.testing.assert_array_equal(store.features, colours(photos, store))
        assert store.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
        assert store.classes == ("ant", "bee", "cow")
        assert store.index.root == str(photos)
        assert store.summary.extracted == 15
        assert store.index.created_with["engine"] == "fake"


def test_a_second_run_makes_no_encoder(photos, tmp_path):
    fill(photos, tmp_path / "f.h5").close()
    before = (tmp_path / "f.h5").read_bytes()
    factory = Factory()
    with fill(photos, tmp_path / "f.h5", factory) as store:
        assert (store.summary.extracted, store.summary.reused) == (0, 15)
    assert factory.made == []
    assert (tmp_path / "f.h5").read_bytes() == before


def test_the_same_run_gives_the_same_bytes(photos, tmp_path):
    fill(photos, tmp_path / "1.h5").close()
    fill(photos, tmp_path / "2.h5", threads=1).close()
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "2.h5").read_bytes()


@pytest.mark.parametrize("batch_size", [1, 4, 7, 32])
def test_batch_size_changes_nothing(photos, tmp_path, batch_size):
    with fill(photos, tmp_path / "f.h5", Factory(batch_size)) as store:
        np.testing.assert_array_equal(store.features, colours(photos, store))


def test_only_what_is_new_or_changed_is_extracted(photos, tmp_path):
    fill(photos, tmp_path / "f.h5").close()
    paint(photos / "bee" / "2.png", (1, 2, 3))  # changed
    paint(photos / "ant" / "9.png", (9, 9, 7))  # new, sorts among the old ones
    (photos / "cow" / "0.png").unlink()  # vanished
    os.utime(photos / "cow" / "1.png", ns=(1, 1))  # touched
    (photos / "cow" / "2.png").rename(photos / "ant" / "7.png")  # renamed
    factory = Factory()
    with fill(photos, tmp_path / "f.h5", factory) as store:
        assert factory.images == 2
        assert (store.summary.extracted, store.summary.reused, store.summary.dropped) == (2, 13, 2)
        row = dict(zip(store.paths, store.features.tolist(), strict=True))
        assert row["bee/2.png"] == [1, 2, 3]
        assert row["ant/9.png"] == [9, 9, 7]
        assert row["ant/7.png"] == [162, 2, 7]
        assert row["cow/1.png"] == [161, 1, 7]
        assert store.labels[store.positions["ant/7.png"]] == 0
        fresh = fill(photos, tmp_path / "fresh.h5")
        assert fresh.index.same_content(store.index)
        np.testing.assert_array_equal(fresh.features, store.features)
    factory = Factory()
    fill(photos, tmp_path / "f.h5", factory).close()
    assert factory.made == [], "the new time of a touched file was not stored"


def test_same_size_and_time_but_other_label_is_written(photos, tmp_path):
    table = photos.parent / "t.csv"
    table.write_text("path,label\nphotos/ant/0.png,x\nphotos/bee/0.png,y\n")
    fill(table, tmp_path / "f.h5").close()
    table.write_text("path,label,split\nphotos/ant/0.png,y,train\nphotos/bee/0.png,y,test\n")
    factory = Factory()
    with fill(table, tmp_path / "f.h5", factory) as store:
        assert factory.made == []
        assert store.classes == ("y",)
        assert list(store.splits) == ["train", "test"]


def test_moving_the_folder_extracts_nothing(photos, tmp_path):
    fill(photos, tmp_path / "f.h5").close()
    moved = tmp_path / "elsewhere"
    photos.rename(moved)
    factory = Factory()
    with fill(moved, tmp_path / "f.h5", factory) as store:
        assert factory.made == []
        assert store.index.root == str(moved)


def test_bad_images_are_listed_with_their_reason(photos, tmp_path):
    (photos / "ant" / "text.jpg").write_text("<html>")
    (photos / "bee" / "empty.png").touch()
    whole = (photos / "bee" / "1.png").read_bytes()
    (photos / "bee" / "half.png").write_bytes(whole[:-20])
    with fill(photos, tmp_path / "f.h5") as store:
        np.testing.assert_array_equal(store.features, colours(photos, store))
        assert {path: reason.split(":")[0] for path, reason in store.skipped.items()} == {
            "ant/text.jpg": "not-an-image",
            "bee/empty.png": "empty",
            "bee/half.png": "truncated",
        }
        assert store.summary.reasons == {"empty": 1, "not-an-image": 1, "truncated": 1}
    factory = Factory()
    with fill(photos, tmp_path / "f.h5", factory) as store:
        assert factory.made == [], "known bad images started the network"
        assert len(store.skipped) == 3
    paint(photos / "bee" / "empty.png", (81, 80, 7))
    with fill(photos, tmp_path / "f.h5", factory) as store:
        assert factory.images == 1
        assert len(store.skipped) == 2


def test_a_missing_image_comes_back(photos, tmp_path):
    manifest = Manifest.from_paths([photos / "ant" / "0.png", photos / "ant" / "late.png"])
    with fill(manifest, tmp_path / "f.h5") as store:
        assert [reason.split(":")[0] for reason in store.skipped.values()] == ["missing"]
    paint(photos / "ant" / "late.png", (5, 5, 5))
    with fill(manifest, tmp_path / "f.h5") as store:
        assert store.features.tolist()[1] == [5, 5, 5]


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_text("no")
    message = r"none of the 1 images could be read \(the first: not-an-image.*check the folder"
    with pytest.raises(StoreError, match=message):
        fill(tmp_path / "p", tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()
    with pytest.raises(ManifestError):
        extract(tmp_path / "nowhere", tmp_path / "f.h5", weights="random")


def test_a_vector_that_is_not_finite_is_skipped(photos, tmp_path):
    class Broken(Factory):
        def __call__(self):
            encoder = super().__call__()
            encode = encoder.encode
            encoder.encode = lambda pixels: np.where(pixels.mean(axis=(1, 2))[:, :1] == 82, np.inf, encode(pixels))
            return encoder

    with fill(photos, tmp_path / "f.h5", Broken()) as store:
        assert store.skipped == {"bee/2.png": "not-finite: the network gave no finite vector"}
        np.testing.assert_array_equal(store.features, colours(photos, store))


def test_another_recipe_is_refused(photos, tmp_path):
    fill(photos, tmp_path / "f.h5").close()
    with pytest.raises(RecipeMismatchError) as error:
        fill(photos, tmp_path / "f.h5", Factory(size=9))
    assert "at 8 px" in str(error.value)
    assert "at 9 px" in str(error.value)
    assert "size 9 instead of 8" in str(error.value)
    assert "--overwrite" in str(error.value)
    with pytest.raises(RecipeMismatchError, match=r"holds float32, this run needs float16; .*--overwrite"):
        fill(photos, tmp_path / "f.h5", dtype="float16")
    with fill(photos, tmp_path / "f.h5", Factory(size=9), overwrite=True) as store:
        assert store.recipe.size == 9
        assert store.summary.extracted == 15


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "1" * 64},
        {"size": 16},
        {"resize": "crop"},
        {"pooling": "max"},
        {"layers": ("x",)},
        {"precision": "bfloat16"},
        {"versions": {}},
    ],
    ids=str,
)
def test_whatever_changes_a_vector_is_another_recipe(photos, tmp_path, change):
    fill(photos, tmp_path / "f.h5").close()
    with pytest.raises(RecipeMismatchError):
        fill(photos, tmp_path / "f.h5", Factory(**change))


def test_wrong_options(photos, tmp_path):
    with pytest.raises(UsageError, match=r"dtype 'float8' is unknown; did you mean float32 or float16"):
        fill(photos, tmp_path / "f.h5", dtype="float8")
    with pytest.raises(UsageError, match=r"workers 0 is too few"):
        extract(photos, tmp_path / "f.h5", weights="random", speed=Speed(workers=0))
    with pytest.raises(UsageError, match=r"the manifest has no images; give at least one"):
        fill(Manifest(photos, (), (), (), (), ()), tmp_path / "f.h5")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot make the folder .*file/sub: Not a directory; choose another --out"):
        fill(photos, tmp_path / "file" / "sub" / "f.h5")


def test_two_writers(photos, tmp_path):
    with locked(tmp_path / "f.h5"), pytest.raises(LockedError, match=rf"written by process {os.getpid()} on .*; wait"):
        fill(photos, tmp_path / "f.h5")
    fill(photos, tmp_path / "f.h5").close()


def test_a_stale_lock_blocks_nobody(photos, tmp_path):
    (tmp_path / "f.h5.lock").write_text("process 1 on elsewhere")
    fill(photos, tmp_path / "f.h5").close()


def test_progress_counts_every_image(photos, tmp_path):
    seen = []
    fill(photos, tmp_path / "f.h5", progress=lambda *each: seen.append(each)).close()
    assert seen == [(i + 1, 15) for i in range(15)]


class StopError(Exception):
    pass


def stopping_after(images):
    def progress(done, total):
        if done == images:
            raise StopError

    return progress


def test_an_interrupted_run_goes_on(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "block_rows", lambda dim: 4)  # small parts
    with fill(photos, tmp_path / "whole.h5") as whole:
        out = tmp_path / "f.h5"
        with pytest.raises(StopError):
            fill(photos, out, progress=stopping_after(10))
        assert not out.exists()
        parts = sorted(path.name for path in (tmp_path / "f.h5.parts").iterdir())
        assert parts == ["part-000000.h5"]
        factory = Factory()
        with fill(photos, out, factory) as store:
            assert factory.images == 11
            assert store.index.same_content(whole.index)
            np.testing.assert_array_equal(store.features, whole.features)
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_more_parts_than_a_process_may_have_open_files(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "block_rows", lambda dim: 1)
    for i in range(60):
        paint(photos / "ant" / f"1{i:02d}.png", (100 + i, 100 + i, 7))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 30, limits[1]))
    try:
        with pytest.raises(StopError):
            fill(photos, tmp_path / "f.h5", Factory(1), progress=stopping_after(70))
        assert len(list((tmp_path / "f.h5.parts").iterdir())) > 30
        with fill(photos, tmp_path / "f.h5") as store:
            assert len(store) == 75
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_image_costs_few_bytes_of_memory(tmp_path, monkeypatch):
    """First, again, and with some new: what grows with the number of images, decoding and the network aside."""
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    monkeypatch.setattr(image_encoder, "Decoders", lambda _: contextlib.nullcontext(lambda *_: pixels))
    monkeypatch.setattr(extraction, "block_rows", lambda dim: 200)

    def peaks(images):
        folder, out = tmp_path / str(images), tmp_path / f"{images}.h5"
        (folder / "ant").mkdir(parents=True)
        for start, stop in ((0, images), (images, images), (images, images + images // 50)):
            for number in range(start, stop):
                (folder / "ant" / f"photograph_{number:06d}.jpg").write_text(str(number))
            tracemalloc.start()
            run_quietly(folder, out)
            yield tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()

    def run_quietly(folder, out):
        factory = Factory(64)
        fill_store(Manifest.read(folder), out, factory.recipe, make_encoder=factory).close()

    list(peaks(50))  # imports and caches
    few, many = list(peaks(1000)), list(peaks(5000))
    growth = [(more - less) / 4000 for less, more in zip(few, many, strict=True)]
    assert max(growth) < 300, growth  # at a million rows 220, because blocks of texts are no larger then


@given(
    digests=st.lists(st.binary(min_size=2, max_size=2), max_size=20),
    wanted=st.binary(min_size=2, max_size=2),
    cut=st.integers(0, 20),
)
def test_digests_are_found_as_in_a_dictionary(digests, wanted, cut):
    """Also those that end in zeros."""
    sources = [
        np.frombuffer(b"".join(each.ljust(32, b"\0") for each in part), np.uint8).reshape(-1, 32)
        for part in (digests[:cut], digests[cut:])
    ]
    last = {each: (row >= cut, row - cut * (row >= cut)) for row, each in enumerate(digests)}
    for each in (wanted, *digests):
        assert Digests(sources).find(each.ljust(32, b"\0")) == last.get(each)


def test_parts_of_another_recipe_are_refused_not_mixed(photos, tmp_path):
    with pytest.raises(StopError):
        fill(photos, tmp_path / "f.h5", progress=stopping_after(10))
    with pytest.raises(RecipeMismatchError, match=r"part-000000\.h5 was made with"):
        fill(photos, tmp_path / "f.h5", Factory(size=9))
    with fill(photos, tmp_path / "f.h5", Factory(size=9), overwrite=True) as store:
        assert store.summary.extracted == 15


def test_a_damaged_part_is_named(photos, tmp_path):
    with pytest.raises(StopError):
        fill(photos, tmp_path / "f.h5", progress=stopping_after(10))
    part = tmp_path / "f.h5.parts" / "part-000000.h5"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match=r"part-000000\.h5 .* extract again with --overwrite"):
        fill(photos, tmp_path / "f.h5")
    with fill(photos, tmp_path / "f.h5", overwrite=True) as store:
        np.testing.assert_array_equal(store.features, colours(photos, store))


def test_ahead_keeps_the_order_and_the_window():
    from concurrent.futures import ThreadPoolExecutor

    started = []
    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, range(20), lambda i: (started.append(i), time.sleep(0.001 * (i % 3)), i)[2], 5)
        first = next(results)
        assert max(started) < 5
        assert [first, *results] == [(i, i) for i in range(20)]


def test_real_photographs_with_a_real_network(data, tmp_path, monkeypatch):
    """MobileNet 0.25 at 128 on some clothes: equal to Keras, untouched by a second run."""
    monkeypatch.setenv("KERAS_HOME", str(data / "keras_home"))
    for label in ("hat", "shoes"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for file in sorted((data / "clothing" / "validation" / label).iterdir())[:6]:
            shutil.copy(file, tmp_path / "photos" / label)
    with extract(tmp_path / "photos", tmp_path / "f.h5", "mobilenet_0.25", size=128) as store:
        vectors = store.features
        paths = [tmp_path / "photos" / path for path in store.paths]
    import keras
    from PIL import Image

    weights = data / "keras_home" / "models" / "mobilenet_2_5_128_tf_no_top.h5"
    model = keras.applications.MobileNet(
        alpha=0.25, weights=str(weights), include_top=False, input_shape=(128, 128, 3), pooling="avg"
    )
    images = [Image.open(path).convert("RGB").resize((128, 128), Image.Resampling.BILINEAR) for path in paths]
    pixels = np.stack([np.asarray(image, np.float32) for image in images])
    expected = model.predict(keras.applications.mobilenet.preprocess_input(pixels), verbose=0)
    assert np.abs(vectors - expected).max() < 1e-5 * np.abs(expected).max()
    with extract(tmp_path / "photos", tmp_path / "f.h5", "mobilenet_0.25", size=128) as store:
        assert store.summary.extracted == 0


def test_a_lock_that_goes_with_its_holder_is_tried_again(tmp_path, monkeypatch):
    acquire, tries = files.FileLock.acquire, []

    def late(self, *rest, **more):
        tries.append(self)
        if len(tries) < 3:
            raise files.Timeout(self.lock_file)  # held just now; its file is gone when one looks
        return acquire(self, *rest, **more)

    monkeypatch.setattr(files.FileLock, "acquire", late)
    with files.locked(tmp_path / "f.h5"):
        assert (tmp_path / "f.h5.lock").exists()
    assert len(tries) == 3
    monkeypatch.setattr(files.FileLock, "acquire", lambda self: (_ for _ in ()).throw(files.Timeout("f")))
    with pytest.raises(StoreError, match="cannot write beside"), files.locked(tmp_path / "f.h5"):
        pass

"""A stream of images to a stream of vectors or reasons: order, batches, shared pixels, isolation."""

import dataclasses
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from attacks.fake import RECIPE, FakeEncoder
from helpers import paint

from pipeline.errors import ImageError
from pipeline.features import image_encoder
from pipeline.features.image_encoder import ImageEncoder
from pipeline.images.views import load_views


def encoder_of(*recipes, batch_size=4, **options):
    encoders = [FakeEncoder(recipe, batch_size) for recipe in recipes]
    return ImageEncoder(recipes, lambda: encoders, 2, **options)


@pytest.mark.parametrize("isolated", [True, False])
def test_paths_bytes_and_arrays_come_back_in_order_with_vectors_or_reasons(tmp_path, isolated):
    path = paint(tmp_path / "a.png", (9, 8, 7))
    given = [str(path), path.read_bytes(), b"no image", np.full((5, 4, 3), 30, np.uint8), tmp_path / "gone.png"]
    with encoder_of(RECIPE, batch_size=2, isolated=isolated) as images:
        found = list(images.stream(given))
        assert [len(batch) for batch in images.batches(given)] == [2, 2, 1]
    assert all(image is item for (image, _), item in zip(found, given, strict=True))
    first, second, bad, array, gone = (result for _, result in found)
    assert first.tolist() == second.tolist() == [[9, 8, 7]]
    assert array.tolist() == [[30, 30, 30]]
    assert (bad.reason, gone.reason) == ("not-an-image", "missing")


def test_networks_are_joined_and_share_the_pixels_that_they_have_in_common(tmp_path, monkeypatch):
    decoded = []

    def counted(source, specs):
        decoded.append(len(specs))
        return load_views(source, specs)

    monkeypatch.setattr(image_encoder, "load_views", counted)
    other, larger = dataclasses.replace(RECIPE, backbone="vgg16"), dataclasses.replace(RECIPE, size=16)
    with encoder_of(RECIPE, other, larger, isolated=False) as images:
        vectors = images.vectors([paint(tmp_path / "a.png", (9, 8, 7))] * 2)
    assert vectors.tolist() == [[[9, 8, 7] * 3]] * 2
    assert decoded == [2, 2]


def test_vectors_of_an_image_that_cannot_be_read_are_an_error(photos):
    with encoder_of(RECIPE) as images:
        assert images.vectors([]).shape == (0, 1, 3)
        with pytest.raises(ImageError, match="not-an-image"):
            images.vectors([photos / "ant" / "0.png", b"no image"])


def test_networks_are_made_once_when_an_image_needs_them(photos):
    made = []

    def make():
        made.append(FakeEncoder())
        return made

    with ImageEncoder([RECIPE], make, 2) as images:
        assert list(images.encoded(iter([]))) == []
        assert made == []
        images.load()
        images.load()
        assert len(images.vectors([photos / "ant" / "0.png"])) == len(made) == 1


def test_many_threads_may_share_one(photos):
    paths = sorted(photos.rglob("*.png"))
    with encoder_of(RECIPE) as images:
        expected = images.vectors(paths)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: images.vectors(paths), range(8)):
                np.testing.assert_array_equal(found, expected)


def test_a_decoding_process_that_dies_costs_no_image(photos):
    with encoder_of(RECIPE) as images:
        images.load()
        (child,) = images._decoders._idle
        os.kill(child.process.pid, signal.SIGKILL)
        assert images.vectors([photos / "bee" / "2.png"]).tolist() == [[[82, 2, 7]]]

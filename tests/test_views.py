"""Views: augmented versions of an image, from one decode to the feature file and the prediction."""

import dataclasses

import numpy as np
import pytest
from attacks.fake import RECIPE, Factory, FakeEncoder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.bundles.bundle import Bundle
from pipeline.errors import RecipeMismatchError, UsageError
from pipeline.features.extraction import fill_store
from pipeline.features.recipe import Recipe
from pipeline.features.store import FeatureStore, verify
from pipeline.images import views as views_module
from pipeline.images.decode import load_pixels
from pipeline.images.manifest import Manifest
from pipeline.images.resize import RESIZE_POLICIES
from pipeline.images.views import PixelSpec, parse_views
from pipeline.prediction import predict

SMALL = {"backbone": "mobilenet_0.25", "weights": "random", "size": 32}


@pytest.fixture
def photo():
    """A picture whose every column and row differs."""
    across, down = np.meshgrid(np.arange(60), np.arange(40))
    return Image.fromarray(np.stack([4 * across, 6 * down, (across * down) % 251], axis=2).astype(np.uint8))


def load_views(source, size, resize="squash", views="1"):
    return views_module.load_views(source, [PixelSpec(size, resize, parse_views(views))])[0]


def fill(photos, out, views, batch_size=4, **options):
    factory = Factory(batch_size=batch_size, views=views)
    with fill_store(Manifest.read(photos), out, factory.recipe, make_encoder=factory, **options) as store:
        return store.features, list(store.paths), store.summary


@pytest.mark.parametrize(
    ("text", "count", "canonical"),
    [("1", 1, "1"), ("1:7", 1, "1"), ("flip", 2, "flip"), ("2", 2, "2"), ("08:0", 8, "8"), ("64:5", 64, "64:5")],
)
def test_what_views_can_be(text, count, canonical):
    assert (parse_views(text).count, str(parse_views(text))) == (count, canonical)
    assert parse_views(canonical) == parse_views(text)


@pytest.mark.parametrize("text", ["", "0", "65", "-1", "flop", "4:", "4:x", "2.5", "٤"])
def test_what_views_cannot_be(text):
    with pytest.raises(UsageError, match=r"cannot be made; give flip, a number from 1 to 64, or NUMBER:SEED"):
        parse_views(text)


@pytest.mark.parametrize("resize", RESIZE_POLICIES)
def test_the_first_view_is_the_plain_picture_and_a_flip_its_mirror(photo, resize):
    plain = load_pixels(photo, 24, resize)
    np.testing.assert_array_equal(load_views(photo, 24, resize), plain[None])
    np.testing.assert_array_equal(load_views(photo, 24, resize, "flip"), [plain, plain[:, ::-1]])
    np.testing.assert_array_equal(load_views(photo, 24, resize, "5")[0], plain)


def test_random_views_depend_on_the_pixels_and_the_seed_alone(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    photo.save(tmp_path / "b.bmp")
    one = load_views(tmp_path / "a.png", 24, views="6")
    np.testing.assert_array_equal(load_views(tmp_path / "b.bmp", 24, views="6"), one)
    np.testing.assert_array_equal(load_views(photo, 24, views="3"), one[:3])
    assert len({view.tobytes() for view in one}) == 6
    assert not (load_views(photo, 24, views="6:1")[1:] == one[1:]).all(axis=(1, 2, 3)).any()


def test_a_random_view_shows_the_same_at_every_size(photo):
    small, large = load_views(photo, 20, views="8"), load_views(photo, 80, views="8")
    shrunk = [np.asarray(Image.fromarray(view).resize((20, 20), Image.Resampling.BOX), int) for view in large]
    assert np.abs(small.astype(int) - shrunk).mean() < 6  # another part or other colours would be 40 and more


def test_random_views_stay_as_they_were_made(photo):
    """Cached vectors of an older version must go on meaning the same pixels."""
    means = load_views(photo, 16, views="3")[1:].astype(float).mean(axis=(1, 2))
    np.testing.assert_allclose(means, [[85.37, 97.75, 90.53], [91.12, 98.52, 97.09]], atol=0.5)


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(sorted(RESIZE_POLICIES)), st.integers(0, 9))
def test_any_picture_has_views(width, height, resize, seed):
    picture = Image.new("RGB", (width, height), (200, 100, 50))
    views = load_views(picture, 9, resize, f"4:{seed}")
    assert views.shape == (4, 9, 9, 3)
    assert views.dtype == np.uint8


def test_recipes_without_views_keep_their_fingerprints():
    plain = Recipe.create(**SMALL)
    assert "views" not in plain.identity()
    assert "views" not in plain.to_json()
    flipped = Recipe.create(**SMALL, views="flip")
    assert flipped.fingerprint != plain.fingerprint
    assert flipped.with_one_view() == plain
    assert Recipe.from_json(flipped.to_json()) == flipped
    assert flipped.differences(plain) == "views flip instead of 1"
    assert plain.differences(flipped) == "views 1 instead of flip"
    assert "views flip" in str(flipped)
    assert Recipe.create(**SMALL, views="04:0").views == "4"


@pytest.mark.parametrize(("views", "batch_size"), [("flip", 1), ("flip", 5), ("3", 4), ("5", 3)])
def test_a_file_holds_every_view_of_every_image(photos, tmp_path, views, batch_size):
    features, paths, summary = fill(photos, tmp_path / "f.h5", views, batch_size)
    count = parse_views(views).count
    assert features.shape == (15, count, 3)
    assert summary.extracted == 15
    recipe = dataclasses.replace(RECIPE, views=views)
    for row, path in zip(features, paths, strict=True):
        expected = FakeEncoder(recipe, 64).encode(load_views(photos / path, recipe.size, views=views))
        np.testing.assert_array_equal(row, expected)
    assert verify(tmp_path / "f.h5") == []
    with FeatureStore(tmp_path / "f.h5") as store:
        assert (store.shape, store.dim, store.views) == ((15, count, 3), 3, count)
        np.testing.assert_array_equal(store.take(np.array([7, 2, 3])), features[[7, 2, 3]])
        np.testing.assert_array_equal(np.concatenate([block for _, block in store.blocks(40)]), features)
        assert f"15 x {count} x 3" in repr(store)


def test_files_with_views_grow_and_go_on(photos, tmp_path):
    whole, _, _ = fill(photos, tmp_path / "whole.h5", "3")
    hidden = (photos / "bee").rename(tmp_path / "bee")
    fill(photos, tmp_path / "f.h5", "3")
    hidden.rename(photos / "bee")
    features, _, summary = fill(photos, tmp_path / "f.h5", "3")
    assert (summary.extracted, summary.reused) == (5, 10)
    np.testing.assert_array_equal(features, whole)
    with pytest.raises(RecipeMismatchError, match="views flip instead of 3"):
        fill(photos, tmp_path / "f.h5", "flip")
    assert fill(photos, tmp_path / "f.h5", "flip", overwrite=True)[0].shape == (15, 2, 3)


class Brightness:
    """A head that says how bright each vector is; class 1 is bright."""

    classes_ = np.array([0, 1])

    def predict_proba(self, X):
        bright = X.mean(axis=1) / 255
        return np.stack([1 - bright, bright], axis=1)


@pytest.mark.usefixtures("fake_engine")
@pytest.mark.parametrize("average", [False, True])
def test_prediction_averages_over_views_only_when_asked(photos, tmp_path, average, monkeypatch):
    monkeypatch.setattr("pipeline.heads.affine.AffineHead.of", lambda head: None)
    features, paths, _ = fill(photos, tmp_path / "f.h5", "4")
    recipe = dataclasses.replace(RECIPE, views="4")
    bundle = Bundle((recipe,), (3,), ("dark", "light"), Brightness(), "brightness", average_views=average)
    used = features if average else features[:, :1]
    expected = used.mean(axis=(1, 2)) / 255
    files = [photos / path for path in paths]
    np.testing.assert_allclose(bundle.predict_proba(files)[:, 1], expected, rtol=1e-6)
    for source in (files, FeatureStore(tmp_path / "f.h5")):
        rows = list(predict(bundle, source, top_k=2))
        light = [dict(zip(row.labels, row.probabilities, strict=True))["light"] for row in rows]
        np.testing.assert_allclose(light, expected, rtol=1e-6)
    fill(photos, tmp_path / "plain.h5", "1")
    with FeatureStore(tmp_path / "plain.h5") as plain:
        if average:
            with pytest.raises(UsageError, match="views 4"):
                predict(bundle, plain)
        else:
            assert len(list(predict(bundle, plain))) == 15

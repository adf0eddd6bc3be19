"""What determines a vector, and nothing else; weights by kind; the Keras encoder's own rules."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest

from pipeline.errors import EngineError, IntegrityError, UsageError, WeightsError
from pipeline.features import weights as weights_module
from pipeline.features.engines import make_encoder
from pipeline.features.keras_engine import KerasEncoder
from pipeline.features.keras_runtime import load_keras
from pipeline.features.options import Speed
from pipeline.features.recipe import Recipe
from pipeline.features.weights import file_sha256, parse_weights

SMALL = {"backbone": "mobilenet_0.25", "size": 32}
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def local_weights(tmp_path):
    """Weights of a small MobileNet in a local file."""
    keras = load_keras()
    keras.utils.set_random_seed(5)
    model = keras.applications.MobileNet(alpha=0.25, weights=None, include_top=False, input_shape=(32, 32, 3))
    path = tmp_path / "small.weights.h5"
    model.save_weights(path)
    return path


def encode(recipe, batch_size=4):
    return KerasEncoder(recipe, batch_size).encode(PIXELS)


def test_json_round_trip_keeps_the_fingerprint():
    recipe = Recipe("vgg16", "imagenet", "ab" * 32, ("block3_pool", "last"), "max", 150, "crop", weights_path="/x/w.h5")
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint
    assert again.weights_path == "/x/w.h5"


def test_the_fingerprint_of_format_1_never_changes():
    assert (
        Recipe("vgg16", "imagenet", "ab" * 32).fingerprint
        == "0f4721a8efee710b459a85ad4e8e9953ea8648922a453c00bf519c6e2a7ac36e"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "vgg19"), ("weights", "file"), ("weights_sha256", "0"), ("layers", ("x",)), ("pooling", "max"),
        ("size", 150), ("resize", "pad"), ("precision", "bfloat16"), ("versions", {"pixels": 99}),
    ],
)  # fmt: skip
def test_all_that_changes_a_vector_changes_the_fingerprint(field, value):
    recipe = Recipe("vgg16", "imagenet", "ab" * 32)
    other = dataclasses.replace(recipe, **{field: value})
    assert other.fingerprint != recipe.fingerprint
    assert field in other.differences(recipe)
    assert dataclasses.replace(recipe, weights_path="elsewhere").fingerprint == recipe.fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"backbone": "vgg16"}',
        json.dumps({"backbone": "vgg16", "weights": "random:0", "layers": 5}),
    ],
)
def test_damaged_recipes_are_refused(text):
    with pytest.raises(IntegrityError, match="not a recipe"):
        Recipe.from_json(text)


def test_a_recipe_of_a_newer_version_says_so():
    data = json.loads(Recipe("vgg16", "random:0").to_json()) | {"mood": "blue"}
    with pytest.raises(IntegrityError, match=r"unknown fields \['mood'\] of a newer version; upgrade"):
        Recipe.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, r"pooling 'mean' is unknown; did you mean max"),
        ({"resize": "crops"}, r"resize 'crops' is unknown; did you mean crop"),
        ({"precision": "int8"}, r"precision 'int8' is unknown"),
        ({"size": 31}, r"size 31 is out of range for mobilenet_0\.25; choose 32 to 4096 pixels \(its default is 224\)"),
        ({"size": 10**6}, r"size 1000000 is out of range"),
        ({"layers": ("a", "a")}, r"repeat a layer; give each layer once"),
        ({"weights": "no.h5"}, r"weights 'no\.h5' are not 'imagenet', 'random', .* or an existing file"),
        ({"backbone": "no.keras"}, r"there is no model 'no\.keras'"),
        ({"backbone": "no.keras", "weights": "random"}, r"contains its own weights"),
    ],
)
def test_wrong_options_say_what_is_right(options, message):
    with pytest.raises(UsageError, match=message):
        Recipe.create(**({**SMALL, "weights": "random"} if "backbone" not in options else {}) | options)


def test_kinds_of_weights(tmp_path):
    assert parse_weights("imagenet") == ("imagenet", None)
    assert parse_weights("random:12") == ("random:12", None)
    (tmp_path / "w.pkl").touch()
    with pytest.raises(UsageError, match=r"does not end in \.weights\.h5 or \.h5"):
        parse_weights(tmp_path / "w.pkl")


def test_random_weights_are_those_of_their_seed_and_leave_others_alone():
    load_keras()  # whose import draws a number itself
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    one = encode(Recipe.create(**SMALL, weights="random:1"))
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002
    np.testing.assert_array_equal(one, encode(Recipe.create(**SMALL, weights="random:1")))
    assert not np.allclose(one, encode(Recipe.create(**SMALL, weights="random:2")), rtol=0.1, atol=0)


def test_random_weights_get_their_digest_and_are_checked():
    recipe = KerasEncoder(Recipe.create(**SMALL, weights="random"), 4).recipe
    assert len(recipe.weights_sha256) == 64
    encode(recipe)
    with pytest.raises(WeightsError, match="gives other weights with these versions"):
        encode(dataclasses.replace(recipe, weights_sha256="0" * 64))


def test_a_local_file(local_weights):
    recipe = Recipe.create(**SMALL, weights=local_weights)
    assert recipe.weights == "file"
    assert recipe.weights_sha256 == file_sha256(local_weights)
    keras = load_keras()
    model = keras.applications.MobileNet(
        alpha=0.25, weights=str(local_weights), include_top=False, input_shape=(32, 32, 3), pooling="avg"
    )
    expected = model.predict(keras.applications.mobilenet.preprocess_input(PIXELS.astype(np.float32)), verbose=0)
    assert np.abs(encode(recipe) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_inceptionv3_at_150_with_a_local_notop_file(tmp_path):
    """The way a small data set is usually done: InceptionV3, 150 x 150, a local file, ``mixed7``."""
    keras = load_keras()
    keras.utils.set_random_seed(0)
    model = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(150, 150, 3))
    path = tmp_path / "inception_v3_notop.weights.h5"
    model.save_weights(path)
    recipe = Recipe.create("inceptionv3", weights=path, size=150, layers=("mixed7",), pooling="flatten")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 150, 150, 3), dtype=np.uint8)
    encoder = KerasEncoder(recipe, 2)
    assert encoder.dim == 7 * 7 * 768
    truncated = keras.Model(model.input, model.get_layer("mixed7").output)
    expected = truncated.predict(keras.applications.inception_v3.preprocess_input(pixels.astype("float32")), verbose=0)
    expected = expected.reshape(2, -1)
    assert np.abs(encoder.encode(pixels) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_weights_that_changed_are_noticed(local_weights):
    recipe = Recipe.create(**SMALL, weights=local_weights)
    raw = bytearray(local_weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    local_weights.write_bytes(raw)
    with pytest.raises(WeightsError, match=r"small\.weights\.h5 has SHA-256 .* expected .* restore the old file"):
        encode(recipe)
    local_weights.unlink()
    with pytest.raises(WeightsError, match=r"small\.weights\.h5 are missing; restore the file with SHA-256"):
        encode(recipe)


def test_weights_of_another_model_are_one_clear_error(local_weights, tmp_path):
    with pytest.raises(
        WeightsError, match=r"does not fit vgg16 without its classifier .* name a 'notop' weights file of this backbone"
    ):
        KerasEncoder(Recipe.create("vgg16", weights=local_weights, size=32), 1)
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(WeightsError, match="does not fit mobilenet_0"):
        encode(Recipe.create(**SMALL, weights=tmp_path / "text.h5"))


def test_imagenet_offline_and_absent_says_what_belongs_where(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(weights_module.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))

    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", offline)
    with pytest.raises(WeightsError) as error:
        Recipe.create("vgg16")
    text = str(error.value)
    assert "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5" in text
    assert str(tmp_path / "models") in text
    assert "--weights FILE" in text


def test_imagenet_of_the_keras_cache(data, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(data / "keras_home"))
    recipe = Recipe.create("mobilenet_0.25", size=128)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    keras = load_keras()
    model = keras.applications.MobileNet(
        alpha=0.25, weights=recipe.weights_path, include_top=False, input_shape=(128, 128, 3), pooling="max"
    )
    expected = model.predict(keras.applications.mobilenet.preprocess_input(pixels.astype(np.float32)), verbose=0)
    ours = KerasEncoder(dataclasses.replace(recipe, pooling="max"), 2).encode(pixels)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()
    # The same file under another name is a local file with the same digest.
    shutil.copy(recipe.weights_path, tmp_path / "mine.h5")
    assert (
        Recipe.create("mobilenet_0.25", size=128, weights=tmp_path / "mine.h5").weights_sha256 == recipe.weights_sha256
    )


def test_layers_are_joined_in_one_pass():
    recipe = Recipe.create(**SMALL, weights="random", layers=("conv_pw_11_relu", "last"))
    encoder = KerasEncoder(recipe, 4)
    assert encoder.segments == {"conv_pw_11_relu": (0, 128), "last": (128, 384)}
    both = encoder.encode(PIXELS)
    last = encode(Recipe.create(**SMALL, weights="random"))
    np.testing.assert_allclose(both[:, 128:], last, rtol=1e-5, atol=1e-6)


def test_flatten_keeps_the_feature_map():
    recipe = Recipe.create(**SMALL | {"size": 64}, weights="random", pooling="flatten")
    assert KerasEncoder(recipe, 1).dim == 2 * 2 * 256


def test_alpha_one_may_be_said():
    assert Recipe.create("mobilenetv2_1.0", weights="random").backbone == "mobilenetv2"


def test_an_unknown_layer_lists_the_closest():
    with pytest.raises(UsageError, match=r"has no layer 'conv_pw_11_rel'; did you mean conv_pw_11_relu"):
        encode(Recipe.create(**SMALL, weights="random", layers=("conv_pw_11_rel",)))


def test_batch_order_and_repetition_do_not_change_a_row():
    encoder = KerasEncoder(Recipe.create(**SMALL, weights="random"), 4)
    rows = encoder.encode(PIXELS)
    np.testing.assert_array_equal(encoder.encode(PIXELS[::-1])[::-1], rows)
    np.testing.assert_array_equal(encoder.encode(PIXELS[[3, 3]])[1], rows[3])
    for batch_size in (1, 7, 32):
        other = encode(encoder.recipe, batch_size)
        assert np.abs(other - rows).max() <= 1e-5 * np.abs(rows).max()
    assert encoder.encode(PIXELS[:0]).shape == (0, 256)


def test_one_trace_for_all_batches():
    encoder = KerasEncoder(Recipe.create(**SMALL, weights="random"), 4)
    for n in (1, 2, 4, 7):
        encoder.encode(PIXELS[:n])
    assert encoder._forward.experimental_get_tracing_count() == 1


def test_inference_mode_and_untouched_input():
    """Batch normalisation uses its stored statistics: a row is the same beside any other."""
    encoder = KerasEncoder(Recipe.create(**SMALL, weights="random"), 2)
    before = [np.array(w) for w in encoder.model.get_weights()]
    pixels = PIXELS.copy()
    encoder.encode(pixels)
    np.testing.assert_array_equal(pixels, PIXELS)
    for a, b in zip(before, encoder.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not encoder.model.trainable_weights


@pytest.mark.parametrize("pixels", [PIXELS.astype(np.float32), PIXELS[0], PIXELS[:, :16], PIXELS[..., :1]])
def test_pixels_of_another_kind_are_refused(pixels):
    encoder = KerasEncoder(Recipe.create(**SMALL, weights="random"), 2)
    with pytest.raises(UsageError, match=r"expected uint8 of shape \(n, 32, 32, 3\)"):
        encoder.encode(pixels)


def test_a_whole_keras_model_is_a_backbone(tmp_path):
    keras = load_keras()
    inputs = keras.Input((None, None, 3))
    maps = keras.layers.Conv2D(5, 3, strides=2)(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, maps)
    model.save(tmp_path / "own.keras")
    recipe = Recipe.create(tmp_path / "own.keras", size=32)
    expected = model.predict(PIXELS.astype(np.float32), verbose=0).mean(axis=(1, 2))
    np.testing.assert_allclose(encode(recipe), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match=r"own\.keras accepts inputs of any size; choose one with --size PX"):
        Recipe.create(tmp_path / "own.keras")


def test_a_keras_model_of_fixed_size_says_so(tmp_path):
    keras = load_keras()
    keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten()]).save(tmp_path / "fixed.keras")
    assert Recipe.create(tmp_path / "fixed.keras").size == 16
    assert KerasEncoder(Recipe.create(tmp_path / "fixed.keras"), 2).encode(PIXELS[:, :16, :16]).shape == (7, 768)
    with pytest.raises(UsageError, match=r"has inputs of shape \(None, 16, 16, 3\), expected \(None, 32, 32, 3\)"):
        encode(Recipe.create(tmp_path / "fixed.keras", size=32))


def test_a_lambda_in_a_keras_model_is_not_run(tmp_path):
    keras = load_keras()
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "lambda.keras")
    with pytest.raises(IntegrityError, match=r"cannot be loaded safely .* without Lambda layers"):
        encode(Recipe.create(tmp_path / "lambda.keras", size=32))


def test_engines_and_versions():
    recipe = Recipe.create(**SMALL, weights="random")
    with pytest.raises(UsageError, match=r"engine 'torch' is unknown; known are auto, keras"):
        make_encoder(recipe, Speed("torch"))
    with pytest.raises(UsageError, match=r"batch size 0 is too small; give 1 or more"):
        make_encoder(recipe, Speed(batch_size=0))
    with pytest.raises(EngineError, match=r"made with versions .* install the old twostage-features or extract again"):
        make_encoder(dataclasses.replace(recipe, versions={"pixels": 0}))
    assert make_encoder(recipe, Speed("keras")).batch_size == 32
    assert make_encoder(dataclasses.replace(recipe, size=448), Speed("keras")).batch_size == 8


def test_mixed_precision_of_the_host_program_changes_nothing():
    keras = load_keras()
    recipe = Recipe.create(**SMALL, weights="random")
    expected = encode(recipe)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        np.testing.assert_array_equal(encode(recipe), expected)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")

"""Every row of the table against Keras itself: names, sizes, preprocessing, vectors, weights files."""

import warnings

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.features.backbones import BACKBONES, find_backbone
from pipeline.features.keras_engine import KerasEncoder, layer_names, preprocess
from pipeline.features.keras_runtime import load_keras
from pipeline.features.openvino_engine import OpenVinoEncoder
from pipeline.features.recipe import Recipe
from pipeline.features.weights import file_sha256

# Quick to build and convert, of every preprocessing convention but that of DenseNet; all others are marked slow.
QUICK = {"vgg16", "mobilenet_0.25", "mobilenetv2_0.35", "mobilenetv3small_0.75"}
MODULES = {
    "VGG16": "vgg16", "VGG19": "vgg19", "Xception": "xception", "InceptionV3": "inception_v3",
    "InceptionResNetV2": "inception_resnet_v2", "MobileNet": "mobilenet", "MobileNetV2": "mobilenet_v2",
    "MobileNetV3": "mobilenet_v3", "DenseNet": "densenet", "NASNet": "nasnet", "EfficientNetB": "efficientnet",
    "EfficientNetV2": "efficientnet_v2", "ConvNeXt": "convnext",
}  # fmt: skip

# With random weights these two amplify rounding: Keras' own float32 is 2.8e-4 (M) and 0.8 (L) away from its float64.
CHAOTIC = ("efficientnetv2m", "efficientnetv2l")

PARAMETERS = [
    pytest.param(row, marks=() if name in QUICK else pytest.mark.slow, id=name) for name, row in BACKBONES.items()
]
rows = pytest.mark.parametrize("row", PARAMETERS)


def keras_module(row):
    if row.constructor.startswith("ResNet"):
        name = "resnet_v2" if row.constructor.endswith("V2") else "resnet"
    else:
        name = max((key for key in MODULES if row.constructor.startswith(key)), key=len)
        name = MODULES[name]
    return getattr(load_keras().applications, name)


def width(row):
    return {} if row.alpha is None else {"alpha": row.alpha}


def test_every_keras_application_has_a_row():
    keras = load_keras()
    constructors = {name for name in dir(keras.applications) if name[0].isupper()}
    assert {row.constructor for row in BACKBONES.values()} == constructors
    assert len(BACKBONES) == 50


def test_an_unknown_name_lists_the_closest():
    with pytest.raises(UsageError, match=r"no backbone is called 'mobilnetv2'; did you mean mobilenetv2"):
        find_backbone("mobilnetv2")
    assert find_backbone("VGG16").name == "vgg16"


@pytest.mark.parametrize("convention", ["caffe", "tf", "torch"])
def test_preprocessing_equals_keras(convention):
    keras = load_keras()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.float32)
    before = pixels.copy()
    ours = np.asarray(preprocess(keras, keras.ops.convert_to_tensor(pixels), convention))
    theirs = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=convention)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("row", BACKBONES.values(), ids=BACKBONES)
def test_the_row_names_the_convention_of_its_keras_module(row):
    """`preprocess_input` of the module that the constructor lives in does what the row says."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype(np.float32)
    theirs = np.asarray(keras_module(row).preprocess_input(pixels.copy()))
    keras = load_keras()
    ours = np.asarray(preprocess(keras, keras.ops.convert_to_tensor(pixels), row.preprocessing))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@rows
def test_vectors_equal_keras(row, tmp_path):
    """Same pixels, same seeded random weights, Keras' own preprocess_input: relative error below 1e-5;
    the converted network to 1e-4, where float32 itself carries that far."""
    keras = load_keras()
    size = max(row.min_size, 64)
    recipe = Recipe(row.name, "random:1", size=size)
    encoder = KerasEncoder(recipe, batch_size=3)
    assert encoder.dim == row.depth
    pixels = np.random.default_rng(2).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    ours = encoder.encode(pixels)
    keras.utils.set_random_seed(1)
    model = getattr(keras.applications, row.constructor)(
        weights=None, include_top=False, input_shape=(size, size, 3), pooling="avg", **width(row)
    )
    theirs = model.predict(keras_module(row).preprocess_input(pixels.astype(np.float32)), verbose=0)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert np.isfinite(ours).all()
    assert np.ptp(ours, axis=0).max() > 0, "all images got the same vector"
    if row.name not in CHAOTIC:
        converted = OpenVinoEncoder(recipe, batch_size=4).encode(pixels)
        assert np.abs(converted - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAOTIC)
def test_a_converted_network_is_as_near_to_float64_as_keras_is(name, tmp_path):
    """Random weights, their normalisation adapted to the images as training would have done."""
    keras = load_keras()
    pixels = np.random.default_rng(2).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    keras.utils.set_random_seed(1)
    build = getattr(keras.applications, BACKBONES[name].constructor)
    options = {"weights": None, "include_top": False, "input_shape": (64, 64, 3), "pooling": "avg"}
    keras.config.set_dtype_policy("float64")
    try:
        double = build(**options)
    finally:
        keras.config.set_dtype_policy("float32")
    single = build(**options)
    for layer in single.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
        elif isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    single(pixels.astype(np.float32), training=True)
    double.set_weights(single.get_weights())
    single.save_weights(tmp_path / "w.weights.h5")
    truth = double.predict(pixels.astype(np.float64), verbose=0)
    theirs = single.predict(pixels.astype(np.float32), verbose=0)
    ours = OpenVinoEncoder(Recipe.create(name, weights=tmp_path / "w.weights.h5", size=64), batch_size=4).encode(pixels)
    assert np.abs(theirs - truth).max() < 0.05 * np.abs(truth).max()
    assert np.abs(ours - truth).max() <= 2 * np.abs(theirs - truth).max()


@rows
def test_the_row_names_the_published_file(row, monkeypatch):
    """Keras, asked for ImageNet weights, asks for the file (and hash) of the row."""
    keras = load_keras()
    asked = {}

    class AskedError(Exception):
        pass

    def get_file(fname=None, origin=None, file_hash=None, **_):
        asked.update(name=fname or origin.split("/")[-1], hash=file_hash)
        raise AskedError

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    constructor = getattr(keras.applications, row.constructor)
    sizes = {row.size, 128, 150} if row.constructor in ("MobileNet", "MobileNetV2") else {row.size}
    for size in sizes:
        # MobileNets warn that 150 pixels use the weights of 224.
        with pytest.raises(AskedError), warnings.catch_warnings(action="ignore"):
            constructor(weights="imagenet", include_top=False, input_shape=(size, size, 3), **width(row))
        assert asked == {"name": row.weights_name(size), "hash": row.weights_hash}


@rows
def test_the_smallest_size_is_keras_own(row):
    keras = load_keras()
    constructor = getattr(keras.applications, row.constructor)
    with pytest.raises(ValueError, match=f"{row.min_size}"):
        constructor(weights=None, include_top=False, input_shape=(row.min_size - 1, row.min_size - 1, 3), **width(row))


def test_efficientnet_with_imagenet_weights_divides_as_keras_does(tmp_path, monkeypatch):
    """Keras adds a layer for weights="imagenet" alone; a vector must not depend on where the file lay."""
    keras = load_keras()
    keras.utils.set_random_seed(3)
    donor = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(64, 64, 3))
    norm = donor.get_layer(index=2)
    norm.set_weights([np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225]), np.int64(0)])
    path = tmp_path / "efficientnetb0_notop.weights.h5"
    donor.save_weights(path)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(path))
    theirs = keras.applications.EfficientNetB0(
        weights="imagenet", include_top=False, input_shape=(64, 64, 3), pooling="avg"
    )
    pixels = np.random.default_rng(2).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    expected = theirs.predict(pixels.astype(np.float32), verbose=0)
    recipe = Recipe("efficientnetb0", "imagenet", file_sha256(path), size=64, weights_path=str(path))
    ours = KerasEncoder(recipe, batch_size=2).encode(pixels)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def test_layer_names_are_those_of_a_fresh_process():
    """Built twice in one process, unnamed layers get other numbers; ours stay the same."""
    keras = load_keras()
    first = keras.applications.MobileNetV3Small(weights=None, include_top=False, input_shape=(32, 32, 3))
    second = keras.applications.MobileNetV3Small(weights=None, include_top=False, input_shape=(32, 32, 3))
    assert list(layer_names(first)) == list(layer_names(second))
    assert set(layer_names(first).values()) != set(layer_names(second).values())
    assert {"activation", "activation_1"} <= set(layer_names(second))

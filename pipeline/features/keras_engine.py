"""Engine ``keras``: one Keras model from uint8 pixels to the vectors of a recipe, traced once."""

import contextlib
import dataclasses
import hashlib
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineError, IntegrityError, UsageError, WeightsError
from pipeline.features.backbones import Backbone
from pipeline.features.keras_runtime import load_keras
from pipeline.features.pixel_batches import check_pixels, fill_up
from pipeline.features.recipe import CUSTOM, LAST, Recipe
from pipeline.features.weights import IMAGENET, check_digest, imagenet_file
from pipeline.wording import closest

# keras.applications.imagenet_utils.preprocess_input: ImageNet's channel statistics.
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCH_MEAN_RGB = (0.485, 0.456, 0.406)
TORCH_STD_RGB = (0.229, 0.224, 0.225)

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


class KerasEncoder:
    """A recipe run by Keras on TensorFlow, in inference mode.

    Parameters
    ----------
    recipe : Recipe
        Random weights are made here.
    batch_size : int
        Images per forward pass. Short batches are padded, so that there is one trace and one shape,
        and a vector does not depend on the other images of its batch.

    Attributes
    ----------
    recipe : Recipe
        With the digest of the weights in use.
    segments : dict of str to (int, int)
        Columns ``[start, stop)`` of each layer.
    dim : int
        Length of a vector.

    Raises
    ------
    EngineError
        If the recipe needs less than float32 precision and there is no GPU.
    WeightsError
        If the weights are missing, have changed since the recipe was made, or do not fit the backbone.
    UsageError
        If the network has no such layer or does not accept the size.

    Examples
    --------
    >>> from pipeline.features.recipe import Recipe
    >>> encoder = KerasEncoder(Recipe("mobilenet_0.25", "random:0", size=32), batch_size=2)
    >>> encoder.encode(np.zeros((3, 32, 32, 3), np.uint8)).shape
    (3, 256)
    """

    name = "keras"

    def __init__(self, recipe: Recipe, batch_size: int) -> None:
        gpu = has_gpu()
        if recipe.precision != "float32" and not gpu:
            raise EngineError(
                f"engine keras computes {recipe.precision} on a GPU only, and TensorFlow finds none; use --engine"
                " openvino for bfloat16, or --precision float32"
            )
        self.model, self.recipe, self.segments = build_model(recipe)
        self.dim = max(stop for _, stop in self.segments.values())
        self.batch_size = batch_size
        self._forward = _traced(self.model, recipe.size, compiled=gpu)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the vectors of images.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (n, size, size, 3)
            RGB. Not modified.

        Returns
        -------
        ndarray of float32, shape (n, dim)
        """
        check_pixels(pixels, self.recipe.size)
        vectors = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), self.batch_size):
            batch = pixels[start : start + self.batch_size]
            vectors[start : start + len(batch)] = self._forward(fill_up(batch, self.batch_size)).numpy()[: len(batch)]
        return vectors


def has_gpu() -> bool:
    """Return whether TensorFlow finds a GPU."""
    load_keras()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _traced(model: Any, size: int, *, compiled: bool) -> Any:
    import tensorflow as tf

    return tf.function(
        lambda pixels: model(pixels, training=False),
        input_signature=[tf.TensorSpec((None, size, size, 3), tf.uint8)],
        autograph=False,
        jit_compile=compiled,  # XLA, which is faster on a GPU
    )


@contextlib.contextmanager
def _keep_random_state() -> Iterator[None]:
    # Every layer that Keras builds draws a seed from Python's generator; the caller's state must not change.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@_keep_random_state()
def build_model(recipe: Recipe, precision: str | None = None) -> tuple[Any, Recipe, dict[str, tuple[int, int]]]:
    """Build the truncated, preprocessed, pooled network of a recipe.

    Parameters
    ----------
    recipe : Recipe
    precision : {"float32", "bfloat16", "float16"} or None
        Arithmetic of the model; None for the recipe's.

    Returns
    -------
    model : keras.Model
        From uint8 (n, size, size, 3) to float32 (n, dim), frozen.
    recipe : Recipe
        The recipe, with the digest of random weights filled in.
    segments : dict of str to (int, int)
        Columns of each layer.

    Raises
    ------
    WeightsError, UsageError
        As `KerasEncoder`.
    """
    keras = load_keras()
    with _dtype_policy(keras, POLICIES[precision or recipe.precision]):
        backbone = load_backbone(recipe)
        recipe = _with_digest(backbone, recipe)
        inputs = keras.Input((recipe.size, recipe.size, 3), dtype="uint8", name="pixels")
        maps = _feature_maps(keras, backbone, recipe)(_preprocess(keras, inputs, recipe))
    # Always pooled in float32: a mean of bfloat16 numbers loses most of its digits.
    with _dtype_policy(keras, "float32"):
        vectors = [pool(keras, keras.ops.cast(each, "float32"), recipe.pooling) for each in maps]
        outputs = keras.layers.Concatenate()(vectors) if len(vectors) > 1 else vectors[0]
    model = keras.Model(inputs, outputs)
    model.trainable = False
    stops = np.cumsum([vector.shape[-1] for vector in vectors]).tolist()
    segments = dict(zip(recipe.layers, zip([0, *stops], stops, strict=False), strict=True))
    return model, recipe, segments


@_keep_random_state()
def load_backbone(recipe: Recipe) -> Any:
    """Return the Keras model of a recipe's backbone: from preprocessed pixels to its last feature map.

    Raises
    ------
    WeightsError, UsageError
        As `KerasEncoder`.
    """
    keras = load_keras()
    return _load_custom(keras, recipe) if recipe.backbone == CUSTOM else _build_row(keras, recipe)


def preprocess(keras: Any, pixels: Any, convention: str) -> Any:
    """Apply one of Keras' preprocessing conventions to RGB pixels.

    Parameters
    ----------
    keras : module
    pixels : tensor of float32, shape (n, h, w, 3)
        RGB from 0 to 255.
    convention : {"caffe", "tf", "torch", "in-model"}
        The modes of ``keras.applications.imagenet_utils.preprocess_input``; ``"in-model"`` changes nothing.

    Returns
    -------
    tensor of float32, shape (n, h, w, 3)
    """
    if convention == "caffe":
        return keras.ops.flip(pixels, axis=-1) - keras.ops.convert_to_tensor(CAFFE_MEAN_BGR, "float32")
    if convention == "tf":
        return pixels / 127.5 - 1.0
    if convention == "torch":
        mean = keras.ops.convert_to_tensor(TORCH_MEAN_RGB, "float32")
        return (pixels / 255.0 - mean) / keras.ops.convert_to_tensor(TORCH_STD_RGB, "float32")
    return pixels


def layer_names(model: Any) -> dict[str, str]:
    """Map the names that layers have in a new process to their names in this process.

    Keras numbers unnamed layers across the whole process, so ``activation_3`` of the second model may be called
    ``activation_97``; a recipe needs names that are the same in every process.
    """
    numbered = [(layer.name, _automatic_name(layer)) for layer in model.layers]
    first: dict[str, int] = {}
    for _, automatic in numbered:
        if automatic:
            first[automatic[0]] = min(first.get(automatic[0], automatic[1]), automatic[1])
    names = {}
    for name, automatic in numbered:
        if automatic:
            base, number = automatic
            number -= first[base]
            names[f"{base}_{number}" if number else base] = name
        else:
            names[name] = name
    return names


def _automatic_name(layer: Any) -> tuple[str, int] | None:
    snake = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
    snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", snake).lower()
    match = re.fullmatch(re.escape(snake) + r"(?:_(\d+))?", layer.name)
    return (snake, int(match[1] or 0)) if match else None


@contextlib.contextmanager
def _dtype_policy(keras: Any, name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _build_row(keras: Any, recipe: Recipe) -> Any:
    row = recipe.row
    assert row is not None
    constructor = getattr(keras.applications, row.constructor)
    width = {} if row.alpha is None else {"alpha": row.alpha}
    # ConvNeXt normalises after pooling, so Keras must do the pooling.
    pooled_by_keras = row.constructor.startswith("ConvNeXt") and recipe.layers == (LAST,)
    pooling = recipe.pooling if pooled_by_keras and recipe.pooling != "flatten" else None
    shape = (recipe.size, recipe.size, 3)
    arguments = {"weights": None, "include_top": False, "input_shape": shape, "pooling": pooling, **width}
    if recipe.weights.startswith("random:"):
        random.seed(int(recipe.weights.removeprefix("random:")))  # Keras' initialisers draw their seeds from it
        return constructor(**arguments)
    path = _weights_file(row, recipe)
    with warnings.catch_warnings():
        # MobileNets warn that other sizes start from the weights of 224 pixels, which is documented.
        warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square", category=UserWarning)
        model = constructor(**arguments)
    try:
        model.load_weights(path)
    except Exception as error:
        raise WeightsError(
            f"{path} does not fit {row.name} without its classifier"
            f" ({_first_line(error)}); name a 'notop' weights file of this backbone"
        ) from error
    if row.constructor.startswith("EfficientNetB") and recipe.weights == IMAGENET:
        _rescale_like_imagenet(model)
    return model


def _rescale_like_imagenet(model: Any) -> None:
    # Only with weights="imagenet", Keras adds a division by sqrt(std) after the normalisation
    # (github.com/tensorflow/tensorflow/issues/49930); here it is made part of the variance.
    norm = next(layer for layer in model.layers if type(layer).__name__ == "Normalization")
    mean, variance, count = norm.get_weights()
    norm.set_weights([mean, variance * np.asarray(TORCH_STD_RGB, variance.dtype), count])
    norm.finalize_state()


def _weights_file(row: Backbone, recipe: Recipe) -> Path:
    hint = Path(recipe.weights_path)
    if recipe.weights == IMAGENET and not (recipe.weights_path and hint.is_file()):
        hint = imagenet_file(row, recipe.size)
    check_digest(hint, recipe.weights_sha256)
    return hint


def _load_custom(keras: Any, recipe: Recipe) -> Any:
    path = Path(recipe.weights_path)
    check_digest(path, recipe.weights_sha256)
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise IntegrityError(
            f"{path} cannot be loaded safely as a Keras model ({_first_line(error)}); save it again with"
            " model.save(), without Lambda layers"
        ) from error
    shape = tuple(model.input_shape) if isinstance(model.input_shape, tuple) else ()
    if len(shape) != 4 or shape[-1] != 3 or any(side not in (None, recipe.size) for side in shape[1:3]):
        raise UsageError(
            f"{path.name} has inputs of shape {model.input_shape}, expected (None, {recipe.size}, {recipe.size}, 3);"
            " change --size"
        )
    return model


def _with_digest(backbone: Any, recipe: Recipe) -> Recipe:
    if not recipe.weights.startswith("random:"):
        return recipe
    digest = hashlib.sha256()
    for weight in backbone.get_weights():
        digest.update(f"{weight.shape}{weight.dtype}".encode())
        digest.update(np.ascontiguousarray(weight).data)
    made = digest.hexdigest()
    if recipe.weights_sha256 not in ("", made):
        raise WeightsError(
            f"{recipe.weights} gives other weights with these versions of Keras and TensorFlow than when the"
            " vectors were made; install the old versions or extract again with --overwrite"
        )
    return dataclasses.replace(recipe, weights_sha256=made)


def _preprocess(keras: Any, inputs: Any, recipe: Recipe) -> Any:
    convention = recipe.row.preprocessing if recipe.row else "in-model"
    return preprocess(keras, keras.ops.cast(inputs, "float32"), convention)


def _feature_maps(keras: Any, backbone: Any, recipe: Recipe) -> Any:
    """Return a function from preprocessed pixels to the list of the recipe's layer outputs."""
    names = layer_names(backbone)
    outputs = []
    for layer in recipe.layers:
        if layer == LAST:
            outputs += backbone.outputs
        elif layer in names:
            outputs.append(backbone.get_layer(names[layer]).output)
        else:
            raise UsageError(f"{recipe.backbone} has no layer {layer!r}; {closest(layer, [LAST, *names])}")
    if any(isinstance(output, (list, dict)) for output in outputs):
        raise UsageError(f"layers {list(recipe.layers)} of {recipe.backbone} have several outputs; choose others")
    return keras.Model(backbone.inputs, outputs)


def pool(keras: Any, feature_map: Any, pooling: str) -> Any:
    """Pool a feature map (n, h, w, c) into vectors (n, d); vectors are returned unchanged."""
    rank = len(feature_map.shape)
    if rank == 2:
        return feature_map
    if rank == 4 and pooling != "flatten":
        layers = {"avg": keras.layers.GlobalAveragePooling2D, "max": keras.layers.GlobalMaxPooling2D}
        return layers[pooling]()(feature_map)
    if None in feature_map.shape[1:]:
        raise EngineError(f"a layer's output has the open shape {feature_map.shape}, which cannot be flattened")
    return keras.layers.Flatten()(feature_map)


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"

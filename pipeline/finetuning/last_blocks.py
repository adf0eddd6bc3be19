"""The last blocks of a network as a Keras model that learns, from feature maps to probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreError, UsageError
from pipeline.features.hdf5 import tagged
from pipeline.features.keras_engine import layer_names, load_backbone, pool
from pipeline.features.keras_runtime import load_keras, weights_file
from pipeline.features.recipe import Recipe
from pipeline.features.weights import TUNED
from pipeline.files import replacing
from pipeline.wording import closest

_SHARE, _MOST = (0.2, 0.35), 0.5  # of the layers with kernels: how much is tuned by default, and at most
_DROPOUT = 0.5
_SMOOTHING = 0.1  # of the labels


class LastBlocks:
    """What follows a layer of a network, and a head on it.

    Parameters
    ----------
    recipe : Recipe
        Whose last feature map, pooled, is what the head sees.
    after : str or None
        The layer whose output is the input here. None for the smallest feature map, and of equal ones the last,
        behind which lies a fifth to a third of the layers with kernels.
    seed : int
        Of dropout.

    Attributes
    ----------
    after : str
    shape : tuple of int
        Of its output for one image.
    count : int
        Number of weights that can change.

    Raises
    ------
    UsageError
        If there is no such layer, other layers go round it, or nothing behind it has weights.
    WeightsError
        If the weights of the network are absent or have changed.
    """

    def __init__(self, recipe: Recipe, after: str | None = None, seed: int = 0) -> None:
        keras = load_keras()
        self.recipe = recipe
        self._network = load_backbone(recipe)
        self._seed = seed
        names = layer_names(self._network)
        if after is None:
            after = _choose(self._network, names)
        else:
            _check(self._network, names, after)
        self.after = after
        self._tail = keras.Model(self._network.get_layer(names[self.after]).output, self._network.outputs[0])
        self.shape = tuple(int(side) for side in self._tail.inputs[0].shape[1:])
        for layer in self._tail.layers:
            # Batch normalisation keeps statistics, scale and shift: batches of few images would spoil them.
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        self.count = sum(int(np.prod(weight.shape)) for weight in self._tail.trainable_weights)
        self._model: Any = None

    def input_recipe(self, views: str) -> Recipe:
        """Return the recipe of the feature maps that come in, flattened."""
        return replace(self.recipe, layers=(self.after,), pooling="flatten", views=views)

    def attach(self, head: Any, learning_rate: float) -> None:
        """Put a fitted head on the blocks, with dropout before it, and get ready to learn.

        Parameters
        ----------
        head : pipeline of StandardScaler and LogisticRegression
            The scaling stays; the affine layer learns too.
        learning_rate : float
            Of Adam.
        """
        keras = load_keras()
        scaler, linear = head[0], head[-1]
        inputs = keras.Input(self.shape)
        vectors = pool(keras, self._tail(inputs, training=False), self.recipe.pooling)
        scaled = keras.layers.Rescaling(1 / scaler.scale_, -scaler.mean_ / scaler.scale_)(vectors)
        last = keras.layers.Dense(len(linear.classes_), activation="softmax")
        outputs = last(keras.layers.Dropout(_DROPOUT, seed=self._seed)(scaled))
        coefficients, intercept = linear.coef_, linear.intercept_
        if len(linear.classes_) == 2:  # one value for two classes: half of it for the second, half against the first
            coefficients, intercept = (np.concatenate([-each, each]) / 2 for each in (coefficients, intercept))
        last.set_weights([coefficients.T.astype(np.float32), intercept.astype(np.float32)])
        self._model = keras.Model(inputs, outputs)
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=_SMOOTHING)
        self._model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])

    def step(self, maps: NDArray[np.float32], targets: NDArray[np.float32], *, first: bool) -> dict[str, float]:
        """Learn from a batch; return loss and accuracy since the `first` one of the epoch."""
        if first:
            self._model.reset_metrics()
        logs = self._model.train_on_batch(maps.reshape(-1, *self.shape), targets, return_dict=True)
        return {name: float(value) for name, value in logs.items()}

    def probabilities(self, maps: NDArray[np.float32]) -> NDArray[np.float64]:
        """Turn feature maps into probabilities, float64 (n, k)."""
        return np.asarray(self._model.predict_on_batch(maps.reshape(-1, *self.shape)), np.float64)

    def weights(self) -> list[NDArray[np.float32]]:
        """Return a copy of all weights of the blocks."""
        return [np.array(weight) for weight in self._tail.get_weights()]

    def restore(self, weights: list[NDArray[np.float32]]) -> None:
        """Put weights back."""
        self._tail.set_weights(weights)

    def save(self, path: Path) -> None:
        """Write the weights of the whole network, marked as tuned; whole or not at all.

        Raises
        ------
        StoreError
            If the disk is full or the folder cannot be written.
        """
        for name, own in layer_names(self._network).items():
            self._network.get_layer(own).name = name  # numbers of this process would make every file differ
        try:
            content = tagged(weights_file(self._network), TUNED)
            with replacing(path) as file:
                file.write(content)
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {error.strerror}; make space and run the command again, what was done is kept"
            ) from error


def smoothed_loss(proba: NDArray[np.floating], targets: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the loss of each image that training lowers too: cross-entropy with smoothed labels.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7.

    >>> smoothed_loss(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])).round(4).tolist()
    [0.6931]
    """
    smooth = targets * (1 - _SMOOTHING) + _SMOOTHING / targets.shape[1]
    return np.asarray(-(smooth * np.log(np.maximum(proba, 1e-7))).sum(axis=1), np.float64)


def _choose(network: Any, names: dict[str, str]) -> str:
    """Choose the layer whose output is cached: little to keep, and a fair share of the network behind it."""
    total = _kernels(network.layers)
    behind = {name: _kernels(network.layers[place + 1 :]) / total for place, name in _cuts(network, names)}
    shares = {name: share for name, share in behind.items() if 0 < share <= _MOST}
    if not shares:
        raise UsageError("no layer of the later half of this network has everything go through it; tune another one")
    fitting = [name for name, share in shares.items() if _SHARE[0] <= share <= _SHARE[1]]
    if not fitting:
        return min(shares, key=lambda name: abs(shares[name] - _SHARE[0]))
    sizes = {name: int(np.prod(network.get_layer(names[name]).output.shape[1:])) for name in fitting}
    return min(reversed(fitting), key=sizes.__getitem__)


def _check(network: Any, names: dict[str, str], after: str) -> None:
    if after not in names:
        raise UsageError(f"the network has no layer {after!r}; {closest(after, names)}")
    place = list(names).index(after)
    cuts = dict(_cuts(network, names))
    if place not in cuts:
        near = sorted(cuts, key=lambda cut: abs(cut - place))[:3]
        advice = f"name one that all go through, such as {' or '.join(cuts[each] for each in near)}"
        raise UsageError(f"other layers go round {after!r}; {advice if near else 'take another network'}")
    if not _kernels(network.layers[place + 1 :]):
        raise UsageError(f"nothing after {after!r} has weights to tune; name an earlier layer")


def _cuts(network: Any, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Yield place and name of the layers that everything goes through: no connection leads past them."""
    entries = network.get_config()["layers"]  # with plain operations, which are no layers; each behind its inputs
    order = {entry["name"]: number for number, entry in enumerate(entries)}
    last_use = dict.fromkeys(order, -1)
    for entry in entries:
        for source in _sources(entry["inbound_nodes"]):
            last_use[source] = max(last_use[source], order[entry["name"]])
    fresh = {own: name for name, own in names.items()}
    places = {layer.name: place for place, layer in enumerate(network.layers)}
    reach = 0
    for number, entry in enumerate(entries):
        own = entry["name"]
        if reach <= number and own in places and not isinstance(network.get_layer(own).output, (list, dict)):
            yield places[own], fresh[own]
        reach = max(reach, last_use[own])


def _sources(value: Any) -> Iterator[str]:
    """Yield the names of the layers whose tensors occur in a part of a Keras configuration."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        yield value["config"]["keras_history"][0]
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _sources(each)


def _kernels(layers: Sequence[Any]) -> int:
    """Count the layers with a kernel: convolutions and dense ones."""
    return sum(any(len(weight.shape) > 1 for weight in layer.weights) for layer in layers)

"""The last blocks of a network as a trainable Keras model from feature maps to probabilities."""

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
from pipeline.files import replacing, writing
from pipeline.wording import closest

_SHARE = (0.2, 0.35)  # of the layers with kernels that are trained by default
_MAX_SHARE = 0.5
_DROPOUT = 0.5
_LABEL_SMOOTHING = 0.1


class LastBlocks:
    """The layers of a network after a given one, with a head on top.

    Parameters
    ----------
    recipe : Recipe
        Of the vectors that the head is trained on.
    after : str or None
        The layer whose output is the input here. None to choose, among the layers with 20 % to 35 % of the kernels
        after them, the one with the smallest output (the last of equals).
    seed : int
        Of dropout.

    Attributes
    ----------
    after : str
    shape : tuple of int
        Of the output of that layer for one image.
    count : int
        Number of trainable weights.

    Raises
    ------
    UsageError
        If the layer does not exist, other layers bypass it, or no layer after it has weights.
    WeightsError
        If the weights of the network are missing or have changed.
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
            # Small batches would spoil the statistics of batch normalisation, so it is frozen.
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        self.count = sum(int(np.prod(weight.shape)) for weight in self._tail.trainable_weights)
        self._model: Any = None

    def input_recipe(self, views: str) -> Recipe:
        """Return the recipe of the input: the flattened feature maps of the layer `after`."""
        return replace(self.recipe, layers=(self.after,), pooling="flatten", views=views)

    def attach(self, head: Any, learning_rate: float) -> None:
        """Put a fitted head with dropout on the blocks, and compile the model.

        Parameters
        ----------
        head : pipeline of StandardScaler and LogisticRegression
            The scaling is frozen; the affine layer is trained too.
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
        if len(linear.classes_) == 2:  # a logit z of two classes is a softmax over (-z/2, z/2)
            coefficients, intercept = (np.concatenate([-each, each]) / 2 for each in (coefficients, intercept))
        last.set_weights([coefficients.T.astype(np.float32), intercept.astype(np.float32)])
        self._model = keras.Model(inputs, outputs)
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=_LABEL_SMOOTHING)
        self._model.compile(keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])

    def step(self, maps: NDArray[np.float32], targets: NDArray[np.float32], *, first: bool) -> dict[str, float]:
        """Train on a batch; return mean loss and accuracy since the first batch of the epoch (`first`)."""
        if first:
            self._model.reset_metrics()
        logs = self._model.train_on_batch(maps.reshape(-1, *self.shape), targets, return_dict=True)
        return {name: float(value) for name, value in logs.items()}

    def probabilities(self, maps: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probabilities of feature maps, float64 (n, k)."""
        return np.asarray(self._model.predict_on_batch(maps.reshape(-1, *self.shape)), np.float64)

    def weights(self) -> list[NDArray[np.float32]]:
        """Return a copy of all weights of the blocks."""
        return [np.array(weight) for weight in self._tail.get_weights()]

    def restore(self, weights: list[NDArray[np.float32]]) -> None:
        """Set all weights of the blocks."""
        self._tail.set_weights(weights)

    def save(self, path: Path) -> None:
        """Write the weights of the whole network, marked as tuned, atomically.

        Raises
        ------
        StoreError
            If the disk is full or the folder cannot be written.
        """
        for name, own in layer_names(self._network).items():
            self._network.get_layer(own).name = name  # names numbered by the process would make the files differ
        with writing(path, StoreError, advice="make space and run the command again; finished work is kept"):
            content = tagged(weights_file(self._network), TUNED)
            with replacing(path) as file:
                file.write(content)


def smoothed_loss(proba: NDArray[np.floating], targets: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the loss of each image as in training: cross-entropy with label smoothing.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7.

    >>> smoothed_loss(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])).round(4).tolist()
    [0.6931]
    """
    smooth = targets * (1 - _LABEL_SMOOTHING) + _LABEL_SMOOTHING / targets.shape[1]
    return np.asarray(-(smooth * np.log(np.maximum(proba, 1e-7))).sum(axis=1), np.float64)


def _choose(network: Any, names: dict[str, str]) -> str:
    """Choose the layer whose output is cached: small, and with a suitable share of the network after it."""
    total = _kernels(network.layers)
    shares = {name: _kernels(network.layers[place + 1 :]) / total for place, name in _cuts(network, names)}
    shares = {name: share for name, share in shares.items() if 0 < share <= _MAX_SHARE}
    if not shares:
        raise UsageError("other layers bypass each layer in the second half of this network; tune another network")
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
        advice = f"name a layer that everything passes through, such as {' or '.join(cuts[each] for each in near)}"
        raise UsageError(f"other layers bypass {after!r}; {advice if near else 'tune another network'}")
    if not _kernels(network.layers[place + 1 :]):
        raise UsageError(f"no layer after {after!r} has weights to tune; name an earlier layer")


def _cuts(network: Any, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Yield index and name of the layers that no connection bypasses."""
    entries = network.get_config()["layers"]  # includes operations that are not layers; in topological order
    order = {entry["name"]: number for number, entry in enumerate(entries)}
    last_use = dict.fromkeys(order, -1)
    for entry in entries:
        for source in _sources(entry["inbound_nodes"]):
            last_use[source] = max(last_use[source], order[entry["name"]])
    stable_names = {own: name for name, own in names.items()}
    places = {layer.name: place for place, layer in enumerate(network.layers)}
    reach = 0
    for number, entry in enumerate(entries):
        own = entry["name"]
        if reach <= number and own in places and not isinstance(network.get_layer(own).output, (list, dict)):
            yield places[own], stable_names[own]
        reach = max(reach, last_use[own])


def _sources(value: Any) -> Iterator[str]:
    """Yield the names of the layers whose tensors occur in part of a Keras configuration."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        yield value["config"]["keras_history"][0]
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _sources(each)


def _kernels(layers: Sequence[Any]) -> int:
    """Count the layers with a kernel: convolutions and dense layers."""
    return sum(any(len(weight.shape) > 1 for weight in layer.weights) for layer in layers)

"""`KerasHead`: a small Keras network on vectors, as a scikit-learn classifier."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from pipeline.errors import BundleError, TrainingError, UsageError
from pipeline.features.keras_runtime import load_keras, weights_file
from pipeline.heads.arrays import softmax

_MAX_STEPS_PER_CALL = 256  # training steps per call of TensorFlow, as many as an epoch of a small data set has


def _is_integer(value: Any, least: int) -> bool:
    return value is not True and value is not False and isinstance(value, Integral) and int(value) >= least


def _is_number(value: Any, low: float, high: float) -> bool:
    return value is not True and value is not False and isinstance(value, Real) and low <= float(value) < high


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "hidden": (
        "sizes of the hidden layers of at least 1, such as (256,) or (256, 128)",
        lambda v: _is_integer(v, 1) or (isinstance(v, (list, tuple)) and all(_is_integer(size, 1) for size in v)),
    ),
    "dropout": ("a number from 0 to below 1", lambda v: _is_number(v, 0.0, 1.0)),
    "learning_rate": ("a number above 0", lambda v: _is_number(v, np.nextafter(0.0, 1.0), np.inf)),
    "epochs": ("a whole number of at least 1", lambda v: _is_integer(v, 1)),
    "batch_size": ("a whole number of at least 1", lambda v: _is_integer(v, 1)),
    "patience": ("a whole number of at least 0", lambda v: _is_integer(v, 0)),
    "validation_fraction": ("a number from 0 to below 1", lambda v: _is_number(v, 0.0, 1.0)),
    "class_weight": (
        "None, 'balanced' or a dict from label to weight",
        lambda v: v is None or v == "balanced" or isinstance(v, Mapping),
    ),
}


class KerasHead(ClassifierMixin, BaseEstimator):
    """Dense layers with dropout on vectors, trained with Keras; prediction needs only NumPy.

    Trained with Adam on the categorical cross-entropy. Early stopping monitors the validation loss and restores the
    best weights. The fitted state is plain arrays: copying, pickling and predicting need no TensorFlow. Two fits with
    the same seed on the same machine give the same weights, and no global random state is read or written. Features
    should be standardised, as `make_head` does.

    Parameters
    ----------
    hidden : int or sequence of int
        Units of the hidden layers; ``()`` is multinomial logistic regression.
    dropout : float
        Fraction of hidden units dropped in a training step, 0 to below 1.
    learning_rate : float
        Of Adam.
    epochs : int
        At most this many.
    batch_size : int
    patience : int
        Training stops after this many epochs without improvement of the loss.
    validation_fraction : float
        Fraction of the training rows held out, stratified, for early stopping; 0 monitors the training loss.
    class_weight : None, "balanced" or dict
        Class weights in the loss; "balanced" is n / (k * count).
    random_state : int, RandomState or None

    Attributes
    ----------
    classes_ : array of shape (k,)
    n_features_in_ : int
    weights_ : list of float32 arrays
        Kernel and bias of each dense layer, in order.
    history_ : dict of str to list of float
        ``loss``, ``accuracy`` and, if rows were held out, ``val_loss``, ``val_accuracy``; one value per epoch.
        Losses are weighted by `class_weight`, accuracies are not.
    best_epoch_ : int
        Index into the history of the epoch whose weights are kept.
    seed_ : int
        The seed that was used.

    Examples
    --------
    >>> X = [[-2.0], [-1.5], [-1.0], [1.0], [1.5], [2.0]]
    >>> head = KerasHead(hidden=(8,), epochs=30, learning_rate=0.05, dropout=0.0)
    >>> head.fit(X, ["cat", "cat", "cat", "dog", "dog", "dog"]).predict([[1.7], [-1.2]]).tolist()
    ['dog', 'cat']
    """

    def __init__(
        self,
        hidden: int | Sequence[int] = (256, 128),
        dropout: float = 0.5,
        learning_rate: float = 3e-4,
        epochs: int = 100,
        batch_size: int = 32,
        patience: int = 10,
        validation_fraction: float = 0.1,
        class_weight: Mapping[Any, float] | str | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any, validation_data: tuple[Any, Any] | None = None) -> "KerasHead":
        """Train the network.

        Parameters
        ----------
        X : array of shape (n, d)
            Converted to float32; NaN and infinity are refused.
        y : array of shape (n,)
            Labels of any kind.
        validation_data : tuple of (m, d) and (m,) arrays, optional
            Used by early stopping instead of a part of `X`; scaled like `X`.

        Returns
        -------
        KerasHead
            self

        Raises
        ------
        UsageError
            If a parameter is out of range, `y` has a single class, or `validation_data` has a label that is not
            in `y`.
        TrainingError
            If the weights become infinite or NaN.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UsageError(f"y has 1 class, {self.classes_[0]!r}; expected at least 2 classes")
        self.seed_ = _seed(self.random_state)
        weights = self._class_weights(y)
        if validation_data is None:
            train, held = _hold_out(codes, self.validation_fraction, self.seed_)
            validation = (X[held], codes[held])
            X, codes = X[train], codes[train]
        else:
            validation = self._check_validation(*validation_data)
        self._train(X, codes, validation, weights)
        if not all(np.isfinite(array).all() for array in self.weights_):
            raise TrainingError(
                f"the weights of the dense head became infinite with learning_rate={self.learning_rate}; lower"
                " learning_rate or standardise the features"
            )
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, computed with NumPy.

        Parameters
        ----------
        X : array of shape (n, d)

        Returns
        -------
        float32 array of shape (n, k)
            Rows add up to 1; columns follow ``classes_``.
        """
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=np.float32)
        *inner, (kernel, bias) = zip(self.weights_[::2], self.weights_[1::2], strict=True)
        for hidden_kernel, hidden_bias in inner:
            x = np.maximum(x @ hidden_kernel + hidden_bias, 0.0)
        return softmax(x @ kernel + bias)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class.

        Parameters
        ----------
        X : array of shape (n, d)

        Returns
        -------
        array of shape (n,)
            With the dtype of ``classes_``.
        """
        columns = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[columns])

    def keras_model(self) -> Any:
        """Build a Keras functional model with the fitted weights, for export and fine-tuning.

        Returns
        -------
        keras.Model
            From float32 (n, d) to probabilities (n, k).
        """
        check_is_fitted(self)
        model = self._build()
        model.set_weights(self.weights_)
        return model

    def save_weights(self, path: str | PathLike[str]) -> None:
        """Save the weights in Keras' format.

        Parameters
        ----------
        path : path
            Must end in ``.weights.h5``.

        Raises
        ------
        UsageError
            If `path` ends otherwise.
        """
        if not fspath(path).endswith(".weights.h5"):
            raise UsageError(f"cannot save weights as {fspath(path)!r}; expected a name ending in .weights.h5")
        Path(path).write_bytes(weights_file(self.keras_model()))

    def tempered(self, temperature: float) -> "KerasHead":
        """Return a copy whose logits are divided by a temperature."""
        head = copy.copy(self)
        last = [np.asarray(array / np.float32(temperature), np.float32) for array in self.weights_[-2:]]
        head.weights_ = [*self.weights_[:-2], *last]
        return head

    def describe(self) -> dict[str, Any]:
        """Describe the fitted head as plain data, from which `restore` rebuilds it.

        Returns
        -------
        dict
            Ready for JSON: ``parameters``, ``n_features``, ``n_classes``, ``seed``, ``history`` and
            ``best_epoch``. A dict of class weights becomes a list of pairs.
        """
        check_is_fitted(self)
        parameters = self.get_params()
        parameters["hidden"] = _sizes(self.hidden)
        if isinstance(self.class_weight, Mapping):
            parameters["class_weight"] = [[_plain(k), _plain(v)] for k, v in self.class_weight.items()]
        if isinstance(self.random_state, np.random.RandomState):
            parameters["random_state"] = self.seed_
        return {
            "parameters": {key: _plain(value) for key, value in parameters.items()},
            "n_features": int(self.n_features_in_),
            "n_classes": len(self.classes_),
            "seed": self.seed_,
            "history": {key: list(values) for key, values in self.history_.items()},
            "best_epoch": self.best_epoch_,
        }

    @classmethod
    def restore(
        cls, description: Mapping[str, Any], weights_path: str | PathLike[str], classes: Sequence[Any]
    ) -> "KerasHead":
        """Rebuild a fitted head from the results of `describe` and `save_weights`.

        Parameters
        ----------
        description : mapping
        weights_path : path
            A ``.weights.h5`` file.
        classes : sequence of k labels
            The ``classes_`` of the saved head.

        Returns
        -------
        KerasHead

        Raises
        ------
        BundleError
            If the description, the classes and the weights do not fit each other.
        """
        head = cls._from_description(description)
        if len(classes) != description["n_classes"]:
            raise BundleError(
                f"got {len(classes)} classes for a head of {description['n_classes']}; expected as many as the head has"
            )
        head.classes_ = np.asarray(classes)
        model = head._build()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Keras only warns if the file lacks weights of a layer
                model.load_weights(fspath(weights_path))
        except (OSError, ValueError, KeyError, TypeError, UserWarning) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise BundleError(
                f"cannot load the weights {fspath(weights_path)!r} into a head of {head.n_features_in_} features,"
                f" hidden layers {_sizes(head.hidden)} and {len(classes)} classes: {reason}"
            ) from error
        head.weights_ = model.get_weights()
        return head

    @classmethod
    def _from_description(cls, description: Mapping[str, Any]) -> "KerasHead":
        try:
            parameters = dict(description["parameters"])
            parameters["hidden"] = tuple(parameters["hidden"])
            if isinstance(parameters["class_weight"], list):
                parameters["class_weight"] = dict(parameters["class_weight"])
            head = cls(**parameters)
            head._check_parameters()
            if not (_is_integer(description["n_features"], 1) and _is_integer(description["n_classes"], 2)):
                raise UsageError("n_features and n_classes must be whole numbers of at least 1 and 2")
            head.n_features_in_ = description["n_features"]
            head.seed_ = int(description["seed"])
            head.history_ = {str(k): [float(v) for v in values] for k, values in description["history"].items()}
            head.best_epoch_ = int(description["best_epoch"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"the description of the dense head cannot be used ({error!r}); expected the result of describe()"
            ) from error
        return head

    def _check_parameters(self) -> None:
        for name, (expected, accepts) in _EXPECTED.items():
            value = getattr(self, name)
            if not accepts(value):
                raise UsageError(f"{name}={value!r} cannot be used; expected {expected}")

    def _check_validation(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X = validate_data(self, X, reset=False, dtype=np.float32)
        y = np.asarray(y)
        unknown = np.setdiff1d(y, self.classes_)
        if y.shape != (len(X),) or len(unknown):
            raise UsageError(
                f"validation_data has {len(X)} rows, labels of shape {y.shape} and {len(unknown)} classes that"
                " the training labels do not have; expected one label per row and no other classes"
            )
        return X, np.searchsorted(self.classes_, y)

    def _class_weights(self, y: np.ndarray) -> np.ndarray:
        weights = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        return np.asarray(weights, dtype=np.float32)

    def _train(
        self, X: np.ndarray, codes: np.ndarray, validation: tuple[np.ndarray, np.ndarray], weights: np.ndarray
    ) -> None:
        keras = load_keras()
        one_hot = np.eye(len(self.classes_), dtype=np.float32)
        monitored = "val_loss" if len(validation[1]) else "loss"
        best = keras.callbacks.EarlyStopping(
            monitor=monitored, mode="min", patience=self.patience, restore_best_weights=True
        )
        batches, steps = _batches(X, one_hot[codes], weights[codes], self.batch_size, self.seed_)
        model = self._build()
        model.compile(
            optimizer=keras.optimizers.Adam(self.learning_rate),
            loss=keras.losses.CategoricalCrossentropy(),
            metrics=["accuracy"],
            steps_per_execution=min(steps, _MAX_STEPS_PER_CALL),
            jit_compile=False,  # compiling takes longer than training such a small network
        )
        V, v = validation
        fitted = model.fit(
            batches,
            epochs=self.epochs,
            steps_per_epoch=steps,
            validation_data=(V, one_hot[v], weights[v]) if len(v) else None,
            validation_batch_size=1024,
            callbacks=[best],
            shuffle=False,  # the batches are shuffled already
            verbose=0,
        )
        self.weights_ = model.get_weights()
        self.history_ = {key: [float(x) for x in values] for key, values in fitted.history.items()}
        self.best_epoch_ = int(best.best_epoch)

    def _build(self) -> Any:
        """Build the functional model, with seeded initial weights and dropout."""
        keras = load_keras()
        seeds = _seeds(self.seed_)
        inputs = x = keras.Input((self.n_features_in_,), name="features")
        for i, size in enumerate(_sizes(self.hidden), start=1):
            initial = keras.initializers.GlorotUniform(seed=next(seeds))
            x = keras.layers.Dense(size, activation="relu", kernel_initializer=initial, name=f"hidden_{i}")(x)
            x = keras.layers.Dropout(self.dropout, seed=next(seeds), name=f"dropout_{i}")(x)
        initial = keras.initializers.GlorotUniform(seed=next(seeds))
        outputs = keras.layers.Dense(
            len(self.classes_), activation="softmax", kernel_initializer=initial, name="probabilities"
        )(x)
        return keras.Model(inputs, outputs, name="dense_head")


def _batches(X: np.ndarray, targets: np.ndarray, weights: np.ndarray, batch_size: int, seed: int) -> tuple[Any, int]:
    """Return an endless tf.data set of batches, and the steps per epoch.

    Each epoch has a new order that depends on the seed only; Dataset.shuffle and model.fit(shuffle=True) would also
    read TensorFlow's global seed.
    """
    import tensorflow as tf

    rows = len(X)
    arrays = [tf.constant(array) for array in (X, targets, weights)]

    def one_epoch(epoch: Any) -> Any:
        order = tf.random.experimental.stateless_shuffle(tf.range(rows), seed=[tf.constant(seed, tf.int64), epoch])
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    def gather(indices: Any) -> tuple[Any, ...]:
        return tuple(tf.gather(array, indices) for array in arrays)

    batches = tf.data.Dataset.counter().flat_map(one_epoch).map(gather).prefetch(2)
    return batches, -(-rows // batch_size)


def _hold_out(codes: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split row numbers into training and held-out rows, stratified; hold out none if rows are too few.

    Classes of a single row are not held out.
    """
    counts = np.bincount(codes)
    rows = np.arange(len(codes))
    shared = rows[counts[codes] >= 2]
    size, k = round(fraction * len(rows)), int((counts >= 2).sum())
    if fraction == 0 or k == 0 or size < k or len(shared) - size < k:
        return rows, rows[:0]
    _, held = train_test_split(shared, test_size=size, stratify=codes[shared], random_state=seed)
    return np.setdiff1d(rows, held), np.sort(held)


def _seed(random_state: Any) -> int:
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _seeds(seed: int) -> Iterator[int]:
    """Yield independent seeds below 2**31, without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(2**31 - 1))


def _sizes(hidden: Any) -> list[int]:
    return [int(hidden)] if isinstance(hidden, Integral) else [int(size) for size in hidden]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value

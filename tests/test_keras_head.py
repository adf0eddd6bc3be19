import copy
import json
import pickle
import random
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from pipeline.errors import BundleError, TrainingError, UsageError
from pipeline.features.keras_runtime import load_keras
from pipeline.heads.keras_head import KerasHead, _hold_out

pytestmark = pytest.mark.xdist_group("keras_head")  # one process pays for TensorFlow


@pytest.fixture(scope="module", autouse=True)
def keras():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what TensorFlow warns of while it is imported is not ours
        return load_keras()


@pytest.fixture(scope="module")
def fitted(keras):
    return small().fit(*blobs())


def small(**params):
    return KerasHead(**{"hidden": (8, 5), "dropout": 0.2, "learning_rate": 0.02, "epochs": 12, **params})


def blobs(k=3, n=30, d=6, seed=0):
    rng = np.random.default_rng(seed)
    y = np.tile(np.arange(k), n)
    return (rng.normal(size=(k * n, d)) + 3 * np.eye(k, d)[y]).astype(np.float32), y


def checked():
    """Give small settings with which a whole check trains in a second."""
    return KerasHead((16,), dropout=0.0, learning_rate=0.03, epochs=30, patience=20, validation_fraction=0)


@parametrize_with_checks([checked()])
def test_the_contract_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_numpy_prediction_is_that_of_the_keras_model(fitted):
    X = np.random.default_rng(1).normal(scale=5, size=(50, 6)).astype(np.float32)
    np.testing.assert_allclose(fitted.predict_proba(X), fitted.keras_model().predict(X, verbose=0), atol=1e-6)


def test_huge_vectors_saturate_and_do_not_overflow(fitted):
    p = fitted.predict_proba(np.full((2, 6), 1e30, np.float32))
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_the_model_is_functional_with_the_layers_asked_for(fitted, keras):
    model = fitted.keras_model()
    assert isinstance(model, keras.src.models.functional.Functional)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["InputLayer", "Dense", "Dropout", "Dense", "Dropout", "Dense"]
    assert [layer.rate for layer in model.layers if type(layer).__name__ == "Dropout"] == [0.2, 0.2]
    assert [array.shape for array in fitted.weights_] == [(6, 8), (8,), (8, 5), (5,), (5, 3), (3,)]


def test_two_fits_give_the_same_weights_whatever_the_global_seeds(keras):
    X, y = blobs()
    keras.utils.set_random_seed(1)
    first = small(random_state=4).fit(X, y)
    keras.utils.set_random_seed(2)
    second = small(random_state=4).fit(X, y)
    other = small(random_state=5).fit(X, y)
    assert first.history_ == second.history_
    for a, b, c in zip(first.weights_, second.weights_, other.weights_, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_global_random_state_is_left_alone():
    before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global one is the point
    small(epochs=1).fit(*blobs())
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_copies_are_faithful(fitted):
    X, y = blobs()
    for twin in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted), clone(fitted).fit(X, y)):
        np.testing.assert_array_equal(twin.predict_proba(X), fitted.predict_proba(X))
        assert twin.history_ == fitted.history_
    assert clone(fitted).get_params() == fitted.get_params()


def test_early_stopping_keeps_the_weights_of_the_best_validation_loss():
    X, y = blobs()
    rng = np.random.default_rng(0)
    wrong = rng.permutation(y)  # labels that cannot be learnt: validation gets worse and worse
    head = small(epochs=200, patience=3, dropout=0.0, learning_rate=0.05).fit(X, wrong, validation_data=(X, y))
    losses = head.history_["val_loss"]
    assert len(losses) == head.best_epoch_ + 1 + 3 < 200
    assert head.best_epoch_ == int(np.argmin(losses))
    p = head.predict_proba(X)
    assert -np.log(p[np.arange(len(y)), y]).mean() == pytest.approx(min(losses), rel=1e-4)
    assert head.history_["val_accuracy"][head.best_epoch_] == pytest.approx(head.score(X, y))


def test_a_stratified_part_is_held_out_when_no_validation_data_is_given(fitted):
    assert set(fitted.history_) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert all(type(value) is float for values in fitted.history_.values() for value in values)
    codes = np.repeat([0, 1, 2], [80, 19, 1])
    train, held = _hold_out(codes, 0.1, seed=0)
    assert sorted([*train, *held]) == list(range(100))
    assert np.bincount(codes[held], minlength=3).tolist() == [8, 2, 0]  # a single row is for training
    np.testing.assert_array_equal(_hold_out(codes, 0.1, seed=0)[1], held)
    assert not np.array_equal(_hold_out(codes, 0.1, seed=1)[1], held)


@pytest.mark.parametrize(("rows", "fraction"), [(6, 0.1), (90, 0.0)])
def test_the_training_loss_is_watched_where_nothing_is_held_out(rows, fraction):
    X, y = blobs()
    head = small(validation_fraction=fraction, epochs=4).fit(X[:rows], y[:rows])
    assert set(head.history_) == {"loss", "accuracy"}
    assert head.best_epoch_ == int(np.argmin(head.history_["loss"]))


def test_weights_of_classes_are_in_the_loss():
    X, y = blobs(2)
    X = np.zeros_like(X)  # nothing to learn from: probabilities become the weighted shares
    given = small(class_weight={0: 3.0, 1: 1.0}, epochs=60, validation_fraction=0, hidden=()).fit(X, y)
    np.testing.assert_allclose(given.predict_proba(X[:1]), [[0.75, 0.25]], atol=0.03)
    rare = np.r_[0:60:2, 1:11:2]
    balanced = small(class_weight="balanced", epochs=120, validation_fraction=0, hidden=(), batch_size=100)
    np.testing.assert_allclose(balanced.fit(X[rare], y[rare]).predict_proba(X[:1]), [[0.5, 0.5]], atol=0.03)


def test_hidden_may_be_a_number_or_nothing():
    X, y = blobs()
    assert [w.shape for w in small(hidden=4, epochs=1).fit(X, y).weights_] == [(6, 4), (4,), (4, 3), (3,)]
    assert [w.shape for w in small(hidden=[], epochs=1).fit(X, y).weights_] == [(6, 3), (3,)]


def test_a_description_and_weights_restore_the_head(fitted, tmp_path):
    path = tmp_path / "head.weights.h5"
    fitted.save_weights(path)
    description = json.loads(json.dumps(fitted.describe(), allow_nan=False))
    restored = KerasHead.restore(description, path, fitted.classes_.tolist())
    X, _ = blobs(seed=1)
    np.testing.assert_array_equal(restored.predict_proba(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(restored.predict(X), fitted.predict(X))
    assert restored.history_ == fitted.history_
    assert restored.best_epoch_ == fitted.best_epoch_
    assert restored.describe() == fitted.describe()


def test_parameters_that_are_not_json_are_described_as_json(tmp_path):
    X, y = blobs(2)
    labels = np.array(["ape", "bee"])[y]
    head = small(
        class_weight={"ape": np.float32(2), "bee": 1}, random_state=np.random.RandomState(3), epochs=2, hidden=3
    )
    head.fit(X, labels).save_weights(tmp_path / "a.weights.h5")
    description = json.loads(json.dumps(head.describe()))
    restored = KerasHead.restore(description, tmp_path / "a.weights.h5", ["ape", "bee"])
    assert restored.class_weight == {"ape": 2.0, "bee": 1}
    assert restored.random_state == head.seed_
    np.testing.assert_array_equal(restored.predict(X), head.predict(X))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("parameters"), "KeyError.*parameters"),
        (lambda d: d["parameters"].update(hidden="wide"), "hidden=.*cannot be used"),
        (lambda d: d["parameters"].update(surprise=1), "surprise"),
        (lambda d: d.update(n_features="6"), "n_features and n_classes must be whole numbers"),
        (lambda d: d.update(history=None), "cannot be used .*expected the result of describe"),
        (lambda d: d.update(n_classes=4), "got 3 classes for a head of 4"),
        (lambda d: d.update(n_features=7), "cannot load the weights .* into a head of 7 features"),
        (lambda d: d["parameters"].update(hidden=[9, 5]), "cannot load the weights .*hidden layers \\[9, 5\\]"),
        (lambda d: d["parameters"].update(hidden=[8]), "cannot load the weights"),
    ],
)
def test_a_description_that_does_not_fit_is_one_clear_error(fitted, tmp_path, change, words):
    path = tmp_path / "head.weights.h5"
    fitted.save_weights(path)
    description = fitted.describe()
    change(description)
    with pytest.raises(BundleError, match=words) as caught:
        KerasHead.restore(description, path, [0, 1, 2])
    assert "\n" not in str(caught.value)


def test_a_weights_file_that_is_absent_or_damaged_is_one_clear_error(fitted, tmp_path):
    path = tmp_path / "head.weights.h5"
    with pytest.raises(BundleError, match="cannot load the weights"):
        KerasHead.restore(fitted.describe(), path, [0, 1, 2])
    path.write_bytes(b"not HDF5")
    with pytest.raises(BundleError, match="cannot load the weights"):
        KerasHead.restore(fitted.describe(), path, [0, 1, 2])


def test_weights_are_saved_under_keras_own_ending_only(fitted, tmp_path):
    with pytest.raises(UsageError, match=r"expected a name ending in \.weights\.h5"):
        fitted.save_weights(tmp_path / "head.h5")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"hidden": (8, 0)}, r"hidden=\(8, 0\) cannot be used; expected sizes of the hidden layers"),
        ({"hidden": "256"}, "hidden='256' cannot be used"),
        ({"hidden": True}, "hidden=True cannot be used"),
        ({"dropout": 1.0}, "dropout=1.0 cannot be used; expected a number from 0 to below 1"),
        ({"learning_rate": 0}, "learning_rate=0 cannot be used; expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"epochs": 0}, "epochs=0 cannot be used; expected a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"patience": -1}, "patience=-1 cannot be used; expected a whole number of at least 0"),
        ({"validation_fraction": -0.1}, "validation_fraction=-0.1"),
        ({"class_weight": "balance"}, "class_weight='balance' cannot be used; expected None, 'balanced' or a dict"),
    ],
)
def test_a_parameter_out_of_range_is_named(params, words):
    with pytest.raises(UsageError, match=words):
        small(**params).fit(*blobs())


def test_weights_that_explode_are_an_error_and_not_a_head():
    X, y = blobs()
    with pytest.raises(TrainingError, match=r"became infinite with learning_rate=1e\+38.*lower learning_rate"):
        small(learning_rate=1e38, epochs=3).fit(X, y)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(fitted, bad):
    X, y = blobs()
    X[3, 2] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        small().fit(X, y)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        fitted.predict(X)


def test_validation_data_must_fit(fitted):
    X, y = blobs()
    with pytest.raises(UsageError, match="1 classes that the training labels do not have"):
        small().fit(X, y, validation_data=(X[:2], [0, 9]))
    with pytest.raises(UsageError, match="2 rows, labels of shape \\(3,\\)"):
        small().fit(X, y, validation_data=(X[:2], y[:3]))
    with pytest.raises(ValueError, match="5 features, but KerasHead is expecting 6"):
        small().fit(X, y, validation_data=(X[:2, :5], y[:2]))


def test_a_single_class_is_refused():
    with pytest.raises(UsageError, match=r"y has 1 class, .*expected at least 2"):
        small().fit(np.ones((4, 2)), ["ape"] * 4)


def test_an_unfitted_head_says_so():
    for ask in (lambda h: h.predict_proba([[1.0]]), lambda h: h.describe(), lambda h: h.keras_model()):
        with pytest.raises(NotFittedError):
            ask(small())

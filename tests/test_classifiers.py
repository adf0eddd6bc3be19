import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.heads.classifiers import HEADS, class_probabilities, make_head, parse_params
from pipeline.heads.softmax_head import SoftmaxHead
from pipeline.heads.temperature import fit_temperature

TRUSTED = {
    "pipeline.heads.softmax_head.SoftmaxHead",
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
}
WEIGHTED = ("logreg", "ridge", "linear-svm", "svm", "random-forest", "hist-gradient-boosting", "dense")


def blobs(k=3, n=20, d=6, seed=0):
    """Give k separable classes of n float32 vectors; the last column is constant."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(k), n)
    X = rng.normal(size=(k * n, d)) + 4 * np.eye(k, d)[y]
    X[:, -1] = 7.0
    return X.astype(np.float32), y


def quick(name, **params):
    return make_head(name, {**QUICK.get(name, {}), **params})


def inner(head):
    return head[-1].estimator if isinstance(head[-1], SoftmaxHead) else head[-1]


def test_importing_and_listing_the_table_imports_nothing_heavy():
    code = (
        "import sys; from pipeline.heads.classifiers import HEADS; print(len(HEADS));"
        "assert not {'sklearn', 'scipy', 'keras', 'tensorflow'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(HEADS)


def test_logreg_comes_first_and_never_imports_tensorflow():
    assert next(iter(HEADS)) == "logreg"
    code = (
        "import sys; from pipeline.heads.classifiers import make_head;"
        "make_head('logreg').fit([[0.0], [1.0]], [0, 1]).predict_proba([[2.0]]);"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("k", [2, 4])
def test_every_head_learns_and_its_probabilities_agree_with_its_predictions(name, k):
    X, y = blobs(k)
    labels = np.array(["ape", "bee", "cat", "dog"])[y]
    head = quick(name).fit(X, labels)
    p = head.predict_proba(X)
    assert head.classes_.tolist() == ["ape", "bee", "cat", "dog"][:k]
    assert p.shape == (len(X), k)
    assert np.isfinite(p).all()
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(head.classes_[p.argmax(axis=1)], head.predict(X))
    assert head.score(X, labels) >= (1 / k if name == "dummy" else 0.9)


@pytest.mark.parametrize("name", HEADS)
def test_labels_with_gaps_are_learnt_as_they_are(name):
    X, y = blobs(3)
    head = quick(name).fit(X, y * 5)  # 0, 5, 10: classes between them have no training image
    assert head.classes_.tolist() == [0, 5, 10]
    assert set(head.predict(X)) <= {0, 5, 10}
    assert head.score(X, y * 5) >= (0.3 if name == "dummy" else 0.9)


@pytest.mark.parametrize("name", HEADS)
def test_float16_is_worked_on_as_float32(name):
    X, y = blobs()
    X[:, 0] *= 1e-7  # below the smallest normal float16, so that float16 arithmetic would lose it
    X[:, 1] *= 8000.0
    half = X.astype(np.float16)
    by_half = quick(name).fit(half, y)
    by_single = quick(name).fit(half.astype(np.float32), y)
    np.testing.assert_array_equal(by_half.predict_proba(half), by_single.predict_proba(half.astype(np.float32)))
    assert np.isfinite(by_half.predict_proba(half)).all()


@pytest.mark.parametrize("name", HEADS)
def test_one_feature_is_enough(name):
    X = np.r_[np.linspace(0, 1, 20), np.linspace(9, 10, 20)].astype(np.float32)[:, None]
    y = np.repeat([0, 1], 20)
    assert quick(name).fit(X, y).score(X, y) >= (0.5 if name == "dummy" else 1.0)


@pytest.mark.parametrize("name", HEADS)
def test_the_same_seed_gives_the_same_head_and_clone_is_faithful(name):
    from sklearn.base import clone

    X, y = blobs()
    head = make_head(name, QUICK.get(name), seed=3)
    first = clone(head).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(head.fit(X, y).predict_proba(X), first)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(head)).predict_proba(X), first)
    assert inner(head).get_params().get("random_state", 3) == 3


@pytest.mark.parametrize("name", [name for name in HEADS if name != "dense"])
def test_skops_stores_every_scikit_learn_head_with_known_types_only(name):
    import skops.io

    X, y = blobs()
    head = quick(name).fit(X, y)
    data = skops.io.dumps(head)
    types = skops.io.get_untrusted_types(data=data)
    assert set(types) <= TRUSTED
    loaded = skops.io.loads(data, trusted=types)
    np.testing.assert_array_equal(loaded.predict_proba(X), head.predict_proba(X))
    np.testing.assert_array_equal(loaded.predict(X), head.predict(X))


@pytest.mark.parametrize("name", WEIGHTED)
def test_balanced_class_weights_find_more_of_the_rare_class(name):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [300, 30])
    X = (rng.normal(size=(330, 4)) + 0.9 * y[:, None]).astype(np.float32)
    extra = {"max_depth": 3} if name == "random-forest" else {}  # full trees fit any weights
    found = {
        weights: (quick(name, class_weight=weights, **extra).fit(X, y).predict(X)[y == 1] == 1).mean()
        for weights in (None, "balanced")
    }
    assert found["balanced"] > found[None]


@pytest.mark.parametrize("name", [name for name in HEADS if HEADS[name].search])
def test_the_values_to_search_are_accepted_by_the_head(name):
    X, y = blobs(2)
    ((parameter, values),) = HEADS[name].search.items()
    for value in values:
        head = make_head(name, {parameter: value}).fit(X, y)
        assert inner(head).get_params()[parameter] == value
        assert head.score(X, y) >= 0.5


def test_every_row_of_the_table_has_a_line_for_help():
    for name, row in HEADS.items():
        assert row.name == name
        assert 0 < len(row.summary) < 60
        assert "\n" not in row.summary


def test_an_import_path_names_any_classifier_by_dot_or_colon():
    X, y = blobs()
    for path in ("sklearn.ensemble.ExtraTreesClassifier", "sklearn.ensemble:ExtraTreesClassifier"):
        head = make_head(path, {"n_estimators": 7}, seed=5)
        assert head[-1].get_params()["random_state"] == 5
        assert head[-1].n_estimators == 7
        assert list(head.named_steps) == ["float32", "standardise", "head"]
        assert head.fit(X, y).score(X, y) == 1.0


def test_a_classifier_without_probabilities_gets_them_from_its_decisions():
    X, y = blobs()
    head = make_head("sklearn.linear_model.Perceptron").fit(X, y)
    assert type(head[-1]) is SoftmaxHead
    assert head.predict_proba(X).shape == (60, 3)
    np.testing.assert_array_equal(head.predict(X), head[-1].estimator_.predict(head[:-1].transform(X)))


def test_features_stay_positive_for_a_classifier_that_needs_it():
    X, y = blobs()
    head = make_head("sklearn.naive_bayes:MultinomialNB")
    assert list(head.named_steps) == ["float32", "head"]
    assert head.fit(abs(X), y).predict_proba(abs(X)).shape == (60, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "logrge",
            "unknown head 'logrge'; did you mean logreg or ridge\\? .*import path",
        ),
        ("", "unknown head ''; known are logreg, ridge"),
        ("auto", "head 'auto' is a race of many heads and cannot be used here; name one head, such as logreg"),
        ("sklearn.ensemble.NoSuchThing", "cannot import the head 'sklearn.ensemble.NoSuchThing'"),
        ("no_such_module_here.Thing", "No module named 'no_such_module_here'"),
        ("sklearn..ensemble:Thing", "cannot import the head"),
        ("sklearn.linear_model.LinearRegression", "is not a scikit-learn classifier"),
        ("sklearn.preprocessing.StandardScaler", "is not a scikit-learn classifier"),
        ("sklearn.ensemble.VotingClassifier", "without arguments .*estimators"),
        ("os.path.join", "'os.path.join' is not a scikit-learn classifier"),
        ("math.pi", "'math.pi' is not a scikit-learn classifier"),
    ],
)
def test_an_unusable_head_is_one_clear_line(name, words):
    with pytest.raises(UsageError, match=words) as caught:
        make_head(name)
    assert "\n" not in str(caught.value)


def test_an_unknown_parameter_names_the_closest_and_the_valid_ones():
    with pytest.raises(UsageError, match=r"'logreg' has no parameter 'class_wieght'; did you mean class_weight"):
        make_head("logreg", {"class_wieght": "balanced"})
    with pytest.raises(UsageError, match=r"'knn' has no parameter 'C'; known are algorithm, leaf_size.*n_neighbors"):
        make_head("knn", {"C": 1})


def test_a_forest_of_many_threads_gives_the_same_bits_every_time(monkeypatch):
    """Its threads would add up their trees in the order in which they finish."""
    from sklearn.ensemble import _forest

    X, y = blobs(3)
    forest = make_head("random-forest", {"n_estimators": 20}).fit(X, y)
    assert forest[-1].n_jobs == -1
    threads, real = set(), _forest._accumulate_prediction

    def watched(*words):
        threads.add(threading.get_ident())
        return real(*words)

    monkeypatch.setattr(_forest, "_accumulate_prediction", watched)
    found = class_probabilities(forest, X, 3)
    assert threads == {threading.get_ident()}
    np.testing.assert_array_equal(found, forest.set_params(head__n_jobs=1).predict_proba(X))


def test_parameters_reach_the_classifier_also_inside_the_wrapper():
    assert make_head("ridge", {"alpha": 5.0})[-1].estimator.alpha == 5.0
    assert make_head("dense", {"hidden": (4,)})[-1].hidden == (4,)


def test_a_parameter_that_takes_the_decision_values_away_is_refused():
    with pytest.raises(UsageError, match="'nearest-centroid' with these parameters has no decision_function"):
        make_head("nearest-centroid", {"metric": "manhattan"})


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("x=0.1", 0.1),
        ("x=1e-3", 1e-3),
        ("x=7", 7),
        ("x=256,128", (256, 128)),
        ("x=(64,)", (64,)),
        ("x=None", None),
        ("x=True", True),
        ("x=balanced", "balanced"),
        ("x='1'", "1"),
        ("x={0: 2.0}", {0: 2.0}),
        ("x=a=b", "a=b"),
        (" x = 3 ", 3),
        ("x=__import__('os').getcwd()", "__import__('os').getcwd()"),
    ],
)
def test_values_are_python_literals_or_text(pair, value):
    parsed = parse_params([pair])
    assert parsed == {"x": value}
    assert type(parsed["x"]) is type(value)


@pytest.mark.parametrize("pair", ["C", "=1", "C=", "C 1", "", "1C=2", "C-D=1"])
def test_a_malformed_pair_is_refused(pair):
    with pytest.raises(UsageError, match=r"expected NAME=VALUE, such as C=0\.1") as caught:
        parse_params([pair])
    assert repr(pair) in str(caught.value)


def test_a_parameter_given_twice_is_refused():
    with pytest.raises(UsageError, match="'C' is given twice"):
        parse_params(["C=1", "C=2"])


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers() | st.booleans() | st.none()))
def test_what_is_written_as_pairs_is_read_back(params):
    assert parse_params(f"{key}={value!r}" for key, value in params.items()) == params


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20))
def test_temperature_is_no_worse_than_any_other(seed, factor):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 60)
    logits = rng.normal(size=(60, 3)) + 1.5 * np.eye(3)[labels]

    shares = (60 * np.eye(3)[labels] + 1 / 3) / 61  # one image in 61 is of any class

    def log_loss(t):
        z = logits / t
        return np.mean(np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - (shares * z).sum(1))

    t = fit_temperature(logits, labels)
    assert log_loss(t) <= log_loss(t * factor) + 1e-9


def test_temperature_makes_probabilities_mean_what_they_say():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random(20_000)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    assert fit_temperature(4.0 * logits, labels) == pytest.approx(4.0, rel=0.05)


def test_a_head_that_is_always_right_is_not_infinitely_sure():
    X, y = blobs(3, n=10)
    p = quick("ridge").fit(X, y).predict_proba(X)
    assert 1e-4 < 1 - p.max(axis=1).mean() < 0.1


def test_probabilities_of_a_linear_head_are_a_softmax_of_an_affine_map():
    X, y = blobs(3)
    head = quick("ridge").fit(X, y)
    last = head[-1]
    z = head[:-1].transform(X) @ last.estimator_.coef_.T + last.estimator_.intercept_
    z = np.exp((z - z.max(axis=1, keepdims=True)) / last.temperature_)
    np.testing.assert_allclose(head.predict_proba(X), z / z.sum(axis=1, keepdims=True), rtol=1e-5)


def test_classes_too_rare_for_the_folds_are_still_learnt():
    X, y = blobs(3)
    keep = np.r_[0:20, 20:40, 40:41]  # a single row of the last class
    head = quick("ridge").fit(X[keep], y[keep])
    assert head.classes_.tolist() == [0, 1, 2]
    assert head.score(X[:40], y[:40]) > 0.9
    tiny = quick("linear-svm").fit(X[[0, 20]], y[[0, 20]])
    assert tiny[-1].temperature_ == 1.0
    assert tiny.predict(X[[0, 20]]).tolist() == [0, 1]


def test_an_unfitted_wrapper_says_so():
    from sklearn.exceptions import NotFittedError
    from sklearn.linear_model import RidgeClassifier

    with pytest.raises(NotFittedError):
        SoftmaxHead(RidgeClassifier()).predict([[0.0]])

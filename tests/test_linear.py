"""Whole paths of strengths: the optima of scikit-learn, found together."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pipeline.heads.classifiers import HEADS, class_probabilities, make_head
from pipeline.heads.kernel_svm import KernelSVC
from pipeline.heads.linear_solvers import LogisticPath, Scatter
from pipeline.heads.regularisation_path import Samples, fit_path

SHAPES = [(200, 20, 4), (60, 100, 3), (100, 10, 2), (40, 90, 2)]  # rows, columns, classes: also more columns than rows


def clouds(n, d, k, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    X = rng.normal(size=(n, d)) + np.eye(k, d)[y] + 0.3
    X[:, -1] = 2.5  # a constant column
    return X, y


@pytest.mark.parametrize("shape", SHAPES)
def test_one_scatter_matrix_gives_every_ridge(shape):
    X, y = clouds(*shape)
    scatter = Scatter(X, y)
    for alpha in (0.1, 10.0, 1000.0, 1e5):
        coef, intercept = scatter.ridge(alpha)
        peer = RidgeClassifier(alpha=alpha).fit(X, y)
        np.testing.assert_allclose(coef, np.atleast_2d(peer.coef_), atol=1e-9)
        np.testing.assert_allclose(intercept, peer.intercept_, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_matrix_gives_every_discriminant_analysis(shape):
    X, y = clouds(*shape)
    y[:7] = 0  # classes of several sizes
    scatter = Scatter(X, y)
    for shrinkage in (0.01, 0.1, 0.5, 0.99):
        coef, intercept = scatter.lda(shrinkage)
        peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
        np.testing.assert_allclose(coef, peer.coef_, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(intercept, peer.intercept_, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [None, "balanced"])
def test_warm_starts_end_in_scikit_learns_optimum(shape, weights):
    X, y = clouds(*shape)
    y[:7] = 0
    rows = None if weights is None else (len(y) / np.bincount(y) / (y.max() + 1))[y]
    path = LogisticPath(X, y, rows, tol=1e-13)
    for C in (0.001, 0.1, 10.0):
        coef, intercept = path.fit(C)
        peer = LogisticRegression(C=C, class_weight=weights, tol=1e-9, max_iter=10_000).fit(X, y)
        np.testing.assert_allclose(coef, peer.coef_, atol=3e-4)
        np.testing.assert_allclose(intercept - intercept.mean(), peer.intercept_ - peer.intercept_.mean(), atol=3e-4)


def test_the_default_tolerance_is_close_enough_in_float32():
    X, y = clouds(600, 50, 5)
    X = X.astype(np.float32)
    path = LogisticPath(X, y)
    for C in HEADS["logreg"].search["C"]:
        coef, intercept = path.fit(C)
        peer = LogisticRegression(C=C, tol=1e-8, max_iter=10_000).fit(X.astype(float), y)
        assert (np.argmax(X @ coef.T + intercept, axis=1) == peer.predict(X)).mean() > 0.99
    assert path.steps < 60


def test_a_solved_path_is_the_scikit_learn_estimator_that_it_stands_for():
    X, y = clouds(120, 12, 3)
    X = X.astype(np.float32)
    Z = StandardScaler().fit_transform(X).astype(float)
    peers = {
        "logreg": lambda C: LogisticRegression(C=C, tol=1e-9, max_iter=9999),
        "ridge": lambda alpha: RidgeClassifier(alpha=alpha),
        "lda": lambda shrinkage: LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage),
    }
    assert set(peers) == {name for name, row in HEADS.items() if row.path}
    for name, make in peers.items():
        ((parameter, values),) = HEADS[name].search.items()
        grid = [{parameter: value} for value in values]
        for params, head in zip(grid, fit_path(name, grid, Samples(X, y * 5)), strict=True):
            fitted = getattr(head[-1], "estimator_", head[-1])
            assert type(fitted) is type(make(**params))
            assert fitted.get_params()[parameter] == params[parameter]
            assert fitted.classes_.tolist() == [0, 5, 10]
            peer = make(**params).fit(Z, y * 5)
            np.testing.assert_allclose(fitted.decision_function(Z), peer.decision_function(Z), atol=0.05)
            assert (head.predict(X) == peer.predict(Z)).mean() > 0.98


def test_the_temperature_of_a_path_is_that_of_the_head_alone():
    X, y = clouds(120, 12, 3)
    X = X.astype(np.float32)
    for path in fit_path("ridge", [{"alpha": 1.0}, {"alpha": 100.0}], Samples(X, y)):
        alone = make_head("ridge", {"alpha": path[-1].estimator_.alpha}).fit(X, y)
        assert path[-1].temperature_ == pytest.approx(alone[-1].temperature_, rel=1e-3)
        np.testing.assert_allclose(path.predict_proba(X), alone.predict_proba(X), atol=3e-4)


@pytest.mark.parametrize(
    ("name", "grid"),
    [("knn", [{"n_neighbors": 1}, {"n_neighbors": 5}]), ("random-forest", [{"n_estimators": 5, "max_depth": 3}])],
)
def test_a_path_without_a_solver_is_each_head_alone(name, grid):
    X, y = clouds(90, 8, 3)
    X = X.astype(np.float32)
    for params, found in zip(grid, fit_path(name, grid, Samples(X[:60], y[:60])), strict=True):
        alone = make_head(name, params).fit(X[:60], y[:60])
        assert found[-1].get_params() == alone[-1].get_params()
        np.testing.assert_array_equal(class_probabilities(found, X, 3), class_probabilities(alone, X, 3))


def test_kernel_machines_share_a_kernel(monkeypatch):
    X, y = clouds(90, 8, 3)
    X = X.astype(np.float32)
    made, real = [], KernelSVC._kernel
    monkeypatch.setattr(KernelSVC, "_kernel", lambda self, rows: made.append(len(rows)) or real(self, rows))
    grid = [{"C": C} for C in (0.3, 3.0, 30.0)]
    heads = list(fit_path("svm", grid, Samples(X[:60], y[:60]), temperature=1.0, preview=True))
    assert made == [60]
    for params, head in zip(grid, heads, strict=True):
        peer = make_head("svm", params).fit(X[:60], y[:60])
        np.testing.assert_allclose(head.decision_function(X), peer.decision_function(X), atol=0.02)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("logreg", {"C": 0.1, "l1_ratio": 0.5, "solver": "saga"}),
        ("lda", {}),  # shrinkage "auto"
        ("ridge", {"alpha": 1.0, "class_weight": "balanced"}),
    ],
)
def test_what_the_solvers_do_not_know_goes_to_scikit_learn(name, params):
    X, y = clouds(60, 5, 3)
    X = X.astype(np.float32)
    (found,) = fit_path(name, [params], Samples(X, y))
    alone = make_head(name, params).fit(X, y)
    np.testing.assert_allclose(found.predict_proba(X), alone.predict_proba(X), atol=1e-3)


def test_the_kernel_machine_decides_as_svc():
    X, y = clouds(90, 8, 3)
    for C in (0.3, 3.0):
        mine, peer = KernelSVC(SVC(C=C)).fit(X[:60], y[:60]), SVC(C=C).fit(X[:60], y[:60])
        np.testing.assert_allclose(mine.decision_function(X), peer.decision_function(X), atol=5e-3)
        assert mine.classes_.tolist() == peer.classes_.tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_strength_below_rounding_takes_the_directions_that_are_more_than_rounding(shape):
    X, y = clouds(*shape)
    scatter, rounded = Scatter(X, y), Scatter(X, y)
    rounded.noise = np.inf
    for found, peer in [(scatter.ridge(3.0), rounded.ridge(3.0)), (scatter.lda(0.2), rounded.lda(0.2))]:
        np.testing.assert_allclose(found[0], peer[0], atol=1e-7)
    twice = np.hstack([X, X]).astype(np.float32)  # without full rank
    coef, intercept = Scatter(twice, y).ridge(1e-9)
    peer = RidgeClassifier(alpha=1e-6).fit(twice.astype(float), y)
    np.testing.assert_allclose(
        twice @ coef.T + intercept, twice @ np.atleast_2d(peer.coef_).T + peer.intercept_, atol=0.02
    )

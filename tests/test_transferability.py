"""LogME against the dense evaluation of its definition, and what must hold of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from pipeline.errors import UsageError
from pipeline.metrics.transferability import logme


def dense(X, y):
    """Maximise log N(y; 0, I / beta + X X' / alpha) over alpha and beta, class by class, with full matrices."""
    scores = []
    for c in np.unique(y):
        target = (y == c).astype(float)

        def loss(v, target=target):
            covariance = np.exp(-v[1]) * np.eye(len(X)) + np.exp(-v[0]) * X @ X.T
            return -multivariate_normal(np.zeros(len(X)), covariance).logpdf(target) / len(X)

        starts = [(0.0, 0.0), (3.0, 1.0), (-2.0, 3.0)]
        scores.append(-min(minimize(loss, s, method="Nelder-Mead", options={"maxiter": 600}).fun for s in starts))
    return np.mean(scores)


def example(seed, n, d, k, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return rng.normal(rng.normal(size=(k, d))[y], spread) + 0.5, y


@pytest.mark.parametrize(("n", "d", "k"), [(40, 5, 2), (60, 12, 3), (30, 50, 2), (45, 45, 3)])
def test_it_is_the_maximal_evidence(n, d, k):
    X, y = example(n + d, n, d, k, 2.0)
    assert logme(X, y) == pytest.approx(dense(X, y), abs=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_scale_and_rotation_change_nothing(seed, scale):
    X, y = example(seed, 50, 8, 3)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))[0]
    score = logme(X, y)
    assert logme(X * scale, y) == pytest.approx(score, abs=1e-3)
    assert logme(X @ turn, y) == pytest.approx(score, abs=1e-6)
    assert logme(np.c_[X, np.zeros((50, 3))], y) == pytest.approx(score, abs=1e-6)
    order = np.random.default_rng(seed).permutation(50)
    assert logme(X[order], (2 - y)[order]) == pytest.approx(score, abs=1e-6)


def test_both_ways_to_decompose_agree():
    X, y = example(3, 60, 59, 3)
    more = np.c_[X, np.zeros((60, 5))]  # now there are more columns than rows
    assert logme(more, y) == pytest.approx(logme(X, y), abs=1e-6)


def test_clearer_classes_score_higher():
    scores = [logme(*example(0, 200, 10, 4, spread)) for spread in (0.3, 1.0, 3.0, 10.0)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


def test_columns_of_noise_do_not_win():
    X, y = example(0, 100, 5, 2)
    noise = np.random.default_rng(1).normal(size=(100, 80))
    assert logme(np.c_[X, noise], y) < logme(X, y)


def test_perfect_and_hopeless_vectors_are_finite():
    y = np.arange(40) % 2
    assert np.isfinite(logme(np.eye(2)[y], y))
    assert np.isfinite(logme(np.ones((40, 3)), y))
    assert np.isfinite(logme(np.random.default_rng(0).normal(size=(40, 400)), y))


@pytest.mark.parametrize(
    ("X", "y"),
    [(np.ones((4, 2)), [0, 0, 0, 0]), (np.full((4, 2), np.nan), [0, 1, 0, 1]), (np.zeros((4, 2)), [0, 1, 0, 1])],
)
def test_what_cannot_be_scored(X, y):
    with pytest.raises(UsageError, match=r"vectors of shape \(4, 2\) with . classes cannot be scored; expected"):
        logme(X, np.array(y))

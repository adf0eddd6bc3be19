"""Exact search by cosine, duplicates, and groups of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features import duplicates
from pipeline.features.duplicates import Pairs, equal, join_groups, join_pairs, near_duplicates
from pipeline.features.neighbours import nearest, standardise, unit_rows


def cosines(A, B):
    return (A @ B.T) / np.linalg.norm(A, axis=1)[:, None] / np.linalg.norm(B, axis=1)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.integers(0, 5))
def test_nearest_is_that_of_the_whole_matrix_whatever_the_blocks(rows, step, k, seed):
    X = np.random.default_rng(seed).standard_normal((rows, 5)).astype(np.float32)
    query = X[0] + 0.1
    blocks = ((start, X[start : start + step]) for start in range(0, rows, step))
    found, values = nearest(query, blocks, k)
    expected = cosines(X, query[None])[:, 0]
    assert len(found) == min(k, rows)
    np.testing.assert_allclose(values, np.sort(expected)[::-1][:k], atol=1e-6)
    np.testing.assert_allclose(expected[found], values, atol=1e-6)


def test_standardised_columns_have_mean_0_and_variance_1():
    X = np.random.default_rng(0).normal(5, [1, 10, 0, 1e-9], (50, 4))
    Z = standardise(X)
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(Z[:, :2].std(axis=0), 1, atol=1e-5)
    assert (Z[:, 2:] == 0).all()  # constant but for rounding


def copies(n=300, d=128, planted=20, noise=0.15):
    """Vectors in clusters, as those of classes are, of which the last `planted` repeat the first ones."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, d)) + 2 * rng.standard_normal((6, d))[rng.integers(0, 6, n)]
    X[-planted:] = X[:planted] + noise * rng.standard_normal((planted, d))
    return X


@pytest.mark.parametrize("block", [7, 128, 2048])
def test_near_duplicates_are_all_found_and_nothing_else(block, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    first, second, cosine = near_duplicates(copies())
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(i, 280 + i) for i in range(20)]
    assert (np.diff(cosine) <= 0).all()
    Z = unit_rows(standardise(copies()))
    np.testing.assert_allclose(cosine, (Z[first] * Z[second]).sum(axis=1), atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 128), (1, 128), (9, 8)])
def test_few_or_short_vectors_have_no_near_duplicates(shape):
    assert len(near_duplicates(np.ones(shape)).first) == 0


def test_equal_keys_pair_with_the_first():
    assert [column.tolist() for column in equal(["a", "b", "a", "", "a", ""])] == [[0, 0], [2, 4], [1, 1]]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=25))
def test_groups_are_those_of_a_plain_search(links):
    links = [link for link in links if link[0] != link[1]]
    pairs = Pairs(*np.array(links, np.int64).reshape(-1, 2).T, np.ones(len(links)))
    numbers = join_pairs(20, pairs).tolist()
    for a in range(20):
        reached = {a}
        for _ in range(20):
            reached |= {y for x, y in links if x in reached} | {x for x, y in links if y in reached}
        assert (numbers[a] == -1) == (len(reached) == 1)
        assert len(reached) == 1 or {b for b in range(20) if numbers[b] == numbers[a]} == reached


def test_joined_groups_keep_their_names():
    pairs = Pairs(np.array([0, 3]), np.array([1, 4]), np.ones(2))
    assert join_groups(["b", "a", "c", "z", "y"], ["", "", "rex", "rex", ""], pairs) == ["a", "a", "rex", "rex", "rex"]

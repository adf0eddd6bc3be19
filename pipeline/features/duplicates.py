"""Exact and near duplicates among images, and the groups that they form."""

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.neighbours import principal_axes, standardise, unit_rows

NEAR = 0.8
"""Cosine similarity above which two images are near duplicates, see `near_duplicates`."""
MIN_COLUMNS = 64  # shorter vectors are often similar by chance
_AXES = 128
_ROWS_PER_AXIS = 8
_BLOCK = 2048  # rows compared with all others at once


class Pairs(NamedTuple):
    """Pairs of rows, each pair once with ``first < second``, and their cosine: three arrays of equal length."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    cosine: NDArray[np.float32]


def near_duplicates(X: NDArray[np.floating], threshold: float = NEAR) -> Pairs:
    """Find near duplicates: images that were resized, re-encoded, mirrored or taken twice.

    Rows are near duplicates if their cosine exceeds the threshold both as standardised and as PCA-whitened vectors.
    Whitening separates images that only share their class; with some backbones, each criterion alone also matches
    images that are merely similar. All pairs are compared.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Vectors; with fewer than `MIN_COLUMNS` columns no pair is found.
    threshold : float
        Minimum of both cosines.

    Returns
    -------
    Pairs
        The most similar first.

    Examples
    --------
    >>> X = np.random.default_rng(0).standard_normal((40, 100))
    >>> X[7] = X[3] + 0.01
    >>> near_duplicates(X)[:2]
    (array([3]), array([7]))
    """
    n, d = X.shape
    if n < 2 or d < MIN_COLUMNS:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    Z = unit_rows(standardise(X))
    whitened = Z @ principal_axes(Z, most=min(_AXES, max(1, n // _ROWS_PER_AXIS)))
    spread = whitened.std(axis=0)
    whitened = unit_rows(np.asarray(whitened / np.where(spread > 0, spread, np.inf), np.float32))
    found = []
    for start in range(0, n, _BLOCK):  # whitened vectors first: they are short, and leave few pairs for the long ones
        rows, others = np.nonzero(whitened[start : start + _BLOCK] @ whitened[start:].T >= threshold)
        rows, others = rows[others > rows] + start, others[others > rows] + start
        for part in np.array_split(np.arange(len(rows)), len(rows) // _BLOCK + 1):
            i, j = rows[part], others[part]
            cosine = np.einsum("nd,nd->n", Z[i], Z[j])
            same = cosine >= threshold
            found.append((i[same], j[same], cosine[same]))
    first, second, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(-cosine, kind="stable")
    return Pairs(first[order], second[order], np.minimum(cosine[order], 1))


def equal(keys: Iterable[Hashable]) -> Pairs:
    """Pair every row with the first row that has the same key; rows with an empty key are in no pair.

    >>> equal(["a", "", "a", ""])[:2]
    (array([0]), array([2]))
    """
    seen: dict[Hashable, int] = {}
    same = [(seen.setdefault(key, row), row) for row, key in enumerate(keys) if key]
    pairs = np.array([pair for pair in same if pair[0] != pair[1]], np.int64).reshape(-1, 2)
    return Pairs(pairs[:, 0], pairs[:, 1], np.ones(len(pairs), np.float32))


def join_pairs(n: int, *pairs: Pairs) -> NDArray[np.int64]:
    """Return the number of each row's connected group, shape (n,); -1 for a row in no pair.

    >>> link = Pairs(np.array([0, 2]), np.array([2, 3]), np.ones(2, np.float32))
    >>> join_pairs(5, link).tolist()
    [0, -1, 0, 0, -1]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first = np.concatenate([each.first for each in pairs])
    second = np.concatenate([each.second for each in pairs])
    _, component = connected_components(coo_array((np.ones(len(first)), (first, second)), shape=(n, n)), directed=False)
    numbers = np.full(n, -1, np.int64)
    connected = np.unique(np.concatenate([first, second]))
    names = {int(each): number for number, each in enumerate(dict.fromkeys(component[connected].tolist()))}
    numbers[connected] = [names[each] for each in component[connected].tolist()]
    return numbers


def join_groups(paths: Sequence[str], groups: Sequence[str], *pairs: Pairs) -> list[str]:
    """Join groups that pairs connect; a group without a name is named after its first path.

    >>> join_groups(["b", "a", "c", "d"], ["", "", "", "rex"], Pairs(np.array([0]), np.array([1]), np.ones(1)))
    ['a', 'a', '', 'rex']
    """
    numbers = join_pairs(len(paths), equal(groups), *pairs).tolist()
    first: dict[int, tuple[bool, str]] = {}
    for number, path, group in zip(numbers, paths, groups, strict=True):
        name = (not group, group or path)
        first[number] = min(first.get(number, name), name)
    return [group if number < 0 else first[number][1] for number, group in zip(numbers, groups, strict=True)]

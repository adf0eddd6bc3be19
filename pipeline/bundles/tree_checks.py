"""Checks of decision trees read from a file: scikit-learn's compiled code trusts their indexes."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.errors import IntegrityError


def check_trees(head: Any) -> None:
    """Check that all nodes of a forest or boosted ensemble point into their arrays.

    Parameters
    ----------
    head : fitted classifier
        Any other than scikit-learn's tree ensembles passes.

    Raises
    ------
    IntegrityError
        If a node's child or feature does not exist, or nodes form a loop.
    """
    n_features = getattr(head, "n_features_in_", 0)
    for left, right, is_leaf, feature, values in _trees(head):
        node = np.arange(len(left))
        inner = ~is_leaf
        # Children come after their parent, so there is no loop.
        sound = (left > node) & (left < len(node)) & (right > node) & (right < len(node))
        sound &= (feature >= 0) & (feature < n_features)
        if not len(node) or len(values) != len(node) or not sound[inner].all():
            raise IntegrityError("a decision tree of this head has invalid nodes; do not use this bundle")


def _trees(head: Any) -> Iterator[tuple[Any, Any, Any, Any, Any]]:
    inner = getattr(head, "estimators_", [])
    for estimator in inner.ravel() if isinstance(inner, np.ndarray) else inner:
        tree = getattr(estimator, "tree_", None)
        if tree is None:
            yield from _trees(estimator)  # one forest per label
        else:
            yield tree.children_left, tree.children_right, tree.children_left == -1, tree.feature, tree.value
    for iteration in getattr(head, "_predictors", []):
        for predictor in iteration:
            nodes = predictor.nodes
            if nodes["is_categorical"].any():
                raise IntegrityError("a boosted tree of this head has categorical splits; do not use this bundle")
            left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
            yield left, right, nodes["is_leaf"].astype(bool), nodes["feature_idx"], nodes

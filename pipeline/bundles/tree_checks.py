"""Decision trees from a file are walked by compiled code that trusts their indexes; these checks make it safe."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.errors import IntegrityError


def check_trees(head: Any) -> None:
    """Refuse a forest or a boosted ensemble whose nodes point outside of their arrays.

    Parameters
    ----------
    head : fitted classifier
        Others than scikit-learn's tree ensembles pass.

    Raises
    ------
    IntegrityError
        If a node has a child or a feature that does not exist, or a loop.
    """
    n_features = getattr(head, "n_features_in_", 0)
    for left, right, is_leaf, feature, values in _trees(head):
        node = np.arange(len(left))
        inner = ~is_leaf
        # Children always come after their parent, so no walk can go in circles.
        sound = (left > node) & (left < len(node)) & (right > node) & (right < len(node))
        sound &= (feature >= 0) & (feature < n_features)
        if not len(node) or len(values) != len(node) or not sound[inner].all():
            raise IntegrityError("a decision tree of this head points outside of itself; do not use this bundle")


def _trees(head: Any) -> Iterator[tuple[Any, Any, Any, Any, Any]]:
    inner = getattr(head, "estimators_", [])
    for estimator in inner.ravel() if isinstance(inner, np.ndarray) else inner:
        tree = getattr(estimator, "tree_", None)
        if tree is None:
            yield from _trees(estimator)  # a forest for each label
        else:
            yield tree.children_left, tree.children_right, tree.children_left == -1, tree.feature, tree.value
    for iteration in getattr(head, "_predictors", []):
        for predictor in iteration:
            nodes = predictor.nodes
            if nodes["is_categorical"].any():
                raise IntegrityError("a boosted tree of this head has categorical splits; do not use this bundle")
            left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
            yield left, right, nodes["is_leaf"].astype(bool), nodes["feature_idx"], nodes

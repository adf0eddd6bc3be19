"""Write and read the head of a bundle: with skops for scikit-learn, as weights for Keras."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.bundles.skops_archive import normalised
from pipeline.bundles.tree_checks import check_trees
from pipeline.errors import BundleError, IntegrityError

SKOPS_FILE = "head.skops"
WEIGHTS_FILE = "head.weights.h5"
# Types that skops does not trust itself and that heads need; trees are also checked by `check_trees`.
TRUSTED_TYPES = (
    "pipeline.heads.softmax_head.SoftmaxHead",
    "sklearn.multiclass._ConstantPredictor",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)


def write_head(head: Any, folder: Path) -> dict[str, Any]:
    """Write a fitted pipeline of scikit-learn steps and a head; return what `read_head` needs as `description`."""
    import skops.io

    from pipeline.heads.keras_head import KerasHead

    description: dict[str, Any] = {}
    last = head[-1]
    if isinstance(last, KerasHead):
        last.save_weights(folder / WEIGHTS_FILE)
        description = {"keras": last.describe(), "keras_classes": [int(label) for label in last.classes_]}
        head = _with_last(head, "passthrough")
    data = normalised(skops.io.dumps(head))
    if foreign := sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED_TYPES)):
        raise BundleError(
            f"a {type(last).__name__} cannot be stored safely: it contains the types {', '.join(foreign)};"
            " choose another --head"
        )
    (folder / SKOPS_FILE).write_bytes(data)
    return description


def read_head(folder: Path, description: Mapping[str, Any], files: Mapping[str, bytes]) -> Any:
    """Read the files of `write_head`; only allowed types are restored, and trees are checked."""
    import skops.io

    data = files[SKOPS_FILE]
    try:
        types = skops.io.get_untrusted_types(data=data)
    except Exception as error:
        raise IntegrityError(f"{folder / SKOPS_FILE} is not a skops file ({error}); train the bundle again") from error
    if foreign := sorted(set(types) - set(TRUSTED_TYPES)):
        raise IntegrityError(
            f"{folder / SKOPS_FILE} contains the types {', '.join(foreign)}, which may not be loaded; do not use this"
            " bundle"
        )
    head = skops.io.loads(data, trusted=list(TRUSTED_TYPES))
    check_trees(head[-1])
    if "keras" not in description:
        return head
    from pipeline.heads.keras_head import KerasHead

    classes = list(description["keras_classes"])
    return _with_last(head, KerasHead.restore(description["keras"], folder / WEIGHTS_FILE, classes))


def _with_last(head: Any, step: Any) -> Any:
    """Return the pipeline with another last step; the other fitted steps are shared."""
    from sklearn.pipeline import Pipeline

    return Pipeline([*head.steps[:-1], (head.steps[-1][0], step)])

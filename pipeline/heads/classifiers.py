"""The table of heads: scikit-learn classifiers by a short name, each standardising its own features.

Importing this module is light; scikit-learn is imported when a head is made.
"""

import ast
import contextlib
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UsageError
from pipeline.heads.path_solvers import PathSolver, fit_kernel_machines, fit_lda, fit_logistic, fit_ridge
from pipeline.wording import closest

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin
    from sklearn.pipeline import Pipeline


AUTO = "auto"  # not a head: a race of many, see `pipeline.training.race`


@dataclass(frozen=True)
class Head:
    """One row of the table of heads.

    Parameters
    ----------
    name : str
        What the user types.
    summary : str
        One line for ``--help``.
    build : callable
        From a seed to the unfitted classifier with this package's defaults.
    search : mapping of str to tuple
        The values to try for the main parameter where the user gives none; empty where there is nothing to choose.
    standardise : bool or None
        Whether features are brought to mean 0 and variance 1 first; None to do so unless the classifier refuses
        negative numbers.
    softmax : bool or None
        Whether probabilities come from `SoftmaxHead`, because the classifier has none, or has
        overconfident ones; None to wrap it only if it has none.
    search_stops : bool
        Whether the search ends after two values in a row that were worse than an earlier one, because the rest are
        slow to fit.
    early_stopping : bool
        Whether ``fit`` takes ``validation_data`` and uses them to decide when to stop.
    path : PathSolver or None
        Fits several values of the main parameter together; None if they are fitted one by one.
    preview : PathSolver or None
        A faster one for comparing heads, whose results cannot be kept; None to take `path`.
    races : bool
        Whether the head takes part in the race of the head ``"auto"``, see `pipeline.training.race.race`.
    growth : float
        The time of a fit grows with the number of images to this power.
    """

    name: str
    summary: str
    build: "Callable[[int], ClassifierMixin]"
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    standardise: bool | None = True
    softmax: bool | None = False
    search_stops: bool = False
    early_stopping: bool = False
    path: PathSolver | None = None
    preview: PathSolver | None = None
    races: bool = False
    growth: float = 1.0


def _logreg(seed: int) -> "ClassifierMixin":
    from sklearn.linear_model import LogisticRegression

    # On standardised vectors a tighter tol costs up to 18 times the time for the same accuracy.
    return LogisticRegression(C=0.03, tol=1e-3, max_iter=5000, random_state=seed)


def _ridge(seed: int) -> "ClassifierMixin":
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(alpha=1000.0, random_state=seed)


def _linear_svm(seed: int) -> "ClassifierMixin":
    from sklearn.svm import LinearSVC

    # The dual solver is faster here, also if there are more images than features.
    return LinearSVC(C=1e-3, dual=True, tol=1e-2, max_iter=20_000, random_state=seed)


def _svm(seed: int) -> "ClassifierMixin":
    from sklearn.svm import SVC

    # Decision values of pairs of classes make better probabilities than votes; SoftmaxHead sums them up.
    return SVC(C=3.0, decision_function_shape="ovo", random_state=seed)


def _knn(seed: int) -> "ClassifierMixin":
    from sklearn.neighbors import KNeighborsClassifier

    # Search trees are no faster on long vectors, and skops does not know their types.
    return KNeighborsClassifier(n_neighbors=5, algorithm="brute")


def _lda(seed: int) -> "ClassifierMixin":
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")


def _random_forest(seed: int) -> "ClassifierMixin":
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=300, n_jobs=-1, random_state=seed)


def _hist_gradient_boosting(seed: int) -> "ClassifierMixin":
    from sklearn.ensemble import HistGradientBoostingClassifier

    # A tenth of the features for each split: a tenth of the time, and no worse on convnet vectors.
    return HistGradientBoostingClassifier(max_features=0.1, max_leaf_nodes=15, random_state=seed)


def _nearest_centroid(seed: int) -> "ClassifierMixin":
    from sklearn.neighbors import NearestCentroid

    return NearestCentroid()


def _dummy(seed: int) -> "ClassifierMixin":
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="most_frequent", random_state=seed)


def _dense(seed: int) -> "ClassifierMixin":
    from pipeline.heads.keras_head import KerasHead

    return KerasHead(random_state=seed)


# In the order of the race: the quick ones first.
_ROWS = (
    Head(
        "logreg",
        "multinomial logistic regression (the default)",
        _logreg,
        {"C": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0)},
        search_stops=True,
        path=PathSolver(fit_logistic, also=frozenset({"class_weight"})),
        races=True,
    ),
    Head(
        "ridge",
        "ridge regression on +1 and -1",
        _ridge,
        {"alpha": (10.0, 100.0, 1000.0, 10_000.0)},
        softmax=True,
        path=PathSolver(fit_ridge),
        races=True,
        growth=2.0,
    ),
    # Wrapped also because its own predict and predict_proba measure distance differently.
    Head("nearest-centroid", "the class whose mean is nearest", _nearest_centroid, softmax=True, races=True),
    Head("knn", "vote of the nearest neighbours", _knn, {"n_neighbors": (1, 3, 5, 10, 20)}, races=True),
    Head(
        "lda",
        "linear discriminant analysis with shrinkage",
        _lda,
        {"shrinkage": (0.03, 0.1, 0.3, 0.5)},
        softmax=True,
        path=PathSolver(fit_lda, below=1.0),
        races=True,
        growth=2.0,
    ),
    Head("linear-svm", "linear support vector machine", _linear_svm, {"C": (1e-4, 1e-3, 1e-2)}, softmax=True),
    Head(
        "svm",
        "support vector machine with an RBF kernel",
        _svm,
        {"C": (1.0, 3.0, 10.0)},
        softmax=True,
        preview=PathSolver(fit_kernel_machines),
        races=True,
        growth=2.0,
    ),
    Head("random-forest", "300 randomised trees", _random_forest, standardise=False, races=True, growth=1.1),
    Head("hist-gradient-boosting", "boosted trees on binned features", _hist_gradient_boosting, standardise=False),
    Head("dummy", "always the most frequent class: the baseline", _dummy, standardise=False),
    Head("dense", "Keras network: hidden layers, dropout, early stopping", _dense, early_stopping=True),
)

HEADS: dict[str, Head] = {row.name: row for row in _ROWS}


def find_head(name: str) -> Head:
    """Return a head's row of the table, or one for the import path of a scikit-learn classifier.

    Examples
    --------
    >>> find_head("svm").softmax, find_head("sklearn.ensemble.ExtraTreesClassifier").search
    (True, {})
    """
    return HEADS.get(name) or Head(
        name, "imported classifier", functools.partial(_import_classifier, name), standardise=None, softmax=None
    )


def make_head(name: str, params: Mapping[str, object] | None = None, seed: int = 0) -> "Pipeline":
    """Make an unfitted head by its name in `HEADS` or by the import path of a scikit-learn classifier.

    Parameters
    ----------
    name : str
        ``"logreg"``, or ``"sklearn.ensemble.ExtraTreesClassifier"``, or ``"sklearn.naive_bayes.GaussianNB"``.
    params : mapping of str to object, optional
        Parameters of the classifier by their plain names.
    seed : int
        Of everything random in the head.

    Returns
    -------
    sklearn.pipeline.Pipeline
        Steps ``float32``, ``standardise`` (if its row says so) and ``head``; takes (n, d) arrays
        of any float type and has ``predict_proba``. Classifiers that only have decision values are wrapped in
        `SoftmaxHead`.

    Raises
    ------
    UsageError
        If the head or a parameter is unknown, or the import path is not that of a usable classifier.

    Examples
    --------
    >>> head = make_head("logreg", {"C": 0.1})
    >>> list(head.named_steps)
    ['float32', 'standardise', 'head']
    >>> head.fit([[0.0], [1.0], [8.0], [9.0]], ["cat", "cat", "dog", "dog"]).predict([[8.5]]).item()
    'dog'
    >>> make_head("logrge")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    pipeline.errors.UsageError: unknown head 'logrge'; did you mean logreg or ridge? ...
    """
    row = find_head(name)
    classifier = row.build(seed)
    _set_params(name, classifier, params or {})
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    softmax = not hasattr(classifier, "predict_proba") if row.softmax is None else row.softmax
    standardise = not _wants_positive(classifier) if row.standardise is None else row.standardise
    # In float16 the scaler would overflow and round; np.float32 as a function is a cast.
    steps: list[tuple[str, Any]] = [("float32", FunctionTransformer(np.float32))]
    if standardise:
        steps.append(("standardise", StandardScaler()))
    return Pipeline([*steps, ("head", _softmax_head(name, classifier) if softmax else classifier)])


Calibrate = Callable[[np.ndarray], np.ndarray]  # from probabilities in columns of the head's classes to calibrated ones


def class_probabilities(head: Any, X: np.ndarray, n_classes: int, calibrate: Calibrate | None = None) -> np.ndarray:
    """Return the probabilities of a fitted head, with a column also for classes without training images.

    Parameters
    ----------
    head : fitted classifier
        Its ``classes_`` are indexes from 0 to `n_classes` - 1.
    X : ndarray of float, shape (n, d) or (n, views, d)
    n_classes : int
    calibrate : callable or None
        Applied to the mean over the views, in columns of ``classes_``.

    Returns
    -------
    ndarray of float64, shape (n, n_classes)
        The mean over the views; a class without training images has probability 0.
    """
    full = np.zeros((len(X), n_classes))
    if len(X):
        with _one_thread() if hasattr(head, "steps") else contextlib.nullcontext():
            proba = np.asarray(head.predict_proba(X.reshape(-1, X.shape[-1])), np.float64)
        proba = proba.reshape(len(X), -1, proba.shape[1]).mean(axis=1)
        full[:, np.asarray(head.classes_, int)] = calibrate(proba) if calibrate else proba
    return full


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let forests predict in one thread: they add up their trees as threads finish, which changes the last bits."""
    from joblib import parallel_config

    with parallel_config(backend="sequential"):
        yield


def parse_params(pairs: Iterable[str]) -> dict[str, object]:
    """Parse ``NAME=VALUE`` pairs of the command line; values are Python literals, or else text.

    Parameters
    ----------
    pairs : iterable of str

    Returns
    -------
    dict of str to object

    Raises
    ------
    UsageError
        If a pair has no ``=``, no value, a name that cannot be a parameter, or a name that was given before.

    Examples
    --------
    >>> parse_params(["C=0.1", "class_weight=balanced", "hidden=256,128"])
    {'C': 0.1, 'class_weight': 'balanced', 'hidden': (256, 128)}
    """
    params: dict[str, object] = {}
    for pair in pairs:
        key, _, text = (part.strip() for part in pair.partition("="))
        if not key.isidentifier() or not text:
            raise UsageError(f"cannot read the parameter {pair!r}; expected NAME=VALUE, such as C=0.1")
        if key in params:
            raise UsageError(f"the parameter {key!r} is given twice; give it once")
        params[key] = _literal(text)
    return params


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _import_classifier(path: str, seed: int) -> Any:
    if path == AUTO:
        raise UsageError("head 'auto' is a race of many heads and cannot be used here; name one head, such as logreg")
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not attribute:
        raise UsageError(_unknown_head(path))
    from sklearn.base import ClassifierMixin, is_classifier

    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"cannot import the head {path!r} ({error}); expected the path of a scikit-learn classifier,"
            " such as sklearn.ensemble.ExtraTreesClassifier"
        ) from error
    if not (isinstance(found, type) and issubclass(found, ClassifierMixin)):
        raise UsageError(
            f"{path!r} is not a scikit-learn classifier; expected one, such as sklearn.naive_bayes.GaussianNB"
        )
    try:
        classifier = found()
        usable = is_classifier(classifier)
    except Exception as error:  # whatever the user named may fail in any way
        raise UsageError(
            f"cannot make the head {path!r} without arguments ({error}); expected a scikit-learn classifier"
            " whose parameters all have defaults"
        ) from error
    if not usable:
        raise UsageError(
            f"{path!r} is not a scikit-learn classifier; expected one, such as sklearn.naive_bayes.GaussianNB"
        )
    if "random_state" in classifier.get_params():
        classifier.set_params(random_state=seed)
    return classifier


def _set_params(name: str, classifier: Any, params: Mapping[str, object]) -> None:
    valid = sorted(classifier.get_params())
    for key in params:
        if key not in valid:
            raise UsageError(f"the head {name!r} has no parameter {key!r}; {closest(key, valid)}")
    classifier.set_params(**params)


def _softmax_head(name: str, classifier: Any) -> Any:
    if not hasattr(classifier, "decision_function"):
        raise UsageError(
            f"the head {name!r} with these parameters has no decision_function, so it gives no probabilities;"
            " choose another classifier or other parameters"
        )
    from pipeline.heads.softmax_head import SoftmaxHead

    return SoftmaxHead(classifier)


def _wants_positive(classifier: Any) -> bool:
    """Return whether the classifier refuses negative numbers, as MultinomialNB does."""
    from sklearn.utils import get_tags

    return bool(get_tags(classifier).input_tags.positive_only)


def _unknown_head(name: str) -> str:
    return (
        f"unknown head {name!r}; {closest(name, [*HEADS, AUTO])} (or the import path"
        " of a scikit-learn classifier, such as sklearn.ensemble.ExtraTreesClassifier)"
    )

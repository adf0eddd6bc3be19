"""Comparison of feature files, their layers and joins, by accuracy, LogME and cost."""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, PipelineError, TrainingError, UsageError
from pipeline.features.engines import make_encoder
from pipeline.features.image_encoder import ImageEncoder
from pipeline.features.options import Speed
from pipeline.features.store import FeatureStore
from pipeline.features.weights import TUNED
from pipeline.files import writing
from pipeline.heads.classifiers import AUTO, make_head
from pipeline.images.decode import read_bytes
from pipeline.metrics.intervals import wilson_interval
from pipeline.metrics.transferability import logme
from pipeline.training.training_data import Features, load_training_data
from pipeline.wording import display_width, printable, shorten

JOINS = ("none", "pairs", "all")
_COST_IMAGES = 64


@dataclass(frozen=True)
class Contender:
    """The result of one set of vectors in the comparison.

    Parameters
    ----------
    name : str
        File, and layer if it is one of several; joined ones have " + " between them.
    columns : int
        Length of the vector.
    logme : float or None
        Of the training images, see `pipeline.metrics.transferability.logme`; None if the network was tuned on them.
    accuracy : float
        Of the head on the validation images, from 0 to 1.
    interval : tuple of two float
        95 %, Wilson.
    milliseconds : float or None
        To decode and encode one image on this machine, the sum over joined files; None if the images or the network
        are missing. A layer costs as much as its file.
    """

    name: str
    columns: int
    logme: float | None
    accuracy: float
    interval: tuple[float, float]
    milliseconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return asdict(self)


def compare(
    features: Sequence[Features],
    *,
    head: str = "logreg",
    join: str = "pairs",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Contender]:
    """Compare feature files of the same images, their layers and their joins; the most accurate comes first.

    All are compared on the same images, those that all files have. The test split is not used.

    Parameters
    ----------
    features : sequence of FeatureStore or path
    head : str
        Fitted with its default parameters on the training images, scored on the validation images; not ``auto``.
    join : str
        ``"none"``; ``"pairs"``: every pair of files, and all files; ``"all"``: all files.
    seed : int
    progress : callable (done, total) or None

    Returns
    -------
    list of Contender

    Raises
    ------
    TrainingError
        If the files are not of the same images, or there is no validation split.
    UsageError
        If the head does not exist.

    Examples
    --------
    >>> [contender.name for contender in compare(["artifacts/small.h5", "artifacts/large.h5"])]
    ['small', 'large', 'small + large']
    """
    if join not in JOINS:
        raise UsageError(f"join {join!r} is unknown; expected one of {', '.join(JOINS)}")
    if head == AUTO:
        raise UsageError("head 'auto' cannot compare vectors; name one head to fit on all of them, such as logreg")
    make_head(head, {}, seed)  # an unknown head is an error before files are read
    data = load_training_data(list(features), seed)
    X = data.X[:, 0]
    train, validation = data.rows("train"), data.rows("validation")
    if not len(validation) or len(set(data.y[train].tolist())) < 2:
        raise TrainingError(
            f"cannot compare on {len(train)} training images and {len(validation)} validation images; expected both,"
            " with at least two classes in training: give the images other splits, or none"
        )
    costs = [measure_cost(store) for store in data.stores]
    contenders = _contenders(data.stores, join, costs)
    found = []
    tuned = np.concatenate([np.full(store.dim, store.recipe.weights == TUNED) for store in data.stores])
    for number, (name, columns, milliseconds) in enumerate(contenders):
        vectors = X[:, columns]
        fitted = make_head(head, {}, seed).fit(vectors[train], data.y[train])
        right = int((fitted.predict(vectors[validation]) == data.y[validation]).sum())
        found.append(
            Contender(
                name=name,
                columns=len(columns),
                logme=None if tuned[columns].any() else logme(_equal_scale(vectors[train]), data.y[train]),
                accuracy=right / len(validation),
                interval=wilson_interval(right, len(validation)),
                milliseconds=milliseconds,
            )
        )
        if progress:
            progress(number + 1, len(contenders))
    return sorted(found, key=lambda each: (-each.accuracy, -(each.logme or 0.0)))


def _equal_scale(X: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scale every column to the same mean square, so that files of large numbers do not dominate joined vectors."""
    vectors = X.astype(np.float64)
    size = np.sqrt((vectors**2).mean(axis=0))
    return np.asarray(vectors / np.where(size > 0, size, 1.0))


def _contenders(
    stores: Sequence[FeatureStore], join: str, costs: Sequence[float | None]
) -> list[tuple[str, NDArray[np.int64], float | None]]:
    """Return name, columns and cost of each contender: files, layers of files, files together."""
    names = [Path(store.path).stem for store in stores]
    if len(set(names)) < len(names):
        names = [os.fspath(store.path) for store in stores]
    starts = np.cumsum([0, *(store.shape[-1] for store in stores)])
    files = [np.arange(start, stop) for start, stop in itertools.pairwise(starts.tolist())]
    contenders = []
    for name, columns, cost, store in zip(names, files, costs, stores, strict=True):
        contenders.append((name, columns, cost))
        segments = store.index.segments
        if len(segments) > 1:
            contenders += [(f"{name}: {layer}", columns[start:stop], cost) for layer, (start, stop) in segments.items()]
    sizes = {"none": [], "pairs": sorted({2, len(stores)}), "all": [len(stores)]}[join]
    for size in sizes:
        for chosen in itertools.combinations(range(len(stores)), size) if len(stores) > 1 else ():
            known = [cost for cost in (costs[i] for i in chosen) if cost is not None]
            total = sum(known) if len(known) == len(chosen) else None
            contenders.append((" + ".join(names[i] for i in chosen), np.concatenate([files[i] for i in chosen]), total))
    return contenders


def measure_cost(store: FeatureStore, speed: Speed = Speed()) -> float | None:
    """Measure how long it takes to decode and encode an image with a feature file's recipe.

    The time is that of a second run over up to 64 of its images.

    Returns
    -------
    float or None
        Milliseconds per image; None if all images or the network are missing.
    """
    recipe, root = store.recipe, Path(store.index.root)
    contents = []
    for path in store.paths[:_COST_IMAGES]:
        with contextlib.suppress(ImageError):
            contents.append(read_bytes(root / path))
    if not contents:
        return None
    try:
        encoder = make_encoder(recipe, speed)
    except PipelineError:
        return None

    try:
        with ImageEncoder([recipe], lambda: [encoder], speed.threads(), isolated=False) as images:
            images.vectors(contents)
            started = time.perf_counter()
            images.vectors(contents)
            return 1000 * (time.perf_counter() - started) / len(contents)
    except ImageError:  # it could be read when the file was made
        return None


def format_contenders(contenders: Sequence[Contender], width: int = 80) -> str:
    """Format the comparison for a terminal, one line each.

    Parameters
    ----------
    contenders : sequence of Contender
    width : int
        Columns; no line is longer.

    Returns
    -------
    str

    Examples
    --------
    >>> print(format_contenders([Contender("small", 256, 0.31, 0.75, (0.70, 0.80), None)]))
    vectors  columns    LogME  accuracy   95 % interval  ms/image
    small        256    0.310     0.750  0.700 to 0.800         -
    """
    room = width - 54
    names = [shorten(printable(each.name), room) for each in contenders]
    column = max(display_width(name) for name in [*names, "vectors"])
    lines = ["vectors".ljust(column) + "  columns    LogME  accuracy   95 % interval  ms/image"]
    for name, each in zip(names, contenders, strict=True):
        cost = "-" if each.milliseconds is None else f"{each.milliseconds:.2f}"
        low, high = each.interval
        score = "-" if each.logme is None else f"{each.logme:.3f}"
        lines.append(
            f"{name}{' ' * (column - display_width(name))}{each.columns:>9}{score:>9}{each.accuracy:>10.3f}"
            f"  {low:.3f} to {high:.3f}{cost:>10}"
        )
    return "\n".join(lines)


def plot_contenders(contenders: Sequence[Contender], out: str | os.PathLike[str]) -> Path:
    """Draw accuracy against cost, with confidence intervals; the title names those of unknown cost.

    Parameters
    ----------
    contenders : sequence of Contender
    out : path
        Ends in ``.png``, ``.svg`` or ``.pdf``.

    Raises
    ------
    UsageError
        If no contender's cost is known, or `out` has another ending.
    PipelineError
        If it cannot be written.
    """
    from matplotlib.figure import Figure

    target = Path(out)
    if target.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"cannot draw {str(out)!r}; expected a name that ends in .png, .svg or .pdf")
    known = [(each, each.milliseconds) for each in contenders if each.milliseconds is not None]
    if not known:
        raise UsageError(
            "the cost of no feature file is known, so there is nothing to draw; run it where the images are"
        )
    figure = Figure(figsize=(8, 4 + 0.2 * len(known)), layout="constrained")
    axes = figure.subplots()
    for number, (each, cost) in enumerate(known, start=1):
        low, high = each.interval
        errors = [[each.accuracy - low], [high - each.accuracy]]
        name = f"{number} {shorten(printable(each.name), 90)}"
        axes.errorbar([cost], [each.accuracy], yerr=errors, fmt="o", capsize=3, label=name)
        axes.annotate(str(number), (cost, each.accuracy), xytext=(5, 4), textcoords="offset points")
    axes.set_xlabel("milliseconds per image")
    axes.set_ylabel("accuracy on validation")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", fontsize=8)
    if missing := [printable(each.name) for each in contenders if each.milliseconds is None]:
        axes.set_title("unknown cost: " + ", ".join(missing), fontsize=8)
    with writing(target, advice="choose another --plot"):
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target)
    return target

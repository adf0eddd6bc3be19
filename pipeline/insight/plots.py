"""Plots of a training, made by matplotlib: files for a paper, and pictures in the report."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.reliability_curve import reliability
from pipeline.wording import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#123456"  # becomes the colour of the reader's text
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "twostage",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_LIGHT_AND_DARK = "<style>svg{color:#1c1e21}@media(prefers-color-scheme:dark){svg{color:#e4e6eb}}</style>"
_NAME = 24  # columns of a class name
_BLUE, _ORANGE, _GREY = "#3b82c4", "#e07b28", "#8a8f98"


@dataclass(frozen=True)
class Scored:
    """Answers of a head on the images it is scored on.

    Parameters
    ----------
    y : ndarray of int, shape (n,)
    probabilities : ndarray of float, shape (n, k)
    classes : tuple of k str
    split : str
    """

    y: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]
    split: str

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which answers are right, shape (n,)."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.y)


@dataclass(frozen=True)
class Plot:
    """A figure with its title and what it shows."""

    name: str
    title: str
    caption: str
    figure: "Figure"

    def svg(self) -> str:
        """Return the figure as SVG text whose ink follows the reader's light or dark theme."""
        buffer = io.StringIO()
        with _style():
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        text = buffer.getvalue().replace(_INK, "currentColor")
        start = text.index("<svg")
        end = text.index(">", start) + 1
        return text[start:end] + _LIGHT_AND_DARK + text[end:]

    def save(self, folder: Path) -> list[Path]:
        """Write ``NAME.png`` and ``NAME.svg`` on white; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}.{kind}" for kind in ("png", "svg")]
        with _style():
            for path in paths:
                self.figure.savefig(
                    path, dpi=150, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None
                )
        return paths


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that its font lacks become boxes, a crowded figure stays as it is; neither is the reader's affair.
        warnings.simplefilter("ignore", UserWarning)
        yield


def make_plots(report: Mapping[str, Any], scored: Scored | None) -> list[Plot]:
    """Draw what the report of a training, and its answers, give reason to draw.

    Parameters
    ----------
    report : mapping
        Of a bundle.
    scored : Scored or None
        Without it only what the report itself holds is drawn.

    Returns
    -------
    list of Plot
    """
    drawn = []
    for name, title, draw in _PLOTS:
        with _style():
            from matplotlib.figure import Figure

            figure = Figure(figsize=(5.2, 3.6))
            caption = draw(figure, report, scored)
        if caption:
            drawn.append(Plot(name, title, caption, figure))
    return drawn


def _confusion(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    metrics = report["metrics"][report["scored_on"]]
    if len(metrics["classes"]) > 40:
        return ""
    from sklearn.metrics import ConfusionMatrixDisplay

    size = 2.5 + 0.35 * len(metrics["classes"])
    figure.set_size_inches(size + 0.6, size)
    matrix = np.array(metrics["confusion"])
    display = ConfusionMatrixDisplay(matrix, display_labels=[_plain(name) for name in metrics["classes"]])
    display.plot(ax=figure.subplots(), colorbar=False, cmap="Blues", xticks_rotation=90, values_format="d")
    return "rows are true classes, columns predicted ones"


def _history(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    history = {name: values for name, values in report.get("history", {}).items() if values}
    pairs = [(name, f"val_{name}") for name in ("loss", "accuracy") if name in history]
    if not pairs:
        return ""
    watched = history.get("val_loss") or history["loss"]
    best = int(np.argmin(watched))
    figure.set_size_inches(4.2 * len(pairs), 3.4)
    for axes, (name, other) in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
        epochs = np.arange(1, len(history[name]) + 1)
        axes.plot(epochs, history[name], color=_BLUE, label="training")
        if other in history:
            axes.plot(epochs, history[other], color=_ORANGE, label="validation")
        axes.axvline(best + 1, color=_GREY, linestyle="--", label=f"epoch {best + 1}, kept")
        axes.set(xlabel="epoch", ylabel=name)
        axes.legend()
    return (
        f"the weights of epoch {best + 1} of {len(watched)} were kept; where validation turns worse while"
        " training still gets better, the head learns its training images by heart"
    )


def _learning_curve(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    curve = report.get("curve") or {}
    if not curve.get("points"):
        return ""
    axes = figure.subplots()
    parts = ((curve["points"], _BLUE, "-", "measured"), (curve.get("extrapolation"), _ORANGE, "--", "expected"))
    for points, colour, line, label in parts:
        if points:
            images = [point["images"] for point in points]
            axes.plot(images, [point["accuracy"] for point in points], line, marker="o", color=colour, label=label)
            low, high = zip(*(point["interval"] for point in points), strict=True)
            axes.fill_between(images, low, high, color=colour, alpha=0.15)
    axes.set(xlabel="training images", ylabel="accuracy", xscale="log")
    axes.legend()
    return str(curve.get("verdict", ""))


def _candidates(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    rows = [row for row in report.get("candidates", []) if "accuracy" in row][:20]
    if len(rows) < 2:
        return ""
    names = [candidate_name(row, report["head"]) for row in rows]
    figure.set_size_inches(5.2, 1 + 0.28 * len(rows))
    axes = figure.subplots()
    chosen = [_BLUE if row.get("params") == report["params"] else _GREY for row in rows]
    places = np.arange(len(rows))[::-1]
    spread = [row.get("accuracy_sd") or 0 for row in rows]
    axes.errorbar([row["accuracy"] for row in rows], places, xerr=spread, fmt="none", ecolor=_GREY)
    axes.scatter([row["accuracy"] for row in rows], places, c=chosen)
    axes.set_yticks(places, names)
    axes.set(xlabel=f"accuracy on {report.get('chosen_on') or 'folds'}")
    return "what was tried; the blue one was chosen"


def _reliability(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    if scored is None or not len(scored.y):
        return ""
    # As it was measured at the training, so that the page says what the terminal said.
    stored = report["metrics"].get(scored.split, {}).get("calibration", {}).get("after")
    found = stored or reliability(scored.y, scored.probabilities)
    sure, right, counts = (np.array([row[name] for row in found["bins"]]) for name in ("probability", "accuracy", "n"))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="as sure as right")
    axes.plot(sure, right, color=_BLUE)
    sizes = 20 + 180 * counts / counts.max()
    axes.scatter(sure, right, s=sizes, color=_BLUE, label=f"{scored.split} images", clip_on=False)
    axes.set(xlabel="probability of the answer", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")
    return f"expected calibration error {found['error']:.3f}; a larger dot stands for more images"


def _coverage(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    if scored is None or len(scored.y) < 2:
        return ""
    order = np.argsort(-scored.probabilities.max(axis=1), kind="stable")
    answered = np.arange(1, len(order) + 1)
    accuracy = scored.right[order].cumsum() / answered
    axes = figure.subplots()
    axes.plot(answered / len(order), accuracy, color=_BLUE)
    axes.set(
        xlabel="share of images that are answered, the surest first", ylabel="accuracy of these answers", xlim=(0, 1)
    )
    half = accuracy[len(order) // 2 - 1]
    text = f"the surer half of the answers is right for {half:.1%}"
    taken = report["metrics"].get(scored.split, {}).get("abstain")
    if taken and taken.get("accuracy") is not None:
        axes.scatter([taken["coverage"]], [taken["accuracy"]], color=_ORANGE, zorder=3)
        text += f"; the threshold of the bundle (dot) answers {taken['coverage']:.1%}"
    return text


def _roc(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    if not _two_classes(scored):
        return ""
    from sklearn.metrics import RocCurveDisplay

    return _binary(figure.subplots(), scored, RocCurveDisplay.from_predictions)


def _precision_recall(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    if not _two_classes(scored):
        return ""
    from sklearn.metrics import PrecisionRecallDisplay

    return _binary(figure.subplots(), scored, PrecisionRecallDisplay.from_predictions)


def _two_classes(scored: Scored | None) -> bool:
    return scored is not None and len(scored.classes) == 2 and len(np.unique(scored.y)) == 2


def _binary(axes: "Axes", scored: Scored | None, draw: Callable[..., Any]) -> str:
    assert scored is not None
    name = _plain(scored.classes[1])
    draw(scored.y, scored.probabilities[:, 1], ax=axes, name=name)
    axes.set_xlabel(axes.get_xlabel().replace("Positive label: 1", name))
    axes.set_ylabel(axes.get_ylabel().replace("Positive label: 1", name))
    return f"the class {name} against {_plain(scored.classes[0])}, as the threshold moves"


_PLOTS: tuple[tuple[str, str, Callable[["Figure", Mapping[str, Any], Scored | None], str]], ...] = (
    ("confusion", "Confusion matrix", _confusion),
    ("history", "Training and validation", _history),
    ("candidates", "What was tried", _candidates),
    ("learning_curve", "Learning curve", _learning_curve),
    ("reliability", "Reliability", _reliability),
    ("coverage", "Coverage against accuracy", _coverage),
    ("roc", "ROC curve", _roc),
    ("precision_recall", "Precision and recall", _precision_recall),
)


def candidate_name(row: Mapping[str, Any], head: str) -> str:
    """Name a candidate in a few words.

    >>> candidate_name({"params": {"C": 0.1}}, "logreg")
    'logreg C=0.1'
    """
    params = ", ".join(f"{name}={value}" for name, value in row.get("params", {}).items())
    return f"{row.get('head', head)} {params}".strip()


def _plain(name: str) -> str:
    """Keep matplotlib from reading formulas into a name, from failing at its odd characters, or from lack of room."""
    return "".join(c if c.isprintable() else "?" for c in shorten(name, _NAME)).replace("$", r"\$")

"""Plots of a training, drawn by matplotlib, as files and for the report."""

import base64
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

_INK = "#123456"  # replaced by the text colour of the page
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
_NAME_WIDTH = 24  # columns of a class name
_BLUE, _ORANGE, _GREY = "#3b82c4", "#e07b28", "#8a8f98"


@dataclass(frozen=True)
class Scored:
    """Predictions of a head for the images that it is scored on.

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
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct, shape (n,)."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.y)


@dataclass(frozen=True)
class Plot:
    """A figure with its file name, title and caption."""

    name: str
    title: str
    caption: str
    figure: "Figure"

    def svg(self) -> str:
        """Return the figure as SVG whose text colour follows the light or dark theme of the reader."""
        buffer = io.StringIO()
        with _style():
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        text = buffer.getvalue().replace(_INK, "currentColor")
        start = text.index("<svg")
        end = text.index(">", start) + 1
        return text[start:end] + _LIGHT_AND_DARK + text[end:]

    def data_url(self) -> str:
        """Return the SVG as a data URL."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg().encode()).decode()

    def save(self, folder: Path) -> list[Path]:
        """Write ``NAME.png`` and ``NAME.svg`` with a white background; return their paths."""
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
        # About letters that the font lacks, and figures too crowded for the layout: the plot is still usable.
        warnings.simplefilter("ignore", UserWarning)
        yield


def make_plots(report: Mapping[str, Any], scored: Scored | None) -> list[Plot]:
    """Draw every plot that the report has data for.

    Parameters
    ----------
    report : mapping
        Of a bundle.
    scored : Scored or None
        Without it, plots of single predictions are left out.

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
    return "rows are true classes, columns are predicted classes"


def _history(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    history = {name: values for name, values in report.get("history", {}).items() if values}
    pairs = [(name, f"val_{name}") for name in ("loss", "accuracy") if name in history]
    if not pairs:
        return ""
    losses = history.get("val_loss") or history["loss"]
    best = int(np.argmin(losses))
    figure.set_size_inches(4.2 * len(pairs), 3.4)
    for axes, (name, other) in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
        epochs = np.arange(1, len(history[name]) + 1)
        axes.plot(epochs, history[name], color=_BLUE, label="training")
        if other in history:
            axes.plot(epochs, history[other], color=_ORANGE, label="validation")
        axes.axvline(best + 1, color=_GREY, linestyle="--", label=f"epoch {best + 1} (kept)")
        axes.set(xlabel="epoch", ylabel=name)
        axes.legend()
    return (
        f"the weights of epoch {best + 1} of {len(losses)} were kept; a validation curve that gets worse while the"
        " training curve still improves is a sign of overfitting"
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
    heights = np.arange(len(rows))[::-1]
    spread = [row.get("accuracy_sd") or 0 for row in rows]
    axes.errorbar([row["accuracy"] for row in rows], heights, xerr=spread, fmt="none", ecolor=_GREY)
    axes.scatter([row["accuracy"] for row in rows], heights, c=chosen)
    axes.set_yticks(heights, names)
    axes.set(xlabel=f"accuracy on {report.get('chosen_on') or 'folds'}")
    return "every candidate that was tried; the one that was chosen is blue"


def _reliability(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    if scored is None or not len(scored.y):
        return ""
    # The stored values of the training, so that the page agrees with what the terminal printed.
    stored = report["metrics"].get(scored.split, {}).get("calibration", {}).get("after")
    found = stored or reliability(scored.y, scored.probabilities)
    confidence, accuracy, counts = (
        np.array([row[name] for row in found["bins"]]) for name in ("probability", "accuracy", "n")
    )
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="perfect calibration")
    axes.plot(confidence, accuracy, color=_BLUE)
    sizes = 20 + 180 * counts / counts.max()
    axes.scatter(confidence, accuracy, s=sizes, color=_BLUE, label=f"{scored.split} images", clip_on=False)
    axes.set(xlabel="predicted probability", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="upper left")
    return f"expected calibration error {found['error']:.3f}; larger dots stand for more images"


def _coverage(figure: "Figure", report: Mapping[str, Any], scored: Scored | None) -> str:
    if scored is None or len(scored.y) < 2:
        return ""
    order = np.argsort(-scored.probabilities.max(axis=1), kind="stable")
    answered = np.arange(1, len(order) + 1)
    accuracy = scored.correct[order].cumsum() / answered
    axes = figure.subplots()
    axes.plot(answered / len(order), accuracy, color=_BLUE)
    axes.set(xlabel="coverage, the most confident answers first", ylabel="accuracy of these answers", xlim=(0, 1))
    half = accuracy[len(order) // 2 - 1]
    text = f"accuracy of the more confident half of the answers: {half:.1%}"
    abstention = report["metrics"].get(scored.split, {}).get("abstain")
    if abstention and abstention.get("accuracy") is not None:
        axes.scatter([abstention["coverage"]], [abstention["accuracy"]], color=_ORANGE, zorder=3)
        text += f"; coverage at the threshold of the bundle (dot): {abstention['coverage']:.1%}"
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
    return f"{name} against {_plain(scored.classes[0])}, over all thresholds"


_PLOTS: tuple[tuple[str, str, Callable[["Figure", Mapping[str, Any], Scored | None], str]], ...] = (
    ("confusion", "Confusion matrix", _confusion),
    ("history", "Training history", _history),
    ("candidates", "Candidates", _candidates),
    ("learning_curve", "Learning curve", _learning_curve),
    ("reliability", "Calibration", _reliability),
    ("coverage", "Accuracy by coverage", _coverage),
    ("roc", "ROC curve", _roc),
    ("precision_recall", "Precision-recall curve", _precision_recall),
)


def candidate_name(row: Mapping[str, Any], head: str) -> str:
    """Return a short name of a candidate.

    >>> candidate_name({"params": {"C": 0.1}}, "logreg")
    'logreg C=0.1'
    """
    params = ", ".join(f"{name}={value}" for name, value in row.get("params", {}).items())
    return f"{row.get('head', head)} {params}".strip()


def _plain(name: str) -> str:
    """Make a name safe for matplotlib: without formulas and unprintable characters, and short."""
    return "".join(c if c.isprintable() else "?" for c in shorten(name, _NAME_WIDTH)).replace("$", r"\$")

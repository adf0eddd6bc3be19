"""`Report`: the results of a training, as plain data and as a table for a terminal."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.metrics.binary import format_two_class
from pipeline.metrics.label_sets import format_labels
from pipeline.metrics.tables import format_confusion, format_table
from pipeline.training.leaderboard import TIMES, format_leaderboard
from pipeline.training.learning_curve import format_curve
from pipeline.trust.safeguards import format_trust


@dataclass(frozen=True, repr=False)
class Report:
    """The results of a training, as plain data.

    Parameters
    ----------
    head : str
    params : dict
        Parameters given or chosen.
    scored_on : str
        ``"test"``, ``"validation"`` or ``"cross-validation"``: where `accuracy` comes from.
    metrics : dict of str to dict
        For each split that was scored, see `pipeline.metrics.evaluation.evaluate`.
    candidates : list of dict
        What was tried: ``{"head", "params", "accuracy", "log_loss"}``. If scored by folds, the best first, with
        ``accuracy_sd`` over the ``folds``, mean ``fit_seconds`` of a fold, ``predict_seconds_per_1000`` images,
        and for the finalists of a race ``validation_accuracy`` and ``validation_log_loss``.
    chosen_on : str
        ``"validation"``, ``"cross-validation"`` or ``""`` if nothing was chosen.
    counts : dict of str to int
        Images of each split.
    notes : list of str
    seconds : float
        Wall-clock time of fitting and choosing.
    history : dict of str to list of float
        Curves of a Keras head, else empty.
    curve : dict
        Accuracy against training images, see `pipeline.training.learning_curve.learning_curve`; else empty.
    provenance : dict
        Recipes, seed and versions.
    trust : dict
        How calibration, threshold and novelty score were learned; their effect on a split is in its metrics.
    """

    head: str
    params: dict[str, Any]
    scored_on: str
    metrics: dict[str, dict[str, Any]]
    candidates: list[dict[str, Any]]
    chosen_on: str
    counts: dict[str, int]
    notes: list[str]
    seconds: float
    history: dict[str, list[float]] = field(default_factory=dict)
    curve: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    trust: dict[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Accuracy on `scored_on`, from 0 to 1."""
        return float(self.metrics[self.scored_on]["accuracy"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return asdict(self)

    def without_times(self) -> dict[str, Any]:
        """Return plain data without measured times, so that a bundle depends on data and seed alone."""
        data = self.to_dict()
        del data["seconds"]
        for row in data["candidates"]:
            for name in TIMES:
                row.pop(name, None)
        return data

    def __repr__(self) -> str:
        return f"Report({self.head} {self.params}: accuracy {self.accuracy:.3f} on {self.scored_on})"

    def table(self, width: int = 80) -> str:
        """Return the tables of a terminal: scores per class, confusions, candidates and learning curve."""
        metrics = self.metrics[self.scored_on]
        if "mean_average_precision" in metrics:
            return format_labels(metrics, width)
        lines = [format_table(metrics, width)]
        if "cross-validation" in self.metrics and self.scored_on != "cross-validation":
            folded = self.metrics["cross-validation"]
            lines.append(f"cross-validated accuracy {folded['accuracy']:.3f} on {folded['n']} training images")
        lines += format_trust(metrics, self.trust) + format_two_class(metrics, width)
        lines += ["", format_confusion(metrics, width)]
        if len({each["head"] for each in self.candidates if "head" in each}) > 1:
            lines += ["", format_leaderboard(self.candidates, width)]
        if self.curve:
            lines += ["", format_curve(self.curve, width)]
        return "\n".join(lines)

"""`Safeguards`: what a training learned about how far a head's answers can be trusted; `Trust` asks for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.features.store import with_view_axis
from pipeline.heads.temperature import temper
from pipeline.metrics.reliability_curve import reliability
from pipeline.trust.abstention import CONFIDENCE, accepted, learn_threshold
from pipeline.trust.calibration import Calibration, across_halves, fit_calibration, fit_temperature_to
from pipeline.trust.novelty import FALSE_ALARMS, Novelty
from pipeline.trust.options import Trust as Trust

OK = "ok"
ABSTAIN = "abstain"
NOVEL = "novel"
CALIBRATION_FILE = "calibration.npz"
NOVELTY_FILE = "novelty.npz"

HeldOut = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Safeguards:
    """Calibration, threshold and novelty score of a bundle; each may be absent.

    Parameters
    ----------
    calibration : Calibration or None
        Of heads without a softmax of their own; the others contain their temperature.
    threshold : float or None
        Answers with a lower probability get the status ``abstain``.
    novelty : Novelty or None
    facts : mapping
        The options and the results of learning, as plain data.

    Examples
    --------
    >>> guards = Safeguards(threshold=0.8)
    >>> guards.judge(np.zeros((2, 3)), np.array([[0.9, 0.1], [0.4, 0.6]]))
    (['ok', 'abstain'], [None, None])
    """

    calibration: Calibration | None = None
    threshold: float | None = None
    novelty: Novelty | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def calibrate(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return calibrated probabilities; columns are the head's classes."""
        return self.calibration.apply(probabilities) if self.calibration else probabilities

    def judge(
        self, vectors: NDArray[Any], probabilities: NDArray[np.float64]
    ) -> tuple[list[str], list[float] | list[None]]:
        """Return the status and the novelty score of each answer.

        Parameters
        ----------
        vectors : array of shape (n, d) or (n, views, d)
            The first view is scored.
        probabilities : float array of shape (n, k)

        Returns
        -------
        statuses : list of str
            ``"ok"``, ``"abstain"``, or ``"novel"``, which takes precedence.
        scores : list of float, or of None if the bundle has no novelty score
        """
        statuses = np.full(len(vectors), OK, dtype=object)
        if self.threshold is not None:
            statuses[probabilities.max(axis=1, initial=0.0) < self.threshold] = ABSTAIN
        if self.novelty is None:
            return statuses.tolist(), [None] * len(vectors)
        scores = self.novelty.score(with_view_axis(vectors)[:, 0])
        statuses[scores > 1] = NOVEL
        return statuses.tolist(), scores.tolist()

    def to_files(self) -> dict[str, bytes]:
        """Return the contents of the bundle's files with arrays, by name."""
        parts = {CALIBRATION_FILE: self.calibration, NOVELTY_FILE: self.novelty}
        return {name: part.to_bytes() for name, part in parts.items() if part is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return threshold and facts as plain data, for bundle.json."""
        return {"threshold": self.threshold, **self.facts}

    @classmethod
    def read(cls, description: Mapping[str, Any], files: Mapping[str, bytes], dim: int) -> "Safeguards":
        """Read the results of `to_dict` and `to_files`.

        Raises
        ------
        IntegrityError
            If the arrays are not those of safeguards.
        """
        facts = dict(description)
        threshold = facts.pop("threshold", None)
        return cls(
            calibration=Calibration.from_bytes(files[CALIBRATION_FILE]) if CALIBRATION_FILE in files else None,
            threshold=None if threshold is None else float(threshold),
            novelty=Novelty.from_bytes(files[NOVELTY_FILE], dim) if NOVELTY_FILE in files else None,
            facts=facts,
        )


def learn_safeguards(
    method: str, abstain: float | None, head: Any, held_out: Callable[[], HeldOut | None], seed: int = 0
) -> tuple[Any, Safeguards, list[str]]:
    """Calibrate a fitted head and learn its threshold; `Novelty.fit` learns the novelty score.

    Parameters
    ----------
    method : str
        ``"none"``, ``"temperature"`` or ``"isotonic"``.
    abstain : float or None
        Accuracy that accepted answers shall have; None for no threshold.
    head : fitted pipeline of `make_head`
    held_out : callable
        Makes labels (n,) and probabilities (n, k) of images by heads that were not fitted on them, in columns of
        ``head.classes_``; None if there are too few. Called only when needed.
    seed : int

    Returns
    -------
    head : fitted pipeline
        With the temperature inside where its classifier has a softmax; else the same.
    safeguards : Safeguards
    notes : list of str

    Raises
    ------
    TrainingError
        If no threshold reaches this accuracy.
    """
    if method == "none" and abstain is None:
        return head, Safeguards(facts={"calibration": "none"}), []
    held = held_out()
    notes = []
    if held is None:
        held = np.empty(0, np.int64), np.empty((0, len(head.classes_)))
        notes = ["too few images of each class to make folds, so the probabilities are not calibrated"]
        method = "none"
    y, proba = held
    facts: dict[str, Any] = {"calibration": method, "held_out": len(y)}
    calibration = None
    if method != "none":
        errors = [reliability(y, each)["error"] for each in (proba, across_halves(method, y, proba, seed))]
        facts["error_out_of_fold"] = dict(zip(("before", "after"), errors, strict=True))
        calibrated, calibration = _calibrate(method, head, y, proba)
        proba = calibration.apply(proba)
        if method == "temperature":
            facts |= {"temperature": calibration.temperature, "smoothing": calibration.smoothing}
        if calibrated is not head:  # the temperature is inside
            head, calibration = calibrated, None
    threshold = None
    if abstain is not None:
        right, confidences = proba.argmax(axis=1) == y, proba.max(axis=1)
        threshold = learn_threshold(right, confidences, abstain)
        facts |= {
            "abstain": {"asked": abstain, "confidence": CONFIDENCE, **accepted(right, confidences, threshold)},
        }
    return head, Safeguards(calibration, threshold, None, facts), notes


def _calibrate(method: str, head: Any, y: NDArray[np.int64], proba: NDArray[np.float64]) -> tuple[Any, Calibration]:
    """Return the calibrated head and what was fitted; the same head if its classifier has no softmax to scale."""
    if method == "temperature":
        found = fit_temperature_to(y, proba)
        if (tempered := temper(head, found)) is not None:
            return tempered, Calibration(0.0, found)
    return head, fit_calibration(method, y, proba)


def trust_facts(
    safeguards: Safeguards, y: NDArray[np.int64], before: NDArray[np.float64], after: NDArray[np.float64]
) -> dict[str, Any]:
    """Measure the effect of calibration and threshold on a split.

    Parameters
    ----------
    safeguards : Safeguards
    y : int array of shape (n,)
    before, after : float arrays of shape (n, k)
        Probabilities without and with calibration.

    Returns
    -------
    dict
        Ready for JSON: ``calibration`` (``{"before", "after"}``, see `reliability`) and, with a threshold,
        ``abstain`` (see `pipeline.trust.abstention.accepted`).
    """
    facts: dict[str, Any] = {"calibration": {"before": reliability(y, before), "after": reliability(y, after)}}
    if safeguards.threshold is not None:
        right, confidences = after.argmax(axis=1) == y, after.max(axis=1)
        facts["abstain"] = {"threshold": safeguards.threshold, **accepted(right, confidences, safeguards.threshold)}
    return facts


def format_trust(metrics: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Format the results of `trust_facts` on a split, in lines of at most 80 columns.

    Parameters
    ----------
    metrics : mapping
        Of one split, with the results of `trust_facts`.
    facts : mapping
        Of the safeguards.
    """
    lines = []
    if found := metrics.get("calibration"):
        before, after = found["before"]["error"], found["after"]["error"]
        was = f"{before:.3f} before; " if facts.get("calibration") != "none" else ""
        lines.append(
            f"expected calibration error {after:.3f} ({was}{found['after']['chance']:.3f} if perfectly calibrated)"
        )
    if found := metrics.get("abstain"):
        lines.append(
            f"abstains below a probability of {found['threshold']:.3f}: answers {found['accepted']} of {found['n']}"
        )
        if found["accepted"]:
            low, high = found["interval"]
            asked = facts["abstain"]["asked"]
            lines.append(
                f"accuracy of these {found['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}; asked {asked:g})"
            )
    if "novelty" in facts:
        lines.append(f"flags images unlike training; {FALSE_ALARMS:.0%} of others are flagged by chance")
    return lines

"""The content of the report page: one class for each section, and `Page`, which has them all.

To add a section, add its class and a field of `Page` here, and its HTML to ``templates/report.html``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Bundle
from pipeline.features.store import FeatureStore
from pipeline.images.findings import KEEP, Finding
from pipeline.insight.answers import Answers
from pipeline.insight.audit import KINDS, Audit, audit
from pipeline.insight.heat_maps import HeatMaps
from pipeline.insight.options import Options
from pipeline.insight.page_text import short, show, verdict
from pipeline.insight.pictures import Pictures, Sheets, look_at, pack, thumbnails
from pipeline.insight.plots import Plot, Scored, candidate_name, make_plots
from pipeline.insight.projection import project
from pipeline.trust.safeguards import format_trust

MAX_POINTS = 10_000
_CARDS = 24  # at most, of mistakes, of correct answers, and of findings of one kind
_CARD_SIDE = 144  # pixels of a photograph on a card
_MAP_SIDES = ((2_000, 112), (4_000, 88), (MAX_POINTS, 64))  # points on the map -> pixels of their thumbnails
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Subject:
    """What a page is about.

    Parameters
    ----------
    title : str
    bundle : Bundle
    answers : Answers
    options : Options
    """

    title: str
    bundle: Bundle
    answers: Answers
    options: Options

    @property
    def split(self) -> str:
        """The split that the head was scored on; empty after cross-validation, where other heads gave the answers."""
        scored_on = str(self.bundle.report["scored_on"])
        return scored_on if scored_on in set(self.answers.splits.tolist()) else ""

    @cached_property
    def scored(self) -> NDArray[np.int64]:
        """The images of that split, as indices into the answers."""
        return np.flatnonzero(self.answers.splits == self.split) if self.split else np.empty(0, np.int64)

    @property
    def metrics(self) -> dict[str, Any]:
        """The scores of the head, from `pipeline.metrics.evaluation.evaluate`."""
        report = self.bundle.report
        return dict(report["metrics"][report["scored_on"]])


@dataclass(frozen=True)
class Summary:
    """The result in words, and the scores of the classes."""

    verdict: str
    metrics: Mapping[str, Any]
    trust: list[str]

    @classmethod
    def of(cls, subject: Subject) -> "Summary":
        """Describe the scores of a head."""
        report, metrics = subject.bundle.report, subject.metrics
        return cls(verdict(metrics, report["scored_on"]), metrics, format_trust(metrics, report.get("trust") or {}))


@dataclass(frozen=True)
class Card:
    """One answer beside its photograph.

    Parameters
    ----------
    path : str
    row : int
        Of the feature store.
    true, predicted : str
        Classes.
    probability, true_probability : float
        Of the predicted and of the true class.
    second : str
        The second most probable class; empty if there is only one.
    second_probability : float
    heat_map : str
        A data URL, or empty.
    """

    path: str
    row: int
    true: str
    predicted: str
    probability: float
    true_probability: float
    second: str
    second_probability: float
    heat_map: str

    @classmethod
    def of(cls, subject: Subject, index: int, heat_map: str = "") -> "Card":
        """Describe the answer about one image."""
        answers, classes = subject.answers, subject.bundle.classes
        row, true, p = int(answers.rows[index]), int(answers.y[index]), answers.proba[index]
        first, *others = np.argsort(-p, kind="stable").tolist()
        return cls(
            path=answers.store.paths[row],
            row=row,
            true=classes[true],
            predicted=classes[first],
            probability=float(p[first]),
            true_probability=float(p[true]),
            second=classes[others[0]] if others else "",
            second_probability=float(p[others[0]]) if others else 0.0,
            heat_map=heat_map,
        )


@dataclass(frozen=True)
class AnswerCards:
    """The most confident mistakes and the least confident correct answers.

    Parameters
    ----------
    mistakes, unsure : list of Card
    wrong : int
        Number of all mistakes.
    heat_maps : HeatMaps
    """

    mistakes: list[Card]
    unsure: list[Card]
    wrong: int
    heat_maps: HeatMaps

    @classmethod
    def of(cls, subject: Subject) -> "AnswerCards":
        """Choose the answers and draw the heat maps."""
        answers, scored = subject.answers, subject.scored
        correct = answers.predicted[scored] == answers.y[scored]
        wrong, right = scored[~correct], scored[correct]
        mistakes = wrong[np.argsort(-answers.confidence[wrong], kind="stable")][:_CARDS].tolist()
        unsure = right[np.argsort(answers.confidence[right], kind="stable")][:_CARDS].tolist()
        heat_maps = HeatMaps.of(subject.bundle, answers, mistakes[: subject.options.heat_maps], _CARD_SIDE)
        return cls(
            [Card.of(subject, index, heat_maps.urls.get(index, "")) for index in mistakes],
            [Card.of(subject, index) for index in unsure],
            len(wrong),
            heat_maps,
        )

    @property
    def rows(self) -> set[int]:
        """Rows of the store whose photographs are shown."""
        return {card.row for card in (*self.mistakes, *self.unsure)}


@dataclass(frozen=True)
class Plots:
    """Plots, and the candidates of the choice in numbers."""

    plots: list[Plot]
    candidates: list[dict[str, Any]]

    @classmethod
    def of(cls, subject: Subject) -> "Plots":
        """Draw the plots."""
        report, answers, scored = subject.bundle.report, subject.answers, subject.scored
        answers_scored = Scored(answers.y[scored], answers.proba[scored], subject.bundle.classes, subject.split)
        candidates = [{**row, "name": candidate_name(row, report["head"])} for row in report.get("candidates", [])]
        return cls(make_plots(report, answers_scored), candidates)


@dataclass(frozen=True)
class ImageMap:
    """The images as points in the plane.

    Parameters
    ----------
    points : ndarray of int64, shape (m,)
        The images on the map, as indices into the answers.
    images : int
        Number of all images.
    projection : str
    thumbnails : Sheets
    data : dict
        What ``report.js`` reads, as JSON.
    """

    points: NDArray[np.int64]
    images: int
    projection: str
    thumbnails: Sheets
    data: dict[str, Any]

    @classmethod
    def of(cls, subject: Subject, points: NDArray[np.int64], pictures: Pictures) -> "ImageMap":
        """Place the images of `points`; `pictures` has their thumbnails."""
        answers, classes, projection = subject.answers, subject.bundle.classes, subject.options.projection
        sheets = pack(pictures.thumbnails, map_side(len(points)), 50)
        places = project(answers.vectors[points], projection, subject.options.seed)
        rows = answers.rows[points].tolist()
        data = {
            "classes": [short(each) for each in classes],
            "names": [show(each) for each in classes],
            "splits": _SPLITS,
            "scored": subject.split,
            "side": sheets.side,
            "x": np.round(places[:, 0] * 10_000).astype(int).tolist(),
            "y": np.round(places[:, 1] * 10_000).astype(int).tolist(),
            "label": answers.y[points].tolist(),
            "predicted": answers.predicted[points].tolist(),
            "probability": np.round(answers.confidence[points] * 1000).astype(int).tolist(),
            "split": [_SPLITS.index(each) for each in answers.splits[points].tolist()],
            "cell": [sheets.cells.get(row, -1) for row in rows],
            "path": [show(answers.store.paths[row]) for row in rows],
        }
        return cls(points, len(answers.y), projection, sheets, data)


def map_points(subject: Subject) -> NDArray[np.int64]:
    """Choose at most `MAX_POINTS` images for the map: those of the scored split first, then a random sample."""
    count = len(subject.answers.y)
    if count <= MAX_POINTS:
        return np.arange(count)
    others = np.setdiff1d(np.arange(count), subject.scored)
    sample = np.random.default_rng(subject.options.seed).permutation(others)
    return np.sort(np.concatenate([subject.scored, sample])[:MAX_POINTS])


def map_side(count: int) -> int:
    """Return the side of the thumbnails of so many points, in pixels."""
    return next(side for most, side in _MAP_SIDES if count <= most)


@dataclass(frozen=True)
class FindingCard:
    """A finding beside its photographs.

    Parameters
    ----------
    finding : Finding
    rows : list of int
        Of the store: the image, and the one that it repeats.
    suggested_class : str
        Empty without one.
    """

    finding: Finding
    rows: list[int]
    suggested_class: str

    @classmethod
    def of(cls, finding: Finding, store: FeatureStore) -> "FindingCard":
        """Look up the images of a finding."""
        known = store.positions
        rows = [known[path] for path in (finding.path, finding.suggestion) if path in known]
        return cls(finding, rows, "" if finding.suggestion in known else finding.suggestion)


@dataclass(frozen=True)
class FindingGroup:
    """The findings of one kind: the first ones as cards, the others as lines of a table."""

    kind: str
    meaning: str
    cards: list[FindingCard]
    others: list[Finding]

    @property
    def count(self) -> int:
        """Number of findings."""
        return len(self.cards) + len(self.others)


@dataclass(frozen=True)
class AuditSection:
    """The findings of the audit, by kind."""

    groups: list[FindingGroup]
    images: int
    seconds: float

    @classmethod
    def of(cls, audited: Audit, store: FeatureStore) -> "AuditSection":
        """Group the findings."""
        groups = []
        for kind in audited.counts():
            findings = [each for each in audited.findings if each.kind == kind and each.action != KEEP]
            cards = [FindingCard.of(each, store) for each in findings[:_CARDS]]
            groups.append(FindingGroup(kind, KINDS[kind], cards, findings[_CARDS:]))
        return cls(groups, audited.images, audited.seconds)

    @property
    def rows(self) -> set[int]:
        """Rows of the store whose photographs are shown."""
        return {row for group in self.groups for card in group.cards for row in card.rows}


@dataclass(frozen=True)
class Origin:
    """How the bundle and the page were made."""

    commands: Sequence[str]
    recipes: list[tuple[str, str]]
    notes: list[str]
    skipped: list[tuple[str, str]]
    trained_with: Mapping[str, str]
    extracted_with: Mapping[str, str]
    written: str

    @classmethod
    def of(cls, subject: Subject, commands: Sequence[str], notes: list[str]) -> "Origin":
        """Collect commands, recipes, notes, skipped images and versions."""
        bundle, store = subject.bundle, subject.answers.store
        return cls(
            commands=commands,
            recipes=[(str(recipe), recipe.fingerprint) for recipe in bundle.recipes],
            notes=[*bundle.report["notes"], *notes],
            skipped=list(store.skipped.items()),
            trained_with=bundle.provenance.get("versions", {}),
            extracted_with=store.index.created_with,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )


@dataclass(frozen=True)
class Page:
    """What the template shows, a field for each section.

    Parameters
    ----------
    title : str
    report : mapping
        Of the bundle.
    split : str
        The split that the answers are shown of, empty after cross-validation.
    scored : int
        Number of its images.
    summary : Summary
    answers : AnswerCards
    plots : Plots
    image_map : ImageMap
    audit : AuditSection
    origin : Origin
    notes : list of str
        What is missing on the page, and why.
    photographs : Sheets
        Of the cards.
    """

    title: str
    report: Mapping[str, Any]
    split: str
    scored: int
    summary: Summary
    answers: AnswerCards
    plots: Plots
    image_map: ImageMap
    audit: AuditSection
    origin: Origin
    notes: list[str]
    photographs: Sheets

    @classmethod
    def of(
        cls, subject: Subject, commands: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> "Page":
        """Make all sections.

        Parameters
        ----------
        subject : Subject
        commands : sequence of str
            That made the bundle and the page.
        progress : callable (done, total) or None
            Called while image files are read.
        """
        store, points = subject.answers.store, map_points(subject)
        pictures = look_at(store, map_side(len(points)), subject.answers.rows[points].tolist(), progress)
        audited = audit(store, pictures=pictures, seed=subject.options.seed)
        findings = AuditSection.of(audited, store)
        answers = AnswerCards.of(subject)
        notes = [*audited.notes, *answers.heat_maps.notes]
        rows = sorted(answers.rows | findings.rows)
        return cls(
            title=subject.title,
            report=subject.bundle.report,
            split=subject.split,
            scored=len(subject.scored),
            summary=Summary.of(subject),
            answers=answers,
            plots=Plots.of(subject),
            image_map=ImageMap.of(subject, points, pictures),
            audit=findings,
            origin=Origin.of(subject, commands, notes),
            notes=notes,
            photographs=pack(thumbnails(store, rows, _CARD_SIDE), _CARD_SIDE, 72),
        )

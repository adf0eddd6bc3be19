"""The last step of a training: bundle and notes, from what was chosen and scored."""

from dataclasses import replace
from typing import Any

from pipeline.bundles.bundle import Bundle
from pipeline.heads.classifiers import find_head
from pipeline.heads.multi_label import MultiLabel
from pipeline.training.candidates import Choice
from pipeline.training.report import Report
from pipeline.training.training_data import TrainingData
from pipeline.trust.novelty import FALSE_ALARMS, Novelty
from pipeline.trust.safeguards import Safeguards


def with_novelty(safeguards: Safeguards, data: TrainingData, seed: int) -> Safeguards:
    """Add a novelty score, learned from the first view of each training image."""
    train = data.rows("train")
    novelty = Novelty.fit(data.X[train, 0], data.groups[train].tolist(), seed)
    facts = {**safeguards.facts, "novelty": {"false_alarms": FALSE_ALARMS, "threshold": novelty.threshold}}
    return replace(safeguards, novelty=novelty, facts=facts)


def optimism_notes(choice: Choice, scored_on: str) -> list[str]:
    """Return a note if the images that the score comes from were also used for fitting, else nothing."""
    images = "folds" if scored_on == "cross-validation" else f"{scored_on} images"
    if scored_on == choice.chosen_on:
        return [f"the {images} also chose the parameters, so this score is slightly too optimistic"]
    if scored_on == "validation" and find_head(choice.head).early_stopping:
        return [f"the {images} also chose when to stop, so this score is slightly too optimistic"]
    return []


def make_bundle(
    report: Report,
    data: TrainingData,
    head: Any,
    safeguards: Safeguards,
    *,
    average_views: bool = False,
    multi_label: MultiLabel | None = None,
) -> Bundle:
    """Return the bundle of a fitted head, with the report of its training."""
    return Bundle(
        recipes=tuple(store.recipe for store in data.stores),
        dims=tuple(store.dim for store in data.stores),
        classes=data.classes,
        head=head,
        head_name=report.head,
        params=report.params,
        report=report.without_times(),
        provenance=report.provenance,
        average_views=average_views,
        safeguards=safeguards,
        multi_label=multi_label,
    )

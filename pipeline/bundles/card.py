"""The model card of a bundle: what the run knows, in the style of the Hugging Face hub, and nothing else."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.wording import printable

if TYPE_CHECKING:
    from pipeline.bundles.bundle import Bundle

_USE = """\
```python
from pipeline import Bundle

bundle = Bundle.load("path/to/this/folder")
print(bundle.predict(["new.jpg"]))
```

or `twostage predict path/to/this/folder new_photos/ --out predictions.csv`. The convnet is not in the folder: weights
are found as the recipe says, and checked against their SHA-256."""

_SCORES = {
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "balanced accuracy",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "mean_average_precision": "mean average precision",
    "log_loss": "log loss",
}


def model_card(bundle: "Bundle") -> str:
    """Return a README.md in the Hugging Face style: YAML front matter, then Markdown.

    Every number comes from the bundle's report; what a run did not measure is not mentioned.

    Parameters
    ----------
    bundle : Bundle

    Examples
    --------
    >>> from pipeline.bundles.bundle import Bundle
    >>> card = model_card(Bundle((), (), ("cat", "dog"), None, "logreg", {"C": 0.1}))
    >>> card.splitlines()[:4]
    ['---', 'library_name: twostage-features', 'pipeline_tag: image-classification', 'tags:']
    """
    report = bundle.report
    metrics: Mapping[str, Any] = report.get("metrics", {})
    sections = [
        _front_matter(bundle, metrics),
        f"# Classifier of images: {len(bundle.classes):,} classes",
        _about(bundle),
        _section("Scores", _scores(metrics, report)),
        _section("Classes", _classes(bundle.classes, metrics.get(report.get("scored_on", ""), {}))),
        _section("How far to trust it", _trust(metrics.get(report.get("scored_on", ""), {}), bundle.safeguards.facts)),
        _section("Limits", _limits(bundle, report)),
        _section("Use", _USE),
        _section("Made with", _table(["package", "version"], [*bundle.provenance.get("versions", {}).items()])),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(bundle: "Bundle", metrics: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: twostage-features", "pipeline_tag: image-classification", "tags:"]
    backbones = dict.fromkeys(recipe.backbone for recipe in bundle.recipes)
    lines += [f"- {json.dumps(tag)}" for tag in ["image-classification", "transfer-learning", *backbones]]
    if metrics:
        lines += ["metrics:", "- accuracy", "model-index:", f"- name: {json.dumps(bundle.head_name)}", "  results:"]
    for split, found in metrics.items():
        lines += [
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            "      name: own images",
            "      type: imagefolder",
            f"      split: {json.dumps(split)}",
            "    metrics:",
        ]
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "mean_average_precision"):
            if name in found:
                lines += [f"    - type: {name}", f"      value: {found[name]:.4f}"]
    return "\n".join([*lines, "---"])


def _about(bundle: "Bundle") -> str:
    params = "".join(f", {name} = {value}" for name, value in bundle.params.items())
    counts: Mapping[str, int] = bundle.report.get("counts", {})
    tuning = bundle.provenance.get("tuning")
    kind = f"bottleneck vectors of a network tuned after `{tuning['after']}`" if tuning else "frozen bottleneck vectors"
    lines = [f"The head `{bundle.head_name}`{params} on {kind}:", ""]
    lines += [
        f"- {_plain(str(recipe))}: {dim:,} columns, fingerprint `{recipe.fingerprint}`"
        for recipe, dim in zip(bundle.recipes, bundle.dims, strict=True)
    ]
    if counts:
        told = ", ".join(f"{number:,} {split}" for split, number in counts.items())
        seed = bundle.provenance.get("seed")
        lines += ["", f"Images by split: {told}. Seed {seed}."]
    return "\n".join(lines)


def _scores(metrics: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    if not metrics:
        return ""
    names = [name for name in _SCORES if all(found.get(name) is not None for found in metrics.values())]
    rows = []
    for split, found in metrics.items():
        low, high = found["accuracy_interval"]
        majority = f"{found['majority']['accuracy']:.3f}" if "majority" in found else "-"
        numbers = (f"{found[name]:.3f}" for name in names)
        interval = f"{low:.3f} to {high:.3f}"
        rows.append([split, f"{found['n']:,}", f"{found['accuracy']:.3f}", interval, majority, *numbers])
    titles = ["split", "images", "accuracy", "95 % interval", "majority baseline", *(_SCORES[name] for name in names)]
    text = _table(titles, rows)
    if chosen := report.get("chosen_on"):
        text += f"\n\nParameters were chosen among {len(report['candidates'])} candidates on: {chosen}."
    return text


def _classes(classes: Sequence[str], found: Mapping[str, Any]) -> str:
    if "per_class" not in found:
        return ", ".join(_plain(name) for name in classes)
    rows = [
        [row["class"], *(f"{row[name]:.3f}" for name in ("precision", "recall", "f1")), row["support"]]
        for row in found["per_class"]
    ]
    return _table(["class", "precision", "recall", "F1", "images"], rows)


def _trust(found: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    lines = []
    if errors := found.get("calibration"):
        after = errors["after"]
        lines.append(
            f"- Probabilities: expected calibration error {after['error']:.3f} on {after['n']:,} images"
            f" ({errors['before']['error']:.3f} before calibration; a perfectly calibrated head would show"
            f" {after['chance']:.3f}). Calibration: {facts.get('calibration', 'none')}."
        )
    if taken := found.get("abstain"):
        right = f"{taken['accuracy']:.3f} of them right" if taken["accepted"] else "none"
        lines.append(
            f"- It abstains below a probability of {taken['threshold']:.3f}: {taken['accepted']:,} of {taken['n']:,}"
            f" images were answered, {right}; {facts['abstain']['asked']:g} was asked for."
        )
    if "novelty" in facts:
        share = facts["novelty"]["false_alarms"]
        lines.append(
            f"- It flags images unlike anything in training; {share:.0%} of familiar ones are flagged by chance."
        )
    return "\n".join(lines)


def _limits(bundle: "Bundle", report: Mapping[str, Any]) -> str:
    lines = (
        []
        if bundle.safeguards.novelty
        else ["- Every image gets one of the classes, also one that shows none of them."]
    )
    return "\n".join([*lines, *(f"- {_plain(note)}" for note in report.get("notes", []))])


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(_plain(str(cell)) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Keep names of classes and files from being read as Markdown or HTML."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, "\\" + mark)
    return printable(text)

"""The model card of a bundle, in the style of the Hugging Face hub, from what the training measured."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.features.recipe import Recipe
from pipeline.wording import printable

_USE = """\
```python
from pipeline import Bundle

bundle = Bundle.load("path/to/this/folder")
print(bundle.predict(["new.jpg"]))
```

or `twostage predict path/to/this/folder new_photos/ --out predictions.csv`. The network is not in the folder: its
weights are found as described by the recipe, and their SHA-256 is verified."""

_SCORES = {
    "roc_auc": "ROC AUC",
    "balanced_accuracy": "balanced accuracy",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "mean_average_precision": "mean average precision",
    "log_loss": "log loss",
}


def model_card(description: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Return a README.md in the Hugging Face style: YAML front matter, then Markdown.

    Every number comes from the report; what the training did not measure is left out.

    Parameters
    ----------
    description : mapping
        Content of ``bundle.json``: ``recipes``, ``dims``, ``classes``, ``head``, ``provenance``, ``trust``.
    report : mapping
        The report of the training, as plain data.

    Examples
    --------
    >>> head = {"name": "logreg", "params": {"C": 0.1}}
    >>> empty = {"recipes": [], "dims": [], "provenance": {}, "trust": {}}
    >>> card = model_card({"classes": ["cat", "dog"], "head": head, **empty}, {})
    >>> card.splitlines()[:4]
    ['---', 'library_name: twostage-features', 'pipeline_tag: image-classification', 'tags:']
    """
    metrics: Mapping[str, Any] = report.get("metrics", {})
    recipes = [Recipe.from_json(json.dumps(each)) for each in description["recipes"]]
    classes, provenance, facts = (description[name] for name in ("classes", "provenance", "trust"))
    scored = metrics.get(report.get("scored_on", ""), {})
    sections = [
        _front_matter(recipes, description["head"]["name"], metrics),
        f"# Image classifier: {len(classes):,} classes",
        _about(description, recipes, report.get("counts", {})),
        _section("Scores", _scores(metrics, report)),
        _section("Classes", _classes(classes, scored)),
        _section("Trust", _trust(scored, facts)),
        _section("Limits", _limits(facts, report.get("notes", []))),
        _section("Use", _USE),
        _section("Made with", _table(["package", "version"], [*provenance.get("versions", {}).items()])),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(recipes: Sequence[Recipe], head_name: str, metrics: Mapping[str, Any]) -> str:
    lines = ["---", "library_name: twostage-features", "pipeline_tag: image-classification", "tags:"]
    backbones = dict.fromkeys(recipe.backbone for recipe in recipes)
    lines += [f"- {json.dumps(tag)}" for tag in ["image-classification", "transfer-learning", *backbones]]
    if metrics:
        lines += ["metrics:", "- accuracy", "model-index:", f"- name: {json.dumps(head_name)}", "  results:"]
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


def _about(description: Mapping[str, Any], recipes: Sequence[Recipe], counts: Mapping[str, int]) -> str:
    head, provenance = description["head"], description["provenance"]
    params = "".join(f", {name} = {value}" for name, value in head["params"].items())
    tuning = provenance.get("tuning")
    kind = f"bottleneck vectors of a network tuned after `{tuning['after']}`" if tuning else "frozen bottleneck vectors"
    lines = [f"The head `{head['name']}`{params} on {kind}:", ""]
    lines += [
        f"- {_plain(str(recipe))}: {dim:,} columns, fingerprint `{recipe.fingerprint}`"
        for recipe, dim in zip(recipes, description["dims"], strict=True)
    ]
    if counts:
        images = ", ".join(f"{number:,} {split}" for split, number in counts.items())
        lines += ["", f"Images by split: {images}. Seed {provenance.get('seed')}."]
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
            f" ({errors['before']['error']:.3f} before calibration; a perfectly calibrated head would have"
            f" {after['chance']:.3f}). Calibration: {facts.get('calibration', 'none')}."
        )
    if taken := found.get("abstain"):
        right = f"with an accuracy of {taken['accuracy']:.3f}" if taken["accepted"] else "none"
        lines.append(
            f"- It abstains below a probability of {taken['threshold']:.3f}: {taken['accepted']:,} of {taken['n']:,}"
            f" images were answered, {right}; the target was {facts['abstain']['asked']:g}."
        )
    if "novelty" in facts:
        share = facts["novelty"]["false_alarms"]
        lines.append(f"- It flags images unlike anything in training; {share:.0%} of familiar images are flagged too.")
    return "\n".join(lines)


def _limits(facts: Mapping[str, Any], notes: Sequence[str]) -> str:
    every = "- Every image gets one of the classes, even if it shows none of them."
    return "\n".join([*([] if "novelty" in facts else [every]), *(f"- {_plain(note)}" for note in notes)])


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(_plain(str(cell)) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Escape Markdown and HTML in names of classes and files."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, "\\" + mark)
    return printable(text)

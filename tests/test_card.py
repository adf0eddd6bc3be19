"""The model card: valid front matter, numbers of the report, names that cannot break it."""

import re

import pytest
import yaml
from helpers import make_store

from pipeline.bundles.bundle import Bundle
from pipeline.bundles.card import model_card
from pipeline.errors import IntegrityError
from pipeline.training.single_label import train_head
from pipeline.trust.safeguards import Trust


def front_matter(card):
    start, header, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(header)


def test_the_card_says_what_the_report_says(tmp_path):
    store = make_store(tmp_path / "f.h5", n=600, noise=1.5)
    bundle, report = train_head(store, trust=Trust(abstain=0.8, novelty=True))
    card = (bundle.save(tmp_path / "b") / "README.md").read_text("utf-8")
    header = front_matter(card)
    assert header["pipeline_tag"] == "image-classification"
    assert "mobilenet" in header["tags"]
    results = {each["dataset"]["split"]: each["metrics"] for each in header["model-index"][0]["results"]}
    assert results["test"][0] == {"type": "accuracy", "value": pytest.approx(report.accuracy, abs=1e-4)}
    assert f"| test | 100 | {report.accuracy:.3f} |" in card
    assert f"C = {report.params['C']}" in card
    assert "400 train, 100 validation, 100 test" in card
    assert bundle.recipes[0].fingerprint in card
    errors = report.metrics["test"]["calibration"]
    assert f"expected calibration error {errors['after']['error']:.3f} on 100 images" in card
    assert f"{report.metrics['test']['abstain']['accepted']} of 100 images were answered" in card
    assert "flags images unlike anything in training" in card
    assert "Every image gets one of the classes" not in card
    assert "candidates on: validation" in card
    assert card.count("\n## ") == 5  # there are no limits to tell


def test_what_was_not_measured_is_not_told(tmp_path):
    bundle, _ = train_head(make_store(tmp_path / "f.h5", splits=["train"] * 60 + ["validation"] * 30), "lda")
    card = model_card(bundle.description(), bundle.report)
    assert "abstain" not in card
    assert "unlike" not in card
    assert "Every image gets one of the classes" in card
    bare = model_card(Bundle(bundle.recipes, bundle.dims, bundle.classes, bundle.head, "lda").description(), {})
    assert "Scores" not in bare
    assert "a, b, c" in bare
    front_matter(bare)


def test_names_cannot_break_it(tmp_path):
    classes = ("<script>", "a|b", "c\n## d: [x](y)")
    bundle, _ = train_head(make_store(tmp_path / "f.h5", classes=classes))
    card = model_card(bundle.description(), bundle.report)
    front_matter(card)
    assert "<script>" not in re.sub(r"\\<", "", card)
    assert "\n## d" not in card
    rows = [line for line in card.splitlines() if "a\\|b" in line]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 6


def test_a_changed_card_is_noticed(tmp_path):
    bundle, _ = train_head(make_store(tmp_path / "f.h5"), "lda")
    path = bundle.save(tmp_path / "b") / "README.md"
    path.write_text(path.read_text("utf-8").replace("accuracy", "perfection"), "utf-8")
    with pytest.raises(IntegrityError, match=r"README\.md has changed since the training"):
        Bundle.load(tmp_path / "b")

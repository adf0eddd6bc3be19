"""The README is run: its Python blocks, its commands, its tables of options, heads and exit codes."""

import dataclasses
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import paint

from pipeline import cli
from pipeline.features.backbones import BACKBONES
from pipeline.finetuning import tuning as finetuning
from pipeline.heads.classifiers import HEADS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"(?:<!-- command: (\w+) -->\n)?```(\w+)\n(.*?)```", TEXT, re.DOTALL)
PYTHON = [body for _, kind, body in BLOCKS if kind == "python"]
LINES = [line for name, kind, body in BLOCKS if kind == "sh" and not name for line in body.splitlines()]


class FakeBlocks:
    """Last blocks that hand on what comes in, and learn nothing."""

    def __init__(self, recipe, after, seed):
        self.recipe, self.after, self.count = recipe, after or "last", 0

    def input_recipe(self, views):
        return dataclasses.replace(self.recipe, views=views)

    def attach(self, head, learning_rate):
        self.probabilities = head.predict_proba

    def step(self, maps, targets, *, first):
        return {"loss": 1.0, "accuracy": 1.0}

    def weights(self):
        return []

    def restore(self, weights):
        assert weights == []

    def save(self, path):
        path.write_bytes(b"tuned")


@pytest.fixture
def workplace(photos, tmp_path, monkeypatch, fake_engine):
    """A folder in which the README's names exist; ImageNet weights are small random ones."""
    from pipeline.features import recipe as recipes

    for number, name in enumerate(("cat", "dog")):
        for i in range(1, 13):
            paint(tmp_path / "photos" / name / f"{i}.jpg", (9 + i, 90 * number, i))
    for name in ("ant", "bee", "cow"):
        shutil.rmtree(tmp_path / "photos" / name)
    paint(tmp_path / "new.jpg", (1, 2, 3))
    paint(tmp_path / "new_photos" / "a.png", (80, 2, 3))
    (tmp_path / "inception_v3_notop.h5").write_bytes(b"weights")
    (tmp_path / "any.h5").write_bytes(b"imagenet")
    monkeypatch.setattr(recipes, "imagenet_file", lambda *_: tmp_path / "any.h5")
    monkeypatch.setattr(finetuning, "LastBlocks", FakeBlocks)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_has_what_is_tested_here():
    assert len(PYTHON) == 3
    assert len(LINES) >= 8
    assert [name for name, _, _ in BLOCKS if name] == ["demo", "test"]


def test_python_blocks_run(workplace, capsys):
    for body in PYTHON:
        exec(compile(body, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_commands_run(workplace):
    for line in LINES:
        python, script, *words = shlex.split(line)
        assert python == "python"
        assert (ROOT / script).is_file()
        command = Path(script).stem.replace("_", "-")
        if "dense" in words:
            words += ["--param", "epochs=2"]
        result = CliRunner().invoke(cli.main, [command, *words])
        assert result.exit_code == 0, f"{line}\n{result.output}"


def test_every_option_head_and_code_is_told():
    for command in cli.main.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.opts[0] in TEXT, f"{command.name} {option.opts[0]}"
    for head in HEADS:
        assert f"`{head}`" in TEXT
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert f"| {code} |" in TEXT
    assert f"{len(BACKBONES)} Keras Applications" in TEXT
    for script in (ROOT / "scripts").glob("*.py"):
        assert script.name in TEXT


def test_nothing_of_this_machine_is_in_the_repository():
    for path in [*ROOT.glob("*.*"), *ROOT.glob("pipeline/**/*.py"), *ROOT.glob("scripts/*"), *ROOT.glob("tests/*.py")]:
        if path.is_file():
            assert not re.search(r"(?<![\w.])/(work|farm)/", path.read_text("utf-8")), path

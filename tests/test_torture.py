"""The attacks of scripts/torture.py at a small scale; what must hold is in its table."""

import importlib
import inspect
import json
import re
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
import torture
from click.testing import CliRunner

SCALE = {
    "crash.kill": 0.03,
    "crash.crash_at_every_step": 0.02,
    "crash.disk_full": 0.01,
    "crash.disk_full_of_results": 0.1,
    "crash.small_tmpfs": 0.05,
    "crash.interrupt": 0.05,
    "crash.writers_at_once": 0.1,
    "damage.bit_flips": 0.1,
    "damage.broken_files": 1.0,
    "damage.reader_fuzz": 0.02,
    "images.bad_images": 0.05,
    "images.decoder_fuzz": 0.02,
    "images.names": 1.0,
    "today.hdf5_append": 0.05,
}
TESTS = [
    "decoders that hang, die or eat memory",
    "stale rows: bytes, recipe, labels changed; files touched, moved",
    "hostile feature files",
    "hostile bundles and models",
    "changed weights, heads and cached networks",
]
ATTACKS = {attack.function: attack for attack in torture.ATTACKS if isinstance(attack.function, str)}


MORE = {
    "crash.kill": 0.1,
    "crash.crash_at_every_step": 0.05,
    "crash.disk_full": 0.03,
    "crash.interrupt": 0.1,
    "images.bad_images": 0.1,
}


@pytest.mark.parametrize(
    ("function", "scale"),
    [*SCALE.items(), *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE.items())],
)
def test_it_holds(function, scale):
    attack = ATTACKS[function]
    counts = attack.run(scale, seed=1)
    if "skipped" in counts:
        pytest.skip("this machine does not let us mount a tmpfs")
    assert attack.broken(counts) == []


def test_bounds_can_fail():
    attack = torture.Attack("x", lambda *_: {"lost": 2, "kills": 0}, torture.none("lost", "wrong"), {"kills": 1})
    counts = attack.run(1, 0)
    assert counts == {"lost": 2, "kills": 0, "wrong": 0}
    assert attack.broken(counts) == ["lost is 2, more than 0", "kills is 0, less than 1"]


def test_every_attack_is_in_the_table():
    """And at a small scale in this file, apart from those that only measure."""
    defined = {
        f"{module}.{name}"
        for module in ("cost", "crash", "damage", "images", "today")
        for name, value in vars(importlib.import_module(f"attacks.{module}")).items()
        if inspect.isfunction(value) and [*inspect.signature(value).parameters] == ["work", "scale", "seed"]
        if not name.startswith("_")
    }
    assert set(ATTACKS) == defined
    assert defined - set(SCALE) == {"cost.repeatability", "cost.cost_of_safety", "today.keras_input"}
    assert [attack.name for attack in torture.ATTACKS if not isinstance(attack.function, str)] == TESTS


@pytest.mark.parametrize("name", TESTS)
def test_an_attack_of_tests_finds_them(monkeypatch, name):
    """A renamed test would leave its row empty: every file and every word of -k must select at least one."""
    (attack,) = (attack for attack in torture.ATTACKS if attack.name == name)
    commands = []

    def run_nothing(command, **_):
        commands.append(command)
        (path,) = (word.removeprefix("--junitxml=") for word in command if word.startswith("--junitxml="))
        counts = {"tests": "2", "skipped": "2", "failures": "0", "errors": "0"}
        suites = xml.etree.ElementTree.Element("testsuites")
        xml.etree.ElementTree.SubElement(suites, "testsuite", counts)
        xml.etree.ElementTree.ElementTree(suites).write(path)

    monkeypatch.setattr(torture.subprocess, "run", run_nothing)
    assert attack.broken(attack.run(1, 0)) == ["cases is 0, less than 1"], "an attack that did not run must not hold"
    (command,) = commands
    words = command[command.index("-k") + 1].split(" or ")
    files = [Path(word) for word in command if str(word).endswith(".py")]
    names = {file: re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE) for file in files}
    for file, found in names.items():
        assert [test for test in found if any(word in test for word in words)], f"none of {words} in {file.name}"
    for word in words:
        assert [test for found in names.values() for test in found if word in test], f"no test has {word} in its name"


def test_an_attack_of_tests_runs_them():
    (attack,) = (attack for attack in torture.ATTACKS if attack.name == "hostile feature files")
    counts = attack.run(1, 0)
    assert counts["cases"] >= 8
    assert attack.broken(counts) == []


def test_the_script_prints_a_table_and_json():
    script = Path(torture.__file__)
    command = [sys.executable, script, "--scale", "0.01", "--only", "bit flips"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "| attack | found | holds |"
    assert "| single bit flips in files and parts | " in done.stdout
    assert done.stdout.rstrip().endswith("| yes |")
    done = CliRunner().invoke(torture.torture, [*map(str, command[2:]), "--json"])
    assert json.loads(done.stdout)["rows"][0]["counts"]["flips"] == 10
    assert CliRunner().invoke(torture.torture, ["--only", "nonsense"]).exit_code == 2

"""The attacks of scripts/torture.py at a small scale; what must hold is in its table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torture

SCALE = {
    "crash.kill": 0.1,
    "crash.crash_at_every_step": 0.05,
    "crash.disk_full": 0.03,
    "crash.disk_full_of_results": 0.1,
    "crash.small_tmpfs": 0.05,
    "crash.interrupt": 0.1,
    "crash.writers_at_once": 0.1,
    "damage.bit_flips": 0.1,
    "damage.broken_files": 1.0,
    "damage.reader_fuzz": 0.02,
    "images.bad_images": 0.1,
    "images.decoder_fuzz": 0.02,
    "images.names": 1.0,
    "today.hdf5_append": 0.05,
}
ATTACKS = {attack.function: attack for attack in torture.ATTACKS if isinstance(attack.function, str)}


@pytest.mark.parametrize("function", SCALE)
def test_it_holds(function):
    attack = ATTACKS[function]
    counts = attack.run(SCALE[function], seed=1)
    if "skipped" in counts:
        pytest.skip("this machine does not let us mount a tmpfs")
    assert attack.broken(counts) == []


def test_bounds_can_fail():
    attack = torture.Attack("x", lambda *_: {"lost": 2, "kills": 0}, torture.none("lost", "wrong"), {"kills": 1})
    counts = attack.run(1, 0)
    assert counts == {"lost": 2, "kills": 0, "wrong": 0}
    assert attack.broken(counts) == ["lost is 2, more than 0", "kills is 0, less than 1"]


def test_attacks_that_are_tests_find_them():
    """A renamed test would leave its row empty."""
    for attack in torture.ATTACKS:
        if not isinstance(attack.function, str):
            assert attack.least == {"cases": 1.0}


def test_the_script_prints_a_table_and_json():
    script = Path(torture.__file__)
    command = [sys.executable, script, "--scale", "0.01", "--only", "bit flips"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "| attack | found | holds |"
    assert "| single bit flips in files and parts | " in done.stdout
    assert done.stdout.rstrip().endswith("| yes |")
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["rows"][0]["counts"]["flips"] == 10
    done = subprocess.run([sys.executable, script, "--only", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2

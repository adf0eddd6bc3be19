"""Attack the guarantees of the package at any scale, and print the findings and whether each guarantee holds."""

import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

Counts = dict[str, float]
TESTS = Path(__file__).parent.parent / "tests"


@dataclass(frozen=True)
class Attack:
    """A row of the table.

    Parameters
    ----------
    name : str
    function : str or callable (work, scale, seed) -> counts
        ``"module.function"`` in the folder ``attacks``, or a function.
    most : dict of str to float
        Upper bounds of counts: the guarantees.
    least : dict of str to float
        Lower bounds of counts, which show that the attack took place.
    """

    name: str
    function: "str | Callable[[Path, float, int], Counts]"
    most: dict[str, float] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)

    def run(self, scale: float, seed: int) -> Counts:
        """Attack in a temporary folder; return the counts, with 0 for bounded counts that the attack did not return."""
        function = self.function
        if isinstance(function, str):
            module, name = function.split(".")
            function = getattr(importlib.import_module(f"attacks.{module}"), name)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
            found = function(Path(work), scale, seed)
        absent = dict.fromkeys([*self.least, *self.most], 0.0) if "skipped" not in found else {}
        return {**absent, **found}

    def broken(self, counts: Counts) -> list[str]:
        """Return a line for each bound that does not hold."""
        wrong = [
            f"{name} is {counts[name]:g}, more than {most:g}"
            for name, most in self.most.items()
            if counts.get(name, 0) > most
        ]
        return wrong + [
            f"{name} is {counts[name]:g}, less than {least:g}"
            for name, least in self.least.items()
            if counts.get(name, least) < least
        ]


def none(*names: str) -> dict[str, float]:
    """Return an upper bound of 0 for each count."""
    return dict.fromkeys(names, 0.0)


def tests(expression: str, *files: str) -> Callable[[Path, float, int], Counts]:
    """Make an attack that runs those tests of some files whose names match a pytest expression."""

    def run(work: Path, scale: float, seed: int) -> Counts:
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", expression]
        paths = [str(TESTS / file) for file in files]
        subprocess.run(
            [*command, f"--junitxml={work}/found.xml", *paths], capture_output=True, check=False, cwd=TESTS.parent
        )
        suite = xml.etree.ElementTree.parse(work / "found.xml").getroot()[0].attrib
        return {
            "cases": int(suite["tests"]) - int(suite["skipped"]),
            "failed": int(suite["failures"]) + int(suite["errors"]),
        }

    return functools.wraps(tests)(run)


SUITE = {"most": none("failed"), "least": {"cases": 1.0}}
ATTACKS = (
    Attack(
        "kill -9 at random moments, then the same command",
        "crash.kill",
        none("unreadable", "wrong", "doubled", "lost", "differs", "failed", "left over"),
        {"kills": 1},
    ),
    Attack(
        "crash at every step of writing, as a kill and as a power failure",
        "crash.crash_at_every_step",
        none("third states", "not resumed"),
        {"crashes": 1},
    ),
    Attack(
        "disk full: ENOSPC, EDQUOT, EIO at every step of writing",
        "crash.disk_full",
        none("hangs", "crashes", "not exit 1", "not one line", "third states", "not resumed"),
        {"errors": 1},
    ),
    Attack(
        "disk full: the same under train_head.py and predict.py",
        "crash.disk_full_of_results",
        none("hangs", "crashes", "not exit 1", "not one line", "third states", "not resumed", "left over"),
        {"errors": 1},
    ),
    Attack(
        "disk full: a real tmpfs",
        "crash.small_tmpfs",
        none("hangs", "crashes", "not exit 1", "not one line", "third states", "not resumed"),
        {"full": 1},
    ),
    Attack(
        "Ctrl-C, Ctrl-C twice, SIGTERM",
        "crash.interrupt",
        none("not 130", "not one line", "unreadable", "wrong", "doubled", "differs", "failed"),
        {"interrupted": 1},
    ),
    Attack(
        "2 and 4 writers at once, and a reader",
        "crash.writers_at_once",
        none("no worker", "wrong exits", "not named", "third states", "left over"),
        {"refused": 1, "reads": 1},
    ),
    Attack(
        "single bit flips in files and parts",
        "damage.bit_flips",
        none("wrong vectors returned", "wrong paths or labels returned", "not named", "verify silent"),
        {"noticed": 1},
    ),
    Attack(
        "files and parts cut, emptied, replaced, removed, renamed",
        "damage.broken_files",
        none("wrong", "accepted", "not named", "wrong exits", "advice fails"),
        {"refused": 1},
    ),
    Attack("feature files changed at random", "damage.reader_fuzz", none("wrong", "other errors"), {"refused": 1}),
    Attack(
        "bad and odd images among good ones",
        "images.bad_images",
        {
            **none("hangs", "failed", "good lost", "good wrong", "bad without its reason", "odd lost"),
            "memory MB": 1000,
        },
        {"bad kinds": 30},
    ),
    Attack(
        "images changed at random",
        "images.decoder_fuzz",
        none("other errors", "wrong shape", "crashed", "timeout"),
        {"refused": 1, "decoded": 1},
    ),
    Attack("names", "images.names", none("failed", "lost or merged", "wrong", "not in the table"), {"names": 20}),
    Attack("decoders that hang, die or eat memory", tests("test_", "test_isolation.py"), **SUITE),
    Attack(
        "stale rows: bytes, recipe, labels changed; files touched, moved",
        tests(
            "changes_a_vector or only_what_is_new or same_size or moving or other_recipe",
            "test_extraction.py",
            "test_recipe.py",
        ),
        **SUITE,
    ),
    Attack("hostile feature files", tests("hostile or virtual", "test_store.py"), **SUITE),
    Attack(
        "hostile bundles and models",
        tests(
            "climbs or pickle or unknown_type or points_outside or other_descriptions or lambda",
            "test_bundle.py",
            "test_recipe.py",
        ),
        **SUITE,
    ),
    Attack(
        "changed weights, heads and cached networks",
        tests("changed or damaged_cache", "test_bundle.py", "test_recipe.py", "test_openvino.py"),
        **SUITE,
    ),
    Attack(
        "the same command again; batch 1, 7, 32; 1 and 2 workers",
        "cost.repeatability",
        {"differing files": 0, "batch 1, 1e-5 of the largest": 1, "batch 7, 1e-5 of the largest": 1},
    ),
    Attack("what safety costs", "cost.cost_of_safety", {"first three %": 5}),
    Attack("today: kill -9 of one HDF5 file held open and appended to", "today.hdf5_append", {}, {"kills": 1}),
    Attack("today: the same bad images before plain Keras input", "today.keras_input"),
)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--scale", type=click.FloatRange(0.001), default=1.0, help="1 is 200 kills, every step, 1,000 flips, ...")
@click.option("--only", multiple=True, metavar="WORD", help="Only attacks whose name contains this; repeatable.")
@click.option("--seed", default=0, help="Seed of everything random.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def torture(scale: float, only: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Attack files, processes, images and names, and print a table; exit code 1 if a guarantee does not hold."""
    chosen = [attack for attack in ATTACKS if not only or any(word in attack.name for word in only)]
    if not chosen:
        raise click.UsageError(f"no attack has {' or '.join(only)} in its name; leave out --only to run all")
    rows: list[dict[str, Any]] = []
    for attack in chosen:
        print(f"{attack.name} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        counts = attack.run(scale, seed)
        broken = attack.broken(counts)
        rows.append(
            {"attack": attack.name, "counts": counts, "broken": broken, "seconds": round(time.monotonic() - started, 1)}
        )
        for line in broken:
            print(f"  does not hold: {line}", file=sys.stderr, flush=True)
    holds = not any(row["broken"] for row in rows)
    print(
        json.dumps({"scale": scale, "seed": seed, "holds": holds, "rows": rows}, indent=1) if as_json else table(rows)
    )
    sys.exit(0 if holds else 1)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| attack | found | holds |", "| --- | --- | --- |"]
    for row in rows:
        found = ", ".join(f"{name} {count:,g}" for name, count in row["counts"].items())
        compared = row["attack"].startswith("today")
        lines.append(f"| {row['attack']} | {found} | {'-' if compared else 'no' if row['broken'] else 'yes'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        torture()

"""Kills, crashes at every step, full disks, signals, and concurrent writers."""

import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from attacks.victim import Ending, Fault, Victim, extract_words, faults_of, leftovers, paint, paint_folder, run

Counts = dict[str, float]
PAUSE = 0.004  # seconds that the fake network takes per batch, so that runs last long enough to be killed


def kill(work: Path, scale: float, seed: int) -> Counts:
    """Kill -9 an extraction of 300 images at random moments, then run the same command again."""
    photos, out = work / "photos", work / "out" / "f.h5"
    expected = paint_folder(photos, 300)
    whole, seconds = _undisturbed(photos, work)
    rng, counts = random.Random(seed), Counter[str](kills=0)
    while counts["kills"] < max(1, round(200 * scale)):  # some runs end before they can be killed
        victim = Victim(extract_words(photos, out), out.parent, pause=PAUSE)
        victim.wait_for_start()
        time.sleep(rng.uniform(0, seconds))
        victim.signal(signal.SIGKILL)
        counts["kills"] += victim.ending().code == -signal.SIGKILL
        counts.update(_state(out, expected))
        if out.exists():
            counts["differs"] += out.read_bytes() != whole
            _clear(out)
    counts["failed"] += run(extract_words(photos, out), out.parent, isolated=True).code != 0
    counts["lost"] += len(expected) - faults_of(out, expected)["rows"]
    counts["differs"] += out.read_bytes() != whole
    counts["left over"] = len(leftovers(out))
    return dict(counts)


def crash_at_every_step(work: Path, scale: float, seed: int) -> Counts:
    """Stop a run, and an update of a finished file, at every step, as a kill and as a power failure."""
    counts: Counter[str] = Counter()
    for scene in _scenes(work):
        for kind in ("kill", "tear"):
            for step in _some(scene.steps, scale, seed):
                scene.reset()
                ending = run(scene.words, scene.out.parent, Fault(step, kind))
                counts["crashes"] += ending.code == -signal.SIGKILL
                counts["third states"] += scene.third_state()
                counts["not resumed"] += not scene.resumes()
    return dict(counts)


def disk_full(work: Path, scale: float, seed: int) -> Counts:
    """Raise ENOSPC, EDQUOT and EIO from each step on, and EIO at that step only; then free the disk."""
    counts: Counter[str] = Counter()
    faults = [("ENOSPC", True), ("EDQUOT", True), ("EIO", True), ("EIO", False)]
    for scene in _scenes(work):
        for kind, stays in faults:
            for step in _some(scene.steps, scale, seed):
                scene.reset()
                ending = run(scene.words, scene.out.parent, Fault(step, kind, stays))
                counts["errors"] += 1
                counts.update(_verdict(ending))
                counts["third states"] += scene.third_state()
                counts["not resumed"] += not scene.resumes()
    return dict(counts)


def disk_full_of_results(work: Path, scale: float, seed: int) -> Counts:
    """Fail in the same way under `train-head` and `predict`, whose old results must survive."""
    features, results = work / "out" / "f.h5", work / "results"
    features.parent.mkdir()
    results.mkdir()
    paint_folder(work / "photos", 20)
    run(extract_words(work / "photos", features), features.parent)
    bundle, counts = results / "b", Counter[str]()
    commands = {bundle: ["train-head", str(features), "--head", "nearest-centroid", "--cv", "2"]}
    for suffix in (".csv", ".jsonl", ".parquet"):
        commands[results / f"p{suffix}"] = ["predict", str(bundle), str(work / "photos")]
    for target, words in commands.items():
        command = [*words, "--quiet", "--out", str(target)]
        steps = run(command, results).steps
        old = _content(target)
        for kind, stays in (("ENOSPC", True), ("EIO", False)):
            for step in _some(steps, scale / 2, seed):
                counts["errors"] += 1
                ending = run(command, results, Fault(step, kind, stays))
                counts.update(_verdict(ending))
                if ending.code == 0:
                    old = _content(target)  # two bundles of the same head differ in a few bytes
                counts["third states"] += _content(target) != old
                counts["not resumed"] += target.suffix == "" and run(["verify", str(target)], results).code != 0
                counts["left over"] += len(list(results.glob(".*")))
    return dict(counts)


def _content(path: Path) -> list[tuple[str, bytes]]:
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    return [(file.name, file.read_bytes()) for file in files]


def small_tmpfs(work: Path, scale: float, seed: int) -> Counts:
    """Extract into a real tmpfs of 1 MB with little space left, then free space."""
    disk = work / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return {"skipped": 1}
    counts: Counter[str] = Counter()
    try:
        (disk / "out").mkdir()
        scene = _Scene(work / "photos", disk / "out" / "f.h5", 40)
        for free in range(0, 120_000, max(1, round(4096 / min(1.0, scale * 4)))):
            scene.reset()
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
                filler.write(bytes(shutil.disk_usage(disk).free - free))
            ending = run(scene.words, scene.out.parent)
            counts["runs"] += 1
            counts["full"] += ending.code != 0
            counts.update(_verdict(ending))
            (disk / "filler").unlink()
            counts["third states"] += scene.third_state()
            counts["not resumed"] += not scene.resumes()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return dict(counts)


def interrupt(work: Path, scale: float, seed: int) -> Counts:
    """Send Ctrl-C, Ctrl-C twice, or SIGTERM at random moments, then run the same command again."""
    photos, out = work / "photos", work / "out" / "f.h5"
    expected = paint_folder(photos, 300)
    whole, seconds = _undisturbed(photos, work)
    rng, counts = random.Random(seed), Counter[str]()
    for number in range(max(3, round(60 * scale))):
        victim = Victim(extract_words(photos, out), out.parent, pause=PAUSE)
        victim.wait_for_start()
        time.sleep(rng.uniform(0.01, seconds))
        for kind in ([signal.SIGINT], [signal.SIGINT] * 2, [signal.SIGTERM])[number % 3]:
            victim.signal(kind)
            time.sleep(0.01)
        ending = victim.ending()
        counts["signals"] += 1
        counts["interrupted"] += ending.code == 130
        explained = ending.one_line and "run the same command again to continue" in ending.stderr
        counts["not 130"] += ending.code not in (0, 130)
        counts["not one line"] += ending.code == 130 and not explained
        counts.update(_state(out, expected))
        if out.exists():
            counts["differs"] += out.read_bytes() != whole
            _clear(out)
    counts["failed"] += run(extract_words(photos, out), out.parent, isolated=True).code != 0
    counts["differs"] += out.read_bytes() != whole
    return dict(counts)


def writers_at_once(work: Path, scale: float, seed: int) -> Counts:
    """Start 2 or 4 extractions into one file while a reader opens it repeatedly."""
    photos, out = work / "photos", work / "out" / "f.h5"
    paint_folder(photos, 60)
    old, _ = _undisturbed(photos, work)
    out.write_bytes(old)
    rng, counts = random.Random(seed), Counter[str]()
    for round_number in range(max(2, round(40 * scale))):
        paint(photos / "a" / "00000.png", 1000 + round_number)
        before = _all_rows(out)
        victims = []
        for _ in range((2, 4)[round_number % 2]):
            victims.append(Victim(extract_words(photos, out), out.parent, pause=PAUSE, isolated=False))
            time.sleep(rng.choice([0, 0.02, 0.1]))
        seen = []
        while any(victim.process.is_alive() for victim in victims):
            seen.append(_all_rows(out))
        endings = [victim.ending() for victim in victims]
        after = _all_rows(out)
        counts["runs"] += len(endings)
        counts["reads"] += len(seen)
        counts["refused"] += sum(ending.code == 5 for ending in endings)
        counts["no worker"] += all(ending.code for ending in endings)
        counts["wrong exits"] += sum(ending.code not in (0, 5) for ending in endings)
        counts["not named"] += sum(ending.code == 5 and "written by " not in ending.stderr for ending in endings)
        counts["third states"] += sum(rows not in (before, after) for rows in seen)
        counts["left over"] += len(leftovers(out))
    return dict(counts)


class _Scene:
    """An extraction into a file, and the two contents that the file may have after a failure."""

    def __init__(self, photos: Path, out: Path, count: int, old: bytes | None = None) -> None:
        self.out, self.old = out, old
        self.words = extract_words(photos, out)
        if not photos.exists():
            paint_folder(photos, count)
        self.reset()
        self.steps = run(self.words, out.parent).steps
        self.new = out.read_bytes()

    def reset(self) -> None:
        _clear(self.out)
        if self.old is not None:
            self.out.write_bytes(self.old)

    def third_state(self) -> bool:
        """Return whether the file is neither the old one nor the new one."""
        found = self.out.read_bytes() if self.out.exists() else None
        return found not in (self.old, self.new)

    def resumes(self) -> bool:
        """Return whether the same command now succeeds, writes the same bytes, and leaves no other files."""
        ending = run(self.words, self.out.parent)
        return ending.code == 0 and self.out.read_bytes() == self.new and not leftovers(self.out)


def _scenes(work: Path) -> Iterator[_Scene]:
    """Yield a first run, then an update of its file with new, changed and deleted images."""
    photos, out = work / "photos", work / "out" / "f.h5"
    out.parent.mkdir()
    first = _Scene(photos, out, 40)
    yield first
    for number in range(25, 50):
        paint(photos / "a" / f"{number:05d}.png", 500 + number)
    (photos / "b" / "00001.png").unlink()
    yield _Scene(photos, out, 40, old=first.new)


def _some(steps: int, scale: float, seed: int) -> list[int]:
    """Return a random sample of the steps 1 to `steps`; all of them at scale 1."""
    count = min(steps, max(1, round(steps * scale)))
    return sorted(random.Random(seed).sample(range(1, steps + 1), count))


def _verdict(ending: Ending) -> dict[str, int]:
    """Count what a run on a failing disk must not do; it may succeed if the error does not matter."""
    return {
        "hangs": ending.code is None,
        "crashes": ending.code is not None and ending.code < 0,
        "not exit 1": ending.code is not None and ending.code > 1,
        "not one line": ending.code == 1 and not ending.one_line,
    }


def _undisturbed(photos: Path, work: Path) -> tuple[bytes, float]:
    """Return the file that an undisturbed run writes, and its duration in seconds."""
    out = work / "out" / "f.h5"
    out.parent.mkdir(exist_ok=True)
    seconds = []
    for _ in range(2):  # the first also starts the fork server
        _clear(out)
        victim = Victim(extract_words(photos, out), out.parent, pause=PAUSE)
        victim.wait_for_start()
        started = time.monotonic()
        ending = victim.ending()
        assert ending.code == 0, ending
        seconds.append(time.monotonic() - started)
    whole = out.read_bytes()
    _clear(out)
    return whole, min(seconds)


def _state(out: Path, expected: dict[str, tuple[int, ...]]) -> Counter[str]:
    """Count the faults of all files that a disturbed run left."""
    counts: Counter[str] = Counter()
    for path in [out, *sorted(out.parent.glob("f.h5.parts/part-*.h5"))]:
        if path.exists():
            found = faults_of(path, expected)
            found.pop("rows")
            counts.update(found)
    return counts


def _all_rows(out: Path) -> bytes:
    from pipeline.features.store import FeatureStore

    with FeatureStore(out) as store:
        return b"".join([store.features.tobytes(), *(path.encode() for path in store.paths)])


def _clear(out: Path) -> None:
    for path in out.parent.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

"""Cost of the safety measures, and whether a command run again writes the same file."""

import contextlib
import hashlib
import os
import resource
import shutil
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

Counts = dict[str, float]


def repeatability(work: Path, scale: float, seed: int) -> Counts:
    """Run the same command five times, then with other batch sizes and numbers of workers."""
    from pipeline import Speed, extract

    photos = work / "photos"
    _noise(photos, 70, seed)
    options: dict[str, Any] = {"weights": "random:0", "size": 64}

    def made(name: str, **speed: Any) -> tuple[bytes, Any]:
        with extract(photos, work / name, "mobilenet_0.25", speed=Speed(**speed), **options) as store:
            return store.path.read_bytes(), store.features

    first, vectors = made("f0.h5", batch_size=32, workers=2)
    counts: Counts = {"runs": 5, "differing files": 0}
    for number in range(1, 5):
        counts["differing files"] += made(f"f{number}.h5", batch_size=32, workers=2)[0] != first
    largest = float(np.abs(vectors).max())
    for batch in (1, 7):
        other = made(f"b{batch}.h5", batch_size=batch, workers=2)[1]
        counts[f"batch {batch}, 1e-5 of the largest"] = round(float(np.abs(other - vectors).max()) / largest / 1e-5, 3)
    counts["files that differ with one worker"] = float(made("w1.h5", batch_size=32, workers=1)[0] != first)
    return counts


def cost_of_safety(work: Path, scale: float, seed: int) -> Counts:
    """Extract photographs and measure the time spent in syncs, digests, checksums and decoder processes."""
    from pipeline import Speed, extract
    from pipeline.features import image_encoder, plan, store
    from pipeline.images.manifest import Manifest

    folder = Path(os.environ.get("TWOSTAGE_DATA", "")) / "clothing" / "train"
    real = bool(os.environ.get("TWOSTAGE_DATA")) and folder.is_dir()
    if not real:
        folder = work / "photos"
        _noise(folder, max(50, round(500 * scale)), seed)
    every = max(1, round(1 / scale))
    manifest = Manifest.from_paths([folder / path for path in Manifest.read(folder).paths[::every]])
    recipe = {"backbone": "mobilenetv2"} if real else {"backbone": "mobilenet_0.25", "weights": "random", "size": 128}

    def run(name: str) -> tuple[float, float]:
        cpu, started = _cpu(), time.perf_counter()
        with extract(manifest, work / name, speed=Speed("openvino"), **recipe) as made:
            assert len(made) == len(manifest)
        return time.perf_counter() - started, _cpu() - cpu

    run("warm.h5")
    synced, digested = _Timer(os.fsync, time.perf_counter), _Timer(hashlib.sha256, time.thread_time)
    with _patched(os, "fsync", synced), _patched(plan, "hashlib", types.SimpleNamespace(sha256=digested)):
        seconds, cpu = run("safe.h5")
    isolation = 0.0
    for number in range(3):
        with _patched(image_encoder, "Decoders", contextlib.nullcontext):
            isolation -= run(f"alone{number}.h5")[1] / 3
        isolation += run(f"isolated{number}.h5")[1] / 3
    with store.FeatureStore(work / "safe.h5") as made:
        index, vectors = made.index, made.features
    written = {}
    for checksums in (True, False, True, False):
        with _patched(h5py.Group, "create_dataset", _create_dataset(checksums)):
            started = time.perf_counter()
            store.write_store(work / "copy.h5", index, [vectors])
            written[checksums] = time.perf_counter() - started
    shutil.rmtree(work, ignore_errors=True)
    shares = {
        "fsync %": synced.seconds / seconds,
        "digests %": digested.seconds / cpu,
        "checksums %": (written[True] - written[False]) / seconds,
        "decoders of their own, % of processor time": isolation / (cpu - isolation),
    }
    percent = {name: round(100 * share, 2) for name, share in shares.items()}
    three = sum(list(percent.values())[:3])
    return {
        "images": len(manifest),
        "images/s": round(len(manifest) / seconds),
        **percent,
        "first three %": round(three, 2),
    }


class _Timer:
    """Wraps a function and sums up the time of its calls."""

    def __init__(self, function: Callable[..., Any], clock: Callable[[], float]) -> None:
        self.function, self.clock, self.seconds = function, clock, 0.0

    def __call__(self, *words: Any, **options: Any) -> Any:
        started = self.clock()
        try:
            return self.function(*words, **options)
        finally:
            self.seconds += self.clock() - started


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _create_dataset(checksums: bool) -> Callable[..., Any]:
    original = h5py.Group.create_dataset

    def create_dataset(group: Any, *words: Any, **options: Any) -> Any:
        return original(group, *words, **options | ({} if checksums else {"fletcher32": False}))

    return create_dataset


@contextlib.contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _noise(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8))
        small.resize((400, 533), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg", quality=90)

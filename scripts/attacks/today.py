"""The same attacks on common practice: one HDF5 file held open and appended to, and plain Keras input."""

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

from attacks.crash import PAUSE
from attacks.images import BAD, LEFT_OUT
from attacks.victim import colour, paint_folder

Counts = dict[str, float]
ROWS, BATCH, DIM = 300, 4, 1280


def hdf5_append(work: Path, scale: float, seed: int) -> Counts:
    """Kill -9 a loop that appends batches to one open HDF5 file and, when restarted, continues after its last row."""
    usual = _appended(work / "usual.h5", scale, seed, flush=False)
    flushed = _appended(work / "flushed.h5", scale, seed, flush=True)
    return {**usual, **{f"{name}, flushed after each batch": count for name, count in flushed.items()}}


def _appended(path: Path, scale: float, seed: int, flush: bool) -> Counts:
    rng, counts = random.Random(seed), Counter[str](kills=0, unreadable=0, wrong=0, lost=0)
    context = multiprocessing.get_context("forkserver")
    for _ in range(max(1, round(100 * scale))):
        before, done = _length(path), path.with_suffix(".done")
        process = context.Process(target=_append, args=(path, done, flush))
        process.start()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, ROWS / BATCH * PAUSE))
        process.kill()
        process.join()
        counts["kills"] += process.exitcode == -signal.SIGKILL
        made = done.stat().st_size if done.exists() else before
        try:
            with h5py.File(path) as file:
                vectors, count = file["features"][:], len(file["paths"])
            right = np.array([colour(number) for number in range(len(vectors))]).reshape(-1, 3)
            counts["wrong"] += count != len(vectors) or bool((vectors[:, :3] != right).any())
            counts["lost"] += max(0, made - count)
        except Exception:  # noqa: BLE001 - whatever the error is, the rows are lost
            counts["unreadable"] += 1
            counts["lost"] += made
            path.unlink()
        done.unlink(missing_ok=True)
        if path.exists() and _length(path) == ROWS:
            path.unlink()
    return dict(counts)


def _append(path: Path, done: Path, flush: bool) -> None:
    with h5py.File(path, "a") as file, done.open("ab", buffering=0) as log:
        if "features" not in file:
            file.create_dataset("features", (0, DIM), "f4", maxshape=(None, DIM), chunks=True)
            file.create_dataset("paths", (0,), h5py.string_dtype(), maxshape=(None,))
        features, paths = file["features"], file["paths"]
        log.write(bytes(len(features)))
        for start in range(len(features), ROWS, BATCH):
            time.sleep(PAUSE)
            numbers = range(start, min(start + BATCH, ROWS))
            features.resize(numbers.stop, 0)
            features[start:] = [np.resize(colour(number), DIM) for number in numbers]
            paths.resize(numbers.stop, 0)
            paths[start:] = [f"{number}.jpg" for number in numbers]
            if flush:
                file.flush()
            log.write(bytes(len(numbers)))  # one byte per computed row


def _length(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        with h5py.File(path) as file:
            return len(file["paths"])
    except (OSError, KeyError):
        return 0


_KERAS = """
import json, sys
import keras
folder = sys.argv[1]
counts = {"images": 0, "read": 0, "ended": 0}
data = keras.utils.image_dataset_from_directory(folder, image_size=(32, 32), batch_size=4, shuffle=False, verbose=False)
counts["images"] = len(data.file_paths)
try:
    for pixels, _ in data:
        counts["read"] += len(pixels)
except Exception:
    counts["ended"] = 1
print("RESULT" + json.dumps(counts))
"""


def keras_input(work: Path, scale: float, seed: int) -> Counts:
    """Read the bad images with plain Keras: `image_dataset_from_directory`."""
    photos = work / "photos"
    paint_folder(photos, max(20, round(1000 * scale)))
    for kind, (reason, make) in BAD.items():
        if reason != LEFT_OUT:  # a FIFO would block it forever
            make(photos / "a" / f"bad {kind}.jpg")
    command = [sys.executable, "-c", _KERAS, str(photos)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return dict(json.loads(found[0].removeprefix("RESULT"))) if found else {"crashed": 1}

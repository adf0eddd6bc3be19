"""Damage to finished files and parts, and the same damage to a plain HDF5 file for comparison."""

import contextlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from attacks.victim import PART_ROWS, Fault, extract_words, paint_folder, run

Counts = dict[str, float]
Damage = Callable[[Path], object]


def bit_flips(work: Path, scale: float, seed: int) -> Counts:
    """Flip 1,000 single bits in a finished file and its parts, one at a time; then the same in a plain HDF5 file."""
    from pipeline.errors import IntegrityError
    from pipeline.features.store import FeatureStore, verify

    files = _file_and_parts(work)
    sound = {}
    for path in files:
        with FeatureStore(path) as store:
            sound[path] = store.index, store.features
    rng, counts = random.Random(seed), Counter[str]()
    for number in range(max(1, round(1000 * scale))):
        path = files[number % len(files)]
        index, vectors = sound[path]
        with _flipped(path, rng):
            counts["flips"] += 1
            try:
                with FeatureStore(path) as store:
                    counts["wrong vectors returned"] += not np.array_equal(store.features, vectors)
                    counts["wrong paths or labels returned"] += not store.index.same_content(index)
            except IntegrityError as error:
                counts["noticed"] += 1
                counts["not named"] += str(path) not in str(error)
                problems = verify(path)
                counts["verify silent"] += not (problems and str(path) in problems[0])
    return dict(counts) | {f"plain h5py: {name}": count for name, count in _plain_flips(work, scale, seed).items()}


def _plain_flips(work: Path, scale: float, seed: int) -> Counts:
    """Flip bits in a file as most people write it: vectors and names without checksums."""
    path = work / "plain.h5"
    vectors, names = (
        np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32),
        [f"a/{i}.jpg" for i in range(40)],
    )
    with h5py.File(path, "w") as file:
        file["features"], file["paths"] = vectors, names
    rng, counts = random.Random(seed), Counter[str]()
    for _ in range(max(1, round(1000 * scale))):
        with _flipped(path, rng), contextlib.suppress(Exception), h5py.File(path) as file:
            read = file["features"][:], [name.decode() for name in file["paths"][:]]
            counts["wrong values returned"] += not (np.array_equal(read[0], vectors) and read[1] == names)
    return dict(counts)


def broken_files(work: Path, scale: float, seed: int) -> Counts:
    """Truncate, empty, replace, remove and rename the finished file or a part, then run the command again."""
    out, *parts = _file_and_parts(work)
    words = extract_words(work / "photos", out)
    whole, kept = out.read_bytes(), work / "kept"
    shutil.copytree(out.parent, kept)
    counts: Counter[str] = Counter()
    for name, damage in DAMAGES.items():
        for target in (out, parts[1]):
            shutil.rmtree(out.parent)
            shutil.copytree(kept, out.parent)
            if target == out:
                shutil.rmtree(parts[0].parent)
            else:
                out.unlink()
            damage(target)
            ending = run(words, out.parent)
            counts["cases"] += 1
            if ending.code == 0:  # missing files are extracted again
                counts["wrong"] += out.read_bytes() != whole
                counts["accepted"] += name not in ("removed", "renamed")
                continue
            named = target.name in ending.stderr and ending.one_line
            counts["not named"] += not named
            counts["wrong exits"] += ending.code not in (1, 4)
            counts["refused"] += 1
            if "--overwrite" in ending.stderr:
                again = run([*words, "--overwrite"], out.parent)
                counts["advice fails"] += again.code != 0 or out.read_bytes() != whole
    return dict(counts)


def _overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zeros in the middle": lambda path: _overwrite(path, path.stat().st_size // 2, bytes(512)),
    "another file": lambda path: path.write_text("path,label\n"),
    "a folder": _folder,
    "removed": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name("elsewhere.h5")),
}


def reader_fuzz(work: Path, scale: float, seed: int) -> Counts:
    """Corrupt a feature file in all kinds of ways for a limited time; only exceptions of the package may be raised."""
    from pipeline.errors import PipelineError
    from pipeline.features.store import FeatureStore

    (path, *_), rng, counts = _file_and_parts(work), random.Random(seed), Counter[str]()
    with FeatureStore(path) as store:
        index, vectors = store.index, store.features
    raw = path.read_bytes()
    end = time.monotonic() + 60 * scale
    while time.monotonic() < end:
        path.write_bytes(mutated(raw, rng))
        counts["files"] += 1
        try:
            with FeatureStore(path) as store:
                same = store.index.same_content(index) and np.array_equal(store.features, vectors)
                counts["wrong"] += not same
        except PipelineError:
            counts["refused"] += 1
        except Exception:  # noqa: BLE001 - what the attack looks for
            counts["other errors"] += 1
    return dict(counts)


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """Return a copy with bits flipped, or bytes overwritten, copied, deleted or truncated."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 8, 32])):
        at, length = rng.randrange(len(data)), rng.choice([1, 2, 4, 8, 64, 512])
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            data[at : at + length] = bytes([rng.choice([0, 255, 127])]) * length
        elif kind == 3:
            source = rng.randrange(len(data))
            data[at : at + length] = data[source : source + length]
        elif kind == 4 and len(data) > length + 1:
            del data[at : at + length]
        elif kind == 5 and at > 0 and rng.random() < 0.2:
            del data[at:]
        if not data:
            return b"\0"
    return bytes(data)


@contextlib.contextmanager
def _flipped(path: Path, rng: random.Random) -> Any:
    raw = path.read_bytes()
    data = bytearray(raw)
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(raw)


def _file_and_parts(work: Path) -> list[Path]:
    """Return a finished file and its parts, as a run leaves them that is killed before it removes the parts."""
    photos, out = work / "photos", work / "out" / "f.h5"
    if not photos.exists():
        paint_folder(photos, 40)
        out.parent.mkdir()
    words = extract_words(photos, out)
    steps = run(words, out.parent).steps
    out.unlink()
    run(words, out.parent, Fault(steps - 40 // PART_ROWS - 1))
    return [out, *sorted(out.parent.glob("f.h5.parts/*"))]

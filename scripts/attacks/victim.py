"""The process under attack: the real command with a fake network, in a process that can be killed at any moment."""

import contextlib
import errno
import io
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 32
PART_ROWS = 10
_TIMEOUT = 60.0  # seconds
# Imported once, by the fork server.
_PRELOAD = [
    "pipeline.features.extraction",
    "pipeline.prediction",
    "pipeline.training.single_label",
    "sklearn.neighbors",
]
_PRELOAD += ["sklearn.pipeline", "sklearn.preprocessing", "skops.io", "pyarrow.parquet"]


@dataclass(frozen=True)
class Fault:
    """What happens at a step of writing: the process is killed, or gets an error.

    ``kill`` kills it in the middle of a write; ``tear`` also truncates files that were not synced, as a power failure
    may; the name of an errno raises that error at the step and, with `stays`, at all later ones.
    """

    at: int
    kind: str = "kill"
    stays: bool = False


@dataclass(frozen=True)
class Ending:
    """How a process ended."""

    code: int | None  # None: it did not end in time and was killed
    stdout: str
    stderr: str
    steps: int
    seconds: float

    @property
    def one_line(self) -> bool:
        """Whether standard error is one line: an error or an interrupt."""
        lines = self.stderr.splitlines()
        return len(lines) == 1 and lines[0].startswith(("error: ", "interrupted; ")) and "bug in" not in lines[0]


class Steps:
    """Counts writes, syncs, renames and removals below a folder, and makes a `Fault` happen."""

    def __init__(self, folder: Path, fault: Fault | None) -> None:
        self.folder = os.fspath(folder)
        self.fault = fault
        self.count = 0
        self.unsynced: dict[int, str] = {}  # inode -> path
        self._original: dict[str, Callable[..., Any]] = {
            name: getattr(os, name) for name in ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir")
        }
        self._open = io.open

    def install(self) -> None:
        """Replace the functions of this process by ones that count."""
        for name in self._original:
            setattr(os, name, self._counted(name))
        io.open = self._counted_open

    def step(self, kind: str, half: Callable[[], object] = lambda: None) -> None:
        """Count a step; `half` does a part of it before the process is killed."""
        self.count += 1
        fault = self.fault
        if fault is None or self.count < fault.at or (self.count > fault.at and not fault.stays):
            return
        if fault.kind in ("kill", "tear"):
            half()
            if fault.kind == "tear":
                for path in self.unsynced.values():
                    with contextlib.suppress(OSError):
                        os.truncate(path, Path(path).stat().st_size // 3)
            os.kill(os.getpid(), signal.SIGKILL)
        if kind not in ("unlink", "rmdir"):  # these need no space
            number = getattr(errno, fault.kind)
            raise OSError(number, os.strerror(number))

    def _counted(self, name: str) -> Callable[..., Any]:
        def counted(*words: Any, **options: Any) -> Any:
            if self._is_below(words[0]):
                self.step(name)
            result = self._original[name](*words, **options)
            if name == "fsync":
                self.unsynced.pop(os.fstat(words[0]).st_ino, None)
            if name in ("replace", "rename"):
                inode = Path(words[1]).stat().st_ino
                if inode in self.unsynced:
                    self.unsynced[inode] = os.fspath(words[1])
            return result

        return counted

    def _is_below(self, where: Any) -> bool:
        path = Path(f"/proc/self/fd/{where}").readlink() if isinstance(where, int) else Path(where)
        return not path.is_absolute() or path.is_relative_to(self.folder)

    def _counted_open(self, file: Any, mode: str = "r", *words: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+") or isinstance(file, int) or not os.fspath(file).startswith(self.folder):
            return self._open(file, mode, *words, **options)
        self.step("open")
        raw = _CountedFile(os.fspath(file), mode.replace("b", "").replace("t", ""))
        raw.steps = self
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")


class _CountedFile(io.FileIO):
    steps: Steps

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.steps.unsynced[os.fstat(self.fileno()).st_ino] = os.fspath(self.name)
        self.steps.step("write", lambda: super(_CountedFile, self).write(view[: len(view) // 2]))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        self.steps.step("truncate")
        return super().truncate(size)


class _InProcess(contextlib.nullcontext[Any]):
    """Replaces the decoder processes where they are not under attack."""

    def __enter__(self) -> Any:
        return self

    def __call__(self, *words: Any) -> Any:
        return self.enter_result(*words)

    def start(self) -> None: ...


class Victim:
    """A command in its own process, forked from one that has imported everything.

    Parameters
    ----------
    words : list of str
        The command line after ``twostage``.
    folder : Path
        Steps of writing below it are counted.
    fault : Fault or None
    pause : float
        Seconds that the fake network takes per batch.
    isolated : bool
        Whether images are decoded in child processes, as usual.
    """

    def __init__(
        self, words: list[str], folder: Path, fault: Fault | None = None, pause: float = 0.0, isolated: bool = True
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        # not beside the folder, whose disk may be full
        self.log = Path(tempfile.gettempdir()) / f"victim-{os.getpid()}-{time.monotonic_ns()}.log"
        self.started = time.monotonic()
        self.process = context.Process(target=_run, args=(words, folder, self.log, fault, pause, isolated))
        self.process.start()

    def wait_for_start(self) -> None:
        """Return when the command starts."""
        end = time.monotonic() + _TIMEOUT
        while not self.log.with_suffix(".out").exists() and time.monotonic() < end:
            time.sleep(0.001)

    def signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, number)

    def ending(self) -> Ending:
        """Wait for the end, for a minute at most, and return what the process wrote."""
        self.process.join(_TIMEOUT)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        texts = []
        for suffix in (".out", ".err", ".steps"):
            path = self.log.with_suffix(suffix)
            texts.append(path.read_text("utf-8", "replace") if path.exists() else "")
            path.unlink(missing_ok=True)
        self.process.close()
        return Ending(code, texts[0], texts[1], int(texts[2] or 0), time.monotonic() - self.started)


def run(words: list[str], folder: Path, fault: Fault | None = None, isolated: bool = False) -> Ending:
    """Run a command to its end."""
    return Victim(words, folder, fault, isolated=isolated).ending()


def _run(words: list[str], folder: Path, log: Path, fault: Fault | None, pause: float, isolated: bool) -> None:
    for number, suffix in ((2, ".err"), (1, ".out")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from attacks.fake import FakeEncoder
    from pipeline import cli
    from pipeline.features import engines, extraction, image_encoder

    class Slow(FakeEncoder):
        def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            time.sleep(pause)
            return super().encode(pixels)

    engines.ENGINES.update(dict.fromkeys(engines.ENGINES, Slow))
    vars(extraction)["block_rows"] = lambda dim: PART_ROWS
    if not isolated:
        vars(image_encoder)["Decoders"] = _InProcess
    steps = Steps(folder, fault)
    steps.install()
    try:
        cli.main(words)
    finally:
        sys.stdout.flush()
        descriptor = os.open(log.with_suffix(".steps"), os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, str(steps.count).encode())
        os.close(descriptor)


def paint(path: Path, number: int) -> None:
    """Write a PNG of the one colour that stands for `number`; the colour is also its vector."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour(number)).save(path, "PNG")


def colour(number: int) -> tuple[int, int, int]:
    """Return the colour that only image `number` has."""
    return number % 256, number // 256 % 256, number // 65536


def paint_folder(folder: Path, count: int) -> dict[str, tuple[int, ...]]:
    """Make `count` images in two classes; return the vector that each path must get."""
    expected: dict[str, tuple[int, ...]] = {}
    for number in range(count):
        path = f"{'ab'[number % 2]}/{number:05d}.png"
        paint(folder / path, number + 1)
        expected[path] = colour(number + 1)
    return expected


def extract_words(photos: Path, out: Path, *more: str) -> list[str]:
    """Return the command line of an extraction with random weights."""
    common = ["--backbone", "mobilenet", "--weights", "random", "--size", str(SIZE), "--batch-size", "4"]
    return ["extract", str(photos), "--out", str(out), "--quiet", *common, *more]


def faults_of(path: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Open a feature file and count its faults: unreadable, wrong, doubled; and its ``rows``."""
    from pipeline.errors import PipelineError
    from pipeline.features.store import FeatureStore

    found = {"unreadable": 0, "wrong": 0, "doubled": 0, "rows": 0}
    try:
        with FeatureStore(path) as store:
            vectors = store.features
            found["rows"] = len(store)
            found["doubled"] = len(store) - len(set(store.paths))
            right = np.array([expected.get(each, (-1, -1, -1)) for each in store.paths], np.float32).reshape(-1, 3)
            found["wrong"] = int((vectors != right).any(axis=1).sum())
    except PipelineError:
        found["unreadable"] = 1
    return found


def leftovers(out: Path) -> list[str]:
    """Return the names of files beside a feature file that a finished run should have removed."""
    return [path.name for path in out.parent.iterdir() if path.name != out.name and out.name in path.name]

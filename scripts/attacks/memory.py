"""Peak memory of a process and its decoders."""

import resource
import threading
from pathlib import Path
from types import TracebackType
from typing import Self


class Memory:
    """Samples the memory of a process and its children, and keeps the largest sum of their resident memory.

    Pages that several processes share count once per process; with `shares`, which is slower, each process counts
    its share of them.

    >>> import os
    >>> with Memory(os.getpid()) as memory:
    ...     pass
    >>> memory.peak_mb > 0
    True
    """

    def __init__(self, pid: int, interval: float = 0.02, *, shares: bool = False) -> None:
        self.pid, self.interval, self.peak_mb = pid, interval, 0.0
        self._mb = _share_mb if shares else _resident_mb
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        stopped = False
        while not stopped:
            self.peak_mb = max(self.peak_mb, sum(map(self._mb, [self.pid, *_children(self.pid)])))
            stopped = self._stop.wait(self.interval)


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 2**20


def _share_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

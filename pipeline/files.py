"""Atomic writes of files, locks between processes, and the cache folder."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs
from filelock import FileLock, Timeout

from pipeline.errors import LockedError, PipelineError, StoreError

CACHE_VARIABLE = "TWOSTAGE_CACHE"

KEPT = "make space and run the command again, finished work is kept"  # advice to `writing`

_ATTEMPTS = 5  # the holder of a lock may release it between our attempt and our look at its file


def publish(temporary: Path, path: Path) -> None:
    """Rename a written file to its final name durably: fsync, rename, fsync of the folder."""
    _fsync(temporary)
    temporary.replace(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(
    what: str | os.PathLike[str],
    error_class: type[PipelineError] = PipelineError,
    advice: str = "make space or choose another --out",
) -> Iterator[None]:
    """Raise an OSError of the block again as an error that says ``cannot write WHAT: REASON; ADVICE``.

    BrokenPipeError passes: the reader of standard output has gone, which is not an error.

    >>> with writing("photos.csv", advice="make space"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
        ...
    pipeline.errors.PipelineError: cannot write photos.csv: No space left on device; make space
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise error_class(f"cannot write {os.fspath(what)}: {error.strerror or error}; {advice}") from error


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces the target if the block ends without an exception."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")  # a fixed name: killed runs leave one file at most
    try:
        with temporary.open("wb") as file:
            yield file
        publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lock a file against other writers, or raise LockedError, which names the process that holds the lock."""
    path = target.with_name(f"{target.name}.lock")
    lock = FileLock(path, timeout=0)
    for attempt in range(_ATTEMPTS):
        try:
            lock.acquire()
            break
        except Timeout:
            if path.exists():
                raise LockedError(
                    f"{target} is being written by {_holder(path)}; wait for it or choose another --out"
                ) from None
            if attempt == _ATTEMPTS - 1:
                raise StoreError(f"cannot write beside {target}; choose another --out") from None
        except OSError as error:
            raise StoreError(f"cannot write beside {target}: {error.strerror}; choose another --out") from error
    try:
        with contextlib.suppress(OSError):  # the lock works on a full disk too, only without its text
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", "replace") or "another process"
    return "another process"


def cache_folder() -> Path:
    """Return the folder of converted networks: ``$TWOSTAGE_CACHE``, or ``twostage`` in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("twostage")

"""Files that are written whole or not at all, by one process at a time; the user's cache folder."""

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

KEPT = "make space and run the command again, what was done is kept"  # advice to `writing`
_ATTEMPTS = 5  # to lock a file whose lock was there, and gone with its holder a moment later


def publish(temporary: Path, path: Path) -> None:
    """Make a written file durable and give it its name: fsync, rename, fsync of the folder."""
    for target, then in ((temporary, lambda: temporary.replace(path)), (path.parent, lambda: None)):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        then()


@contextlib.contextmanager
def writing(
    what: str | os.PathLike[str],
    error_class: type[PipelineError] = PipelineError,
    advice: str = "make space or choose another --out",
) -> Iterator[None]:
    """Turn an OSError of the enclosed code into ``cannot write WHAT: reason; ADVICE``.

    A broken pipe is left alone: the reader of standard output has left, which is no fault.

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
    """Open a temporary file that takes the target's name when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")  # always the same name: a killed run leaves one at most
    try:
        with temporary.open("wb") as file:
            yield file
        publish(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold `target` against other writers, or raise LockedError naming the one that holds it."""
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
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
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
    """Return where converted networks are kept: ``$TWOSTAGE_CACHE``, or the user's own cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else platformdirs.user_cache_path("twostage")

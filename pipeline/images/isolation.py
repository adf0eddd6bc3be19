"""Decoding in child processes: an image that hangs, crashes or exhausts a decoder does not stop the run.

A child is a new Python process that imports one decoding function and answers requests on its standard input.
A request is the content of an image and arguments in JSON; the answer is pixels or an `ImageError`. Nothing is
pickled. The kernel ends a child that takes too much time (``SIGPROF``, ``SIGALRM``) and limits its memory
(``RLIMIT_AS``); a child exits when its parent does. Children decode large images one at a time, write nothing to
the terminal and do not receive Ctrl-C.

>>> from pipeline.images.decode import load_pixels
>>> with Decoders(load_pixels) as decode:
...     decode(b"<svg/>", 150, "squash")
Traceback (most recent call last):
    ...
pipeline.errors.ImageError: not-an-image: the content is none of JPEG, PNG, GIF, BMP, WEBP, TIFF, AVIF
"""

import contextlib
import fcntl
import importlib
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, PipelineError, UsageError
from pipeline.images import decode

__all__ = ["MEMORY_LIMIT", "TIME_LIMIT", "WALL_CLOCK_FACTOR", "Decoders"]

TIME_LIMIT: float = 30.0
"""Seconds of processor time for one image; the largest allowed image takes about three."""

WALL_CLOCK_FACTOR: float = 4.0
"""Wall-clock time for one image, as a multiple of its processor time: the machine may be busy."""

MEMORY_LIMIT: int = 3 << 30
"""Bytes of address space of one child; the largest allowed image needs 1.2 GB."""

_FRAME = struct.Struct("<QQ")  # lengths of the JSON and of the bytes that follow
_PIPE_BYTES = 1 << 20  # large pipes, if the kernel allows them: fewer switches between processes
_EXIT_SECONDS = 5.0  # from the end of a child's output to its exit
_CLOSED = "the decoding processes are closed; create new Decoders"
_ERRORS: dict[str, type[PipelineError]] = {kind.__name__: kind for kind in (ImageError, UsageError)}
# The child imports from the same folders as the parent, however the parent was started.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from pipeline.images.isolation import _serve; _serve(*json.loads(sys.argv[2]))"
)


class Decoders:
    """A decoding function that runs in child processes, one for each thread that is calling it.

    Children are started on demand, or in advance by `start`. A child that dies is replaced; its image is tried
    once more in another child before it counts as bad.

    Parameters
    ----------
    function : callable (bytes, ...) -> ndarray of uint8
        Importable by its module and name. Its other arguments must be JSON.
    time_limit : float
        Seconds of processor time for one image; its wall-clock limit is `WALL_CLOCK_FACTOR` times as long.
    memory_limit : int
        Bytes of address space of a child.

    Raises
    ------
    ImageError
        When called: as the function raises it, or with the reason ``timeout`` or ``crashed``.
    PipelineError
        When called: if no child can be started, or after `close`.

    Examples
    --------
    >>> from pipeline.images.decode import load_pixels
    >>> pixel = bytes.fromhex("47494638396101000100000000002c00000000010001000002024401003b")
    >>> with Decoders(load_pixels) as decode:
    ...     decode(pixel, 2, "squash").shape
    (2, 2, 3)
    """

    def __init__(
        self,
        function: Callable[..., NDArray[np.uint8]],
        *,
        time_limit: float = TIME_LIMIT,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self._task = [function.__module__, function.__qualname__, time_limit, memory_limit]
        self._time_limit = time_limit
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._closed = False
        self._large_lock: BinaryIO | None = None  # locked by the child that decodes a large image

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start a child in advance, without waiting until it is ready."""
        child = self._new()
        with self._lock:
            self._idle.append(child)

    def close(self) -> None:
        """End all children, including those that are decoding."""
        with self._lock:
            self._closed = True
            children, self._all = self._all, set()
        for child in children:
            child.process.kill()
        for child in children:
            child.end()
        if self._large_lock:
            self._large_lock.close()

    def __call__(self, content: bytes, *arguments: Any) -> NDArray[np.uint8]:
        """Return ``function(content, *arguments)``; safe to call from many threads."""
        for _ in range(2):
            child = self._borrow()
            try:
                answer = child.request(content, arguments)
            except (EOFError, OSError, ValueError):  # ValueError: `close` has closed the pipe
                status = self._drop(child)
                if status == -signal.SIGPROF:
                    raise ImageError(
                        "timeout", f"decoding took more than {self._time_limit:g} s of processor time"
                    ) from None
                if status == -signal.SIGALRM:
                    limit = self._time_limit * WALL_CLOCK_FACTOR
                    raise ImageError("timeout", f"decoding took more than {limit:g} s") from None
                continue
            except BaseException:
                child.process.kill()
                self._drop(child)
                raise
            with self._lock:
                self._idle.append(child)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if not child.ready:
            raise PipelineError(
                f"cannot start a process to decode images ({_ending(status)}); check that memory is free and that"
                f" {sys.executable or 'Python'} runs"
            )
        raise ImageError("crashed", f"the decoding process died twice ({_ending(status)})")

    def _borrow(self) -> "_Child":
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._new()

    def _new(self) -> "_Child":
        try:
            with self._lock:
                if self._large_lock is None:
                    self._large_lock = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed by `close`
            child = _Child(self._task, self._large_lock.fileno())
        except ValueError as error:  # `close` has closed the file
            raise PipelineError(_CLOSED) from error
        except OSError as error:
            raise PipelineError(
                f"cannot start a process to decode images ({error.strerror}); end other processes or raise the limit"
            ) from error
        with self._lock:
            if not self._closed:
                self._all.add(child)
                return child
        child.process.kill()
        child.end()
        raise PipelineError(_CLOSED)

    def _drop(self, child: "_Child") -> int:
        with self._lock:
            self._all.discard(child)
        return child.end()


class _Child:
    """One child process, used by one thread at a time."""

    def __init__(self, task: list[Any], large_lock: int) -> None:
        self.ready = False
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path), json.dumps([*task, large_lock])],
            pass_fds=[large_lock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libraries in C write there what the `ImageError` says
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            process_group=0,  # only the parent receives Ctrl-C
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._requests, self._answers = self.process.stdin, self.process.stdout
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def request(self, content: bytes, arguments: tuple[Any, ...]) -> NDArray[np.uint8] | Exception:
        if not self.ready:
            _receive_head(self._answers)
            self.ready = True
        _send(self._requests, list(arguments), content)
        head, size = _receive_head(self._answers)
        if "error" in head:
            return _ERRORS[head["error"]](*head["arguments"])
        pixels = np.empty(size, np.uint8)
        if cast(io.BufferedReader, self._answers).readinto(pixels.data) != size:
            raise EOFError
        return pixels.reshape(head["shape"])

    def end(self) -> int:
        """Wait for a process that is exiting, and return its exit status."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_EXIT_SECONDS)
        self.process.kill()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        return self.process.wait()


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


def _send(pipe: Any, head: Any, body: bytes | memoryview) -> None:
    text = json.dumps(head).encode()
    pipe.write(_FRAME.pack(len(text), len(body)) + text)
    pipe.write(body)
    pipe.flush()


def _receive_head(pipe: Any) -> tuple[Any, int]:
    head, body = _FRAME.unpack(_read_exactly(pipe, _FRAME.size))
    return json.loads(_read_exactly(pipe, head)), body


def _read_exactly(pipe: Any, count: int) -> bytes:
    data: bytes = pipe.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _serve(module: str, name: str, time_limit: float, memory_limit: int, large_lock: int) -> None:
    """Run as a child: answer requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    requests: BinaryIO = os.fdopen(os.dup(0), "rb")
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library may print, but not between the answers
    function = getattr(importlib.import_module(module), name)
    for limit, value in ((resource.RLIMIT_AS, memory_limit), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # a lower limit is set already, or the system has none
            resource.setrlimit(limit, (value, value))

    def lock_large_images() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the wait does not count against this image
        fcntl.lockf(large_lock, fcntl.LOCK_EX)
        signal.setitimer(signal.ITIMER_REAL, time_limit * WALL_CLOCK_FACTOR)

    decode.before_large_image = lock_large_images
    try:
        _send(answers, {}, b"")
        while True:
            arguments, size = _receive_head(requests)
            content = _read_exactly(requests, size)
            signal.setitimer(signal.ITIMER_PROF, time_limit)
            signal.setitimer(signal.ITIMER_REAL, time_limit * WALL_CLOCK_FACTOR)
            head, body = _answer(function, content, arguments)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            fcntl.lockf(large_lock, fcntl.LOCK_UN)
            _send(answers, head, body)
    except (EOFError, BrokenPipeError):
        os._exit(0)
    except BaseException:  # noqa: BLE001 - exit at once, without the interpreter's slow shutdown
        os._exit(1)


def _answer(function: Callable[..., NDArray[np.uint8]], content: bytes, arguments: list[Any]) -> tuple[Any, Any]:
    try:
        pixels = np.ascontiguousarray(function(content, *arguments), np.uint8)
        return {"shape": pixels.shape}, pixels.data.cast("B") if pixels.size else b""
    except ImageError as error:
        return {"error": "ImageError", "arguments": [error.reason, error.detail]}, b""
    except UsageError as error:
        return {"error": "UsageError", "arguments": [str(error)]}, b""
    except MemoryError:
        return {
            "error": "ImageError",
            "arguments": ["too-large", "it needs more memory than a decoding process may use"],
        }, b""

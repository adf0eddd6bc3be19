"""Decoding in child processes: an image can hang, crash or exhaust a decoder, but not the run.

A child is a fresh Python that imports one decoding function and answers requests on its standard
input: the content of an image and arguments in JSON go in, pixels or the reason of an `ImageError`
come out; nothing is pickled in either direction. The kernel ends a child that takes too long
(``SIGPROF``, ``SIGALRM``) or too much memory (``RLIMIT_AS``), and one whose parent has died reads the end of its
input. Children decode large images one at a time, write to no terminal and are out of reach of Ctrl-C.

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

__all__ = ["MEMORY_LIMIT", "PATIENCE", "TIME_LIMIT", "Decoders"]

TIME_LIMIT: float = 30.0
"""Seconds of processor time that one image may take; the largest that is allowed takes about three."""

PATIENCE: float = 4.0
"""Times the time limit that may pass on the clock, on a busy machine or in a decoder that only waits."""

MEMORY_LIMIT: int = 3 << 30
"""Bytes of address space of one child; the largest image that is allowed needs 1.2 GB."""

_FRAME = struct.Struct("<QQ")  # lengths of the JSON and of the bytes that follow
_PIPE_BYTES = 1 << 20  # where the kernel has pipes that large: fewer switches between the processes
_DYING_SECONDS = 5.0  # from the end of its output to the end of a process
_ERRORS: dict[str, type[PipelineError]] = {kind.__name__: kind for kind in (ImageError, UsageError)}
# The folders to import from are the parent's, whatever started it.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    "from pipeline.images.isolation import _serve; _serve(*json.loads(sys.argv[2]))"
)


class Decoders:
    """A decoding function that runs in child processes, one for each thread that calls it at a time.

    Children are started when they are needed, or ahead of it by `start`. One that dies is replaced, and
    its image is given to one other child before it is called bad.

    Parameters
    ----------
    function : callable (bytes, ...) -> ndarray of uint8
        Importable by its module and name. Its further arguments must be JSON.
    time_limit : float
        Seconds of processor time for one image; on the clock, `PATIENCE` times as many.
    memory_limit : int
        Bytes of address space of a child.

    Raises
    ------
    ImageError
        When called: whatever the function raises, or ``timeout`` or ``crashed``.
    PipelineError
        When called: if no child can be started.

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
        self._turns: BinaryIO | None = None  # locked by the child that decodes a large image

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start a child now, so that it is there when the first image is; does not wait for it."""
        child = self._new()
        with self._lock:
            self._idle.append(child)

    def close(self) -> None:
        """End all children, also those at work."""
        with self._lock:
            self._closed = True
            children, self._all = self._all, set()
        for child in children:
            child.process.kill()
        for child in children:
            child.end()
        if self._turns:
            self._turns.close()

    def __call__(self, content: bytes, *arguments: Any) -> NDArray[np.uint8]:
        """Return ``function(content, *arguments)``; safe to call from many threads."""
        for _ in range(2):
            child = self._borrow()
            try:
                answer = child.ask(content, arguments)
            except (EOFError, OSError, ValueError):  # ValueError: `close` has closed the pipe meanwhile
                status = self._drop(child)
                if status == -signal.SIGPROF:
                    raise ImageError("timeout", f"decoding took more than {self._time_limit:g} s") from None
                if status == -signal.SIGALRM:
                    limit = self._time_limit * PATIENCE
                    raise ImageError("timeout", f"decoding was not done after {limit:g} s") from None
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
                f"no process can be started to decode images ({_how(status)}); check the memory that is free, and that"
                f" {sys.executable or 'Python'} runs"
            )
        raise ImageError("crashed", f"the decoder died twice ({_how(status)})")

    def _borrow(self) -> "_Child":
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._new()

    def _new(self) -> "_Child":
        try:
            with self._lock:
                self._turns = self._turns or cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - see close
            child = _Child(self._task, self._turns.fileno())
        except ValueError as error:  # `close` has closed the file meanwhile
            raise PipelineError("the decoders are closed") from error
        except OSError as error:
            raise PipelineError(
                f"no process can be started to decode images ({error.strerror}); close others, or raise the limit"
            ) from error
        with self._lock:
            if not self._closed:
                self._all.add(child)
                return child
        child.process.kill()
        child.end()
        raise PipelineError("the decoders are closed")

    def _drop(self, child: "_Child") -> int:
        with self._lock:
            self._all.discard(child)
        return child.end()


class _Child:
    """One child process; used by one thread at a time."""

    def __init__(self, task: list[Any], turns: int) -> None:
        self.ready = False
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, json.dumps(sys.path), json.dumps([*task, turns])],
            pass_fds=[turns],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libraries in C write there what `ImageError` says already
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            process_group=0,  # Ctrl-C is for the parent, which knows what to do
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._requests, self._answers = self.process.stdin, self.process.stdout
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def ask(self, content: bytes, arguments: tuple[Any, ...]) -> NDArray[np.uint8] | Exception:
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
        """Wait for a process that is dying, and return how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_DYING_SECONDS)
        self.process.kill()
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):
                pipe.close()
        return self.process.wait()


def _how(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


def _send(pipe: Any, head: Any, body: bytes | memoryview) -> None:
    text = json.dumps(head).encode()
    pipe.write(_FRAME.pack(len(text), len(body)) + text)
    pipe.write(body)
    pipe.flush()


def _receive_head(pipe: Any) -> tuple[Any, int]:
    head, body = _FRAME.unpack(_exactly(pipe, _FRAME.size))
    return json.loads(_exactly(pipe, head)), body


def _exactly(pipe: Any, count: int) -> bytes:
    data: bytes = pipe.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _serve(module: str, name: str, time_limit: float, memory_limit: int, turns: int) -> None:
    """Be a child: answer requests until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    requests: BinaryIO = os.fdopen(os.dup(0), "rb")
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints must not come between
    function = getattr(importlib.import_module(module), name)
    for limit, value in ((resource.RLIMIT_AS, memory_limit), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # a lower limit is in force already, or there is none
            resource.setrlimit(limit, (value, value))

    def take_turns() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # waiting is no fault of this image
        fcntl.lockf(turns, fcntl.LOCK_EX)
        signal.setitimer(signal.ITIMER_REAL, time_limit * PATIENCE)

    decode.before_large_image = take_turns
    try:
        _send(answers, {}, b"")
        while True:
            arguments, size = _receive_head(requests)
            content = _exactly(requests, size)
            signal.setitimer(signal.ITIMER_PROF, time_limit)
            signal.setitimer(signal.ITIMER_REAL, time_limit * PATIENCE)
            head, body = _answer(function, content, arguments)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            fcntl.lockf(turns, fcntl.LOCK_UN)
            _send(answers, head, body)
    except (EOFError, BrokenPipeError):
        os._exit(0)
    except BaseException:  # noqa: BLE001 - at once: an interpreter takes its time to end
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
        return {"error": "ImageError", "arguments": ["too-large", "it needs more memory than a decoder may use"]}, b""

"""Convert exceptions and warnings of Pillow to `ImageError`."""

import contextlib
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from PIL import Image

from pipeline.errors import ImageError, PipelineError

# The first row that matches the exception; otherwise its text decides between "truncated" and "unreadable".
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (Image.DecompressionBombError, "too-large"),
    (Image.DecompressionBombWarning, "too-large"),
    (MemoryError, "too-large"),
    (EOFError, "truncated"),
)
_TRUNCATED = re.compile(r"truncated|incomplete", re.IGNORECASE)


class PillowErrors:
    """Convert exceptions of Pillow to `ImageError` in a ``with`` block; safe in threads.

    Inside the block, Pillow's decompression-bomb warning is an error and its other warnings are dropped. For this,
    the global ``warnings`` of Pillow's modules is replaced while any thread is in the block; other threads still
    get their warnings. ``warnings.catch_warnings`` would change the filters of all threads.

    Parameters
    ----------
    modules : iterable of module
        Modules of Pillow that decode. Those that do not import ``warnings`` are ignored.

    Examples
    --------
    >>> with PillowErrors([Image]).as_image_errors():
    ...     raise EOFError("no more bytes")
    Traceback (most recent call last):
        ...
    pipeline.errors.ImageError: truncated: EOFError: no more bytes
    """

    def __init__(self, modules: Iterable[ModuleType]) -> None:
        self._modules = [module for module in modules if "warnings" in vars(module)]
        self._warnings = _ThreadWarnings()
        self._lock = threading.Lock()
        self._inside = 0
        # Otherwise a child that is forked while another thread holds the lock could never acquire it.
        lock = self._lock
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)

    @contextlib.contextmanager
    def as_image_errors(self) -> Iterator[None]:
        """Raise an `ImageError` for any exception but `PipelineError`."""
        self._count(1)
        self._warnings.thread.decoding = True
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:
            raise _image_error(error) from error
        finally:
            self._warnings.thread.decoding = False
            self._count(-1)

    def _count(self, change: int) -> None:
        """Count the threads in the block; replace ``warnings`` for the first and restore it after the last."""
        with self._lock:
            self._inside += change
            for module in self._modules:
                vars(module)["warnings"] = self._warnings if self._inside else warnings


class _ThreadWarnings:
    """The module ``warnings``, except that `warn` behaves differently in threads that decode."""

    def __init__(self) -> None:
        self.thread = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)

    def warn(
        self,
        message: str | Warning,
        category: type[Warning] | None = None,
        stacklevel: int = 1,
        source: object = None,
    ) -> None:
        """Raise decompression bombs and drop other warnings in threads that decode; warn in others."""
        if not getattr(self.thread, "decoding", False):
            warnings.warn(message, category, stacklevel + 1, source)
        elif category is Image.DecompressionBombWarning:
            raise Image.DecompressionBombWarning(message)


def _image_error(error: Exception) -> ImageError:
    detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return ImageError(reason, detail)
    return ImageError("truncated" if _TRUNCATED.search(detail) else "unreadable", detail)

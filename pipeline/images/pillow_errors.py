"""What Pillow raises and warns about while it decodes, as `ImageError`."""

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
    """Context manager for calls into Pillow: every exception becomes an `ImageError`; safe in threads.

    Inside it, Pillow's decompression-bomb warning is an error and its other warnings are dropped. To this end
    the name ``warnings`` in Pillow's modules is replaced while at least one thread is inside; threads outside
    still get their warnings. ``warnings.catch_warnings`` would change the filters of all threads.

    Parameters
    ----------
    modules : iterable of module
        Modules of Pillow that decode. Those that do not import ``warnings`` are ignored.

    Examples
    --------
    >>> with PillowErrors([Image]).raised():
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
        # Nobody would release the lock in a child that is forked while another thread holds it.
        lock = self._lock
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Raise an `ImageError` for what Pillow raises or warns about; a `PipelineError` passes."""
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
        """Count the threads inside; replace ``warnings`` for the first and restore it after the last."""
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

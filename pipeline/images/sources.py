"""Where the bytes of an image come from: files.

>>> read_bytes("no/such/image.jpg")
Traceback (most recent call last):
    ...
pipeline.errors.ImageError: missing: 'no/such/image.jpg': No such file or directory
"""

import errno
import os
import stat

from pipeline.errors import ImageError

__all__ = ["MAX_BYTES", "read_bytes"]

MAX_BYTES: int = 2**30
"""Larger files are refused before they are read."""

_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_REASON_OF_ERRNO = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.ENAMETOOLONG: "missing",
    errno.ENXIO: "not-a-file",  # a socket, or a FIFO without a writer
    errno.ENODEV: "not-a-file",
}


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file; never block on a FIFO or a device.

    Parameters
    ----------
    path : str or os.PathLike
        The file; symbolic links are followed.

    Returns
    -------
    bytes
        The whole content, at least one byte.

    Raises
    ------
    ImageError
        With the reason ``missing``, ``not-a-file``, ``unreadable`` (permission, input/output),
        ``too-large`` (above `MAX_BYTES`) or ``empty``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b"GIF89a")
    ...     file.flush()
    ...     read_bytes(file.name)
    b'GIF89a'
    """
    name = repr(os.fspath(path))
    try:
        with open(os.open(path, _OPEN_FLAGS), "rb") as file:  # noqa: PTH123 (a descriptor)
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not-a-file", f"{name} is not a regular file")
            if status.st_size > MAX_BYTES:
                raise ImageError("too-large", f"{name} has {status.st_size} bytes, the limit is {MAX_BYTES}")
            data = file.read()
    except IsADirectoryError:
        raise ImageError("not-a-file", f"{name} is a folder") from None
    except OSError as error:
        reason = _REASON_OF_ERRNO.get(error.errno or 0, "unreadable")
        raise ImageError(reason, f"{name}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise ImageError("missing", f"{name}: {error}") from error
    if not data:
        raise ImageError("empty", f"{name} has no bytes")
    return data

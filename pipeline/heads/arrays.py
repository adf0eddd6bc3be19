"""NumPy functions that all heads share: the softmax, and arrays as bytes of a bundle."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import IntegrityError


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Return the softmax of each row of logits (n, k), in their dtype and without overflow.

    >>> softmax(np.array([[0.0, 1000.0]])).tolist()
    [[0.0, 1.0]]
    """
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def to_npz(**arrays: Any) -> bytes:
    """Return arrays as an ``.npz`` archive."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@contextlib.contextmanager
def from_npz(data: bytes, names: Sequence[str], what: str) -> Iterator[list[Any]]:
    """Yield the named arrays of an ``.npz`` archive, to a ``with`` block that uses them; nothing is unpickled.

    Raises
    ------
    IntegrityError
        If they cannot be read, or the block raises because of what they hold. `what` names them in the message.

    Examples
    --------
    >>> with from_npz(to_npz(a=1, b=2), ["b"], "the head") as (b,):
    ...     int(b)
    2
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            yield [archive[name] for name in names]
    except Exception as error:
        raise IntegrityError(f"{what} cannot be read ({error}); train the bundle again") from error

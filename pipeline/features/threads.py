"""How many threads compute: processor cores, and one for NumPy where two would wait for each other."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep the linear algebra of NumPy, and of SciPy where it is imported, to one thread a call.

    The products here are narrow, with a column for each class, and decompositions are made of thousands of small
    steps: a second thread gains little on a quiet machine, and on a busy one the two wait for each other many times
    as long as they compute. Cores are used by whole fits instead.

    Examples
    --------
    >>> from threadpoolctl import threadpool_info
    >>> import numpy
    >>> with one_blas_thread():
    ...     {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
    {1}
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

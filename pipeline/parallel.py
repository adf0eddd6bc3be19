"""How many threads compute: processor cores, and one for NumPy where two would wait for each other."""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Progress = Callable[[int, int], None]
T = TypeVar("T")
R = TypeVar("R")


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


def ahead(pool: ThreadPoolExecutor, items: Iterable[T], work: Callable[[T], R], window: int) -> Iterator[tuple[T, R]]:
    """Yield ``(item, work(item))`` in order, while threads make at most `window` results ahead."""
    queue: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            queue.append((item, pool.submit(work, item)))
            if len(queue) >= window:
                first, future = queue.popleft()
                yield first, future.result()
        while queue:
            first, future = queue.popleft()
            yield first, future.result()
    finally:
        for _, future in queue:
            future.cancel()


def in_threads(jobs: int, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Call a function in threads and yield what it returns as it comes; NumPy and scikit-learn release the lock."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    if jobs > 1:  # OpenMP would start as many threads again in each
        function = threadpool_limits.wrap(limits=1, user_api="openmp")(function)
    parallel = Parallel(n_jobs=jobs, backend="threading", pre_dispatch="n_jobs", return_as="generator_unordered")
    return iter(parallel(delayed(function)(*call) for call in calls))

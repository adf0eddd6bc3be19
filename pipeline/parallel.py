"""Threads: how many cores there are, thread pools, and limits on the threads of NumPy."""

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
    """Limit the linear algebra of NumPy, and of SciPy if it is imported, to one thread per call.

    The matrix products here are narrow, with one column per class, and decompositions consist of thousands of small
    steps: a second thread gains little on an idle machine, and on a busy one the threads mostly wait for each other.
    Whole fits run in parallel instead.

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
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(pool: ThreadPoolExecutor, items: Iterable[T], work: Callable[[T], R], window: int) -> Iterator[tuple[T, R]]:
    """Yield ``(item, work(item))`` in order, while the pool computes up to `window` results ahead."""
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
    """Call a function in threads and yield the results as they are ready (NumPy and scikit-learn release the GIL)."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    if jobs > 1:  # otherwise each thread would start as many OpenMP threads again
        function = threadpool_limits.wrap(limits=1, user_api="openmp")(function)
    parallel = Parallel(n_jobs=jobs, backend="threading", pre_dispatch="n_jobs", return_as="generator_unordered")
    return iter(parallel(delayed(function)(*call) for call in calls))

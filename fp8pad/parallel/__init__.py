"""Process shards in parallel: on threads of this process (the kernel and numpy do the work) or on a Ray cluster."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar, assert_never

from fp8pad.checkpoint.files import Advance
from fp8pad.checkpoint.options import Workers
from fp8pad.checkpoint.progress import Progress
from fp8pad.errors import OutputError
from fp8pad.parallel.cluster import SIGNAL_SECONDS, run_on_cluster

T = TypeVar("T")
R = TypeVar("R")


def run_on_workers(
    work: Callable[[T, Advance], R],
    items: Sequence[T],
    workers: Workers,
    progress: Progress,
    sent: Callable[[T, Advance], R] | None = None,
) -> list[R]:
    """Return `work(item, advance)` for each item, in order; the first error stops the others.

    Other processes call `sent` instead of `work`, if it is given; it and the items must be serializable (orders.py).
    """
    match workers.executor:
        case "local":
            return run_on_threads(work, items, workers.jobs, progress)
        case "ray":
            return run_on_cluster(sent or work, items, workers, progress) if items else []
        case _:
            assert_never(workers.executor)


class _StoppedError(Exception):
    """Raised to stop the work on a shard when another one failed."""


def run_on_threads(work: Callable[[T, Advance], R], items: Iterable[T], jobs: int, progress: Progress) -> list[R]:
    """Return `work(item, advance)` for each item, in order, `jobs` at a time; the first error stops the others."""
    stop = Event()

    def advance(num_bytes: int) -> None:
        if stop.is_set():
            raise _StoppedError
        progress.advance(num_bytes)

    def work_on(item: T) -> R:
        result = work(item, advance)
        progress.finish_file()
        return result

    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        try:
            futures = [_submitted(pool, work_on, item) for item in items]
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, timeout=SIGNAL_SECONDS, return_when=FIRST_EXCEPTION)
                for future in futures:  # of several errors at the same time, raise that of the first item
                    if future in finished:
                        future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _submitted(pool: ThreadPoolExecutor, work_on: Callable[[T], R], item: T) -> Future[R]:
    """Submit an item to the pool, which starts a thread for it if there are fewer than `jobs`."""
    try:
        return pool.submit(work_on, item)
    except RuntimeError as error:  # too many processes, or not enough memory
        raise OutputError(f"{error}; use fewer --jobs") from error

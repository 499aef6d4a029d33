"""Where shards are worked on: threads of this process, since the kernel and numpy do the work."""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

from fp8pad.checkpoint.progress import Progress

T = TypeVar("T")
R = TypeVar("R")


class _StoppedError(Exception):
    """Another shard failed, so this one is given up."""


def run_all(
    work: Callable[[T, Callable[[int], None]], R], items: Iterable[T], jobs: int, progress: Progress
) -> list[R]:
    """Return `work(item, advance)` of each item, in order, `jobs` at a time; the first error stops the others."""
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
        futures = [pool.submit(work_on, item) for item in items]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]

"""Working on several shards at once: results in order, and the first error stops the others."""

import threading
import time
from collections.abc import Callable

import pytest

from fp8pad.checkpoint.progress import Progress
from fp8pad.errors import OutputError
from fp8pad.parallel import run_all


class Counter(Progress):
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.num_bytes, self._lock = 0, threading.Lock()

    def advance(self, num_bytes: int) -> None:
        """Add."""
        with self._lock:
            self.num_bytes += num_bytes


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_results_are_in_the_order_of_the_items(jobs: int) -> None:
    """Whichever is done first; progress hears of all."""
    counter = Counter()

    def work(item: int, advance: Callable[[int], None]) -> int:
        time.sleep(0.002 * (5 - item))
        advance(item)
        return item * item

    assert run_all(work, range(5), jobs, counter) == [0, 1, 4, 9, 16]
    assert counter.num_bytes == 10


@pytest.mark.parametrize("error", [OutputError("full"), KeyboardInterrupt()])
def test_an_error_stops_what_is_still_running(error: BaseException) -> None:
    """Others stop the next time they report progress, and what has not begun never does."""
    begun: list[int] = []

    def work(item: int, advance: Callable[[int], None]) -> None:
        begun.append(item)
        if item == 1:
            raise error
        for _ in range(3000):
            time.sleep(0.01)
            advance(1)
        pytest.fail("it was not stopped")

    with pytest.raises(type(error)):
        run_all(work, range(50), 2, Progress())
    assert len(begun) < 10


def test_no_items_are_no_work() -> None:
    """A checkpoint may have no files beside its shards."""
    assert run_all(lambda item, _: item, [], 2, Progress()) == []

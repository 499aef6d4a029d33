"""Work that tests send to workers, in a module of its own that workers import."""

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fp8pad.checkpoint.progress import Progress
from fp8pad.errors import OutputError
from fp8pad.parallel import orders


@dataclass(frozen=True)
class Square:
    """Squares numbers, slowly; records where it runs in `folder`."""

    folder: str
    seconds: float = 0.0

    def __call__(self, item: int, advance: Callable[[int], None]) -> int:
        """Return the square."""
        (Path(self.folder) / f"{item}-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.seconds)
        advance(item)
        return item * item


@dataclass(frozen=True)
class Dies:
    """Is killed, like a process out of memory, at item 2 in its first `times` attempts."""

    folder: str
    times: int

    def __call__(self, item: int, advance: Callable[[int], None]) -> int:
        """Return the item, or die."""
        attempts = len(list(Path(self.folder).glob("attempt-*")))
        if item == 2 and attempts < self.times:
            (Path(self.folder) / f"attempt-{attempts}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        advance(1)
        return item


@dataclass(frozen=True)
class Fails:
    """Fails at item 1."""

    def __call__(self, item: int, advance: Callable[[int], None]) -> int:
        """Return the item, or raise."""
        advance(1)
        if item == 1:
            cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise OutputError(f"item 1: {cause.strerror}") from cause
        time.sleep(60)
        return item


def run_sent(work: object, items: list[object], _workers: object, progress: Progress) -> list[object]:
    """Do what `run_on_cluster` does, without a cluster: everything is serialized as for one."""
    results: list[object] = []
    for item in items:
        answer = orders.perform(orders.work_to_text(work), orders.to_text(item))
        results.append(orders.result_of(work, answer))
        progress.advance(answer["num_bytes"])
    return results

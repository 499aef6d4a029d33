"""What tests let the workers of a Ray cluster do; in a module of its own, which they import."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fp8pad.errors import OutputError


@dataclass(frozen=True)
class Square:
    """Squares numbers, slowly; notes where it runs in `folder`."""

    folder: Path
    seconds: float = 0.0

    def __call__(self, item: int, advance: Callable[[int], None]) -> int:
        """Return the square."""
        (self.folder / f"{item}-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.seconds)
        advance(item)
        return item * item


@dataclass(frozen=True)
class Dies:
    """Is killed as for want of memory, at item 2, the first `times` that it is worked on."""

    folder: Path
    times: int

    def __call__(self, item: int, advance: Callable[[int], None]) -> int:
        """Return the item, or die."""
        attempts = len(list(self.folder.glob("attempt-*")))
        if item == 2 and attempts < self.times:
            (self.folder / f"attempt-{attempts}").touch()
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
            raise OutputError("item 1: cannot be written: No space left on device")
        time.sleep(60)
        return item

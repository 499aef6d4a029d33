"""How far the work is, on stderr: a bar on a terminal, now and then a line otherwise."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from fp8pad.checkpoint.progress import Progress
from fp8pad.text import printable

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Yield the `Progress` that suits where stderr goes."""
    if not sys.stderr.isatty():
        yield LineProgress()
        return
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, expand=True) as bars:
        yield BarProgress(bars)


class BarProgress:
    """One bar for each step, with bytes per second and the time left."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, label: str, total_bytes: int) -> None:
        """Add the bar of a step."""
        self._task = self._bars.add_task(printable(label), total=total_bytes)

    def advance(self, num_bytes: int) -> None:
        """Move the bar of the last step on."""
        if self._task is not None:
            self._bars.advance(self._task, num_bytes)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(printable(line))


class LineProgress:
    """A line when a step begins, and one every ten seconds while it lasts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._label, self._total_bytes, self._done_bytes = "", 0, 0
        self._began = self._last_line = time.monotonic()

    def start(self, label: str, total_bytes: int) -> None:
        """Name the step and its bytes."""
        with self._lock:
            self._label, self._total_bytes, self._done_bytes = label, total_bytes, 0
            self._began = self._last_line = time.monotonic()
        self.say(f"{label}: {decimal(total_bytes)}")

    def advance(self, num_bytes: int) -> None:
        """Count, and print a line if the last one is long ago."""
        with self._lock:
            self._done_bytes += num_bytes
            now = time.monotonic()
            if now - self._last_line < SECONDS_BETWEEN_LINES:
                return
            self._last_line = now
            line = self._line(now - self._began)
        self.say(line)

    def say(self, line: str) -> None:
        """Print a line."""
        sys.stderr.write(printable(line) + "\n")

    def _line(self, seconds: float) -> str:
        speed = self._done_bytes / seconds
        share = self._done_bytes / self._total_bytes if self._total_bytes else 1.0
        seconds_left = max(0, self._total_bytes - self._done_bytes) / speed if speed else 0.0
        return (
            f"{self._label}: {decimal(self._done_bytes)} of {decimal(self._total_bytes)} ({share:.0%}),"
            f" {decimal(int(speed))}/s, {seconds_left:.0f} s left"
        )

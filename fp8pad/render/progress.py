"""Progress on stderr: a bar on a terminal, otherwise a line every ten seconds."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column

from fp8pad.checkpoint.progress import Progress
from fp8pad.text import printable, size

SECONDS_BETWEEN_LINES = 10.0
# Terminal columns that a bar needs, and that a bar with files and elapsed time needs.
MEDIUM, WIDE = 72, 110


@contextmanager
def shown_progress(quiet: bool = False) -> Iterator[Progress]:
    """Yield the `Progress` for a terminal or another stderr; a silent one if `quiet`."""
    if quiet:
        yield Progress()
    elif sys.stderr.isatty():
        with _bar() as bar:
            yield BarProgress(bar)
    else:
        yield LineProgress()


def _bar() -> Bar:
    plain = bool(os.environ.get("NO_COLOR"))
    console = Console(stderr=True, color_system=None if plain else "auto", markup=False, highlight=False, emoji=False)
    return Bar(*_measured(console.width), console=console, expand=True)


def _measured(width: int) -> tuple[ProgressColumn, ...]:
    """Return the columns for a step whose number of bytes is known: as many as fit into `width`."""
    one_line: dict[str, Any] = {"table_column": Column(no_wrap=True, overflow="ellipsis")}
    label = TextColumn("{task.description}", markup=False, **one_line)
    bytes_done, left = DownloadColumn(**one_line), TimeRemainingColumn(**one_line)
    if width < MEDIUM:
        return label, bytes_done, left
    bar, speed = BarColumn(bar_width=None), TransferSpeedColumn(**one_line)
    if width < WIDE:
        return label, bar, bytes_done, speed, left
    files = TextColumn("{task.fields[files]}", markup=False, **one_line)
    return label, bar, files, bytes_done, speed, TimeElapsedColumn(**one_line), left


def _unmeasured() -> tuple[ProgressColumn, ...]:
    """Return the columns for a step that has only lines to show."""
    no_wrap = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    line = TextColumn("{task.description}", style="dim", markup=False, table_column=no_wrap)
    return SpinnerColumn(), line, TimeElapsedColumn()


class BarProgress(Progress):
    """One bar for the current step: files done, bytes, bytes per second, elapsed and remaining time.

    For a step that has only lines to show: the last line, and the elapsed time.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._lock = threading.Lock()
        self._task: TaskID | None = None
        self._files_done = self._num_files = 0

    def start(self, label: str, total_bytes: int, num_files: int = 0) -> None:
        """Replace the previous step's bar with a new one."""
        self._files_done, self._num_files = 0, num_files
        self._begin(label, total_bytes, _measured(self._bar.console.width))

    def _begin(self, label: str, total_bytes: int | None, columns: tuple[ProgressColumn, ...]) -> TaskID:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._bar.columns = columns
        self._task = self._bar.add_task(printable(label), total=total_bytes, files=_files(0, self._num_files))
        return self._task

    def advance(self, num_bytes: int) -> None:
        """Advance the bar."""
        if self._task is not None:
            self._bar.advance(self._task, num_bytes)

    def finish_file(self) -> None:
        """Count a file."""
        with self._lock:
            self._files_done += 1
        if self._task is not None:
            self._bar.update(self._task, files=_files(self._files_done, self._num_files))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(printable(line))

    def show(self, line: str) -> None:
        """Replace the last line."""
        task = self._begin(line, None, _unmeasured()) if self._task is None else self._task
        self._bar.update(task, description=printable(line))


def _files(done: int, total: int) -> str:
    return f"{min(done, total)} of {total} files" if total else ""


class LineProgress(Progress):
    """A line when a step begins, and one every ten seconds while it lasts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._label, self._total_bytes, self._done_bytes = "", 0, 0
        self._began = self._last_line = time.monotonic()

    def start(self, label: str, total_bytes: int, num_files: int = 0) -> None:  # noqa: ARG002
        """Print the step and its number of bytes."""
        with self._lock:
            self._label, self._total_bytes, self._done_bytes = label, total_bytes, 0
            self._began = self._last_line = time.monotonic()
        self.say(f"{label}: {size(total_bytes)}")

    def advance(self, num_bytes: int) -> None:
        """Count bytes, and print a line if the last one is ten seconds old."""
        with self._lock:
            self._done_bytes += num_bytes
            is_due = self._is_due()
        if is_due:
            self.say(self._line(self._last_line - self._began))

    def say(self, line: str) -> None:
        """Print a line; errors are ignored, since stderr may be a file on a full disk."""
        with suppress(OSError):
            sys.stderr.write(printable(line) + "\n")

    def show(self, line: str) -> None:
        """Print a line if the last one is ten seconds old."""
        if self._is_due():
            self.say(f"  {line}")

    def _is_due(self) -> bool:
        """Return whether the last line is ten seconds old; if so, count the ten seconds from now."""
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True

    def _line(self, seconds: float) -> str:
        speed = self._done_bytes / seconds
        share = self._done_bytes / self._total_bytes if self._total_bytes else 1.0
        seconds_left = max(0, self._total_bytes - self._done_bytes) / speed if speed else 0.0
        return (
            f"{self._label}: {size(self._done_bytes)} of {size(self._total_bytes)} ({share:.0%}),"
            f" {size(int(speed))}/s, {seconds_left:.0f} s left"
        )

"""How long-running work reports its progress."""

import threading
from collections.abc import Callable
from typing import TypeAlias

# Called with the name of the step, the bytes done and the total bytes; from several threads, one at a time.
ProgressCallback: TypeAlias = Callable[[str, int, int], object]


class Progress:
    """Receives progress from several threads at once; this class ignores it, and subclasses override what they show."""

    def start(self, label: str, total_bytes: int, num_files: int = 0) -> None:
        """Begin a step called `label`, which will move or compare `total_bytes` bytes of `num_files` files."""

    def advance(self, num_bytes: int) -> None:
        """Add `num_bytes` to the bytes that are done."""

    def finish_file(self) -> None:
        """Count one more finished file."""

    def say(self, line: str) -> None:
        """Show a line to the user."""

    def show(self, line: str) -> None:
        """Show what is being done in a step of unknown length; the next such line replaces this one."""


class _Callback(Progress):
    """Passes progress to a function; lines for people are dropped."""

    def __init__(self, callback: ProgressCallback) -> None:
        self._callback, self._lock = callback, threading.Lock()
        self._label, self._done, self._total = "", 0, 0

    def start(self, label: str, total_bytes: int, num_files: int = 0) -> None:  # noqa: ARG002
        self._label, self._done, self._total = label, 0, total_bytes
        self._callback(label, 0, total_bytes)

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            self._callback(self._label, self._done, self._total)


def progress_of(told: Progress | ProgressCallback | None) -> Progress:
    """Return a `Progress` that calls the given function, or ignores everything; a `Progress` is returned as it is."""
    if told is None:
        return Progress()
    return _Callback(told) if callable(told) else told

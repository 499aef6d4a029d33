"""How long-running work reports its progress."""

import threading
from collections.abc import Callable
from typing import TypeAlias

# Told what is being done, how many bytes of it are done, and how many there are; from several threads, one at a time.
ProgressCallback: TypeAlias = Callable[[str, int, int], object]


class Progress:
    """Told of every step, by several threads at once; this one says nothing, and others say what they override."""

    def start(self, label: str, total_bytes: int, num_files: int = 0) -> None:
        """A step called `label` begins, which will move or compare `total_bytes` bytes of `num_files` files."""

    def advance(self, num_bytes: int) -> None:
        """That many bytes more are done."""

    def finish_file(self) -> None:
        """One file more is done."""

    def say(self, line: str) -> None:
        """A line for the user."""

    def show(self, line: str) -> None:
        """What is being done right now, in a step whose length is not known; the next such line replaces it."""


class _Callback(Progress):
    """Tells a function; lines for people are not told."""

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
    """Return what reports to a function, or to nobody; a `Progress` as it is."""
    if told is None:
        return Progress()
    return _Callback(told) if callable(told) else told

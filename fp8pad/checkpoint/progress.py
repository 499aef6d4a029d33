"""How long-running work reports its progress."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Told of every step; called from several threads at once."""

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


class Silence:
    """A `Progress` that says nothing."""

    def start(self, label: str, total_bytes: int, num_files: int = 0) -> None:
        """Say nothing."""

    def advance(self, num_bytes: int) -> None:
        """Say nothing."""

    def finish_file(self) -> None:
        """Say nothing."""

    def say(self, line: str) -> None:
        """Say nothing."""

    def show(self, line: str) -> None:
        """Say nothing."""

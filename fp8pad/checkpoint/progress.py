"""How long-running work reports its progress."""


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

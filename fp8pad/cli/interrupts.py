"""Interrupts: SIGTERM and SIGHUP are handled like Ctrl-C, and a line says what is left and how to resume."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from fp8pad.text import printable


class Terminated(KeyboardInterrupt):
    """A signal other than SIGINT asked the process to end."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal interrupt the work inside, print a line, and exit with 128 plus its number, as shells report it."""
    received = [signal.SIGINT]

    def terminate(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        raise Terminated

    with _handled(terminate):
        try:
            yield
        except KeyboardInterrupt as interrupt:
            typer.echo(printable("; ".join(["interrupted", *getattr(interrupt, "__notes__", ())])), err=True)
            raise typer.Exit(128 + received[-1]) from interrupt


@contextmanager
def _handled(handler: "signal._HANDLER") -> Iterator[None]:
    """Handle SIGTERM and SIGHUP, unless the parent process set its own handling, as `nohup` does."""
    wanted = [signal.SIGTERM, signal.SIGHUP] if threading.current_thread() is threading.main_thread() else []
    replaced = [number for number in wanted if signal.getsignal(number) == signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)

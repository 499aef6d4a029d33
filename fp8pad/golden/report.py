"""What the terminal shows of a golden run: how far it is, on stderr, and its result, on stdout."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from fp8pad.golden.compare import Comparison
from fp8pad.golden.document import GoldenDocument
from fp8pad.golden.engines import Progress
from fp8pad.text import printable

MOST_DIFFERENCES = 10
_WIDE = 100_000  # columns, where nobody counts them
_QUIET_SECONDS = 15  # between two lines about one engine, where lines stay: the log of a CI job


class _Lines:
    """Progress as plain lines."""

    def __init__(self) -> None:
        self.spoke_at = time.monotonic()

    def say(self, line: str) -> None:
        sys.stderr.write(f"{printable(line)}\n")
        self.spoke_at = time.monotonic()

    def show(self, line: str) -> None:
        if time.monotonic() - self.spoke_at >= _QUIET_SECONDS:
            self.say(f"  {line}")


class _Spinner:
    """Progress as one line that changes."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def say(self, line: str) -> None:
        self.status.console.print(Text(printable(line)))

    def show(self, line: str) -> None:
        self.status.update(Text(printable(line), style="dim", no_wrap=True, overflow="ellipsis"))


@contextmanager
def golden_progress() -> Iterator[Progress]:
    """Show progress on stderr: a line that changes on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with Console(stderr=True).status("") as status:
        yield _Spinner(status)


def show_recording(golden: GoldenDocument, file: str) -> None:
    """Print what was recorded, in a line."""
    num_tokens = sum(len(answer.token_ids) for answer in golden.answers)
    where = f"{golden.settings.engine} {golden.environment.engine_version}, {golden.settings.mode}"
    sys.stdout.write(
        printable(f"{file}: {len(golden.answers)} answers, {num_tokens} tokens, of {golden.model} on {where}") + "\n"
    )


def show_comparison(comparison: Comparison, as_json: bool = False) -> None:
    """Print the warnings, a table of the first differences, and the result."""
    for warning in comparison.warnings:
        sys.stderr.write(f"warning: {printable(warning)}\n")
    if as_json:
        sys.stdout.write(json.dumps(comparison.to_json(), indent=2) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDE, markup=False, highlight=False, emoji=False)
    if not comparison.ok:
        console.print(_differences(comparison))
    console.print(Text(_headline(comparison), style="bold green" if comparison.ok else "bold red"))


def _differences(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False)
    for header in ("prompt", "tokens", "step", "what", "expected", "got", "largest"):
        table.add_column(header, overflow="fold")
    for result in comparison.differing[:MOST_DIFFERENCES]:
        if difference := result.difference:
            where = (str(result.prompt), str(result.num_prompt_tokens), str(difference.step), difference.kind)
            table.add_row(*where, difference.expected, difference.got, f"{result.max_abs_difference:.3g}")
    if len(comparison.differing) > MOST_DIFFERENCES:
        table.add_row(f"... and {len(comparison.differing) - MOST_DIFFERENCES} more")
    return table


def _headline(comparison: Comparison) -> str:
    total = len(comparison.prompts)
    bits = f"{comparison.num_identical} of {total} answers equal to the last bit"
    largest = f"largest difference of logprobs {comparison.max_abs_difference:.3g}, allowed {comparison.atol:.3g}"
    verdict = "answers as recorded" if comparison.ok else f"{len(comparison.differing)} of {total} answers differ"
    return printable(f"{comparison.model}: {verdict}; {bits}; {largest}")

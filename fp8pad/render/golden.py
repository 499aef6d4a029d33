"""What the terminal shows of a golden run: how far it is, on stderr, and its result, on stdout."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.status import Status
from rich.text import Text

from fp8pad.golden.compare import Comparison
from fp8pad.golden.document import GoldenDocument
from fp8pad.golden.engines import Progress
from fp8pad.render.console import Fact, command, print_json, stdout_console
from fp8pad.render.screen import Row, Screen
from fp8pad.text import printable

MOST_DIFFERENCES = 10
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


def show_recording(golden: GoldenDocument, file: Path) -> None:
    """Print what was recorded."""
    num_tokens = sum(len(answer.token_ids) for answer in golden.answers)
    where = f"{golden.settings.engine} {golden.environment.engine_version}, {golden.settings.mode}"
    verdict = f"{len(golden.answers)} outputs, {num_tokens} tokens, of {golden.model} on {where}"
    screen = Screen()
    screen.paragraph(Text(printable(f"{file}: {verdict}"), style="bold"))
    screen.section("Next, to compare the outputs of another model")
    screen.command(command("golden", "check", "CONVERTED_MODEL", file))
    screen.show(stdout_console())


def show_comparison(comparison: Comparison, as_json: bool = False) -> None:
    """Print the warnings, the result, and a table of the first differences."""
    for warning in comparison.warnings:
        sys.stderr.write(f"warning: {printable(warning)}\n")
    if as_json:
        print_json(comparison.to_json())
        return
    total = len(comparison.prompts)
    verdict = (
        "the same outputs as recorded" if comparison.ok else f"{len(comparison.differing)} of {total} outputs differ"
    )
    screen = Screen()
    screen.paragraph(
        Text(printable(f"{comparison.model}: {verdict}"), style="bold green" if comparison.ok else "bold red")
    )
    screen.rows(_facts(comparison))
    screen.rows(_differences(comparison), header=("prompt", "its tokens", "step", "what", "expected", "got"))
    if len(comparison.differing) > MOST_DIFFERENCES:
        screen.paragraph(f"and {len(comparison.differing) - MOST_DIFFERENCES} more", 2)
    screen.show(stdout_console())


def _facts(comparison: Comparison) -> list[Fact]:
    num_compared = sum(result.num_compared for result in comparison.prompts)
    return [
        ("equal", f"{comparison.num_identical} of {len(comparison.prompts)} outputs are bitwise equal"),
        (
            "tokens",
            f"{num_compared} of {comparison.num_tokens} compared: those up to the first difference in each output",
        ),
        ("logprobs", f"differ by {comparison.max_abs_difference:.3g} at most; {comparison.atol:.3g} is allowed"),
    ]


def _differences(comparison: Comparison) -> Iterator[Row]:
    for result in comparison.differing[:MOST_DIFFERENCES]:
        if difference := result.difference:
            where = (str(result.prompt), str(result.num_prompt_tokens), str(difference.step), difference.kind)
            yield *where, difference.expected, difference.got

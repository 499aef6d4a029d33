"""How the terminal shows the result of a golden run."""

from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from fp8pad.golden.compare import Comparison
from fp8pad.golden.document import GoldenDocument
from fp8pad.render.console import command
from fp8pad.render.screen import Command, Paragraph, Row, Rows, Screen, Section
from fp8pad.text import counted, printable

MOST_DIFFERENCES = 10


def recording_screen(golden: GoldenDocument, file: Path) -> Screen:
    """Lay out what was recorded."""
    num_tokens = sum(len(answer.token_ids) for answer in golden.answers)
    where = f"{golden.settings.engine} {golden.environment.engine_version}, {golden.settings.mode}"
    verdict = f"{counted(len(golden.answers), 'output')}, {counted(num_tokens, 'token')}, of {golden.model} on {where}"
    yield Paragraph(Text(printable(f"{file}: {verdict}"), style="bold"))
    yield Section("Next, to compare the outputs of another model")
    yield Command(command("golden", "check", "CONVERTED_MODEL", file))


def comparison_screen(comparison: Comparison) -> Screen:
    """Lay out the result, and a table of the first differences."""
    total, num_differing = len(comparison.prompts), len(comparison.differing)
    said = "the same outputs as recorded" if comparison.ok else f"{num_differing} of {total} outputs differ"
    num_compared = sum(result.num_compared for result in comparison.prompts)
    compared = f"{num_compared} of {comparison.num_tokens} compared: those up to the first difference in each output"
    deltas = f"differ by {comparison.max_abs_difference:.3g} at most; {comparison.atol:.3g} is allowed"
    style = "bold green" if comparison.ok else "bold red"
    yield Paragraph(Text(printable(f"{comparison.model}: {said}"), style=style))
    equal = f"{comparison.num_identical} of {total} outputs are bitwise equal"
    yield Rows([("equal", equal), ("tokens", compared), ("logprobs", deltas)])
    yield Rows([*_differences(comparison)], ("prompt", "its tokens", "step", "what", "expected", "got"))
    if num_differing > MOST_DIFFERENCES:
        yield Paragraph(f"and {num_differing - MOST_DIFFERENCES} more", 2)


def _differences(comparison: Comparison) -> Iterator[Row]:
    for result in comparison.differing[:MOST_DIFFERENCES]:
        if difference := result.difference:
            where = (str(result.prompt), str(result.num_prompt_tokens), str(difference.step), difference.kind)
            yield *where, difference.expected, difference.got

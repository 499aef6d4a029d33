"""`fp8pad golden`: record a model's outputs, check another's against them, or both at once."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fp8pad.cli import options
from fp8pad.cli.files import check_writable, write_text
from fp8pad.cli.signatures import takes, those_of
from fp8pad.errors import GoldenError
from fp8pad.golden.request import CheckOptions, RecordOptions
from fp8pad.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from fp8pad.checkpoint.progress import Progress
    from fp8pad.golden.compare import Comparison


@takes(RecordOptions, options.RECORD)
def record(model: options.GoldenModelArgument, *, output: options.GoldenOutOption, **asked: Any) -> None:
    """Write the outputs of a model to a file."""
    from fp8pad.golden import runs
    from fp8pad.render.console import stdout_console
    from fp8pad.render.golden import recording_screen
    from fp8pad.render.progress import shown_progress
    from fp8pad.render.terminal import write

    check_writable(output)
    with shown_progress() as progress:
        golden = runs.record(model, RecordOptions(**asked), progress)
    write_text(output, golden.to_text())
    write(recording_screen(golden, output), stdout_console())


@takes(CheckOptions, options.CHECK)
def check(
    model: options.GoldenModelArgument,
    file: options.GoldenArgument,
    *,
    junit: options.JunitOption = None,
    as_json: options.JsonOption = False,
    **asked: Any,
) -> None:
    """Compare outputs of a model with a file."""
    from fp8pad.golden import runs

    checking = CheckOptions(**asked)
    _compared(lambda progress: runs.check(model, runs.read_golden(file), checking, progress), as_json, junit)


@takes(RecordOptions, options.RECORD)
@takes(CheckOptions, options.COMPARE)
def compare(
    model_a: options.RecordedModelArgument,
    model_b: options.CheckedModelArgument,
    *,
    junit: options.JunitOption = None,
    as_json: options.JsonOption = False,
    **asked: Any,
) -> None:
    """Compare outputs of two models."""
    from fp8pad.golden import runs

    recording = RecordOptions(**those_of(RecordOptions, asked))
    checking = CheckOptions(**those_of(CheckOptions, asked))
    _compared(lambda progress: runs.compare(model_a, model_b, recording, checking, progress), as_json, junit)


def _compared(run: "Callable[[Progress], Comparison]", as_json: bool, junit: Path | None) -> None:
    """Run a comparison, show the result, write it for CI, and set the exit status."""
    from fp8pad.golden.junit import to_junit
    from fp8pad.render.golden import comparison_screen
    from fp8pad.render.progress import shown_progress
    from fp8pad.render.terminal import show

    if junit:
        check_writable(junit)
    with shown_progress() as progress:
        comparison = run(progress)
    for warning in comparison.warnings:
        typer.echo(f"warning: {printable(warning)}", err=True)
    show(comparison, comparison_screen, as_json)
    if junit:
        write_text(junit, to_junit(comparison))
    if not comparison.ok:
        raise typer.Exit(GoldenError.exit_status)

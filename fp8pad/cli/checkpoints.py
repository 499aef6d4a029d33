"""`fp8pad plan`, `convert`, `verify`, `unpad`, `push` and `inspect`: parse, call one function, show its result.

A command has the options of the library function with the same name. It imports what it needs when it runs, so that
`fp8pad --help` loads neither numpy nor rich.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from fp8pad import library
from fp8pad.cli import options
from fp8pad.cli.files import check_writable, write_text
from fp8pad.cli.signatures import takes, those_of
from fp8pad.errors import NotServedError, PlanError, RecordError, VerifyError
from fp8pad.text import printable

if TYPE_CHECKING:
    from fp8pad.planned import PlanReport
    from fp8pad.render.screen import Screen
    from fp8pad.render.terminal import Report

Found = TypeVar("Found", bound="Report")


@takes(library.plan, options.CHECKPOINT)
def plan(
    model: options.ModelArgument,
    *,
    check: options.CheckOption = False,
    show_all: options.AllOption = False,
    html: options.HtmlOption = None,
    as_json: options.JsonOption = False,
    **asked: Any,
) -> None:
    """Show what converting would change, and the cost.

    Reads only headers and config.json, and writes nothing.
    """
    from fp8pad.render.plan import plan_screen
    from fp8pad.render.terminal import show

    if html:
        check_writable(html)

    def show_plan(report: "PlanReport") -> None:
        show(report, partial(plan_screen, show_all=show_all), as_json)
        if html:
            from fp8pad.render.html import plan_page

            write_text(html, plan_page(report))
            typer.echo(f"{printable(str(html))}: written", err=True)

    with _shows_refused_plan(show_plan):
        report = library.plan(model, **asked)
    show_plan(report)
    if check:
        report.judge.check_served()


@takes(library.convert, options.CHECKPOINT)
def convert(
    model: options.ModelArgument,
    out_dir: options.OutDirArgument,
    *,
    shards: options.ShardsOption = None,
    dry_run: options.DryRunOption = False,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
    **asked: Any,
) -> None:
    """Pad a checkpoint and verify the result.

    OUT_DIR appears only when it is complete and verified.
    """
    from fp8pad.planning.comparison import check_worth_converting
    from fp8pad.render.console import command, words_of
    from fp8pad.render.plan import not_understood_facts, plan_screen
    from fp8pad.render.reports import conversion_screen, slice_screen
    from fp8pad.render.terminal import show

    _check_together(shards, dry_run, asked)
    options_of_next = ["--overwrite"] if asked["overwrite"] else []
    screen = partial(plan_screen, out_dir=out_dir, options=options_of_next)
    show_plan = partial(show, screen_of=screen, as_json=as_json, quiet=quiet)
    finished = f"{out_dir} is complete" if shards is None else "the shards are finished"
    run = partial(_run, quiet=quiet, as_json=as_json, done=finished)
    with _shows_refused_plan(show_plan):
        if dry_run:
            planned = library.plan(model, **those_of(library.plan, asked))
            show_plan(planned)
            if not asked["force"]:
                check_worth_converting(planned.judge)
        elif shards is None:
            done = run(library.convert, model, out_dir, screen=conversion_screen, **asked)
            if (quiet or as_json) and (facts := list(not_understood_facts(done.plan))):  # the summary has them, too
                first = done.plan.not_understood[0][0]
                typer.echo(printable(f"warning: {facts[0][1]}, the first: {first}"), err=True)
        else:
            chosen = those_of(library.convert_shards, asked)
            finish = command("convert", model, out_dir, *words_of(library.convert, asked), "--finish")
            written = partial(slice_screen, finish=finish)
            run(library.convert_shards, model, out_dir, shards, screen=written, **chosen)


@contextmanager
def _shows_refused_plan(show_plan: "Callable[[PlanReport], None]") -> Iterator[None]:
    """Show the plan that an error has."""
    try:
        yield
    except (PlanError, NotServedError) as error:
        if error.report:
            show_plan(error.report)
        raise


def _check_together(shards: range | None, dry_run: bool, asked: Mapping[str, Any]) -> None:
    """Refuse, together with `shards`, what `convert_shards` does not take and would be ignored."""
    from fp8pad.render.console import words_of

    kept = those_of(library.convert_shards, asked)
    lost = [*words_of(library.convert, {name: asked[name] for name in asked.keys() - kept}), *["--dry-run"] * dry_run]
    if shards is not None and lost:
        raise typer.BadParameter(f"--shards cannot be combined with {' '.join(lost)}")


def _run(
    function: Callable[..., Found],
    *arguments: Any,
    screen: "Callable[[Found], Screen]",
    quiet: bool,
    as_json: bool,
    done: str = "",
    **asked: Any,
) -> Found:
    """Call a function of the library, and show its progress and then its report; for `done`, see `show`."""
    from fp8pad.render.progress import shown_progress
    from fp8pad.render.terminal import show

    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # huggingface_hub shows its own, and reads this once
    with shown_progress(quiet) as progress:
        report = function(*arguments, progress=progress, **asked)
    show(report, screen, as_json, quiet, done)
    return report


@takes(library.verify, options.CHECKPOINT)
def verify(
    folders: options.VerifyArguments,
    *,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
    **asked: Any,
) -> None:
    """Compare a converted checkpoint with its records and its source.

    OUT_DIR alone is checked against its own records; with MODEL, every byte is compared with it.
    """
    from fp8pad.render.reports import verification_screen

    if len(folders) > 2:
        raise typer.BadParameter("expected OUT_DIR, or MODEL and OUT_DIR")
    report = _run(library.verify, *folders, screen=verification_screen, quiet=quiet, as_json=as_json, **asked)
    if not report.ok:
        raise VerifyError(_first_of(folders[-1], report.mismatches, "mismatch", "mismatches", report.is_complete))


@takes(library.unpad, options.CHECKPOINT)
def unpad(
    out_dir: options.OutDirArgument,
    restored_dir: options.RestoredDirArgument,
    *,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
    **asked: Any,
) -> None:
    """Restore the original, byte for byte."""
    from fp8pad.render.reports import restoration_screen

    run = partial(_run, quiet=quiet, as_json=as_json, done=f"{restored_dir} is complete")
    run(library.unpad, out_dir, restored_dir, screen=restoration_screen, **asked)


@takes(library.push, options.PUSH)
def push(
    out_dir: options.OutDirArgument,
    repo: options.RepoArgument,
    *,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
    **asked: Any,
) -> None:
    """Upload a converted checkpoint to the hub.

    It is verified first, and its model card has to say what was changed.
    """
    from fp8pad.render.reports import push_screen

    run = partial(_run, quiet=quiet, as_json=as_json, done=f"{out_dir} is pushed")
    run(library.push, out_dir, repo, screen=push_screen, **asked)


def inspect(path: options.ConvertedArgument, *, as_json: options.JsonOption = False) -> None:
    """Show what was done to a checkpoint.

    Reports records that are inconsistent.
    """
    from fp8pad.render.inspection import inspection_screen
    from fp8pad.render.terminal import show

    inspection = library.inspect(path)
    show(inspection, inspection_screen, as_json)
    if inspection.disagreements:
        raise RecordError(_first_of(path, inspection.disagreements, "disagreement", "disagreements"))


def _first_of(path: Path | str, found: Sequence[object], one: str, many: str, is_complete: bool = True) -> str:
    count = f"{len(found)} {one if len(found) == 1 else many}"
    return f"{path}: {count if is_complete else f'at least {count}'}, the first: {found[0]}"

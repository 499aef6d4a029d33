"""`fp8pad plan`, `convert`, `verify`, `unpad` and `inspect`: parse, call one function, render.

What a command needs is imported when it runs, so that `fp8pad --help` loads neither numpy nor rich's tables.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fp8pad.checkpoint.options import DEFAULT_JOBS, WriteOptions
from fp8pad.cli import options
from fp8pad.cli.interrupts import interruptible
from fp8pad.errors import NotServedError, RecordError, VerifyError

if TYPE_CHECKING:
    from fp8pad.checkpoint.checkpoint import Checkpoint
    from fp8pad.planning.engines import Engine
    from fp8pad.planning.plan import CheckpointPlan


def plan(
    model: options.ModelArgument,
    *,
    tensor_parallel_size: options.TensorParallelSizeOption = 1,
    alignment: options.AlignmentOption = "auto",
    absorb: options.AbsorbOption = False,
    absorb_experts: options.AbsorbExpertsOption = False,
    skip: options.SkipOption = None,
    strict: options.StrictOption = False,
    follow_links: options.FollowLinksOption = False,
    engine: options.PlanEngineOption = None,
    check: options.CheckOption = False,
    show_all: options.AllOption = False,
    html: options.HtmlOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show what converting would change, and the cost.

    Reads headers and config.json alone, and writes nothing.
    """
    from fp8pad.library import plan as plan_checkpoint
    from fp8pad.planning import check_understood
    from fp8pad.planning.engines import find_engine
    from fp8pad.render.plan import show_plan

    chosen = find_engine(engine)
    report = plan_checkpoint(
        model,
        engine=engine,
        follow_links=follow_links,
        **_policy(tensor_parallel_size, alignment, absorb, absorb_experts, skip),
    )
    show_plan(report.source, report.plan, chosen, as_json, show_all)
    if html:
        _write_page(html, report.source, report.plan, chosen)
    if strict:
        check_understood(report.plan)
    if check:
        _check_served(report.plan, chosen)


def convert(
    model: options.ModelArgument,
    out_dir: options.OutDirArgument,
    *,
    tensor_parallel_size: options.TensorParallelSizeOption = 1,
    alignment: options.AlignmentOption = "auto",
    absorb: options.AbsorbOption = False,
    absorb_experts: options.AbsorbExpertsOption = False,
    skip: options.SkipOption = None,
    strict: options.StrictOption = False,
    follow_links: options.FollowLinksOption = False,
    jobs: options.JobsOption = DEFAULT_JOBS,
    executor: options.ExecutorOption = "local",
    ray_address: options.RayAddressOption = "auto",
    shards: options.ShardsOption = None,
    finish: options.FinishOption = False,
    link: options.LinkOption = "auto",
    overwrite: options.OverwriteOption = False,
    resume: options.ResumeOption = True,
    dry_run: options.DryRunOption = False,
    verify: options.VerifyOption = "padded",
    engine: options.PlanEngineOption = None,
    force: options.ForceOption = False,
    card: options.CardOption = True,
    hash_files: options.HashOption = False,
    quiet: options.QuietOption = False,
    cache: options.CacheOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Pad a checkpoint and verify the result.

    OUT_DIR appears only when it is complete and verified.
    """
    from fp8pad.library import convert as convert_checkpoint
    from fp8pad.library import convert_shards
    from fp8pad.planning.engines import find_engine
    from fp8pad.render.progress import shown_progress
    from fp8pad.render.reports import show_conversion, show_slice

    chosen = find_engine(engine)
    if dry_run:
        plan(
            model,
            tensor_parallel_size=tensor_parallel_size,
            alignment=alignment,
            absorb=absorb,
            absorb_experts=absorb_experts,
            skip=skip,
            strict=strict,
            follow_links=follow_links,
            engine=engine,
            as_json=as_json,
        )
        return
    if shards is not None:
        from fp8pad.record import Policy

        if finish or executor != "local":
            raise typer.BadParameter("--shards goes neither with --finish nor with --executor ray")
        policy = Policy(**_policy(tensor_parallel_size, alignment, absorb, absorb_experts, skip))
        written = WriteOptions(jobs, link, overwrite, resume, verify, card, hash_files)
        with interruptible(), shown_progress(quiet) as progress:
            slice_report = convert_shards(
                model,
                out_dir,
                shards,
                policy=policy,
                options=written,
                follow_links=follow_links,
                progress=progress,
            )
        if as_json or not quiet:
            show_slice(model, slice_report, as_json)
        return
    with interruptible(), shown_progress(quiet) as progress:
        report = convert_checkpoint(
            model,
            out_dir,
            **_policy(tensor_parallel_size, alignment, absorb, absorb_experts, skip),
            strict=strict,
            follow_links=follow_links,
            jobs=jobs,
            executor=executor,
            ray_address=ray_address,
            finish=finish,
            link=link,
            overwrite=overwrite,
            resume=resume,
            verify=verify,
            card=card,
            hash=hash_files,
            cache=cache,
            engine=engine,
            progress=progress,
        )
    if as_json or not quiet:
        show_conversion(report, engine=chosen, as_json=as_json)
    if not force:
        _check_served(report.plan, chosen)


def verify(
    folders: options.VerifyArguments,
    *,
    cache: options.CacheOption = False,
    jobs: options.JobsOption = DEFAULT_JOBS,
    executor: options.ExecutorOption = "local",
    ray_address: options.RayAddressOption = "auto",
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Compare a converted checkpoint with its records and its source.

    OUT_DIR alone is checked against its own records; with MODEL, every byte is compared with it.
    """
    from fp8pad.library import verify as verify_checkpoint
    from fp8pad.render.progress import shown_progress
    from fp8pad.render.reports import show_verification

    if len(folders) > 2:
        raise typer.BadParameter("expected OUT_DIR, or MODEL and OUT_DIR")
    out_dir, model = folders[-1], folders[0] if len(folders) == 2 else None
    with shown_progress(quiet) as progress:
        report = verify_checkpoint(
            model, out_dir, cache=cache, jobs=jobs, executor=executor, ray_address=ray_address, progress=progress
        )
    if as_json or not quiet:
        show_verification(report, as_json)
    if not report.ok:
        raise VerifyError(_first_of(out_dir, report.mismatches, "mismatch", "mismatches", report.is_complete))


def unpad(
    out_dir: options.OutDirArgument,
    restored_dir: options.RestoredDirArgument,
    *,
    jobs: options.JobsOption = DEFAULT_JOBS,
    executor: options.ExecutorOption = "local",
    ray_address: options.RayAddressOption = "auto",
    link: options.LinkOption = "auto",
    overwrite: options.OverwriteOption = False,
    resume: options.ResumeOption = True,
    verify: options.VerifyOption = "padded",
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Restore the original, byte for byte."""
    from fp8pad.library import unpad as unpad_checkpoint
    from fp8pad.render.progress import shown_progress
    from fp8pad.render.reports import show_restoration

    with interruptible(), shown_progress(quiet) as progress:
        report = unpad_checkpoint(
            out_dir,
            restored_dir,
            jobs=jobs,
            executor=executor,
            ray_address=ray_address,
            link=link,
            overwrite=overwrite,
            resume=resume,
            verify=verify,
            progress=progress,
        )
    if as_json or not quiet:
        show_restoration(report, as_json)


def push(
    out_dir: options.OutDirArgument,
    repo: options.RepoArgument,
    *,
    private: options.PrivateOption = False,
    card: options.CardOption = True,
    quiet: options.QuietOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Upload a converted checkpoint to the hub.

    It is verified first, and its model card has to say what was changed.
    """
    from fp8pad.library import push as push_checkpoint
    from fp8pad.render.progress import shown_progress
    from fp8pad.render.reports import show_push

    with shown_progress(quiet) as progress:
        report = push_checkpoint(out_dir, repo, private=private, card=card, progress=progress)
    show_push(report, as_json)


def inspect(path: options.ConvertedArgument, *, as_json: options.JsonOption = False) -> None:
    """Show what was done to a checkpoint.

    Reports records that are inconsistent.
    """
    from fp8pad.library import inspect as inspect_checkpoint
    from fp8pad.render.inspection import show_inspection

    inspection = inspect_checkpoint(path)
    show_inspection(inspection, as_json)
    if inspection.disagreements:
        raise RecordError(_first_of(path, inspection.disagreements, "disagreement", "disagreements"))


def _policy(
    tensor_parallel_size: int,
    alignment: options.Alignment,
    absorb: bool,
    absorb_experts: bool,
    skip: Sequence[str] | None,
) -> dict[str, Any]:
    """Return the options of a policy as the library takes them."""
    return {
        "alignment": int(alignment) if alignment.isdecimal() else alignment,
        "tensor_parallel_size": tensor_parallel_size,
        "absorb": absorb,
        "absorb_experts": absorb_experts,
        "skip": tuple(skip or ()),
    }


def _write_page(file: Path, source: "Checkpoint", plan: "CheckpointPlan", engine: "Engine") -> None:
    from fp8pad.golden.reports import check_writable, write_text
    from fp8pad.render.html import plan_page

    check_writable(file)
    write_text(file, plan_page(source, plan, engine))


def _check_served(plan: "CheckpointPlan", engine: "Engine") -> None:
    """Raise `NotServedError` where the engine is known to refuse what the plan makes, at the plan's TP size."""
    from fp8pad.planning.verdict import converted_verdict

    if refused := converted_verdict(plan, engine).refused:
        at = f"{engine.title} at TP {plan.policy.tensor_parallel_size}"
        raise NotServedError(_first_of(f"not served by {at}", refused, "layer", "layers"))


def _first_of(path: Path | str, found: Sequence[object], one: str, many: str, is_complete: bool = True) -> str:
    count = f"{len(found)} {one if len(found) == 1 else many}"
    return f"{path}: {count if is_complete else f'at least {count}'}, the first: {found[0]}"

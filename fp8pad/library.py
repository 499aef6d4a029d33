"""The Python API: the commands for checkpoints as functions, with their options as keywords.

`convert_shards` is `convert --shards`; `golden` and `bench` exist on the command line only. Folders are strings or
paths; models may also be hub ids. Nothing is printed, unless `progress=True` asks for a tqdm bar. Every error is an
`fp8pad.Fp8padError`. Results are frozen; `to_json()` returns what the command prints with `--json`.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fp8pad.checkpoint.options import DEFAULT_JOBS, Executor, Link, VerifyDepth, Workers, WriteOptions
from fp8pad.checkpoint.progress import Progress, ProgressCallback, progress_of
from fp8pad.errors import UsageError, shown
from fp8pad.record import Alignment, Policy

if TYPE_CHECKING:
    from fp8pad.conversion import ConvertReport, SliceReport
    from fp8pad.inspection import Inspection
    from fp8pad.planned import PlanReport
    from fp8pad.unpadding import UnpadReport
    from fp8pad.upload import PushReport
    from fp8pad.verification import VerifyReport

# Everything else is imported in the function that needs it: planning needs no numpy.

StrPath: TypeAlias = str | os.PathLike[str]
# True shows a tqdm bar, or tqdm's widget in a notebook, if tqdm is installed.
ProgressOption: TypeAlias = Progress | ProgressCallback | bool | None


def plan(
    model: StrPath,
    *,
    tensor_parallel_size: int = 1,
    alignment: Alignment = "auto",
    absorb: bool = False,
    absorb_experts: bool = False,
    skip: str | Sequence[str] = (),
    strict: bool = False,
    follow_links: bool = False,
    card: bool = True,
    engine: str | None = None,
) -> "PlanReport":
    """Plan what converting `model` would change; only headers and config.json are read.

    `skip` is a pattern of module names, or several. With `follow_links`, symbolic links out of the folder are followed;
    otherwise they are excluded. README.md counts as rewritten unless `card` is False. Raises `UsageError` for an
    invalid option, and `CheckpointError` if `model` cannot be read or contradicts itself, or, with `strict`, if one of
    its FP8 layers is not understood.
    """
    from fp8pad.planned import planned

    policy = Policy(alignment, tensor_parallel_size, absorb, absorb_experts, _patterns(skip))
    with planned(model, policy, strict=strict, follow_links=follow_links, card=card, engine=engine) as report:
        return report


def convert(
    model: StrPath,
    out_dir: StrPath,
    *,
    tensor_parallel_size: int = 1,
    alignment: Alignment = "auto",
    absorb: bool = False,
    absorb_experts: bool = False,
    skip: str | Sequence[str] = (),
    strict: bool = False,
    follow_links: bool = False,
    jobs: int = DEFAULT_JOBS,
    executor: Executor = "local",
    ray_address: str = "auto",
    finish: bool = False,
    link: Link = "auto",
    overwrite: bool = False,
    resume: bool = True,
    verify: VerifyDepth = "padded",
    card: bool = True,
    hash: bool = False,  # noqa: A002  the option's name
    cache: bool = False,
    engine: str | None = None,
    force: bool = False,
    progress: ProgressOption = None,
) -> "ConvertReport":
    """Convert `model` to `out_dir`, which appears when it is complete and verified.

    With `hash`, fp8pad.json has the SHA-256 of every file. README.md says what was changed, unless `card` is False. A
    model on the hub is fetched shard by shard, with `cache` into huggingface_hub's cache. With `finish`,
    `convert_shards` must have written all shards. Raises what `plan` raises; without `force`, `NotServedError` before
    anything is written if the engine is known to refuse the result, but serves the original or what another option
    makes; `OutputError` if `out_dir` cannot be written, `VerifyError` if what was read back is wrong, and
    `ClusterError` if the `executor` "ray" fails.
    """
    from fp8pad.conversion import convert as convert_checkpoint
    from fp8pad.hub import download_folder
    from fp8pad.planned import planned

    policy = Policy(alignment, tensor_parallel_size, absorb, absorb_experts, _patterns(skip))
    options = WriteOptions(
        jobs=jobs,
        link=link,
        overwrite=overwrite,
        resume=resume,
        verify=verify,
        hash=hash,
        executor=executor,
        ray_address=ray_address,
        finishes=finish,
    )
    reporter, target = _reporter(progress), Path(out_dir)
    opening = {"strict": strict, "follow_links": follow_links, "card": card, "force": force, "cache": cache}
    with planned(
        model, policy, **opening, engine=engine, downloads=download_folder(target), progress=reporter
    ) as report:
        return convert_checkpoint(report, target, options, reporter)


def convert_shards(
    model: StrPath,
    out_dir: StrPath,
    shards: range,
    *,
    tensor_parallel_size: int = 1,
    alignment: Alignment = "auto",
    absorb: bool = False,
    absorb_experts: bool = False,
    skip: str | Sequence[str] = (),
    strict: bool = False,
    follow_links: bool = False,
    jobs: int = DEFAULT_JOBS,
    link: Link = "auto",
    overwrite: bool = False,
    verify: VerifyDepth = "padded",
    card: bool = True,
    hash: bool = False,  # noqa: A002  the option's name
    cache: bool = False,
    engine: str | None = None,
    force: bool = False,
    progress: ProgressOption = None,
) -> "SliceReport":
    """Write some shards of a converted `model`, on any machine; a last `convert` with `finish` publishes the result.

    `shards` are consecutive positions in the sorted names. All runs, the last included, need the same options; finished
    shards are kept. Raises what `convert` raises.
    """
    from fp8pad.conversion import convert_slice
    from fp8pad.hub import download_folder
    from fp8pad.planned import planned

    if not (isinstance(shards, range) and shards.step == 1 and 0 <= shards.start < shards.stop):
        raise UsageError(f"shards: expected a range of positions, one after the other, got {shards!r}")
    policy = Policy(alignment, tensor_parallel_size, absorb, absorb_experts, _patterns(skip))
    options = WriteOptions(jobs=jobs, link=link, overwrite=overwrite, verify=verify, hash=hash)
    reporter, target = _reporter(progress), Path(out_dir)
    opening = {"strict": strict, "follow_links": follow_links, "card": card, "force": force, "cache": cache}
    downloads = download_folder(target, shards)
    with planned(model, policy, **opening, engine=engine, downloads=downloads, progress=reporter) as report:
        return convert_slice(report, target, options, reporter, shards)


def verify(
    model: StrPath | None = None,
    out_dir: StrPath | None = None,
    *,
    cache: bool = False,
    jobs: int = DEFAULT_JOBS,
    executor: Executor = "local",
    ray_address: str = "auto",
    progress: ProgressOption = None,
) -> "VerifyReport":
    """Compare the converted checkpoint `out_dir` with its records, and with the `model` that it was made from.

    A single argument is `out_dir`. Raises `CheckpointError` if either cannot be read as a checkpoint; differences are
    in the report.
    """
    from fp8pad.verification import verify as verify_checkpoint

    source, converted = (model, out_dir) if out_dir is not None else (None, model)
    if converted is None:
        raise UsageError("verify: expected a folder")
    return verify_checkpoint(source, Path(converted), _reporter(progress), cache, Workers(jobs, executor, ray_address))


def unpad(
    out_dir: StrPath,
    restored_dir: StrPath,
    *,
    jobs: int = DEFAULT_JOBS,
    executor: Executor = "local",
    ray_address: str = "auto",
    link: Link = "auto",
    overwrite: bool = False,
    resume: bool = True,
    verify: VerifyDepth = "padded",
    progress: ProgressOption = None,
) -> "UnpadReport":
    """Restore to `restored_dir` the checkpoint that `out_dir` was converted from.

    Raises `RecordError` if there is no record or it does not fit the files, and otherwise what `convert` raises.
    """
    from fp8pad.unpadding import unpad as unpad_checkpoint

    options = WriteOptions(
        jobs=jobs,
        link=link,
        overwrite=overwrite,
        resume=resume,
        verify=verify,
        executor=executor,
        ray_address=ray_address,
    )
    return unpad_checkpoint(Path(out_dir), Path(restored_dir), options, _reporter(progress))


def inspect(path: StrPath) -> "Inspection":
    """Read from its records what fp8pad did to a checkpoint; the result says where they disagree.

    Raises `RecordError` if nothing marks it as written by fp8pad, and `CheckpointError` if it is not a checkpoint.
    """
    from fp8pad.inspection import inspect_checkpoint

    return inspect_checkpoint(Path(path))


def push(
    out_dir: StrPath,
    repo: str,
    *,
    private: bool = False,
    card: bool = True,
    progress: ProgressOption = None,
) -> "PushReport":
    """Upload what fp8pad wrote to `out_dir` to the model repository `repo` on the hub, if it verifies.

    Files that fp8pad.json does not name are not uploaded; the report names them. README.md must say what was changed,
    unless `card` is False. Raises `UsageError` if `repo` is not a name, `VerifyError` or `RecordError` if a check
    fails, and `HubError` if the upload does, or if the repository has other weights.
    """
    from fp8pad.upload import push as upload

    return upload(Path(out_dir), repo, private, card, _reporter(progress))


def _patterns(skip: str | Sequence[str]) -> tuple[str, ...]:
    """Return `skip`, which is one pattern or several, as a tuple; `UsageError` for anything else."""
    try:
        return (skip,) if isinstance(skip, str) else tuple(skip)
    except TypeError as error:
        raise UsageError(f"skip: expected a pattern, or several, got {shown(skip)}") from error


def _reporter(progress: ProgressOption) -> Progress:
    if not isinstance(progress, bool):
        return progress_of(progress)
    with suppress(ImportError):
        if progress:
            from fp8pad.integrations.tqdm import TqdmProgress

            return TqdmProgress()
    return Progress()

"""Every argument and option, declared once; see `signatures.takes` for how a command gets them."""

import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from fp8pad.record import MAX_TENSOR_PARALLEL_SIZE


def _engine_names() -> list[str]:
    """Return the engines' names from their files' names: importing the reader takes longer than showing help."""
    described = files("fp8pad").joinpath("planning", "engines").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in described if file.name.endswith(".toml"))


def _engines_like(incomplete: str) -> list[str]:
    """Return the completions of an engine's name: names with and without the version."""
    names = {form for name in _engine_names() for form in (name, name.rpartition("-")[0])}
    return sorted(name for name in names if name.startswith(incomplete))


def _shards(argument: str | range) -> range:
    """Return the positions that "7" or "0-9" names."""
    if isinstance(argument, range):
        return argument
    found = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", argument)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last:
        raise typer.BadParameter("expected the number of a shard, or a range such as 0-9")
    return range(first, last + 1)


def _path(argument: str | Path) -> Path:
    """Return a path; refuse an empty one, as from an unset variable, which would be the current folder."""
    if not str(argument):
        raise typer.BadParameter("an empty name")
    return Path(argument)


def _model(argument: str) -> str:
    """Return a folder or hub id as typed: `./a/b` and `a/b/` are folders, and `Path` would make `a/b` of both."""
    _path(argument)
    return argument


def _named(metavar: str, help: str, parser: Callable[..., object] = _path) -> Any:  # noqa: A002  typer's word
    return typer.Argument(metavar=metavar, help=help, parser=parser)


ModelArgument = Annotated[str, _named("MODEL", "Folder or hub id of an FP8 checkpoint.", _model)]
OutDirArgument = Annotated[Path, _named("OUT_DIR", "Folder of the converted checkpoint.")]
RestoredDirArgument = Annotated[Path, _named("RESTORED_DIR", "Folder to restore into.")]
ConvertedArgument = Annotated[Path, _named("DIR", "Folder of a checkpoint that fp8pad made.")]
VerifyArguments = Annotated[
    list[str], _named("[MODEL] OUT_DIR", "The source to compare with, and the converted checkpoint.", _model)
]
RepoArgument = Annotated[str, typer.Argument(metavar="ORG/NAME", help="Name of the model on the hub.")]
GoldenModelArgument = Annotated[Path, _named("MODEL", "Folder of a checkpoint, converted or not.")]
RecordedModelArgument = Annotated[Path, _named("MODEL_A", "Folder of the checkpoint to record.")]
CheckedModelArgument = Annotated[Path, _named("MODEL_B", "Folder of the checkpoint to check.")]
GoldenArgument = Annotated[Path, _named("FILE", "Golden file to check against.")]
BenchModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Time this checkpoint's unaligned layers instead of the built-in shapes."),
]

# Options that only the command line has
ShardsOption = Annotated[
    range | None,
    typer.Option(
        metavar="A-B",
        help="Write only these shards, counted from 0, for a later --finish; other machines can write the rest.",
        parser=_shards,
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
CheckOption = Annotated[
    bool, typer.Option("--check", help="Exit with 1 if the engine would refuse the result at this TP size.")
]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the plan as an HTML page.")]
AllOption = Annotated[bool, typer.Option("--all", help="Also list aligned layers.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, and nothing else.")]
GoldenOutOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Golden file to write.")]
JunitOption = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write a JUnit file for CI.")]
TokensOption = Annotated[
    list[int] | None, typer.Option("--tokens", "-m", metavar="M", min=1, help="Tokens per call; can be repeated.")
]
ReplaysOption = Annotated[int, typer.Option("--replays", metavar="N", min=2, help="Replays of each CUDA graph.")]


def _ranks(help: str, most: int | None = None) -> Any:  # noqa: A002  typer's word
    return typer.Option("--tensor-parallel-size", "--tp", "-tp", metavar="N", min=1, max=most, help=help)


BenchRanksOption = Annotated[int, _ranks("Time what one of N tensor-parallel ranks of MODEL computes.")]

# Options of the library's functions, by their names there
CHECKPOINT: Mapping[str, Any] = {
    "tensor_parallel_size": _ranks("Plan for N tensor-parallel ranks.", MAX_TENSOR_PARALLEL_SIZE),
    "alignment": typer.Option(
        callback=lambda name: int(name) if name.isdecimal() else name,
        help="Pad to multiples of this, or of what a kernel needs; auto: 16 or the scale block.",
    ),
    "absorb": typer.Option(
        help="Make padding inside MLPs permanent in config.json; needs no plugin if nothing else is left to pad."
    ),
    "absorb_experts": typer.Option(
        "--absorb-experts", help="Absorb the routed experts of MoE layers too; this can cost a lot."
    ),
    "skip": typer.Option(
        callback=lambda names: tuple(names or ()),
        metavar="PATTERN",
        help="Leave modules unchanged whose whole name matches, such as '*.q_proj'; can be repeated.",
    ),
    "strict": typer.Option("--strict", help="Fail if an FP8 layer is not understood."),
    "follow_links": typer.Option(
        "--follow-links", help="Copy the targets of links out of MODEL; otherwise these links are excluded."
    ),
    "engine": typer.Option(
        metavar="NAME",
        autocompletion=_engines_like,
        help=f"Engine to plan for: {', '.join(_engine_names())}; without a version, the newest; default: vllm.",
    ),
    "force": typer.Option(
        "--force",
        help="Convert even if the engine would refuse the result, but the original or another option would work.",
    ),
    "jobs": typer.Option(
        "--jobs", "-j", metavar="N", min=1, help="Shards to process in parallel, on each node of a cluster."
    ),
    "executor": typer.Option(help="Process shards here, or on a Ray cluster that shares the file system."),
    "ray_address": typer.Option(
        metavar="ADDRESS", help="HOST:PORT of the cluster; auto: the one that this machine belongs to."
    ),
    "finish": typer.Option("--finish", help="Publish shards that were written with --shards; they must be complete."),
    "link": typer.Option(help="How unchanged shards are placed; auto: reflink if possible, otherwise copy."),
    "overwrite": typer.Option(
        "--overwrite",
        help="Replace a folder if every file in it is listed in its fp8pad.json or has the name of a new file.",
    ),
    "resume": typer.Option(help="Resume an interrupted run."),
    "verify": typer.Option(help="What is re-read before publishing: padded tensors, every byte (full), or nothing."),
    "card": typer.Option(help="Say in README.md, the model card, what was changed and how to serve the result."),
    "hash": typer.Option("--hash", help="Record the SHA-256 of every file, as --verify full also does."),
    "cache": typer.Option("--cache", help="Keep a model from the hub in huggingface_hub's cache."),
    "private": typer.Option("--private", help="Make the model private, if it does not exist yet."),
}
PUSH: Mapping[str, Any] = {**CHECKPOINT, "card": typer.Option(help="Require that README.md says what was changed.")}
_TRUST = typer.Option("--trust-remote-code", help="Run code that comes with the model.")
# Options of `RecordOptions`
RECORD: Mapping[str, Any] = {
    "prompts": typer.Option(
        metavar="FILE", help="One prompt per line, text or .jsonl; default: built-in token prompts."
    ),
    "engine": typer.Option(help="Engine that runs the model."),
    "mode": typer.Option(help="Run the model eagerly or compiled; eager is reproducible bit for bit."),
    "dtype": typer.Option(metavar="DTYPE", help="Compute in this dtype."),
    "seed": typer.Option(help="Seed of the engine and of the built-in prompts."),
    "tensor_parallel_size": _ranks("Number of tensor-parallel ranks that serve the model."),
    "max_model_len": typer.Option(metavar="N", min=1, help="Context length; default: what the prompts need."),
    "max_tokens": typer.Option(metavar="N", min=1, help="Tokens per answer."),
    "top_k": typer.Option(metavar="K", min=1, help="Logprobs to keep per token."),
    "trust_remote_code": _TRUST,
}
# Options of `CheckOptions`
CHECK: Mapping[str, Any] = {
    "atol": typer.Option(min=0.0, help="Allowed difference of logprobs; default: 0 when bitwise equality is expected."),
    "allow_ties": typer.Option(
        "--allow-ties",
        help="Accept a different token if both were about equally likely; later tokens are not compared.",
    ),
    "strict": typer.Option(
        "--strict", help="Fail if the engine, version, device or a setting is not the recorded one."
    ),
    "engine": typer.Option(help="Override the recorded engine."),
    "mode": typer.Option(help="Override the recorded mode."),
    "tensor_parallel_size": _ranks("Override the recorded TP size."),
    "trust_remote_code": _TRUST,
}
COMPARE: Mapping[str, Any] = {name: CHECK[name] for name in ("atol", "allow_ties")}

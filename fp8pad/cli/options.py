"""Every argument and option, declared once; a command takes those that it needs."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from fp8pad.checkpoint.options import Executor, Link, VerifyDepth
from fp8pad.golden.document import EngineName, Mode
from fp8pad.record import MAX_TENSOR_PARALLEL_SIZE

Alignment: TypeAlias = Literal["auto", "16", "32", "64", "128", "marlin", "sm120", "deepgemm"]


def _shards(argument: str | range) -> range:
    """Return the positions that "7" or "0-9" names."""
    if isinstance(argument, range):
        return argument
    first, _, last = argument.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first)):
        raise typer.BadParameter("expected a shard's position, or the first and the last, as 0-9")
    return range(int(first), int(last or first) + 1)


def _path(argument: str | Path) -> Path:
    """Return a path that was named: an empty one, as of a variable that is not set, would be the current folder."""
    if not str(argument):
        raise typer.BadParameter("an empty name")
    return Path(argument)


# Folders of checkpoints
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder or hub id of an FP8 checkpoint.", parser=_path)
]
OutDirArgument = Annotated[
    Path, typer.Argument(metavar="OUT_DIR", help="Folder of the converted checkpoint.", parser=_path)
]
RestoredDirArgument = Annotated[
    Path, typer.Argument(metavar="RESTORED_DIR", help="Folder to restore into.", parser=_path)
]
ConvertedArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of a checkpoint that fp8pad made.", parser=_path)
]

VerifyArguments = Annotated[
    list[Path],
    typer.Argument(metavar="[MODEL] OUT_DIR", help="The source, to compare with, and the converted one.", parser=_path),
]

# What is planned
TensorParallelSizeOption = Annotated[
    int,
    typer.Option(
        "--tensor-parallel-size",
        "-tp",
        metavar="N",
        min=1,
        max=MAX_TENSOR_PARALLEL_SIZE,
        help="Plan for N tensor-parallel ranks.",
    ),
]
AlignmentOption = Annotated[
    Alignment,
    typer.Option(
        "--alignment", help="Pad to multiples of this, or of what a kernel wants; auto: 16 or the scale block."
    ),
]
AbsorbOption = Annotated[
    bool,
    typer.Option("--absorb/--no-absorb", help="Make padding inside MLPs permanent in config.json: no plugin needed."),
]
AbsorbExpertsOption = Annotated[
    bool, typer.Option("--absorb-experts", help="Absorb the routed experts of MoE layers too; this can cost a lot.")
]
SkipOption = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="PATTERN", help="Leave modules of these names as they are; can be repeated."),
]
FollowLinksOption = Annotated[
    bool, typer.Option("--follow-links", help="Copy files that links out of MODEL lead to; else they are excluded.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Fail if an FP8 layer is not understood.")]

# How it is written
JobsOption = Annotated[
    int,
    typer.Option("--jobs", "-j", metavar="N", min=1, help="Shards to process in parallel, on each node of a cluster."),
]
ExecutorOption = Annotated[
    Executor, typer.Option("--executor", help="Process shards here, or on a Ray cluster that shares the file system.")
]
RayAddressOption = Annotated[
    str,
    typer.Option(
        "--ray-address", metavar="ADDRESS", help="HOST:PORT of the cluster; auto is the one this machine is in."
    ),
]
ShardsOption = Annotated[
    range | None,
    typer.Option(
        "--shards",
        metavar="A-B",
        help="Write only these shards, counted from 0, and leave them for --finish; others may run elsewhere.",
        parser=_shards,
    ),
]
FinishOption = Annotated[
    bool, typer.Option("--finish", help="Publish shards that were written with --shards; they must be complete.")
]
LinkOption = Annotated[
    Link, typer.Option("--link", help="How unchanged shards are placed; auto is reflink where possible, else copy.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it is not empty.")]
ResumeOption = Annotated[bool, typer.Option("--resume/--no-resume", help="Resume an interrupted run.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
VerifyOption = Annotated[
    VerifyDepth,
    typer.Option("--verify", help="What is re-read before publishing: padded tensors, every byte (full), or nothing."),
]

ForceOption = Annotated[
    bool, typer.Option("--force", help="Exit with 0 even if the engine would refuse the result at this TP size.")
]

PlanEngineOption = Annotated[
    str | None,
    typer.Option("--engine", metavar="NAME", help="Engine to plan for: vllm-0.33 (the default) or sglang-0.5.23."),
]
RepoArgument = Annotated[str, typer.Argument(metavar="ORG/NAME", help="Name of the model on the hub.")]
PrivateOption = Annotated[bool, typer.Option("--private", help="Make a private model, if there is none yet.")]
CardOption = Annotated[
    bool,
    typer.Option("--card/--no-card", help="Say in README.md, the model card, what was changed and how to serve it."),
]
HashOption = Annotated[
    bool,
    typer.Option("--hash", help="Record the SHA-256 of every file, as --verify full does too."),
]
CacheOption = Annotated[
    bool, typer.Option("--cache", help="Fetch a model of the hub into huggingface_hub's cache, and leave it there.")
]

# What is printed
CheckOption = Annotated[
    bool, typer.Option("--check", help="Exit with 1 if the engine would refuse the result at this TP size.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no summary, only errors.")]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the plan as a page for a browser, too.")
]
AllOption = Annotated[bool, typer.Option("--all", help="List aligned layers one by one, too.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]

# Golden outputs
GoldenModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder of a checkpoint, converted or not.", parser=_path)
]
RecordedModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL_A", help="Folder of the checkpoint to record.", parser=_path)
]
CheckedModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL_B", help="Folder of the checkpoint to check.", parser=_path)
]
GoldenArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Golden file to check against.", parser=_path)]
GoldenOutOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Golden file to write.")]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts", metavar="FILE", help="One prompt per line, text or .jsonl; default: built-in token prompts."
    ),
]
EngineOption = Annotated[EngineName, typer.Option("--engine", help="Engine that runs the model.")]
CheckEngineOption = Annotated[EngineName | None, typer.Option("--engine", help="Override the recorded engine.")]
ModeOption = Annotated[
    Mode, typer.Option("--mode", help="Run the model eagerly or compiled; eager is reproducible bit for bit.")
]
CheckModeOption = Annotated[Mode | None, typer.Option("--mode", help="Override the recorded mode.")]
DtypeOption = Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="Compute in this dtype.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the engine and of the built-in prompts.")]
ServingRanksOption = Annotated[
    int, typer.Option("--tensor-parallel-size", "-tp", metavar="N", min=1, help="Ranks that serve the model.")
]
CheckServingRanksOption = Annotated[
    int | None,
    typer.Option("--tensor-parallel-size", "-tp", metavar="N", min=1, help="Override the recorded TP size."),
]
MaxModelLenOption = Annotated[
    int | None,
    typer.Option("--max-model-len", metavar="N", min=1, help="Context length; default: what the prompts need."),
]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="Tokens per answer.")]
TopKOption = Annotated[int, typer.Option("--top-k", metavar="K", min=1, help="Logprobs to keep per token.")]
AtolOption = Annotated[
    float | None,
    typer.Option(
        "--atol", min=0.0, help="Allowed difference of logprobs; default: 0 when bitwise equality is expected."
    ),
]
TiesOption = Annotated[
    bool,
    typer.Option(
        "--allow-ties", help="Accept another token where both were about as likely; later tokens are not compared."
    ),
]
StrictGoldenOption = Annotated[
    bool, typer.Option("--strict", help="Refuse another engine, version, device or setting than recorded.")
]
JunitOption = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write a JUnit file for CI.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]

# Benchmarks
BenchModelArgument = Annotated[
    Path | None,
    typer.Argument(metavar="MODEL", help="Time this checkpoint's unaligned layers instead of the built-in shapes."),
]
TokensOption = Annotated[
    list[int] | None, typer.Option("--tokens", "-m", metavar="M", min=1, help="Tokens per call; can be repeated.")
]
BenchRanksOption = Annotated[
    int,
    typer.Option("--tensor-parallel-size", "-tp", metavar="N", min=1, help="Time what one of N ranks of MODEL does."),
]
ReplaysOption = Annotated[int, typer.Option("--replays", metavar="N", min=2, help="Replays of each CUDA graph.")]
ChartOption = Annotated[
    Path | None, typer.Option("--chart", metavar="FILE", help="Draw a chart too (.svg, .png, .pdf); needs matplotlib.")
]

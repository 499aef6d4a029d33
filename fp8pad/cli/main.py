"""The command line: a command parses, calls one function and renders; errors become text and a status in `main`."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, cast

import typer

from fp8pad import __version__
from fp8pad.cli.bench import bench
from fp8pad.cli.golden import app as golden_app
from fp8pad.errors import Fp8padError, OutputError, RecordError, VerifyError
from fp8pad.record import MAX_TENSOR_PARALLEL_SIZE
from fp8pad.text import printable

if TYPE_CHECKING:
    from fp8pad.checkpoint.checkpoint import Checkpoint
    from fp8pad.planning.plan import CheckpointPlan
    from fp8pad.record import Policy

# Everything else is imported by the command that needs it: `fp8pad --help` loads neither numpy nor rich's tables.

app = typer.Typer(
    name="fp8pad",
    help="Pads FP8 checkpoints ahead of time, so that inference engines never have to.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(golden_app, name="golden")

Alignment = Literal["auto", "16", "32", "64", "128"]
Link = Literal["auto", "copy", "hardlink", "reflink"]
VerifyDepth = Literal["padded", "full", "none"]

DEFAULT_JOBS = 2


def _folder(argument: str | Path) -> Path:
    """Return a path that was named: an empty one, as of a variable that is not set, would be the current folder."""
    if not str(argument):
        raise typer.BadParameter("an empty name")
    return Path(argument)


ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of an FP8 checkpoint.", parser=_folder)]
OutDirArgument = Annotated[
    Path, typer.Argument(metavar="OUT_DIR", help="Folder of the converted checkpoint.", parser=_folder)
]
RestoredDirArgument = Annotated[
    Path, typer.Argument(metavar="RESTORED_DIR", help="Folder to restore into.", parser=_folder)
]

TensorParallelSizeOption = Annotated[
    int,
    typer.Option(
        "--tensor-parallel-size",
        "-tp",
        metavar="N",
        min=1,
        max=MAX_TENSOR_PARALLEL_SIZE,
        help="Size absorbed dimensions for N ranks.",
    ),
]
AlignmentOption = Annotated[
    Alignment, typer.Option("--alignment", help="Pad to multiples of this; auto is 16, or the scale block.")
]
AbsorbOption = Annotated[
    bool,
    typer.Option("--absorb/--no-absorb", help="Make padding inside MLPs permanent in config.json: no plugin needed."),
]
AbsorbExpertsOption = Annotated[
    bool, typer.Option("--absorb-experts", help="Absorb the routed experts of MoE layers too; can cost a lot.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
JobsOption = Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Shards worked on at a time.")]
LinkOption = Annotated[
    Link, typer.Option("--link", help="How unchanged files get there; auto is reflink where possible, else copy.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it is not empty.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Take up what an interrupted run has finished.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
GemmOption = Annotated[
    bool, typer.Option("--gemm", help="Also multiply padded layers in both forms, and compare every bit.")
]
GemmLayersOption = Annotated[
    int, typer.Option("--gemm-layers", metavar="N", min=0, help="Layers that --gemm multiplies; 0 is all of them.")
]
VerifyOption = Annotated[
    VerifyDepth,
    typer.Option("--verify", help="What is re-read before publishing: padded tensors, every byte (full), or nothing."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fp8pad {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def plan(
    model: ModelArgument,
    *,
    tensor_parallel_size: TensorParallelSizeOption = 1,
    alignment: AlignmentOption = "auto",
    absorb: AbsorbOption = False,
    absorb_experts: AbsorbExpertsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what converting would do to each FP8 layer, and its price; nothing is written."""
    from fp8pad.render.plan import show_plan

    source, checkpoint_plan = _plan(model, _policy(tensor_parallel_size, alignment, absorb, absorb_experts))
    show_plan(source, checkpoint_plan, as_json)


@app.command()
def convert(
    model: ModelArgument,
    out_dir: OutDirArgument,
    *,
    tensor_parallel_size: TensorParallelSizeOption = 1,
    alignment: AlignmentOption = "auto",
    absorb: AbsorbOption = False,
    absorb_experts: AbsorbExpertsOption = False,
    jobs: JobsOption = DEFAULT_JOBS,
    link: LinkOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = True,
    dry_run: DryRunOption = False,
    verify: VerifyOption = "padded",
    as_json: JsonOption = False,
) -> None:
    """Pad a checkpoint into OUT_DIR, verify it, and publish it in one step."""
    from fp8pad.convert import ConvertOptions
    from fp8pad.convert import convert as convert_checkpoint
    from fp8pad.render.plan import show_plan
    from fp8pad.render.progress import shown_progress
    from fp8pad.render.reports import show_conversion

    source, checkpoint_plan = _plan(model, _policy(tensor_parallel_size, alignment, absorb, absorb_experts))
    if dry_run:
        show_plan(source, checkpoint_plan, as_json)
        return
    options = ConvertOptions(jobs=jobs, link=link, overwrite=overwrite, resume=resume, verify=verify)
    with _resume_hint(resume), shown_progress() as progress:
        report = convert_checkpoint(source, checkpoint_plan, out_dir, options, progress)
    show_conversion(source, checkpoint_plan, out_dir, report, as_json)


@app.command()
def verify(
    model: ModelArgument,
    out_dir: OutDirArgument,
    *,
    gemm: GemmOption = False,
    gemm_layers: GemmLayersOption = 16,
    as_json: JsonOption = False,
) -> None:
    """Compare every byte of a converted checkpoint with what converting MODEL gives."""
    from fp8pad.gemm.check import GemmOptions, verify_gemm
    from fp8pad.render.progress import shown_progress
    from fp8pad.render.reports import show_verification
    from fp8pad.verify import verify as verify_checkpoint

    with shown_progress() as progress:
        report = verify_checkpoint(model, out_dir, progress)
        options = GemmOptions(num_layers=gemm_layers or None)
        products = verify_gemm(model, out_dir, options, progress) if gemm else None
    show_verification(out_dir, report, as_json, products)
    if not report.ok:
        raise VerifyError(_first_of(out_dir, report.mismatches, "mismatch", "mismatches"))
    if products and not products.ok:
        differing = [f"{result.name}: {result.mismatch}" for result in products.results if result.mismatch]
        raise VerifyError(_first_of(out_dir, differing, "product differs", "products differ"))


@app.command()
def unpad(
    out_dir: OutDirArgument,
    restored_dir: RestoredDirArgument,
    *,
    jobs: JobsOption = DEFAULT_JOBS,
    link: LinkOption = "auto",
    overwrite: OverwriteOption = False,
    resume: ResumeOption = True,
    verify: VerifyOption = "padded",
    as_json: JsonOption = False,
) -> None:
    """Restore the checkpoint that OUT_DIR was converted from, byte for byte."""
    from fp8pad.publication import WriteOptions
    from fp8pad.render.progress import shown_progress
    from fp8pad.render.reports import show_restoration
    from fp8pad.unpad import unpad as unpad_checkpoint

    options = WriteOptions(jobs=jobs, link=link, overwrite=overwrite, resume=resume, verify=verify)
    with _resume_hint(resume), shown_progress() as progress:
        report = unpad_checkpoint(out_dir, restored_dir, options, progress)
    show_restoration(report, as_json)


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a checkpoint that fp8pad made.", parser=_folder)
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Tell what fp8pad did to a checkpoint, from its records, and where they disagree."""
    from fp8pad.inspect import inspect_checkpoint
    from fp8pad.render.inspection import show_inspection

    inspection = inspect_checkpoint(path)
    show_inspection(inspection, as_json)
    if inspection.disagreements:
        raise RecordError(_first_of(path, inspection.disagreements, "disagreement", "disagreements"))


app.command()(bench)


def main() -> None:
    """Run the command line; an error becomes one line on stderr and an exit status here, and nowhere else.

    With FP8PAD_DEBUG=1 in the environment, the traceback is shown instead.
    """
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115  None where the caller closed it, `2>&-`
    if sys.stdout is None:
        _fail(OutputError("stdout is closed; redirect it to /dev/null if the result is not wanted"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name in letters that the locale lacks
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a reader that went away is noticed here, not by the dying interpreter
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Fp8padError, OSError) as error:
        if os.environ.get("FP8PAD_DEBUG") == "1":
            raise
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"error: {printable(_message(error))}", err=True)
    for note in getattr(error, "__notes__", ()):
        typer.echo(f"  {printable(note)}", err=True)
    sys.exit(1)


def _first_of(path: Path, found: Sequence[object], one: str, many: str) -> str:
    return f"{path}: {len(found)} {one if len(found) == 1 else many}, the first: {found[0]}"


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@contextmanager
def _resume_hint(resume: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        if resume:
            typer.echo("interrupted: the same command takes up the shards that are finished", err=True)
        raise


def _policy(tensor_parallel_size: int, alignment: Alignment, absorb: bool, absorb_experts: bool) -> "Policy":
    from fp8pad.record import Policy

    multiple = alignment if alignment == "auto" else cast("Literal[16, 32, 64, 128]", int(alignment))
    return Policy(multiple, tensor_parallel_size, absorb, absorb_experts)


def _plan(model: Path, policy: "Policy") -> "tuple[Checkpoint, CheckpointPlan]":
    from fp8pad.checkpoint.checkpoint import read_unconverted
    from fp8pad.planning import plan_checkpoint

    source = read_unconverted(model)
    return source, plan_checkpoint(source.shards, source.configs, policy)

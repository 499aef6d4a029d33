"""`fp8pad golden`: record what a model answers, check another against it, or both at once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from fp8pad.golden.compare import Comparison

app = typer.Typer(help="Prove that a converted model answers as its original.", no_args_is_help=True)

Engine = Literal["vllm", "transformers"]
Mode = Literal["eager", "compiled"]

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a checkpoint, converted or not.")]
GoldenArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Golden file to check against.")]
OutOption = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Golden file to write.")]
EngineOption = Annotated[Engine, typer.Option("--engine", help="What runs the model.")]
ModeOption = Annotated[Mode, typer.Option("--mode", help="Run the model eagerly or compiled; eager repeats every bit.")]
CheckEngineOption = Annotated[Engine | None, typer.Option("--engine", help="Another engine than recorded.")]
CheckModeOption = Annotated[Mode | None, typer.Option("--mode", help="Another mode than recorded.")]
DtypeOption = Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="Compute in this dtype.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the engine and of the built-in prompts.")]
TensorParallelSizeOption = Annotated[
    int, typer.Option("--tensor-parallel-size", "-tp", metavar="N", min=1, help="Ranks that serve the model.")
]
CheckTensorParallelSizeOption = Annotated[
    int | None, typer.Option("--tensor-parallel-size", "-tp", metavar="N", min=1, help="Other ranks than recorded.")
]
MaxModelLenOption = Annotated[
    int | None,
    typer.Option("--max-model-len", metavar="N", min=1, help="Longest prompt and answer; default: what is asked."),
]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="Tokens of each answer.")]
TopKOption = Annotated[int, typer.Option("--top-k", metavar="K", min=1, help="Logprobs kept of each token.")]
PromptsOption = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="A prompt a line, text or .jsonl; default: built-in token prompts."),
]
AtolOption = Annotated[
    float | None,
    typer.Option("--atol", min=0.0, help="Allowed difference of logprobs; default: 0 where equal bits are due."),
]
TiesOption = Annotated[
    bool,
    typer.Option(
        "--allow-ties", help="Accept another token where both were about as likely; what follows is not compared."
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse another engine, version, device or setting than recorded.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
JunitOption = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write a JUnit file for CI.")]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]


@app.command()
def record(
    model: ModelArgument,
    *,
    output: OutOption,
    prompts: PromptsOption = None,
    engine: EngineOption = "vllm",
    mode: ModeOption = "eager",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    tensor_parallel_size: TensorParallelSizeOption = 1,
    max_model_len: MaxModelLenOption = None,
    max_tokens: MaxTokensOption = 16,
    top_k: TopKOption = 5,
    trust_remote_code: TrustOption = False,
) -> None:
    """Ask a model, and write what it answers to a golden file."""
    from fp8pad.golden import runs
    from fp8pad.golden.files import check_writable, write_text
    from fp8pad.golden.options import RecordOptions
    from fp8pad.render.golden import golden_progress, show_recording

    check_writable(output)
    options = RecordOptions(
        engine, mode, dtype, seed, tensor_parallel_size, max_model_len, max_tokens, top_k, prompts, trust_remote_code
    )
    with golden_progress() as progress:
        golden = runs.record(model, options, progress)
    write_text(output, golden.to_text())
    show_recording(golden, output)


@app.command()
def check(
    model: ModelArgument,
    file: GoldenArgument,
    *,
    atol: AtolOption = None,
    allow_ties: TiesOption = False,
    strict: StrictOption = False,
    as_json: JsonOption = False,
    junit: JunitOption = None,
    engine: CheckEngineOption = None,
    mode: CheckModeOption = None,
    tensor_parallel_size: CheckTensorParallelSizeOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Ask a model what a golden file holds the answers to, and compare."""
    from fp8pad.golden import runs
    from fp8pad.golden.files import check_writable
    from fp8pad.golden.options import CheckOptions
    from fp8pad.render.golden import golden_progress

    if junit:
        check_writable(junit)
    golden = runs.read_golden(file)
    options = CheckOptions(engine, mode, tensor_parallel_size, atol, allow_ties, strict, trust_remote_code)
    with golden_progress() as progress:
        comparison = runs.check(model, golden, options, progress)
    _finish(comparison, as_json, junit)


@app.command()
def compare(
    model_a: Annotated[Path, typer.Argument(metavar="MODEL_A", help="Folder of the checkpoint to record.")],
    model_b: Annotated[Path, typer.Argument(metavar="MODEL_B", help="Folder of the checkpoint to check.")],
    *,
    atol: AtolOption = None,
    allow_ties: TiesOption = False,
    as_json: JsonOption = False,
    junit: JunitOption = None,
    prompts: PromptsOption = None,
    engine: EngineOption = "vllm",
    mode: ModeOption = "eager",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    tensor_parallel_size: TensorParallelSizeOption = 1,
    max_model_len: MaxModelLenOption = None,
    max_tokens: MaxTokensOption = 16,
    top_k: TopKOption = 5,
    trust_remote_code: TrustOption = False,
) -> None:
    """Record MODEL_A and check MODEL_B against it; one engine start each, no file."""
    from fp8pad.golden import runs
    from fp8pad.golden.files import check_writable
    from fp8pad.golden.options import CheckOptions, RecordOptions
    from fp8pad.render.golden import golden_progress

    if junit:
        check_writable(junit)
    options = RecordOptions(
        engine, mode, dtype, seed, tensor_parallel_size, max_model_len, max_tokens, top_k, prompts, trust_remote_code
    )
    with golden_progress() as progress:
        check_options = CheckOptions(atol=atol, allow_ties=allow_ties, trust_remote_code=trust_remote_code)
        comparison = runs.compare(model_a, model_b, options, check_options, progress)
    _finish(comparison, as_json, junit)


def _finish(comparison: "Comparison", as_json: bool, junit: Path | None) -> None:
    """Show the result, write it for CI, and set the exit status."""
    from fp8pad.golden.files import write_text
    from fp8pad.golden.junit import to_junit
    from fp8pad.render.golden import show_comparison

    show_comparison(comparison, as_json)
    if junit:
        write_text(junit, to_junit(comparison))
    if not comparison.ok:
        raise typer.Exit(1)

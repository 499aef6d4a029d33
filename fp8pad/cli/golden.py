"""`fp8pad golden`: record a model's outputs, check another's against them, or both at once."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fp8pad.cli import options

if TYPE_CHECKING:
    from fp8pad.golden.compare import Comparison


def record(
    model: options.GoldenModelArgument,
    *,
    output: options.GoldenOutOption,
    prompts: options.PromptsOption = None,
    engine: options.EngineOption = "vllm",
    mode: options.ModeOption = "eager",
    dtype: options.DtypeOption = "auto",
    seed: options.SeedOption = 0,
    tensor_parallel_size: options.ServingRanksOption = 1,
    max_model_len: options.MaxModelLenOption = None,
    max_tokens: options.MaxTokensOption = 16,
    top_k: options.TopKOption = 5,
    trust_remote_code: options.TrustOption = False,
) -> None:
    """Write the outputs of a model to a file."""
    from fp8pad.golden import runs
    from fp8pad.golden.reports import check_writable, write_text
    from fp8pad.golden.request import RecordOptions
    from fp8pad.render.golden import golden_progress, show_recording

    check_writable(output)
    record_options = RecordOptions(
        engine, mode, dtype, seed, tensor_parallel_size, max_model_len, max_tokens, top_k, prompts, trust_remote_code
    )
    with golden_progress() as progress:
        golden = runs.record(model, record_options, progress)
    write_text(output, golden.to_text())
    show_recording(golden, output)


def check(
    model: options.GoldenModelArgument,
    file: options.GoldenArgument,
    *,
    atol: options.AtolOption = None,
    allow_ties: options.TiesOption = False,
    strict: options.StrictGoldenOption = False,
    as_json: options.JsonOption = False,
    junit: options.JunitOption = None,
    engine: options.CheckEngineOption = None,
    mode: options.CheckModeOption = None,
    tensor_parallel_size: options.CheckServingRanksOption = None,
    trust_remote_code: options.TrustOption = False,
) -> None:
    """Compare outputs of a model with a file."""
    from fp8pad.golden import runs
    from fp8pad.golden.reports import check_writable
    from fp8pad.golden.request import CheckOptions
    from fp8pad.render.golden import golden_progress

    if junit:
        check_writable(junit)
    golden = runs.read_golden(file)
    check_options = CheckOptions(engine, mode, tensor_parallel_size, atol, allow_ties, strict, trust_remote_code)
    with golden_progress() as progress:
        comparison = runs.check(model, golden, check_options, progress)
    _finish(comparison, as_json, junit)


def compare(
    model_a: options.RecordedModelArgument,
    model_b: options.CheckedModelArgument,
    *,
    atol: options.AtolOption = None,
    allow_ties: options.TiesOption = False,
    as_json: options.JsonOption = False,
    junit: options.JunitOption = None,
    prompts: options.PromptsOption = None,
    engine: options.EngineOption = "vllm",
    mode: options.ModeOption = "eager",
    dtype: options.DtypeOption = "auto",
    seed: options.SeedOption = 0,
    tensor_parallel_size: options.ServingRanksOption = 1,
    max_model_len: options.MaxModelLenOption = None,
    max_tokens: options.MaxTokensOption = 16,
    top_k: options.TopKOption = 5,
    trust_remote_code: options.TrustOption = False,
) -> None:
    """Compare outputs of two models."""
    from fp8pad.golden import runs
    from fp8pad.golden.reports import check_writable
    from fp8pad.golden.request import CheckOptions, RecordOptions
    from fp8pad.render.golden import golden_progress

    if junit:
        check_writable(junit)
    record_options = RecordOptions(
        engine, mode, dtype, seed, tensor_parallel_size, max_model_len, max_tokens, top_k, prompts, trust_remote_code
    )
    with golden_progress() as progress:
        check_options = CheckOptions(atol=atol, allow_ties=allow_ties, trust_remote_code=trust_remote_code)
        comparison = runs.compare(model_a, model_b, record_options, check_options, progress)
    _finish(comparison, as_json, junit)


def _finish(comparison: "Comparison", as_json: bool, junit: Path | None) -> None:
    """Show the result, write it for CI, and set the exit status."""
    from fp8pad.golden.reports import to_junit, write_text
    from fp8pad.render.golden import show_comparison

    show_comparison(comparison, as_json)
    if junit:
        write_text(junit, to_junit(comparison))
    if not comparison.ok:
        raise typer.Exit(1)

"""`golden record`, `check` and `compare`: read the model, run it on prompts, write or compare."""

from dataclasses import replace
from pathlib import Path

from fp8pad import __version__
from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_checkpoint
from fp8pad.errors import GoldenError
from fp8pad.golden.compare import Comparison, compare_answers
from fp8pad.golden.document import GoldenDocument, parse_document, read_text
from fp8pad.golden.engines import run_engine
from fp8pad.golden.fingerprint import fingerprint
from fp8pad.golden.prompts import built_in_prompts, check_prompts, read_prompts, tokenizer
from fp8pad.golden.request import (
    CheckOptions,
    RecordOptions,
    Reply,
    Request,
    default_atol,
    differences,
    settings_to_check,
    settings_to_record,
)
from fp8pad.quantization_config import plugin_config
from fp8pad.record import CONFIG_FILE
from fp8pad.text import counted, printable


def record(model: Path, options: RecordOptions, progress: Progress) -> GoldenDocument:
    """Run a model on prompts and return its answers.

    Raises `CheckpointError` for a folder that is not a checkpoint, `GoldenError` for prompts that cannot be used and
    for an engine that fails.
    """
    source = read_checkpoint(model)
    config = source.configs[CONFIG_FILE]
    if options.prompts is None:
        prompts = built_in_prompts(config, options.max_tokens, options.seed)
        prompts_from = f"built-in, seed {options.seed}"
    else:
        prompts = read_prompts(options.prompts, tokenizer(source.root, options.trust_remote_code))
        prompts_from = printable(options.prompts.name)
    settings = settings_to_record(config, prompts, options)
    check_prompts(prompts, config, settings.max_tokens, settings.max_model_len)
    reply = _run(source, Request(str(model), settings, prompts, options.trust_remote_code, None), progress)
    return GoldenDocument(
        fp8pad_version=__version__,
        model=printable(model.resolve().name),
        fingerprint=fingerprint(source),
        settings=replace(settings, dtype=reply.dtype),
        environment=reply.environment,
        prompts_from=prompts_from,
        answers=reply.answers,
    )


def check(model: Path, golden: GoldenDocument, options: CheckOptions, progress: Progress) -> Comparison:
    """Run a model on the prompts of a golden file, and compare its answers.

    Raises as `record` does, and `GoldenError` if the file was recorded with another model, or, with
    `options.strict`, with other settings or in another environment.
    """
    source = read_checkpoint(model)
    if (found := fingerprint(source)) != golden.fingerprint:
        raise GoldenError(
            f"{source.root}: is not the model that was recorded ({golden.model}):"
            f" expected fingerprint {golden.fingerprint[:19]}..., got {found[:19]}..."
        )
    settings = settings_to_check(golden.settings, options)
    warnings = differences(golden.settings, settings)
    if warnings and options.strict:
        raise GoldenError("; ".join(warnings))
    prompts = tuple(answer.prompt_token_ids for answer in golden.answers)
    required = golden.environment if options.strict else None
    reply = _run(source, Request(str(model), settings, prompts, options.trust_remote_code, required), progress)
    if settings.engine == golden.settings.engine:
        warnings += differences(golden.environment, reply.environment)
    atol = default_atol(settings, warnings) if options.atol is None else options.atol
    results = compare_answers(golden.answers, reply.answers, atol, options.allow_ties)
    num_tokens = sum(len(answer.token_ids) for answer in golden.answers)
    return Comparison(printable(model.resolve().name), atol, warnings, num_tokens, results)


def compare(
    model_a: Path, model_b: Path, record_options: RecordOptions, check_options: CheckOptions, progress: Progress
) -> Comparison:
    """Record one model and check another against it; raises as `record` and `check` do."""
    if fingerprint(read_checkpoint(model_a)) != fingerprint(read_checkpoint(model_b)):
        raise GoldenError(f"{model_b}: is not the same model as {model_a}: their fingerprints differ")
    return check(model_b, record(model_a, record_options, progress), check_options, progress)


def read_golden(file: Path) -> GoldenDocument:
    """Read a golden file; raises `GoldenError` if it cannot be read or is not one."""
    return parse_document(read_text(file, f"{file.name}: not a golden file"), file.name)


def _run(source: Checkpoint, request: Request, progress: Progress) -> Reply:
    settings = request.settings
    if settings.engine != "vllm" and plugin_config(source.configs[CONFIG_FILE]):
        raise GoldenError(
            f"{source.root}: is padded, so only vLLM with the fp8pad plugin can run it, not {settings.engine};"
            " a checkpoint converted with --absorb runs in any engine if nothing else had to be padded"
        )
    progress.say(f"{source.root.name}: {counted(len(request.prompts), 'prompt')} to {settings.engine}, {settings.mode}")
    reply = run_engine(request, progress)
    where = f"{settings.engine} {reply.environment.engine_version} on {reply.environment.device}"
    progress.say(f"{source.root.name}: answered by {where}")
    return reply

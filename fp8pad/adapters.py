"""Notes on files next to the shards that no longer fit after converting: LoRA adapters and other weights."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import PurePosixPath

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.folder import SHARD_SUFFIX, read_text
from fp8pad.checkpoint.headers import read_header
from fp8pad.checkpoint.json_text import parse_object
from fp8pad.errors import CheckpointError, PlanError
from fp8pad.planning.linear_names import scale_names
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.tensors import FP8_WEIGHT_DTYPES

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def adapter_notes(source: Checkpoint, plan: CheckpointPlan) -> tuple[str, ...]:
    """Return a sentence for each PEFT adapter that targets an absorbed module: its matrices have the old sizes.

    An adapter of a padded module still fits, since the runtime gives a padded module its logical sizes.
    """
    absorbed = [name for name, layer in plan.layers if layer.is_absorbed]
    if not absorbed:
        return ()
    touched = ((folder, _touched(source, folder, absorbed)) for folder in _adapter_folders(source))
    return tuple(
        f"{folder}/: a LoRA adapter for {len(modules)} absorbed modules, such as {modules[0]}; their sizes"
        " change, so it will not fit the converted checkpoint; merge it into the model before converting"
        for folder, modules in touched
        if modules
    )


def other_weight_notes(source: Checkpoint, plan: CheckpointPlan) -> tuple[str, ...]:
    """Return a sentence for each file of FP8 Linears next to a single shard without an index: engines load it too.

    Such a file is copied unchanged. Raises `PlanError` if sizes are absorbed, since its tensors keep the old ones.
    """
    if source.has_index:
        return ()
    files = [file for file in source.other_files if _holds_linears(source, file)]
    if files and plan.config_edits:
        raise PlanError(
            f"{files[0]}: holds FP8 layers, as {source.shards[0].file} does, but no index lists both files: "
            "absorbing would not resize its layers; add an index or convert without absorbing"
        )
    return tuple(
        f"{file}: holds FP8 layers, but no index lists it: copied unchanged, although vLLM loads it" for file in files
    )


def _holds_linears(source: Checkpoint, file: str) -> bool:
    """Return whether a file is in the root folder, is not an adapter, and holds FP8 weights with their scales."""
    if "/" in file or not file.endswith(SHARD_SUFFIX) or file.startswith("adapter_"):
        return False
    with suppress(CheckpointError):
        tensors = {tensor.name: tensor.dtype for tensor in read_header(source.root / file, file).tensors}
        weights = [name for name, dtype in tensors.items() if dtype in FP8_WEIGHT_DTYPES]
        return any(scale in tensors for weight in weights for scale in scale_names(weight))
    return False


def _adapter_folders(source: Checkpoint) -> list[str]:
    paths = map(PurePosixPath, source.other_files)
    return sorted({str(path.parent) for path in paths if path.name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)})


def _touched(source: Checkpoint, folder: str, modules: list[str]) -> list[str]:
    """Return the `modules` that an adapter targets, by its tensor names or, if those cannot be read, its config."""
    root = source.root / folder
    with suppress(CheckpointError):
        names = {f".{tensor.name}." for tensor in read_header(root / ADAPTER_WEIGHTS, ADAPTER_WEIGHTS).tensors}
        paths = {path for name in names for path in _paths_in(name)}
        return [module for module in modules if module in paths]
    with source.fetched(str(PurePosixPath(folder, ADAPTER_CONFIG))), suppress(CheckpointError):
        # Tensor names in a pickle are not read.
        targets = parse_object(ADAPTER_CONFIG, read_text(root, ADAPTER_CONFIG)).get("target_modules")
        if isinstance(targets, list):
            named = {target for target in targets if isinstance(target, str)}
            return [module for module in modules if not named.isdisjoint(_suffixes(module))]
        return modules if targets else []
    return []


def _paths_in(name: str) -> Iterator[str]:
    """Return possible module names for a tensor: what precedes `.lora_`, without its first 0 to 5 parts."""
    module, _, _ = name.strip(".").partition(".lora_")
    return islice(_suffixes(module), 6)


def _suffixes(name: str) -> Iterator[str]:
    """Return the suffixes of a dotted name that begin at one of its parts, the longest first."""
    parts = name.split(".")
    return (".".join(parts[begin:]) for begin in range(len(parts)))

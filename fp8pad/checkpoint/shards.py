"""Which files of a checkpoint folder are its shards, and whether names, index and headers agree."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fp8pad.checkpoint.folder import INDEX_FILE, SHARD_SUFFIX, is_other_form
from fp8pad.checkpoint.json_text import parse_object
from fp8pad.errors import CheckpointError
from fp8pad.record import CONFIG_FILE
from fp8pad.tensors import ShardHeader

SINGLE_SHARD = "model.safetensors"
MISTRAL_CONFIG_FILE = "params.json"  # the config of the weights in consolidated*.safetensors


def is_shard(name: str) -> bool:
    """Return whether a shard can have this name: a safetensors file in the folder itself."""
    return name.endswith(SHARD_SUFFIX) and "/" not in name and "\0" not in name and name != SHARD_SUFFIX


def check_format(root: Path) -> None:
    """Raise `CheckpointError` for a folder in Mistral's own format only, or a model's folder in the hub's cache."""
    files = {path.name for path in root.iterdir()}
    if CONFIG_FILE not in files and (root / "snapshots").is_dir():
        commits = ", ".join(sorted(path.name for path in (root / "snapshots").iterdir())[:2])
        raise CheckpointError(f"is a model in the hub's cache; pass a folder of its snapshots: {commits}")
    has_own = MISTRAL_CONFIG_FILE in files and any(name.startswith("consolidated") for name in files)
    has_shards = any(name.endswith(SHARD_SUFFIX) and not is_other_form(name) for name in files)
    if has_own and not (has_shards and CONFIG_FILE in files):
        raise CheckpointError(
            f"is in Mistral's own format ({MISTRAL_CONFIG_FILE}, consolidated*); fp8pad needs the Hugging Face"
            f" format: {CONFIG_FILE} and model*.safetensors, which most Mistral repositories also hold, or which"
            " a conversion script of transformers writes"
        )


def parse_index(text: str | None) -> dict[str, str]:
    """Return the shard of each tensor from the text of an index; empty if there is no index."""
    if text is None:
        return {}
    weight_map = parse_object(INDEX_FILE, text).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE}: weight_map: expected an object that names shards")
    files: dict[str, str] = {}  # many tensors share one string for each file
    for name, file in weight_map.items():
        if not isinstance(file, str) or not is_shard(file):
            raise CheckpointError(f"{INDEX_FILE}: {name}: expected the name of a file in the folder, got {file!r}")
        weight_map[name] = files.setdefault(file, file)
    return weight_map


def shard_files(root: Path, weight_map: Mapping[str, str]) -> list[str]:
    """Return the sorted names of the shards: those in the index, else model.safetensors, else all that there are.

    Raises `CheckpointError` if there are none, or if a numbered series is incomplete.
    """
    if weight_map:
        return sorted(set(weight_map.values()))
    names = sorted(path.name for path in root.iterdir() if path.suffix == SHARD_SUFFIX)
    if SINGLE_SHARD in names:
        return [SINGLE_SHARD]
    names = [name for name in names if not name.startswith("adapter_") and not is_other_form(name)]
    if not names:
        others = sorted(path.name for path in root.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".gguf"})
        hint = f"; convert {others[0]} to safetensors first" if others else ""
        raise CheckpointError(f"holds no *.safetensors{hint}")
    _check_series(names)
    return names


def _check_series(names: list[str]) -> None:
    for name in names:
        if match := re.fullmatch(r"(.*-)\d+-of-(\d+)\.safetensors", name):
            series = [
                other for other in names if other.startswith(match[1]) and other.endswith(f"-of-{match[2]}.safetensors")
            ]
            if len(series) != int(match[2]):
                raise CheckpointError(
                    f"{name}: expected {int(match[2])} shards, got {len(series)}, and there is no index"
                )


def checked(shards: Iterable[ShardHeader], weight_map: dict[str, str]) -> Iterator[ShardHeader]:
    """Yield shards; `CheckpointError` if a tensor is in two, or not in the one that the index, if any, names.

    Names are removed from `weight_map` as they are found: those of an index take as much memory as those of headers.
    """
    has_index, seen = bool(weight_map), list[ShardHeader]()
    for shard in shards:
        seen.append(shard)
        for tensor in shard.tensors:
            name = tensor.name
            expected = weight_map.pop(name, None) if has_index else weight_map.setdefault(name, shard.file)
            if expected != shard.file:
                raise CheckpointError(_misplaced(name, expected, seen))
        yield shard
    for name, file in weight_map.items() if has_index else ():
        raise CheckpointError(f"{INDEX_FILE}: {name}: expected in {file}, but it is not there")


def _misplaced(name: str, expected: str | None, shards: Iterable[ShardHeader]) -> str:
    """Return a message about a tensor that is in the wrong shard, or in two."""
    first, *others = [shard.file for shard in shards for tensor in shard.tensors if tensor.name == name]
    if others:
        return f"{name}: is in both {first} and {others[0]}"
    if expected is None:
        return f"{INDEX_FILE}: {name}: is in {first}, but weight_map does not list it"
    return f"{INDEX_FILE}: {name}: expected in {expected}, but it is in {first}"

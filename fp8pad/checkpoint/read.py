"""Read a checkpoint folder: which files are its shards, whether names, index and headers agree, what fp8pad wrote."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fp8pad.checkpoint.checkpoint import MISTRAL_CONFIG_FILE, Checkpoint
from fp8pad.checkpoint.files import FileIdentity, open_file
from fp8pad.checkpoint.folder import (
    INDEX_FILE,
    SHARD_SUFFIX,
    is_excluded_link,
    is_other_form,
    is_shard,
    list_folder,
    read_text_and_identity,
)
from fp8pad.checkpoint.headers import header_of
from fp8pad.checkpoint.json_text import parse_object
from fp8pad.errors import AlreadyPaddedError, CheckpointError, HeaderError, shown
from fp8pad.record import CONFIG_FILE, MODELOPT_FILE
from fp8pad.tensors import ShardHeader

SINGLE_SHARD = "model.safetensors"


def read_unconverted(model_dir: Path, follow_links: bool = False) -> Checkpoint:
    """Read a checkpoint to be converted.

    Raises `CheckpointError` if its files are missing, damaged or disagree, `ConfigError` if config.json is not a JSON
    object, and `AlreadyPaddedError` if fp8pad wrote it.
    """
    source = read_checkpoint(model_dir, follow_links)
    if mark := source.padding_mark:
        hint = "`fp8pad inspect` shows what was done, `fp8pad unpad` restores the original"
        raise AlreadyPaddedError(f"{model_dir}: was padded by fp8pad already ({mark}); {hint}")
    return source


def read_checkpoint(root: Path, follow_links: bool = False) -> Checkpoint:
    """Read any checkpoint, padded or not; see `read_unconverted` for errors, `list_folder` for links.

    Messages begin with the folder, since a command may read two.
    """
    try:
        return _read_folder(root, follow_links)
    except CheckpointError as error:
        raise type(error)(f"{root}: {error}") from error


def _read_folder(root: Path, follow_links: bool) -> Checkpoint:
    if not root.is_dir():
        raise CheckpointError("expected a folder" if root.exists() else "no such folder")
    check_format(root)
    reader = _FolderReader(root)
    configs = {CONFIG_FILE: parse_object(CONFIG_FILE, reader.text(CONFIG_FILE))}
    if (modelopt_text := reader.optional_text(MODELOPT_FILE)) is not None:
        configs[MODELOPT_FILE] = parse_object(MODELOPT_FILE, modelopt_text)
    weight_map = parse_index(reader.optional_text(INDEX_FILE))
    has_index = bool(weight_map)
    shards = tuple(checked(map(reader.header, shard_files(root, weight_map)), weight_map))
    own_files = {CONFIG_FILE, *([INDEX_FILE] if has_index else []), *(shard.file for shard in shards)}
    found, excluded = list_folder(root, own_files, follow_links)
    if MODELOPT_FILE in excluded:  # a link out of the folder is followed, as for config.json: the plan needs it
        found[MODELOPT_FILE] = reader.identities[MODELOPT_FILE]
        excluded.remove(MODELOPT_FILE)
    links_out = tuple(sorted(file for file in excluded if is_excluded_link(root, file)))
    copies = _other_copies(reader, found, shards)
    return Checkpoint(
        root=root,
        shards=shards,
        configs=configs,
        has_index=has_index,
        other_files=tuple(file for file in found if file not in copies),
        excluded=tuple(sorted((*excluded, *copies))),
        identities={file: each for file, each in (found | reader.identities).items() if file not in copies},
        links_out=links_out,
    )


@dataclass(frozen=True, slots=True)
class _FolderReader:
    """Reads files of the folder `root` and records the identity of each."""

    root: Path
    identities: dict[str, FileIdentity] = field(default_factory=dict)

    def text(self, file: str) -> str:
        text, self.identities[file] = read_text_and_identity(self.root, file)
        return text

    def optional_text(self, file: str) -> str | None:
        path = self.root / file
        return self.text(file) if path.exists() or path.is_symlink() else None

    def header(self, file: str) -> ShardHeader:
        with open_file(self.root / file, file) as shard:
            self.identities[file] = shard.identity
            return header_of(shard, shard.identity.size)


def _other_copies(reader: _FolderReader, files: Iterable[str], shards: Iterable[ShardHeader]) -> set[str]:
    """Return the other safetensors files that hold tensors of the same names: second copies of the weights."""
    copies: set[str] = set()
    others = list(filter(is_shard, files))
    names = {tensor.name for shard in shards for tensor in shard.tensors} if others else ()
    for file in others:
        with suppress(HeaderError):  # not weights that fp8pad can read, so it is copied
            copies |= {file for tensor in reader.header(file).tensors if tensor.name in names}
    return copies


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
            raise CheckpointError(f"{INDEX_FILE}: {name}: expected the name of a file in the folder, got {shown(file)}")
        weight_map[name] = files.setdefault(file, file)
    return weight_map


def shard_files(root: Path, weight_map: Mapping[str, str]) -> list[str]:
    """Return the sorted names of the shards: those in the index, else model.safetensors, else all that there are.

    Raises `CheckpointError` if there are none, if a numbered series is incomplete, or if they are shares of ranks.
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
    if share := next((name for name in names if re.fullmatch(r"model-rank-\d+-part-\d+\.safetensors", name)), None):
        raise CheckpointError(
            f"{share}: is one rank's share of a model, as vLLM's save_sharded_state writes it, in which weights may be "
            "transposed; convert the model that it was made from"
        )
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

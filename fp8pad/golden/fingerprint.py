"""What identifies a model before and after padding: its tensors' names, dtypes and source shapes, and its config.

No tensor bytes are read, so a fingerprint takes milliseconds. It tells models apart, not weights: `fp8pad verify`
checks that a padded checkpoint holds the weights of its source.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.errors import RecordError
from fp8pad.planning.config import edited_config
from fp8pad.planning.quantization import value_at
from fp8pad.record import CONFIG_FILE, RECORD_FILE, ConfigEdit

_QUANTIZATION_KEYS = frozenset({"quantization_config", "compression_config"})


def fingerprint(source: Checkpoint) -> str:
    """Return the SHA-256 that a model and its fp8pad checkpoints share.

    It hashes, as JSON, `[name, dtype, source shape]` of every tensor, sorted, and config.json without its quantization
    config and with the old values of the sizes that absorbing edited. Raises `RecordError` for an fp8pad checkpoint
    whose fp8pad.json is missing or malformed, or contradicts config.json.
    """
    record = source.read_record()
    shapes = {name: tensor.logical_shape for name, tensor in record.tensors.items()} if record else {}
    tensors = sorted(
        [tensor.name, tensor.dtype, list(shapes.get(tensor.name, tensor.shape))] for tensor in source.tensors
    )
    config = _without_quantization(source_config(source.configs[CONFIG_FILE], record.config_edits if record else ()))
    content = json.dumps([tensors, config], sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def source_config(config: Mapping[str, Any], edits: tuple[ConfigEdit, ...]) -> dict[str, Any]:
    """Return `config` with the old value of every edited key; raises `RecordError` if one lacks its edited value."""
    for edit in edits:
        if edit.file == CONFIG_FILE and (found := value_at(config, edit.key)) != edit.new:
            raise RecordError(f"{CONFIG_FILE}: {edit.key}: expected {edit.new}, as {RECORD_FILE} says, got {found}")
    return edited_config(config, [replace(edit, old=edit.new, new=edit.old) for edit in edits], None, None)


def _without_quantization(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_quantization(value) for key, value in node.items() if key not in _QUANTIZATION_KEYS}
    return node

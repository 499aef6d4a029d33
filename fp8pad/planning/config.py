"""The config.json of a converted checkpoint."""

import json
from collections.abc import Iterable
from typing import Any

from fp8pad.errors import ConfigError
from fp8pad.planning.quantization import record_key, value_at
from fp8pad.quantization_config import QuantizationRecord
from fp8pad.record import CONFIG_FILE, BaseSource, ConfigEdit, Json


def edited_config(
    config: Json,
    edits: Iterable[ConfigEdit],
    quantization: QuantizationRecord | None,
    base_source: BaseSource | None,
) -> dict[str, Any]:
    """Return a copy of `config` with edited sizes, and `quantization` in place of the original quantization config.

    Key order and every other key are kept. Raises `ConfigError` if `config` has no place for a key.
    """
    edited: dict[str, Any] = json.loads(json.dumps(config))  # equal objects may be shared in `config`
    for edit in edits:
        if edit.file == CONFIG_FILE:
            _replace(edited, edit.key, edit.new, must_exist=False)
    if quantization and base_source:
        key = record_key(config, base_source)
        _replace(edited, key, quantization.to_json(), must_exist=key == base_source.key)
    return edited


def _replace(document: dict[str, Any], key: str, value: Any, must_exist: bool = True) -> None:
    section, _, last = key.rpartition(".")
    found = value_at(document, section) if section else document
    if isinstance(found, list) and value_at(document, key) is not None:
        found[int(last)] = value
    elif isinstance(found, dict) and not (must_exist and last not in found):
        found[last] = value
    else:
        raise ConfigError(f"{CONFIG_FILE}: {key}: no such key")

"""config.json as the converted checkpoint will carry it."""

import copy
from collections.abc import MutableMapping
from typing import Any

from fp8pad import __version__
from fp8pad.errors import ConfigError
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.quantization import CONFIG_FILE
from fp8pad.record import Json, QuantizationRecord


def edited_config(config: Json, plan: CheckpointPlan, fp8pad_version: str = __version__) -> dict[str, Any]:
    """Return a copy of `config` with the plan's sizes, and with fp8pad's quantization config where one is needed.

    Key order and every other key stay. Raises `ConfigError` where a key of the plan is not in `config`.
    """
    edited = copy.deepcopy(dict(config))
    for edit in plan.config_edits:
        if edit.file == CONFIG_FILE:
            _replace(edited, edit.key, edit.new, must_exist=False)
    if plan.needs_runtime and plan.base is not None and plan.base_source is not None:
        record = QuantizationRecord(plan.modules, plan.base, fp8pad_version)
        key = plan.base_source.key if plan.base_source.file == CONFIG_FILE else None
        _replace(edited, key or "quantization_config", record.to_json(), must_exist=key is not None)
    return edited


def _replace(document: MutableMapping[str, Any], key: str, value: Any, must_exist: bool = True) -> None:
    *sections, last = key.split(".")
    for section in sections:
        document = document.get(section, {})
    if not isinstance(document, MutableMapping) or (must_exist and last not in document):
        raise ConfigError(f"{CONFIG_FILE}: {key}: no such key")
    document[last] = value

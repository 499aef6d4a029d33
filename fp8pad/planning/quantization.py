"""The quantization config of a checkpoint: which of several an engine reads, and what it says about the weights."""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fp8pad.errors import ConfigError, shown
from fp8pad.planning.weight_formats import OTHER_FP8, Format, quark_groups, quark_weights, read_formats, read_object
from fp8pad.quantization_config import quantization_method
from fp8pad.record import CONFIG_FILE, MODELOPT_FILE, BaseSource, Json
from fp8pad.scales import Granularity

QUANTIZATION_KEY = "quantization_config"

# Where tools put it in config.json, in the order in which vLLM reads it (`get_quant_config` in
# vllm/model_executor/model_loader/weight_utils.py); the last is read by its `get_quantization_config` alone.
_CONFIG_KEYS = (
    QUANTIZATION_KEY,
    "text_config.quantization_config",
    "compression_config",
    "text_config.compression_config",
)
# Lists of modules that are not quantized; tools write regular expressions in some of them.
_IGNORE_KEYS = ("ignore", "exclude", "exclude_modules", "ignored_layers", "modules_to_not_convert")
# Places of transforms that change no activation of a Linear (compressed_tensors' `TransformLocation`).
_OFFLINE = ("weight_input", "weight_output", "q_attn", "k_cache")
_MOST_PATTERN_CHARACTERS = 2_000  # compiling can take a millisecond for each


@dataclass(frozen=True, slots=True)
class Quantization:
    """A quantization config as vLLM reads it: `config` was found at `source`, in messages `where`.

    `formats` are those that it names for weights; `notes` are sentences for the plan.
    """

    source: BaseSource
    where: str
    config: Json
    method: str
    formats: tuple[Format, ...]
    notes: tuple[str, ...] = ()

    @property
    def granularities(self) -> tuple[Granularity, ...]:
        """Those that the scales of an FP8 weight may have."""
        return tuple(found for found in self.formats if found is not OTHER_FP8 and not isinstance(found, str))

    @property
    def others(self) -> tuple[str, ...]:
        """The formats that are not FP8."""
        return tuple(found for found in self.formats if isinstance(found, str))

    @property
    def rotates(self) -> bool:
        """Whether inputs or outputs of layers are multiplied by matrices of their sizes while the model runs.

        These are the online transforms of compressed-tensors; others are part of the weights already, or of the cache.
        What cannot be read counts as online: padding it could give wrong answers.
        """
        groups = value_at(self.config, "transform_config.config_groups")
        if groups is None:
            return False
        applied = [value_at(group, "apply") for group in groups.values()] if isinstance(groups, Mapping) else [None]
        return any(
            not isinstance(steps, list) or any(value_at(step, "location") not in _OFFLINE for step in steps)
            for steps in applied
        )


def find_quantization(configs: Mapping[str, Json]) -> Quantization | None:
    """Return the quantization config of a checkpoint, or None if it has none.

    `configs` maps file names to parsed JSON. Raises `ConfigError` for one that is malformed or of an unknown method.
    """
    places = _places(configs[CONFIG_FILE])
    if MODELOPT_FILE in configs and _is_modelopts_file_read(places.get(QUANTIZATION_KEY)):
        return _read(configs[MODELOPT_FILE], BaseSource(MODELOPT_FILE, None))
    for key, document in places.items():
        return _read(read_object(document, CONFIG_FILE, key), BaseSource(CONFIG_FILE, key))
    return None


def record_key(config: Json, source: BaseSource) -> str:
    """Return the key of config.json at which vLLM reads fp8pad's record instead of the config found at `source`.

    That is the key of `source`, unless vLLM takes the method from another place (`_normalize_quantization_config` in
    transformers_utils/model_arch_config_convertor.py prefers `compression_config` to what is in `text_config`).
    """
    places = _places(config)
    if source.file != CONFIG_FILE or source.key is None or (QUANTIZATION_KEY not in places and len(places) > 1):
        return QUANTIZATION_KEY
    return source.key


def _places(config: Json) -> dict[str, Any]:
    found = {key: value_at(config, key) for key in _CONFIG_KEYS}
    return {key: document for key, document in found.items() if document is not None}


def value_at(config: Json, key: str) -> Any:
    """Return the value at a dotted key of a config, a number being a place in a list; None if there is none."""
    value: Any = config
    for part in key.split("."):
        if isinstance(value, list):
            place = int(part) if part.isascii() and part.isdecimal() and len(part) < 10 else len(value)
            value = value[place] if place < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _is_modelopts_file_read(document: Any) -> bool:
    """Return whether vLLM reads ModelOpt's own file: config.json has no config, or mixed precision without a table."""
    if not isinstance(document, Mapping):
        return document is None
    algorithm = str(document.get("quant_algo")).upper()
    is_mixed = algorithm == "MIXED_PRECISION" or quantization_method(document) == "modelopt_mixed"
    return is_mixed and "quantized_layers" not in document


def _read(document: Json, source: BaseSource) -> Quantization:
    where = f"{source.file}: {source.key}" if source.key else source.file
    method = quantization_method(document)
    if method is None or not isinstance(document.get("quant_method", ""), str):
        raise ConfigError(f"{where}: quant_method: expected a method's name, got {shown(document.get('quant_method'))}")
    formats = read_formats(method, document, where)
    return Quantization(source, where, document, method, formats, tuple(_notes(document, source, method, where)))


def method_of_rules(config: Json | None) -> str | None:
    """Return the method of a quantization config as the rules of engines name it.

    ModelOpt's mixed precision is a method of its own in vLLM.
    """
    if config is None:
        return None
    inner = config.get("quantization", config)
    algorithm = str(inner.get("quant_algo")).upper() if isinstance(inner, Mapping) else ""
    return "modelopt_mixed" if algorithm == "MIXED_PRECISION" else quantization_method(config)


def is_weight_only(config: Json | None) -> bool:
    """Return whether a compressed-tensors or Quark config does not quantize the activations of its FP8 layers."""
    if config is None:
        return False
    if quantization_method(config) == "quark":
        groups = [group for group in quark_groups(config, "") if any(map(_is_fp8, quark_weights(group, "")))]
        return bool(groups) and not any(group.get("input_tensors") for group in groups)
    named = config.get("config_groups")
    groups = list(named.values()) if isinstance(named, Mapping) else []
    return bool(groups) and all(isinstance(group, Mapping) and not group.get("input_activations") for group in groups)


def _is_fp8(quark_weight: Json) -> bool:
    return str(quark_weight.get("dtype")).startswith("fp8")


def _notes(document: Json, source: BaseSource, method: str, where: str) -> Iterator[str]:
    if source.file == CONFIG_FILE and "quant_method" not in document:
        yield f"{where} has no quant_method; it is read as {method}"
    checked = 0
    for pattern in _patterns(document):
        checked += len(pattern)
        if checked <= _MOST_PATTERN_CHARACTERS and (reason := _why_not_a_pattern(pattern)):
            yield f"{where}: {shown(pattern)} is not a valid regular expression: {reason}"


def _patterns(document: Json) -> Iterator[str]:
    """Yield the regular expressions among the modules that a config names; tools mark them with `re:`."""
    groups = document.get("config_groups")
    found = groups.values() if isinstance(groups, Mapping) else ()
    targets = [group.get("targets") for group in found if isinstance(group, Mapping)]
    for names in (*(document.get(key) for key in _IGNORE_KEYS), *targets):
        if isinstance(names, list):
            yield from (name for name in names if isinstance(name, str) and name.startswith("re:"))


def _why_not_a_pattern(pattern: str) -> str | None:
    # Patterns that ignore case are slow to compile, and nothing is matched here: they are left to the engine.
    if re.search(r"\(\?[a-zA-Z]*i", pattern):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sets that a later Python may read differently
            re.compile(pattern.removeprefix("re:"))
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return None

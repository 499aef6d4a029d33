"""What the runtime relies on in vLLM: the versions it was tried with, and each symbol whose shape it takes for granted.

A host that does not hold this contract is refused with the symbol's name, never served wrong.
"""

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from fp8pad.errors import EngineError

# Supported versions of vLLM, first and last, as (major, minor); the only place that says so besides pyproject.toml.
FIRST_VERSION = (0, 26)
LAST_VERSION = (0, 33)

_ADVICE = "VLLM_PLUGINS can leave fp8pad out where its checkpoints are not served"


@dataclass(frozen=True, slots=True)
class EngineSymbol:
    """A symbol of vLLM: where it is, which parameters it must take (None: it is no function), and what for."""

    module: str
    name: str
    parameters: tuple[str, ...] | None
    why: str


_LAYERS = "vllm.model_executor.layers"
_QUANTIZATION = f"{_LAYERS}.quantization"

ENGINE_SYMBOLS = (
    EngineSymbol(
        _QUANTIZATION, "register_quantization_config", ("quantization",), "makes `fp8pad` a method that vLLM knows"
    ),
    EngineSymbol(
        _QUANTIZATION, "get_quantization_config", ("quantization",), "finds the class of the original's method"
    ),
    EngineSymbol(_QUANTIZATION, "QUANTIZATION_METHODS", None, "is asked, one by one, which method serves the original"),
    EngineSymbol(
        f"{_QUANTIZATION}.base_config",
        "QuantizationConfig.override_quantization_method",
        ("hf_quant_cfg", "user_quant", "hf_config"),
        "claims a checkpoint and puts the original's quantization config back",
    ),
    EngineSymbol(
        f"{_QUANTIZATION}.base_config",
        "QuantizationConfig.apply_vllm_mapper",
        ("self", "hf_to_vllm_mapper"),
        "renames modules as the model renames its weights",
    ),
    EngineSymbol(
        f"{_QUANTIZATION}.base_config",
        "QuantizationConfig.get_quant_method",
        ("self", "layer", "prefix"),
        "hands out the linear method of each layer",
    ),
    EngineSymbol(
        f"{_LAYERS}.linear",
        "LinearMethodBase.create_weights",
        (
            "self",
            "layer",
            "input_size_per_partition",
            "output_partition_sizes",
            "input_size",
            "output_size",
            "params_dtype",
            "extra_weight_attrs",
        ),
        "is given padded sizes",
    ),
    EngineSymbol(f"{_LAYERS}.linear", "LinearMethodBase.apply", ("self", "layer", "x", "bias"), "is given a padded x"),
    EngineSymbol(
        f"{_LAYERS}.linear", "UnquantizedLinearMethod", None, "tells layers that the original leaves unquantized"
    ),
    EngineSymbol(
        "vllm.model_executor.parameter",
        "BasevLLMParameter.weight_loader",
        None,
        "is the property through which every loader of a parameter is reached",
    ),
    EngineSymbol(
        f"{_QUANTIZATION}.utils.quant_utils",
        "get_and_maybe_dequant_weights",
        ("layer", "out_dtype"),
        "reads the weight of MLA's `kv_b_proj` past its linear method",
    ),
    EngineSymbol(
        "vllm.model_executor.model_loader.default_loader",
        "DefaultModelLoader.load_weights",
        ("self", "model", "model_config"),
        "is where a model is whole, and not yet loaded",
    ),
    EngineSymbol(
        "vllm.model_executor.models.utils",
        "WeightsMapper.apply_list",
        ("self", "values"),
        "maps one weight's name to the model's",
    ),
)


def check_engine(version: str) -> None:
    """Raise `EngineError` unless vLLM `version` is supported and every symbol is as the runtime expects it."""
    first, last = _text(FIRST_VERSION), _text(LAST_VERSION)
    if not FIRST_VERSION <= _major_minor(version) <= LAST_VERSION:
        raise EngineError(f"vLLM {version}: fp8pad supports vLLM {first} to {last}; {_ADVICE}")
    for symbol in ENGINE_SYMBOLS:
        _check_symbol(symbol, version)


def _check_symbol(symbol: EngineSymbol, version: str) -> None:
    place = f"vLLM {version}: {symbol.module}.{symbol.name}, which {symbol.why}"
    try:
        found: Any = importlib.import_module(symbol.module)
        for name in symbol.name.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise EngineError(f"{place}, is missing: {error}; {_ADVICE}") from error
    if symbol.parameters is None:
        return
    parameters = tuple(inspect.signature(inspect.unwrap(getattr(found, "__func__", found))).parameters)
    if parameters[: len(symbol.parameters)] != symbol.parameters and parameters[1:] != symbol.parameters:
        expected, got = ", ".join(symbol.parameters), ", ".join(parameters)
        raise EngineError(f"{place}: expected parameters ({expected}), got ({got}); {_ADVICE}")


def _major_minor(version: str) -> tuple[int, int]:
    try:
        major, minor = version.split(".")[:2]
        return int(major), int(minor)
    except ValueError as error:
        raise EngineError(f"vLLM {version}: a version that cannot be read; {_ADVICE}") from error


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))

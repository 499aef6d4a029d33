"""What the runtime relies on in vLLM: the versions it was tried with, and the symbols that it takes for granted.

Where a symbol that right answers need is not as expected, padded checkpoints are refused with its name. Where one that
only speed needs is not, they are served, slower, with a warning. The same comparison runs on the installed vLLM and on
what `tests/contract/describe.py` wrote down of other versions.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from packaging.version import InvalidVersion, Version

from fp8pad.errors import EngineError

# The first and the last vLLM that was tried, as (major, minor); pyproject.toml says the same.
FIRST_VERSION = (0, 26)
LAST_VERSION = (0, 33)


@dataclass(frozen=True, slots=True)
class EngineSymbol:
    """A symbol of vLLM: where it is, what for, and, of a function, the parameters that it must take.

    `name` is that of a function or class in `module`, or `CLASS.NAME` for a method or an attribute, also one that only
    instances have; `older` is what it was called in some versions. `without` says what is lost without the symbol;
    None: right answers are.
    """

    module: str
    name: str
    why: str
    parameters: tuple[str, ...] | None = None
    without: str | None = None
    older: str | None = None


_LAYERS = "vllm.model_executor.layers"
_QUANTIZATION = f"{_LAYERS}.quantization"
_SCHEMES = f"{_QUANTIZATION}.compressed_tensors.schemes"
_KERNELS = "vllm.model_executor.kernels.linear.scaled_mm"

_CREATE_WEIGHTS = (
    "self",
    "layer",
    "input_size_per_partition",
    "output_partition_sizes",
    "input_size",
    "output_size",
    "params_dtype",
    "extra_weight_attrs",
)
_SLOWER = "activations are padded by a copy of their own, not where they are quantized"
_COPIED = "outputs are cut inside MLPs too"

ENGINE_SYMBOLS = (
    EngineSymbol(
        _QUANTIZATION, "register_quantization_config", "makes `fp8pad` a method that vLLM knows", ("quantization",)
    ),
    EngineSymbol(
        _QUANTIZATION, "get_quantization_config", "finds the class of the original's method", ("quantization",)
    ),
    EngineSymbol(_QUANTIZATION, "QUANTIZATION_METHODS", "lists the methods, one of which serves the original"),
    EngineSymbol(
        f"{_QUANTIZATION}.base_config",
        "QuantizationConfig.override_quantization_method",
        "claims a checkpoint and puts the original's quantization config back",
        ("hf_quant_cfg", "user_quant", "hf_config"),
    ),
    EngineSymbol(
        f"{_QUANTIZATION}.base_config",
        "QuantizationConfig.apply_vllm_mapper",
        "renames modules as the model renames its weights",
        ("self", "hf_to_vllm_mapper"),
    ),
    EngineSymbol(
        f"{_QUANTIZATION}.base_config",
        "QuantizationConfig.get_quant_method",
        "hands out the linear method of each layer",
        ("self", "layer", "prefix"),
    ),
    EngineSymbol(f"{_LAYERS}.linear", "LinearMethodBase.create_weights", "is given padded sizes", _CREATE_WEIGHTS),
    EngineSymbol(f"{_LAYERS}.linear", "LinearMethodBase.apply", "is given a padded x", ("self", "layer", "x", "bias")),
    EngineSymbol(f"{_LAYERS}.linear", "UnquantizedLinearMethod", "tells layers that the original leaves unquantized"),
    EngineSymbol(f"{_LAYERS}.linear", "LinearBase.tp_rank", "says which share of a layer a rank loads"),
    EngineSymbol(f"{_LAYERS}.linear", "LinearBase.tp_size", "says how many ranks share a layer"),
    EngineSymbol(
        "vllm.model_executor.parameter",
        "BasevLLMParameter.weight_loader",
        "is the property through which every loader of a parameter is reached",
    ),
    EngineSymbol(
        f"{_QUANTIZATION}.utils.quant_utils",
        "get_and_maybe_dequant_weights",
        "reads the weight of MLA's `kv_b_proj` past its linear method",
        ("layer", "out_dtype"),
    ),
    EngineSymbol(
        "vllm.model_executor.model_loader.default_loader",
        "DefaultModelLoader.load_weights",
        "is where a model is whole, and not yet loaded",
        ("self", "model", "model_config"),
    ),
    EngineSymbol(
        "vllm.model_executor.models.utils",
        "WeightsMapper.apply_list",
        "maps one weight's name to the model's",
        ("self", "values"),
    ),
    EngineSymbol(f"{_KERNELS}.marlin", "MarlinFP8ScaledMMLinearKernel", "is told padded sizes by its name"),
    EngineSymbol(
        f"{_KERNELS}.cutlass",
        "CutlassFP8ScaledMMLinearKernel.quant_fp8",
        "quantizes an activation for CUTLASS",
        without=_SLOWER,
    ),
    EngineSymbol(
        f"{_QUANTIZATION}.input_quant_fp8",
        "QuantFP8.forward_cuda",
        "is what one launch of ours does as well",
        ("self", "x", "scale", "scale_ub"),
        without=_SLOWER,
    ),
    *(
        EngineSymbol(
            f"{_QUANTIZATION}.input_quant_fp8", f"QuantFP8.{name}", "tells how QuantFP8 quantizes", without=_SLOWER
        )
        for name in ("use_per_token_if_dynamic", "is_group_quant", "num_token_padding")
    ),
    *(
        EngineSymbol(module, name, "is where a layer's kernel is found", without=_SLOWER)
        for module, name in (
            (f"{_QUANTIZATION}.fp8", "Fp8LinearMethod.fp8_linear"),
            (f"{_QUANTIZATION}.fbgemm_fp8", "FBGEMMFp8LinearMethod.fp8_linear"),
            (f"{_QUANTIZATION}.quark.schemes.quark_w8a8_fp8", "QuarkW8A8Fp8.fp8_linear"),
            (f"{_SCHEMES}.compressed_tensors_w8a8_fp8", "CompressedTensorsW8A8Fp8.fp8_linear"),
            (f"{_SCHEMES}.compressed_tensors_w8a16_fp8", "CompressedTensorsW8A16Fp8.linear_kernel"),
        )
    ),
    EngineSymbol(
        f"{_QUANTIZATION}.modelopt",
        "ModelOptLinearMethod.kernel",
        "is where a layer's kernel is found",
        without=_SLOWER,
        older="ModelOptFp8LinearMethod.fp8_linear",
    ),
    EngineSymbol(
        f"{_LAYERS}.linear",
        "ColumnParallelLinear.gather_output",
        "says whether an output stays on its rank",
        without=_COPIED,
    ),
    EngineSymbol(
        f"{_LAYERS}.linear",
        "RowParallelLinear.input_is_parallel",
        "says whether an input is a rank's own share",
        without=_COPIED,
    ),
)

# Returns the parameters of a name in a module, or None if it is no function; raises `LookupError` where there is none.
Lookup = Callable[[str, str], tuple[str, ...] | None]


def untried(version: str) -> str | None:
    """Return why vLLM `version` may differ from those that were tried, or None; raises `EngineError` if it is older."""
    first, last = (".".join(map(str, bound)) for bound in (FIRST_VERSION, LAST_VERSION))
    try:
        found = Version(version).release[:2]
    except InvalidVersion:
        return f"vLLM {version} has no version number; fp8pad was tried with {first} to {last}"
    if found < FIRST_VERSION:
        raise EngineError(f"vLLM {version}: padded checkpoints need vLLM {first} or newer")
    return (
        f"vLLM {version} is newer than what fp8pad was tried with, {first} to {last}" if found > LAST_VERSION else None
    )


def slower(version: str, lookup: Lookup | None = None) -> list[str]:
    """Return what makes padded checkpoints slower with vLLM `version`, a line for each symbol that is not as expected.

    Raises `EngineError` if a symbol that right answers need is not. By default `lookup` asks the installed vLLM.
    """
    faults = list(_faults(version, lookup or installed))
    for symbol, fault in faults:
        if symbol.without is None:
            raise EngineError(f"{fault}; serve the original, or what `fp8pad unpad` makes, with this vLLM")
    return [f"{fault}: {symbol.without}" for symbol, fault in faults]


def _faults(version: str, lookup: Lookup) -> Iterator[tuple[EngineSymbol, str]]:
    for symbol in ENGINE_SYMBOLS:
        place = f"vLLM {version}: {symbol.module}.{symbol.name}, which {symbol.why}"
        try:
            parameters = _found(symbol, lookup)
        except LookupError as error:
            yield symbol, f"{place}, is missing ({error})"
            continue
        if symbol.parameters and not _takes(parameters or (), symbol.parameters):
            expected, got = ", ".join(symbol.parameters), ", ".join(parameters or ())
            yield symbol, f"{place}: expected parameters ({expected}), got ({got})"


def _found(symbol: EngineSymbol, lookup: Lookup) -> tuple[str, ...] | None:
    try:
        return lookup(symbol.module, symbol.name)
    except LookupError:
        if symbol.older is None:
            raise
        return lookup(symbol.module, symbol.older)


def _takes(parameters: tuple[str, ...], expected: tuple[str, ...]) -> bool:
    """Return whether parameters begin as expected, for a class method also after the class."""
    return expected in (parameters[: len(expected)], parameters[1:])


def installed(module: str, name: str) -> tuple[str, ...] | None:
    """Look a name up in a module of the installed vLLM."""
    *owners, last = name.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        found = getattr(owner, last)
    except ImportError as error:
        raise LookupError(str(error)) from error
    except AttributeError as error:
        if isinstance(owner, type) and _sets(owner, last):
            return None
        raise LookupError(str(error)) from error
    if not callable(found) or isinstance(found, type):
        return None
    return tuple(inspect.signature(inspect.unwrap(getattr(found, "__func__", found))).parameters)


def _sets(owner: type, attribute: str) -> bool:
    """Return whether a method of a class, or of one that it inherits from, may set an attribute of its instances."""
    methods = (method for base in inspect.getmro(owner) for method in vars(base).values())
    return any(attribute in method.__code__.co_names for method in methods if inspect.isfunction(method))

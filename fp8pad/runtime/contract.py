"""What the runtime relies on in vLLM: the versions it was tested with, and the symbols that it uses.

If a symbol that correct outputs depend on is not as expected, padded checkpoints are refused with its name. If only
speed depends on it, they are served, slower, with a warning. The same check runs on the installed vLLM and on the
descriptions of other versions that `tests/contract/describe.py` writes.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from packaging.version import InvalidVersion, Version

from fp8pad.errors import EngineError

# The oldest and the newest vLLM that were tested, as (major, minor); pyproject.toml says the same.
FIRST_VERSION = (0, 26)
LAST_VERSION = (0, 33)


@dataclass(frozen=True, slots=True)
class EngineSymbol:
    """A symbol of vLLM: where it is, what it is used for, and, for a function, the parameters that it must take.

    `signature` is the name of a function or class in `module`, or `CLASS.NAME` for a method or an attribute, including
    instance attributes. With `NAME(FIRST, SECOND)`, the function's parameters must begin with these. `older` is its
    name in some versions. `without` says what is lost without the symbol; None if it is required for correct outputs.
    """

    module: str
    signature: str
    why: str
    without: str | None = None
    older: str | None = None

    @property
    def name(self) -> str:
        """The name, without parameters."""
        return self.signature.partition("(")[0]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that a function must begin with."""
        return tuple(self.signature.rstrip(")").partition("(")[2].split(", ")) if "(" in self.signature else ()


_LINEAR = "vllm.model_executor.layers.linear"
_QUANTIZATION = "vllm.model_executor.layers.quantization"
_CONFIG = f"{_QUANTIZATION}.base_config"
_SCHEMES = f"{_QUANTIZATION}.compressed_tensors.schemes"
_QUANT_FP8 = f"{_QUANTIZATION}.input_quant_fp8"
_KERNELS = "vllm.model_executor.kernels.linear.scaled_mm"
_LOADER = "vllm.model_executor.model_loader.default_loader"
_MODELS = "vllm.model_executor.models.utils"
_PARAMETER = "vllm.model_executor.parameter"
_UTILS = f"{_QUANTIZATION}.utils.quant_utils"

_SIZES = "input_size_per_partition, output_partition_sizes, input_size, output_size"
_SLOWER = "activations are padded by a separate copy, not during quantization"
_COPIED = "outputs inside MLPs are cut too"

QUANTIZE = EngineSymbol(
    "vllm._custom_ops",
    "scaled_fp8_quant(input, scale, num_token_padding, scale_ub, use_per_token_if_dynamic, output)",
    "quantizes into rows that lie further apart than they are long",
    without="for few tokens, Python takes longer",
)

# What correct outputs depend on: module, signature and purpose.
_NEEDED = (
    (_QUANTIZATION, "register_quantization_config(quantization)", "makes `fp8pad` a method that vLLM knows"),
    (_QUANTIZATION, "get_quantization_config(quantization)", "finds the class of the original's method"),
    (_QUANTIZATION, "QUANTIZATION_METHODS", "lists the methods, one of which serves the original"),
    (
        _CONFIG,
        "QuantizationConfig.override_quantization_method(hf_quant_cfg, user_quant, hf_config)",
        "claims a checkpoint and puts the original's quantization config back",
    ),
    (
        _CONFIG,
        "QuantizationConfig.apply_vllm_mapper(self, hf_to_vllm_mapper)",
        "renames modules as the model renames its weights",
    ),
    (_CONFIG, "QuantizationConfig.get_quant_method(self, layer, prefix)", "returns the linear method of each layer"),
    (
        _LINEAR,
        f"LinearMethodBase.create_weights(self, layer, {_SIZES}, params_dtype, extra_weight_attrs)",
        "is given padded sizes",
    ),
    (_LINEAR, "LinearMethodBase.apply(self, layer, x, bias)", "is given a padded x"),
    (_LINEAR, "UnquantizedLinearMethod", "marks layers that the original leaves unquantized"),
    (_LINEAR, "LinearBase.tp_rank", "says which share of a layer a rank loads"),
    (_LINEAR, "LinearBase.tp_size", "says how many ranks share a layer"),
    (_PARAMETER, "BasevLLMParameter.weight_loader", "is the property through which loaders of parameters are reached"),
    (
        _UTILS,
        "get_and_maybe_dequant_weights(layer, out_dtype)",
        "reads MLA's `kv_b_proj` without calling its linear method",
    ),
    (_LOADER, "DefaultModelLoader.load_weights(self, model, model_config)", "is where a model is completely loaded"),
    (_MODELS, "WeightsMapper.apply_list(self, values)", "maps a weight's name to the name in the model"),
    (f"{_KERNELS}.marlin", "MarlinFP8ScaledMMLinearKernel", "is recognised by its name, and given padded sizes"),
)

# The attributes that hold a layer's kernel, and where it was in some versions.
_KERNEL_PLACES = (
    (f"{_QUANTIZATION}.fp8", "Fp8LinearMethod.fp8_linear"),
    (f"{_QUANTIZATION}.fbgemm_fp8", "FBGEMMFp8LinearMethod.fp8_linear"),
    (f"{_QUANTIZATION}.quark.schemes.quark_w8a8_fp8", "QuarkW8A8Fp8.fp8_linear"),
    (f"{_SCHEMES}.compressed_tensors_w8a8_fp8", "CompressedTensorsW8A8Fp8.fp8_linear"),
    (f"{_SCHEMES}.compressed_tensors_w8a16_fp8", "CompressedTensorsW8A16Fp8.linear_kernel"),
    (f"{_QUANTIZATION}.modelopt", "ModelOptLinearMethod.kernel", "ModelOptFp8LinearMethod.fp8_linear"),
)

# What padding during quantization depends on, to replace the kernel's `QuantFP8` and do the same.
# `enabled()` says whether it calls vLLM's CUDA operator, or native operations.
_QUANTIZER = (
    (f"{_KERNELS}.cutlass", "CutlassFP8ScaledMMLinearKernel.quant_fp8", "quantizes an activation for CUTLASS", _SLOWER),
    (_QUANT_FP8, "QuantFP8.forward_cuda(self, x, scale, scale_ub)", "is replaced by a single launch", _SLOWER),
    (_QUANT_FP8, "QuantFP8.use_per_token_if_dynamic", "distinguishes scales per token from one for all", _SLOWER),
    (_QUANT_FP8, "QuantFP8.is_group_quant", "says whether scales are for groups of values", _SLOWER),
    (_QUANT_FP8, "QuantFP8.num_token_padding", "says whether tokens are padded too", _SLOWER),
    (_QUANT_FP8, "QuantFP8.enabled", "distinguishes vLLM's operator from native operations", _SLOWER),
)

# What else only speed depends on: module, signature, purpose, and what is lost without it.
_FAST = (
    (_LINEAR, "ColumnParallelLinear.gather_output", "says whether an output stays on its rank", _COPIED),
    (_LINEAR, "RowParallelLinear.input_is_parallel", "says whether an input is a rank's own share", _COPIED),
    *((module, name, "is where a layer's kernel is found", _SLOWER, *older) for module, name, *older in _KERNEL_PLACES),
)

QUANTIZER = tuple(EngineSymbol(*symbol) for symbol in _QUANTIZER)
ENGINE_SYMBOLS = (
    *(EngineSymbol(*symbol) for symbol in (*_NEEDED, *_FAST)),
    *QUANTIZER,
    QUANTIZE,
)

# Returns the parameters of a name in a module, or None if it is not a function; raises `LookupError` if it is missing.
Lookup = Callable[[str, str], tuple[str, ...] | None]


def untried(version: str) -> str | None:
    """Return why vLLM `version` may differ from the tested ones, or None; raises `EngineError` if it is older."""
    first, last = (".".join(map(str, bound)) for bound in (FIRST_VERSION, LAST_VERSION))
    try:
        found = Version(version).release[:2]
    except InvalidVersion:
        return f"vLLM {version} has no version number; fp8pad was tested with {first} to {last}"
    if found < FIRST_VERSION:
        raise EngineError(f"vLLM {version}: padded checkpoints need vLLM {first} or newer")
    return (
        f"vLLM {version} is newer than the versions that fp8pad was tested with, {first} to {last}"
        if found > LAST_VERSION
        else None
    )


def slower(version: str, lookup: Lookup | None = None) -> list[str]:
    """Return what makes padded checkpoints slower with vLLM `version`, a line for each symbol that is not as expected.

    Raises `EngineError` if correct outputs depend on such a symbol. By default `lookup` reads the installed vLLM.
    """
    remarks = []
    for symbol in ENGINE_SYMBOLS:
        if fault := _fault(symbol, lookup or installed):
            said = f"vLLM {version}: {symbol.module}.{symbol.name}, which {symbol.why}{fault}"
            if symbol.without is None:
                raise EngineError(f"{said}; serve the original, which `fp8pad unpad` restores, with this vLLM")
            remarks.append(f"{said}: {symbol.without}")
    return remarks


@functools.cache
def is_as_expected(symbol: EngineSymbol) -> bool:
    """Return whether the installed vLLM has `symbol` as described."""
    return _fault(symbol, installed) is None


def _fault(symbol: EngineSymbol, lookup: Lookup) -> str | None:
    try:
        expected, got = symbol.parameters, _found(symbol, lookup) or ()
    except LookupError as error:
        return f", is missing ({error})"
    # A class method's parameters are compared without the class.
    if expected not in (got[: len(expected)], got[1 : 1 + len(expected)]):
        return f": expected parameters ({', '.join(expected)}), got ({', '.join(got)})"
    return None


def _found(symbol: EngineSymbol, lookup: Lookup) -> tuple[str, ...] | None:
    try:
        return lookup(symbol.module, symbol.name)
    except LookupError:
        if symbol.older is None:
            raise
        return lookup(symbol.module, symbol.older)


def installed(module: str, name: str) -> tuple[str, ...] | None:
    """Look up a name in a module of the installed vLLM."""
    *owners, last = name.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        found = getattr(owner, last)
    except (ImportError, AttributeError) as error:
        if isinstance(error, AttributeError) and isinstance(owner, type) and _sets(owner, last):
            return None
        raise LookupError(str(error)) from error
    if not callable(found) or isinstance(found, type):
        return None
    return tuple(inspect.signature(inspect.unwrap(getattr(found, "__func__", found))).parameters)


def _sets(owner: type, attribute: str) -> bool:
    """Return whether a method of a class, or of one of its bases, may set an attribute of its instances."""
    methods = (method for base in inspect.getmro(owner) for method in vars(base).values())
    return any(attribute in method.__code__.co_names for method in methods if inspect.isfunction(method))

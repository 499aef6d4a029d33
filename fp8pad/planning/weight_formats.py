"""What a quantization config says about the weights, in the format of each tool."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fp8pad.errors import ConfigError, shown
from fp8pad.record import Json
from fp8pad.scales import Granularity, PerBlock, PerChannel, PerTensor

# Larger than any block that a tool writes; it bounds how far padding to blocks can grow a tensor.
MAX_BLOCK_SIZE = 65536

_MODELOPT_BLOCK = PerBlock(128, 128)
_MODELOPT: Mapping[str, Granularity] = {
    "FP8": PerTensor(),
    "FP8_PER_CHANNEL_PER_TOKEN": PerChannel(),
    "FP8_PB_WO": _MODELOPT_BLOCK,
    "FP8_PB_REAL_QUANT": _MODELOPT_BLOCK,
    "FP8_BLOCK_SCALES": _MODELOPT_BLOCK,
}
# Methods of engines that may have FP8 weights in layouts of their own; these are carried unchanged.
_OTHER_METHODS = frozenset({"deepspeedfp", "fp_quant", "gguf", "hqq", "humming", "mxfp8", "ptpc_fp8", "torchao"})
_NOT_FP8_METHODS = frozenset(
    {"auto_awq", "auto_gptq", "awq", "awq_marlin", "bitsandbytes", "experts_int8", "gpt_oss_mxfp4", "gptq",
     "gptq_marlin", "moe_wna16", "mxfp4"}
)  # fmt: skip


# What a config says of some weights: FP8 whose scales have a granularity, FP8 with other scales, which fp8pad does not
# pad (groups, MX, ...), or the name of a format that is not FP8.
OTHER_FP8 = None
Format = Granularity | str | None


def read_formats(method: str, document: Json, where: str) -> tuple[Format, ...]:
    """Return the formats that the quantization config of one method names, each once.

    Raises `ConfigError` if it is malformed or the method is unknown.
    """
    if method in _READERS:
        return tuple(dict.fromkeys(_READERS[method](document, where)))
    if method in _OTHER_METHODS:
        return (OTHER_FP8,)
    if method in _NOT_FP8_METHODS:
        bits = document.get("bits", document.get("w_bit"))
        return (f"{bits}-bit {method}" if bits else method,)
    raise ConfigError(f"{where}: quant_method: expected one of {', '.join(_READERS)}, got {method!r}")


def read_object(value: Any, where: str, key: str) -> Json:
    """Return `value`, which was at `key`; `ConfigError` if it is not an object."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {key}: expected an object, got {type(value).__name__}")
    return value


def _scaled(strategy: str, block: Any, where: str) -> Format:
    """Return the format of FP8 weights with scales per tensor, channel or block, as most tools name them."""
    if strategy == "block":
        return _block(block, where)
    plain: Mapping[str, Granularity] = {"tensor": PerTensor(), "channel": PerChannel()}
    return plain.get(strategy, OTHER_FP8)


def _compressed_tensors(document: Json, where: str) -> Iterator[Format]:
    for name, group in read_object(document.get("config_groups", {}), where, "config_groups").items():
        weights = read_object(group, where, f"config_groups.{name}").get("weights")
        if not isinstance(weights, Mapping):
            continue
        kind, bits = weights.get("type"), weights.get("num_bits")
        if (kind, bits) != ("float", 8):
            yield f"{bits}-bit {kind}"
            continue
        key = f"config_groups.{name}.weights.block_structure"
        yield _scaled(str(weights.get("strategy")), weights.get("block_structure"), f"{where}: {key}")


def _fine_grained(document: Json, where: str) -> Iterator[Format]:
    if document.get("weight_block_size") is None:
        yield from (PerTensor(), PerChannel())
    else:
        yield _block(document["weight_block_size"], f"{where}: weight_block_size")


def _modelopt(document: Json, where: str) -> Iterator[Format]:
    quantization = read_object(document.get("quantization", document), where, "quantization")
    algorithm = str(quantization.get("quant_algo")).upper()
    if algorithm != "MIXED_PRECISION":
        yield _modelopt_algorithm(algorithm)
        return
    layers = read_object(quantization.get("quantized_layers") or {}, where, "quantized_layers").values()
    for layer in layers:
        if isinstance(layer, Mapping):
            yield _modelopt_algorithm(str(layer.get("quant_algo")).upper())
    # The layers that are not in the table, or all layers if there is none, may be anything.
    yield from (OTHER_FP8, *(() if layers else _MODELOPT.values()))


def _modelopt_algorithm(algorithm: str) -> Format:
    if algorithm in _MODELOPT:
        return _MODELOPT[algorithm]
    return OTHER_FP8 if algorithm == "NONE" or "FP8" in algorithm else algorithm


def _quark(document: Json, where: str) -> Iterator[Format]:
    for weight in (weight for group in quark_groups(document, where) for weight in quark_weights(group, where)):
        dtype, scheme = str(weight.get("dtype")), str(weight.get("qscheme")).partition("per_")[2]
        if scheme == "channel" and weight.get("ch_axis"):
            scheme = "input channel"
        is_fp8 = dtype.startswith("fp8")
        yield _scaled(scheme, weight.get("block_size"), f"{where}: block_size") if is_fp8 else dtype


def quark_groups(document: Json, where: str) -> Iterator[Json]:
    """Yield what a Quark config says of all layers, of some by name, and of some by type."""
    groups = [document.get("global_quant_config")]
    for key in ("layer_quant_config", "layer_type_quant_config"):
        groups.extend(read_object(document.get(key) or {}, where, key).values())
    yield from (group for group in groups if isinstance(group, Mapping))


def quark_weights(group: Json, where: str) -> Iterator[Json]:
    """Yield how the weights of a group are quantized: in one step, or in several."""
    weight = group.get("weight")
    weights = weight if isinstance(weight, list) else [weight]
    yield from (read_object(item, where, "weight") for item in weights if item is not None)


def _auto_round(document: Json, where: str) -> Iterator[Format]:
    data_type = str(document.get("data_type", "int"))
    bits, group_size = document.get("bits"), document.get("group_size")
    if data_type in {"fp", "fp8"} and isinstance(group_size, list):
        yield _block(group_size, f"{where}: group_size")
    elif data_type in {"fp", "fp8"} and bits == 8 and group_size in (0, -1):
        yield PerChannel() if group_size else PerTensor()
    elif "fp" in data_type and bits != 4:
        yield OTHER_FP8
    else:
        yield f"{bits}-bit {data_type}"
    if document.get("extra_config"):
        yield OTHER_FP8  # layers with settings of their own


_READERS: Mapping[str, Callable[[Json, str], Iterator[Format]]] = {
    "compressed-tensors": _compressed_tensors,
    "fp8": _fine_grained,
    "fbgemm_fp8": lambda *_: iter([PerChannel()]),
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "modelopt_mixed": _modelopt,
    "modelopt_mxfp8": _modelopt,
    "quark": _quark,
    "auto-round": _auto_round,
    "inc": _auto_round,
}


def _block(value: Any, where: str) -> PerBlock:
    sizes = [_size(part) for part in value.split("x")] if isinstance(value, str) else value
    if not isinstance(sizes, list) or len(sizes) != 2 or any(type(size) is not int for size in sizes):
        raise ConfigError(f"{where}: expected two block sizes, got {shown(value)}")
    if not 1 <= min(sizes) <= max(sizes) <= MAX_BLOCK_SIZE:
        raise ConfigError(f"{where}: expected two block sizes from 1 to {MAX_BLOCK_SIZE}, got {shown(value)}")
    return PerBlock(*sizes)


def _size(text: str) -> int | str:
    return int(text) if text.isdecimal() and len(text) <= len(str(MAX_BLOCK_SIZE)) else text

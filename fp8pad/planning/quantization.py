"""What a quantization config promises: where it stands, its method, and the granularities its FP8 scales may have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fp8pad.errors import ConfigError, shown
from fp8pad.record import BaseSource, Json, quantization_method
from fp8pad.scales import Granularity, PerBlock, PerChannel, PerTensor

CONFIG_FILE = "config.json"
MODELOPT_FILE = "hf_quant_config.json"

# Where tools put it, in the order in which vLLM looks (`get_quant_config`, model_loader/weight_utils.py).
_CONFIG_KEYS = ("quantization_config", "text_config.quantization_config", "compression_config")
_MODELOPT_BLOCK = PerBlock(128, 128)
_MODELOPT: Mapping[str, Granularity] = {
    "FP8": PerTensor(),
    "FP8_PER_CHANNEL_PER_TOKEN": PerChannel(),
    "FP8_PB_WO": _MODELOPT_BLOCK,
    "FP8_PB_REAL_QUANT": _MODELOPT_BLOCK,
}
_QUARK: Mapping[str, Granularity] = {"per_tensor": PerTensor(), "per_channel": PerChannel()}

# Methods that vLLM knows and that may hold FP8 tensors in layouts of their own; they come through as they are.
_FOREIGN_METHODS = frozenset(
    {
        "auto-round", "awq", "bitsandbytes", "deepspeedfp", "fp_quant", "gguf", "gptq", "gpt_oss_mxfp4", "hqq", "inc",
        "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8", "moe_wna16", "mxfp4", "mxfp8", "ptpc_fp8", "torchao",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantization:
    """A quantization config, read.

    `granularities` are those that the config allows the scales of an FP8 weight to have. `foreign_layouts` says that
    some FP8 tensors may be scaled in a way that fp8pad does not pad (groups, MX, ...).
    """

    source: BaseSource
    config: Json
    method: str
    granularities: tuple[Granularity, ...]
    foreign_layouts: bool = False

    @property
    def blocks(self) -> tuple[PerBlock, ...]:
        """The scale blocks that it names."""
        return tuple(granularity for granularity in self.granularities if isinstance(granularity, PerBlock))


def find_quantization(configs: Mapping[str, Json]) -> Quantization | None:
    """Read the quantization config of a checkpoint, or return None where it has none.

    `configs` maps file names to parsed JSON. Raises `ConfigError` for one that is malformed or of an unknown method.
    """
    for key in _CONFIG_KEYS:
        document = _lookup(configs[CONFIG_FILE], key)
        if document is not None:
            return _read(_object(document, CONFIG_FILE, key), BaseSource(CONFIG_FILE, key))
    if MODELOPT_FILE in configs:
        return _read(configs[MODELOPT_FILE], BaseSource(MODELOPT_FILE, None))
    return None


def _lookup(config: Json, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _object(value: Any, file: str, key: str) -> Json:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{file}: {key}: expected an object, got {type(value).__name__}")
    return value


def _read(document: Json, source: BaseSource) -> Quantization:
    where = f"{source.file}: {source.key}" if source.key else source.file
    method = quantization_method(document)
    readers = {
        "compressed-tensors": _compressed_tensors,
        "fp8": _fp8,
        "fbgemm_fp8": _fbgemm,
        "modelopt": _modelopt,
        "quark": _quark,
    }
    if method is None:
        got = shown(document.get("quant_method"))
        raise ConfigError(f"{where}: quant_method: expected a method's name, got {got}")
    if method in readers:
        granularities, foreign = readers[method](document, where)
        return Quantization(source, document, method, tuple(dict.fromkeys(granularities)), foreign)
    if method in _FOREIGN_METHODS:
        return Quantization(source, document, method, (), foreign_layouts=True)
    raise ConfigError(f"{where}: quant_method: expected one of {', '.join(readers)}, got {method!r}")


_Promise = tuple[Sequence[Granularity], bool]


def _compressed_tensors(document: Json, where: str) -> _Promise:
    granularities: list[Granularity] = []
    foreign = False
    for name, group in _object(document.get("config_groups", {}), where, "config_groups").items():
        weights = _object(group, where, f"config_groups.{name}").get("weights")
        if not isinstance(weights, Mapping) or (weights.get("type"), weights.get("num_bits")) != ("float", 8):
            foreign = True
            continue
        match weights.get("strategy"):
            case "tensor":
                granularities.append(PerTensor())
            case "channel":
                granularities.append(PerChannel())
            case "block":
                key = f"config_groups.{name}.weights.block_structure"
                granularities.append(_block(weights.get("block_structure"), f"{where}: {key}"))
            case _:
                foreign = True
    return granularities, foreign


def _fp8(document: Json, where: str) -> _Promise:
    if document.get("weight_block_size") is None:
        return (PerTensor(), PerChannel()), False
    return (_block(document["weight_block_size"], f"{where}: weight_block_size"),), False


def _fbgemm(document: Json, where: str) -> _Promise:  # noqa: ARG001 (every method is read the same way)
    return (PerChannel(),), False


def _modelopt(document: Json, where: str) -> _Promise:
    quantization = _object(document.get("quantization", document), where, "quantization")
    algorithm = str(quantization.get("quant_algo"))
    if algorithm in _MODELOPT:
        return (_MODELOPT[algorithm],), False
    return tuple(_MODELOPT.values()) if algorithm == "MIXED_PRECISION" else (), True


def _quark(document: Json, where: str) -> _Promise:
    granularities: list[Granularity] = []
    foreign = False
    for weight in _quark_weights(document, where):
        granularity = _QUARK.get(str(weight.get("qscheme")))
        if granularity is None or not str(weight.get("dtype")).startswith("fp8"):
            foreign = True
        else:
            granularities.append(granularity)
    return granularities, foreign


def _quark_weights(document: Json, where: str) -> Iterator[Json]:
    groups = [document.get("global_quant_config")]
    for key in ("layer_quant_config", "layer_type_quant_config"):
        groups.extend(_object(document.get(key) or {}, where, key).values())
    for group in groups:
        weight = group.get("weight") if isinstance(group, Mapping) else None
        weights = weight if isinstance(weight, list) else [weight]
        yield from (_object(item, where, "weight") for item in weights if item is not None)


def _block(value: Any, where: str) -> PerBlock:
    sizes = value.split("x") if isinstance(value, str) else value
    if not isinstance(sizes, list) or len(sizes) != 2:
        raise ConfigError(f"{where}: expected two block sizes, got {value!r}")
    try:
        block = PerBlock(int(sizes[0]), int(sizes[1]))
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: expected two block sizes, got {value!r}") from error
    if min(block.n, block.k) < 1:
        raise ConfigError(f"{where}: expected two positive block sizes, got {value!r}")
    return block

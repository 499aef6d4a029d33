"""The `quantization_config` of a padded checkpoint, which tells the plugin what was padded; see docs/format.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fp8pad.errors import RecordError
from fp8pad.padded import Axis, check_larger
from fp8pad.reading import PositiveSize, Reader, to_json
from fp8pad.record import CONFIG_FILE, FORMAT_VERSION, Json

QUANT_METHOD = "fp8pad"


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """What the runtime knows about one Linear, each as `[N, K]`: the config's shape, the one on disk, the alignment.

    `inner` is the axis that is inside an MLP, between up and down, if any.
    """

    logical_shape: tuple[PositiveSize, PositiveSize]
    padded_shape: tuple[PositiveSize, PositiveSize]
    alignment: tuple[PositiveSize, PositiveSize]
    inner: Axis | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for what is no padding."""
        check_larger(self.logical_shape, self.padded_shape)

    @property
    def is_padded(self) -> bool:
        """Whether it is larger on disk than the config asks for."""
        return self.padded_shape != self.logical_shape


@dataclass(frozen=True, slots=True)
class QuantizationRecord:
    """The `quantization_config` of a padded checkpoint; `base` is the original, verbatim."""

    modules: Mapping[str, ModuleRecord]
    base: Json
    fp8pad_version: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that config.json carries."""
        modules = {module: to_json(module) for module in set(self.modules.values())}  # many are equal
        return {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT_VERSION,
            "fp8pad_version": self.fp8pad_version,
            "modules": {name: modules[module] for name, module in self.modules.items()},
            "base": self.base,
        }


def plugin_config(config: Json) -> Json | None:
    """Return the part of a config that asks an engine for fp8pad's quantization method; None if there is none."""
    if config.get("quant_method") == QUANT_METHOD:
        return config
    inner = (plugin_config(value) for value in config.values() if isinstance(value, dict))
    return next(filter(None, inner), None)


def quantization_method(document: Json) -> str | None:
    """Return the method that a quantization config names or implies, as vLLM spells it; None if it does neither.

    ModelOpt's own files name an algorithm instead, and early compressed-tensors configs name nothing. Source:
    `_normalize_quantization_config` in vLLM's transformers_utils/model_arch_config_convertor.py.
    """
    if isinstance(method := document.get("quant_method"), str):
        return method.lower().replace("compressed_tensors", "compressed-tensors")
    if "quant_algo" in document or "quantization" in document:
        return "modelopt"
    return "compressed-tensors" if "config_groups" in document else None


def parse_quantization_config(document: object, file: str = CONFIG_FILE) -> QuantizationRecord:
    """Read a `quantization_config` that fp8pad wrote; `RecordError` if anything in it is not as specified."""
    where = f"{file}: quantization_config"
    return Reader(RecordError).read_versioned(QuantizationRecord, document, FORMAT_VERSION, where)

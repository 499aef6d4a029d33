"""Claim a padded checkpoint, and restore the original quantization config, with linear methods that pad.

The rest of vLLM must see the original config: it decides by `quant_method` (KV-cache dtype, head counts) and by class.
"""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fp8pad.errors import RecordError
from fp8pad.quantization_config import QUANT_METHOD, ModuleRecord, parse_quantization_config, quantization_method
from fp8pad.runtime.layer import is_quantized_linear
from fp8pad.runtime.linear import InnerTails, PaddedLinearMethod, padded_linear_method
from fp8pad.runtime.parts import find_layer, find_renamed
from fp8pad.runtime.patches import activate

if TYPE_CHECKING:
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
else:
    QuantizationConfig = object

# The key of our own record once the original config is restored.
RECORD_KEY = "fp8pad"


def make_config_class() -> type:
    """Return the class to register with vLLM as the quantization method `fp8pad`.

    It is never instantiated: `from_config` returns the base's config.
    """
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig as Base

    return type("Fp8padConfig", (Fp8padConfigMethods, Base), {})


class Fp8padConfigMethods:
    """What vLLM calls on a registered quantization method before it has a config."""

    @classmethod
    def override_quantization_method(cls, hf_quant_cfg: dict[str, Any], *_: Any, **others: Any) -> str | None:
        """Claim fp8pad's checkpoints, and restore the original config in place before the rest of vLLM reads it.

        vLLM calls this for every quantized checkpoint, so the other arguments, and whether this vLLM can serve padded
        checkpoints, matter only once one is seen. Raises `EngineError` if it cannot.
        """
        if hf_quant_cfg.get("quant_method") == QUANT_METHOD:
            activate()
            hf_config = others.get("hf_config")
            for config in [hf_quant_cfg, *_padded_configs(hf_config)]:
                restore_base(config, hf_config)
        return QUANT_METHOD if RECORD_KEY in hf_quant_cfg else None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return the base's config, made by the base's class, with linear methods that pad."""
        from vllm.model_executor.layers.quantization import get_quantization_config

        base = {key: value for key, value in config.items() if key != RECORD_KEY}
        record = parse_quantization_config(config[RECORD_KEY]["record"])
        base_config = get_quantization_config(config[RECORD_KEY]["engine_method"]).from_config(base)
        return padded_config(base_config, record.modules)

    @staticmethod
    def get_config_filenames() -> list[str]:
        """Return no file names: the config is always in config.json."""
        return []


def restore_base(quantization_config: dict[str, Any], hf_config: Any) -> None:
    """Restore the original quantization config in place, with our record under a key of its own.

    Raises `RecordError` if the record is malformed or does not say what the original was.
    """
    record = dict(quantization_config)
    base = dict(parse_quantization_config(record).base)
    base["quant_method"] = base_method(base)
    engine_method = _engine_method(base, hf_config)
    quantization_config.clear()
    quantization_config.update(base)
    quantization_config[RECORD_KEY] = {"record": record, "engine_method": engine_method}


def _padded_configs(hf_config: Any) -> list[dict[str, Any]]:
    """Return fp8pad's configs in a Hugging Face config; vLLM reads all these places, and copies the one it finds."""
    places = [
        getattr(holder, name, None)
        for holder in (hf_config, getattr(hf_config, "text_config", None))
        for name in ("quantization_config", "compression_config")
    ]
    return [place for place in places if isinstance(place, dict) and place.get("quant_method") == QUANT_METHOD]


def base_method(base: Mapping[str, Any]) -> str:
    """Return the `quant_method` of an original config; raises `RecordError` if it neither names nor implies one."""
    method = quantization_method(base)
    if method is None:
        raise RecordError(f"config.json: quantization_config: base has no quant_method, only {sorted(base)}")
    return method


def _engine_method(base: dict[str, Any], hf_config: Any) -> str:
    """Return the name of the vLLM method that serves `base`, asking each as `ModelConfig._verify_quantization` does."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config

    for name in QUANTIZATION_METHODS:
        if name != QUANT_METHOD:
            override = get_quantization_config(name).override_quantization_method(base, None, hf_config=hf_config)
            if override is not None:
                return str(override)
    return str(base["quant_method"])


def padded_config(base_config: Any, modules: Mapping[str, ModuleRecord]) -> Any:
    """Return a copy of a vLLM config whose linear methods pad `modules`, which have the checkpoint's names."""
    return _rebuild(type(base_config), vars(base_config) | {"fp8pad_modules": dict(modules)})


def _rebuild(base_class: type, state: dict[str, Any]) -> Any:
    activate()  # a worker process unpickles the config and never claims the checkpoint
    config: Any = object.__new__(padded_config_class(base_class))
    vars(config).update(state, inner_tails=InnerTails())
    return config


@functools.cache
def padded_config_class(base_class: Any) -> type:
    """Return a subclass of a vLLM config class whose linear methods pad."""
    return type(base_class.__name__, (PaddedConfig, base_class), {})


class PaddedConfig(QuantizationConfig):  # type: ignore[misc]
    """Extends a vLLM quantization config; `fp8pad_modules` are the records of the modules, by vLLM's names."""

    fp8pad_modules: dict[str, ModuleRecord]
    inner_tails: InnerTails

    def __reduce__(self) -> tuple[Any, ...]:
        # vLLM pickles configs for its worker processes; a class made at run time cannot be found by name there.
        state = {name: value for name, value in vars(self).items() if name != "inner_tails"}
        return _rebuild, (type(self).__mro__[2], state)

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Rename the modules as the model renames its weights."""
        super().apply_vllm_mapper(hf_to_vllm_mapper)
        renamed = {}
        for name, module in self.fp8pad_modules.items():
            for weight in hf_to_vllm_mapper.apply_list([f"{name}.weight"]):
                renamed[weight.removesuffix(".weight")] = module
        self.fp8pad_modules = renamed

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """Return the base's method: one that pads for a Linear that fp8pad knows, unchanged for all other layers."""
        method = super().get_quant_method(layer, prefix)
        if not is_quantized_linear(method) or isinstance(method, PaddedLinearMethod):
            return method
        names = self.fp8pad_modules, prefix, self.packed_modules_mapping
        record = find_layer(*names) or find_renamed(*names, getattr(layer, "input_size", 0))
        return method if record is None else padded_linear_method(method, record, self.inner_tails)

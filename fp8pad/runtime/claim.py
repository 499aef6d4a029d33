"""How a padded checkpoint is claimed, and its original quantization config put back in place.

The rest of vLLM must see the original config: it decides by `quant_method` (KV-cache dtype, head counts) and by class.
"""

from collections.abc import Mapping
from typing import Any

from fp8pad.errors import RecordError
from fp8pad.record import QUANT_METHOD, parse_quantization_config, quantization_method
from fp8pad.runtime.activation import activate
from fp8pad.runtime.config import padded_config

# Where our own record goes when the base is put back in its place.
RECORD_KEY = "fp8pad"


def make_config_class() -> type:
    """Return the class to register with vLLM as the quantization method `fp8pad`."""
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    return type("Fp8padConfig", (Fp8padConfigMethods, QuantizationConfig), {})


class Fp8padConfigMethods:
    """What vLLM asks of a registered quantization method; `from_config` answers with the base's config instead."""

    @classmethod
    def get_name(cls) -> str:
        """Return the name that config.json has."""
        return QUANT_METHOD

    @classmethod
    def override_quantization_method(cls, hf_quant_cfg: dict[str, Any], *_: Any, **others: Any) -> str | None:
        """Claim fp8pad's checkpoints, and put the original config back in place before the rest of vLLM reads it.

        vLLM asks it of every quantized checkpoint, so what else it is given, and whether this vLLM is one that padded
        checkpoints can be served with, matters only once one is seen. Raises `EngineError` if it is not.
        """
        if hf_quant_cfg.get("quant_method") == QUANT_METHOD:
            activate()
            hf_config = others.get("hf_config")
            for config in [hf_quant_cfg, *_padded_configs(hf_config)]:
                restore_base(config, hf_config)
        return QUANT_METHOD if RECORD_KEY in hf_quant_cfg else None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return the base's config, made by the base's class, as one that pads."""
        from vllm.model_executor.layers.quantization import get_quantization_config

        base = {key: value for key, value in config.items() if key != RECORD_KEY}
        record = parse_quantization_config(config[RECORD_KEY]["record"])
        base_config = get_quantization_config(config[RECORD_KEY]["engine_method"]).from_config(base)
        return padded_config(base_config, record.modules)

    @classmethod
    def get_supported_act_dtypes(cls) -> list[Any]:
        """Never asked: `from_config` returns the base's config."""
        raise NotImplementedError

    @classmethod
    def get_min_capability(cls) -> int:
        """Never asked: `from_config` returns the base's config."""
        raise NotImplementedError

    @staticmethod
    def get_config_filenames() -> list[str]:
        """The config is in config.json, always."""
        return []

    def get_quant_method(self, layer: Any, prefix: str) -> Any:
        """Never asked: `from_config` returns the base's config."""
        raise NotImplementedError


def restore_base(quantization_config: dict[str, Any], hf_config: Any) -> None:
    """Put the original quantization config back, in place, with our record under a key of its own.

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
    """Return fp8pad's configs in a Hugging Face config: vLLM reads these places, and a copy of the one it finds."""
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
        raise RecordError(f"config.json: quantization_config: base names no quant_method, only {sorted(base)}")
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

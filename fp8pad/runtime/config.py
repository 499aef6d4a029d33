"""The quantization config of a padded checkpoint: the base's own, which hands out linear methods that pad."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fp8pad.record import ModuleRecord
from fp8pad.runtime.inner import InnerTails
from fp8pad.runtime.linear import PaddedLinearMethod, padded_linear_method
from fp8pad.runtime.names import find_renamed
from fp8pad.runtime.parts import find_layer


def padded_config(base_config: Any, modules: Mapping[str, ModuleRecord]) -> Any:
    """Return a vLLM config as one whose linear methods pad `modules`, which have the checkpoint's names."""
    return _rebuild(type(base_config), vars(base_config) | {"fp8pad_modules": dict(modules)})


def _rebuild(base_class: type, state: dict[str, Any]) -> Any:
    from fp8pad.runtime.activation import activate  # which changes vLLM, by what is here

    activate()  # in a worker process nothing was claimed before
    config: Any = object.__new__(padded_config_class(base_class))
    vars(config).update(state, inner_tails=InnerTails())
    return config


@functools.cache
def padded_config_class(base_class: Any) -> type:
    """Return a subclass of a vLLM config class whose linear methods pad."""
    return type(base_class.__name__, (PaddedConfig, base_class), {})


if TYPE_CHECKING:
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
else:
    QuantizationConfig = object


class PaddedConfig(QuantizationConfig):  # type: ignore[misc]
    """Stands before a vLLM quantization config; `fp8pad_modules` are the records of the modules, by vLLM's names."""

    fp8pad_modules: dict[str, ModuleRecord]
    inner_tails: InnerTails

    @property
    def padded_modules(self) -> list[str]:
        """The names of the modules that are larger on disk than the config asks for."""
        return [name for name, module in self.fp8pad_modules.items() if module.is_padded]

    def __reduce__(self) -> tuple[Any, ...]:
        # vLLM sends configs to its worker processes; a class made at run time has no name to be found by there.
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
        """Return the base's method; one that pads for a Linear that fp8pad knows, untouched for all else."""
        method = super().get_quant_method(layer, prefix)
        if not is_quantized_linear(method) or isinstance(method, PaddedLinearMethod):
            return method
        names = self.fp8pad_modules, prefix, self.packed_modules_mapping
        record = find_layer(*names) or find_renamed(*names, getattr(layer, "input_size", 0))
        return method if record is None else padded_linear_method(method, record, self.inner_tails)


def is_quantized_linear(method: Any) -> bool:
    """Return whether `method` is a linear method of a layer whose weights are quantized."""
    from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod

    return isinstance(method, LinearMethodBase) and not isinstance(method, UnquantizedLinearMethod)

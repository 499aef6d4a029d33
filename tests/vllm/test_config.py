"""How the plugin handles vLLM's configs: the original is restored, whatever its layout, in every process."""

import json
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fp8pad.errors import RecordError
from fp8pad.quantization_config import ModuleRecord, QuantizationRecord
from fp8pad.runtime.config import RECORD_KEY, Fp8padConfigMethods, base_method, make_config_class
from fp8pad.runtime.linear import InnerTails, PaddedLinearMethod
from fp8pad.runtime.parts import LayerParts
from fp8pad.runtime.patches import cutting
from fp8pad.runtime.sizes import Rank, RankSizes

pytestmark = pytest.mark.vllm

MODULES = {"model.layers.0.mlp.down_proj": ModuleRecord((136, 213), (144, 224), (16, 16))}
FP8_BASE = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
MODELOPT_FILE = {
    "producer": {"name": "modelopt", "version": "0.29.0"},
    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
}


def _padded(base: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(QuantizationRecord(MODULES, base, "1.0").to_json()))
    return document


def test_the_original_config_is_put_back_in_place() -> None:
    """Both vLLM's dict and the Hugging Face config that it was copied from hold the base again."""
    given, held = _padded(FP8_BASE), _padded(FP8_BASE)
    hf_config = SimpleNamespace(quantization_config=held, model_type="llama")
    assert Fp8padConfigMethods.override_quantization_method(given, None, hf_config=hf_config) == "fp8pad"
    for config in (given, held):
        assert config.pop(RECORD_KEY)["record"] == _padded(FP8_BASE)
        assert config == FP8_BASE


def test_a_second_look_at_a_restored_config_claims_it_again() -> None:
    """vLLM verifies a model's config more than once; the second time it is already restored."""
    config = _padded(FP8_BASE)
    for _ in range(2):
        assert Fp8padConfigMethods.override_quantization_method(config, None, hf_config=None) == "fp8pad"


def test_other_checkpoints_are_left_alone() -> None:
    """A config that fp8pad did not write is neither claimed nor changed."""
    config = dict(FP8_BASE)
    assert Fp8padConfigMethods.override_quantization_method(config, None, hf_config=None) is None
    assert config == FP8_BASE


@pytest.mark.parametrize(
    ("base", "method"),
    [
        ({"quant_method": "FP8"}, "fp8"),
        ({"quant_method": "compressed_tensors"}, "compressed-tensors"),
        (MODELOPT_FILE, "modelopt"),
    ],
)
def test_the_method_of_the_original_is_derived(base: dict[str, Any], method: str) -> None:
    """It is spelt as in vLLM; an old ModelOpt file has a producer and an algorithm instead."""
    assert base_method(base) == method


def test_an_original_without_a_method_is_refused() -> None:
    """Nothing is guessed: the message says what was found."""
    with pytest.raises(RecordError, match=r"base has no quant_method, only \['bits'\]"):
        base_method({"bits": 8})


@pytest.mark.parametrize("base", [FP8_BASE, MODELOPT_FILE])
def test_the_config_is_the_originals_class_in_every_process(base: dict[str, Any]) -> None:
    """`isinstance` and the name see the original's class, also after the config was sent to a worker."""
    from vllm.model_executor.layers.quantization import get_quantization_config

    config = _padded(base)
    Fp8padConfigMethods.override_quantization_method(config, None, hf_config=None)
    made = make_config_class().from_config(config)  # type: ignore[attr-defined]
    for instance in (made, pickle.loads(pickle.dumps(made))):  # noqa: S301  our own
        assert isinstance(instance, get_quantization_config(base_method(base)))
        assert instance.get_name() == base_method(base)
        assert instance.fp8pad_modules == MODULES


def test_modules_are_renamed_as_the_model_renames_its_weights() -> None:
    """Qwen2.5-VL maps `model.` to `language_model.model.`; names that a mapper drops are dropped."""
    from vllm.model_executor.models.utils import WeightsMapper

    config = _padded(FP8_BASE)
    Fp8padConfigMethods.override_quantization_method(config, None, hf_config=None)
    made = make_config_class().from_config(config)  # type: ignore[attr-defined]
    made.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix={"model.": "language_model.model."}))
    assert list(made.fp8pad_modules) == ["language_model.model.layers.0.mlp.down_proj"]


def test_a_weight_that_is_read_past_its_layer_has_no_padding() -> None:
    """MLA splits `kv_b_proj` by its logical sizes; LoRA may wrap the layer."""
    method = object.__new__(PaddedLinearMethod)
    record = LayerParts("kv_b_proj", (ModuleRecord((213, 136), (224, 144), (16, 16)),))
    method.sizes = RankSizes.of([213], 136, record, (1, 1), Rank())
    layer = SimpleNamespace(base_layer=SimpleNamespace(quant_method=method))
    padded = torch.arange(224 * 144).reshape(224, 144)
    weight = cutting(lambda _: padded)(layer)
    assert torch.equal(weight, padded[:213, :136])
    assert weight.T.is_contiguous()


def test_a_kernel_that_reads_its_layers_sizes_sees_padded_ones() -> None:
    """Marlin reads N and K from the layer in every forward; everything else still sees logical sizes there."""

    class Marlin:
        def create_weights(self, *_: Any) -> None:
            self.kernel = MarlinKernel()

        def apply(self, layer: Any, x: torch.Tensor, _: Any) -> torch.Tensor:
            return x.new_zeros(x.shape[0], layer.output_size_per_partition) + layer.input_size_per_partition

    class MarlinKernel:
        pass

    method_class: Any = type("Marlin", (PaddedLinearMethod, Marlin), {})
    method, layer = method_class(), torch.nn.Module()
    method.record, method.inner_tails = LayerParts("down_proj", tuple(MODULES.values())), InnerTails()
    layer.input_size_per_partition, layer.output_size_per_partition = 213, 136
    method.create_weights(layer, 213, [136])
    output = method.apply(layer, torch.zeros(2, 213))
    assert torch.equal(output, torch.full((2, 136), 224.0))
    assert (layer.input_size_per_partition, layer.output_size_per_partition) == (213, 136)

"""Models in which vLLM's layers have other names than their weights: served, and equal to the last digit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import serve

from fp8pad.quantization_config import ModuleRecord
from fp8pad.runtime.config import padded_config_class
from fp8pad.runtime.patches import loading_misnamed

pytestmark = pytest.mark.vllm

Find = Callable[[str], Path]
Convert = Callable[..., Path]

MIXER = {"model.layers.0.mamba.mamba.in_proj", "model.layers.1.mamba.mamba.out_proj"}
SHARED = "model.layers.1.shared_transformer.feed_forward.down_proj"


@pytest.mark.parametrize(
    ("name", "padded_names"),
    [
        ("granite_hybrid", {"model.layers.0.mamba.in_proj"}),
        ("falcon_h1", {*MIXER, "model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.qkv_proj"}),
        ("zamba2", {"model.layers.0.mamba.in_proj", "model.layers.1.mamba_decoder.mamba.in_proj"}),
    ],
)
def test_hybrid_models_answer_as_their_originals(
    name: str, padded_names: set[str], tiny: Find, converted: Convert
) -> None:
    """Mixers, which vLLM calls `mixer` while their weights are in `mamba`, are padded.

    The transformer that Zamba2's layers share has no translatable name: it is served as in the original.
    """
    original, padded = serve(tiny(name)), serve(converted(tiny(name)))
    assert padded.answers == original.answers
    assert padded_names <= set(padded.padded_layers)
    assert SHARED not in padded.padded_layers


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make vLLM's parameters behave as on the only rank, without any process group."""
    from vllm.model_executor import parameter

    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)


class Loader:
    """Fills a model from tensors by name, like vLLM's own loader."""

    def load_weights(self, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            parameter: Any = model.get_parameter(name)
            parameter.weight_loader(parameter, tensor)


def _model(recorded_name: str) -> tuple[Any, torch.nn.Module]:
    """Return an unpadded layer, 213 -> 136, and a model in which it is `mlp.down_proj`; the record has another name."""
    from vllm.model_executor.layers.linear import LinearMethodBase
    from vllm.model_executor.layers.quantization.fp8 import Fp8Config
    from vllm.model_executor.parameter import ModelWeightParameter

    class Method(LinearMethodBase):
        def create_weights(self, *_: Any, **__: Any) -> None:
            raise NotImplementedError

        def apply(self, *_: Any, **__: Any) -> torch.Tensor:
            raise NotImplementedError

    def copy(parameter: torch.Tensor, tensor: torch.Tensor) -> None:
        if parameter.shape != tensor.shape:
            raise ValueError(f"{list(parameter.shape)} is not {list(tensor.shape)}")
        parameter.data.copy_(tensor)

    config: Any = padded_config_class(Fp8Config)()
    config.fp8pad_modules = {recorded_name: ModuleRecord((136, 213), (144, 224), (16, 16))}
    layer: Any = torch.nn.Module()
    layer.quant_config, layer.quant_method = config, Method()
    layer.weight = ModelWeightParameter(data=torch.zeros(136, 213), input_dim=1, output_dim=0, weight_loader=copy)
    return layer, torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"down_proj": layer})})


PADDED = torch.arange(144.0 * 224).reshape(144, 224)


def _load(model: torch.nn.Module, tensor: torch.Tensor) -> None:
    loading_misnamed(Loader.load_weights)(Loader(), model, {"mlp.down_proj.weight": tensor})


@pytest.mark.usefixtures("one_rank")
def test_a_layer_that_was_made_without_padding_is_loaded_without_padding() -> None:
    """Its path in the model is its name in the record, whatever vLLM called it."""
    layer, model = _model("mlp.down_proj")
    _load(model, PADDED)
    assert torch.equal(layer.weight, PADDED[:136, :213])


@pytest.mark.usefixtures("one_rank")
def test_a_layer_that_the_record_has_not_is_left_alone() -> None:
    """Its parameters keep their class and their loaders."""
    layer, model = _model("mlp.up_proj")
    kind, loader = type(layer.weight), layer.weight.weight_loader
    _load(model, PADDED[:136, :213])
    assert (type(layer.weight), layer.weight.weight_loader) == (kind, loader)
    assert torch.equal(layer.weight, PADDED[:136, :213])


@pytest.mark.usefixtures("one_rank")
def test_a_load_that_fails_names_padded_modules_that_are_nowhere() -> None:
    """vLLM's error is kept, with a note that says what to do."""
    _, model = _model("mlp.w2")
    with pytest.raises(ValueError, match="is not") as raised:
        _load(model, PADDED)
    (note,) = raised.value.__notes__
    assert note.startswith("fp8pad: no layer of this model has the name of a padded module, mlp.w2. ")
    assert note.endswith("serve the original, which `fp8pad unpad` restores")


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("has_absent_layers", [False, True])
def test_a_load_that_fails_for_other_reasons_is_not_commented_on(has_absent_layers: bool) -> None:
    """Every padded module has its layer, or may have it on another rank."""
    from vllm.model_executor.models.utils import PPMissingLayer

    _, model = _model("mlp.w2" if has_absent_layers else "mlp.down_proj")
    if has_absent_layers:
        model.add_module("attn", PPMissingLayer())
    with pytest.raises(KeyError) as raised:
        loading_misnamed(_fail)(Loader(), model)
    assert not hasattr(raised.value, "__notes__")


def _fail(*_: Any) -> None:
    raise KeyError

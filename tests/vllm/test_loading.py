"""vLLM's own layers and loaders, on every rank of several, fill a padded layer like the original one."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fp8pad.errors import UnsupportedLayerError
from fp8pad.geometry import num_blocks, padded_shape
from fp8pad.quantization_config import ModuleRecord
from fp8pad.runtime.linear import padded_linear_method
from fp8pad.runtime.parts import LayerParts

pytestmark = pytest.mark.vllm

ALIGNMENT = (16, 16)
BLOCK = (16, 32)
HIDDEN = 136


@pytest.fixture(params=[(1, 0), (2, 0), (2, 1), (4, 3)], ids=lambda rank: f"rank {rank[1]} of {rank[0]}")
def rank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Make vLLM's layers behave as one rank of several, without any processes."""
    size, index = request.param
    _pretend_rank(monkeypatch, size, index)
    return size, index


def _pretend_rank(monkeypatch: pytest.MonkeyPatch, size: int, index: int) -> None:
    from vllm.model_executor import parameter
    from vllm.model_executor.layers import linear

    for module in (parameter, linear):
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: size)
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: index)


@pytest.fixture(autouse=True)
def vllm_config() -> Iterator[None]:
    """Give vLLM's layers a config."""
    from vllm.config import VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig()):
        yield


def _method_class(block: tuple[int, int] | None = None) -> type:
    from vllm.model_executor.layers.linear import LinearMethodBase
    from vllm.model_executor.layers.quantization.utils.fp8_utils import (
        create_fp8_scale_parameter,
        create_fp8_weight_parameter,
    )
    from vllm.model_executor.parameter import BlockQuantScaleParameter, ChannelQuantScaleParameter

    class Fp8LinearMethod(LinearMethodBase):  # a name for which vLLM uses its newer loaders
        weight_block_size = block

        def create_weights(
            self,
            layer: Any,
            input_size_per_partition: int,
            output_partition_sizes: list[int],
            *_: Any,
            weight_loader: Any,
            **__: Any,
        ) -> None:
            k, partitions, loader = input_size_per_partition, output_partition_sizes, weight_loader
            layer.input_size_per_partition, layer.logical_widths = k, partitions
            layer.weight_block_size = block
            layer.register_parameter("weight", create_fp8_weight_parameter(sum(partitions), k, loader))
            scale_class = BlockQuantScaleParameter if block else ChannelQuantScaleParameter
            scale = create_fp8_scale_parameter(scale_class, partitions, k, list(block) if block else None, loader)
            layer.register_parameter("weight_scale", scale)

        def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            scale = layer.weight_scale
            weight = _dequantized(layer.weight, scale) if block else layer.weight.float() * scale
            return torch.nn.functional.linear(x, weight, bias)

    return Fp8LinearMethod


class _Config:
    """Returns the linear method of a layer, like vLLM's quantization configs."""

    online_quantization_config = None

    def __init__(self, record: LayerParts | None, block: tuple[int, int] | None = None) -> None:
        self.record, self.block = record, block

    def get_quant_method(self, layer: Any, prefix: str) -> Any:  # noqa: ARG002
        method = _method_class(self.block)()
        return method if self.record is None else padded_linear_method(method, self.record)


def _module(n: int, k: int, alignment: tuple[int, int] = ALIGNMENT) -> ModuleRecord:
    return ModuleRecord((n, k), padded_shape((n, k), alignment), alignment)  # type: ignore[arg-type]


def _row(config: Any) -> Any:
    from vllm.model_executor.layers.linear import RowParallelLinear

    return RowParallelLinear(212, HIDDEN, quant_config=config)


def _column(config: Any) -> Any:
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    return ColumnParallelLinear(HIDDEN, 212, quant_config=config)


def _replicated(config: Any) -> Any:
    from vllm.model_executor.layers.linear import ReplicatedLinear

    return ReplicatedLinear(HIDDEN, 213, quant_config=config)


def _merged(config: Any) -> Any:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    return MergedColumnParallelLinear(HIDDEN, [212, 212], quant_config=config)


def _merged_with_a_tail(config: Any) -> Any:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    return MergedColumnParallelLinear(HIDDEN, [64, 44], quant_config=config, disable_tp=True)


def _qkv(config: Any) -> Any:
    from vllm.model_executor.layers.linear import QKVParallelLinear

    return QKVParallelLinear(HIDDEN, 18, total_num_heads=4, total_num_kv_heads=2, quant_config=config)


# Each layer with its modules on disk, [N, K], by the shard id that their loader gets.
LAYERS: dict[str, tuple[Callable[[Any], Any], dict[Any, tuple[int, int]]]] = {
    "row": (_row, {None: (HIDDEN, 212)}),
    "column": (_column, {None: (212, HIDDEN)}),
    "replicated": (_replicated, {None: (213, HIDDEN)}),
    "gate and up": (_merged, {0: (212, HIDDEN), 1: (212, HIDDEN)}),
    "only the last unaligned": (_merged_with_a_tail, {0: (64, HIDDEN), 1: (44, HIDDEN)}),
    "gate_up on disk": (_merged, {None: (424, HIDDEN)}),
    "q, k, v": (_qkv, {"q": (72, HIDDEN), "k": (36, HIDDEN), "v": (36, HIDDEN)}),
    "qkv on disk": (_qkv, {None: (144, HIDDEN)}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_rank_loads_what_it_loads_without_padding(name: str, rank: tuple[int, int]) -> None:
    """The logical part equals the original's parameter; outside it the weight is zero and the scale one."""
    make, modules = LAYERS[name]
    record = LayerParts(name, tuple(_module(*shape) for shape in modules.values()))
    original, padded = make(_Config(None)), make(_Config(record))
    _poison(padded)
    for shard_id, shape in modules.items():
        weight, scale = _tensors(shape)
        _load(original, shard_id, weight, scale)
        _load(padded, shard_id, _grown(weight, 0), _grown(scale, 1))
    _check_part(padded.weight, original.weight, 0)
    _check_part(padded.weight_scale, original.weight_scale, 1)


@pytest.mark.parametrize("name", LAYERS)
def test_every_rank_computes_what_it_computes_without_padding(name: str, rank: tuple[int, int]) -> None:
    """Inputs and outputs have their sizes without padding; bias and logical sizes do not change."""
    make, modules = LAYERS[name]
    record = LayerParts(name, tuple(_module(*shape) for shape in modules.values()))
    original, padded = make(_Config(None)), make(_Config(record))
    for shard_id, shape in modules.items():
        weight, scale = _tensors(shape)
        _load(original, shard_id, weight, scale)
        _load(padded, shard_id, _grown(weight, 0), _grown(scale, 1))
    bias = torch.randn(original.weight.shape[0])
    for layer in (original, padded):
        layer.bias.data = bias.clone()
        layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(3, 5, original.weight.shape[1])
    expected = original.quant_method.apply(original, x, original.bias)
    got = padded.quant_method.apply(padded, x, padded.bias)
    # Sums of 136 float32 products, which the CPU's GEMM groups by size.
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert padded.input_size_per_partition == original.input_size_per_partition
    assert padded.logical_widths == original.logical_widths


@pytest.mark.parametrize("tokens", [(7,), (3, 5)], ids=["2-D", "3-D"])
@pytest.mark.parametrize(
    "name",
    [
        "backbone.layers.0.mixer.out_proj",
        "model.layers.0.linear_attn.in_proj_qkvz",
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.mlp.in_proj",
        "model.layers.0.self_attn.kv_a_proj_with_mqa",
        "model.layers.0.self_attn.qkv_proj",
    ],
)
def test_only_a_mamba_mixer_gets_its_output_uncopied(
    name: str, tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets a view of the kernel's rows, 224 long; others get contiguous rows of 213, with the same values."""
    _pretend_rank(monkeypatch, 1, 0)
    x = torch.randn(*tokens, HIDDEN)
    view, copy = _output("backbone.layers.0.mixer.in_proj", x), _output(name, x)
    assert view.stride()[-2:] == (224, 1)
    assert copy.is_contiguous()
    assert torch.equal(view, copy)


def test_with_lora_a_mamba_mixers_output_is_copied_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's LoRA adds to whole outputs, in a kernel that requires contiguous ones."""
    from vllm.config import LoRAConfig, get_current_vllm_config

    _pretend_rank(monkeypatch, 1, 0)
    monkeypatch.setattr(get_current_vllm_config(), "lora_config", LoRAConfig(max_lora_rank=8))
    assert _output("backbone.layers.0.mixer.in_proj", torch.randn(7, HIDDEN)).is_contiguous()


def _output(name: str, x: torch.Tensor) -> torch.Tensor:
    """Return the output for `x` of a layer with 213 rows that is called `name` in its model."""
    layer = _replicated(_Config(LayerParts(name, (_module(213, HIDDEN),))))
    weight, scale = _tensors((213, HIDDEN))
    _load(layer, None, _grown(weight, 0), _grown(scale, 1))
    layer.bias.data.zero_()
    layer.quant_method.process_weights_after_loading(layer)
    output: torch.Tensor = layer.quant_method.apply(layer, x, layer.bias)
    return output


@pytest.mark.parametrize("name", LAYERS)
def test_block_scales_stay_with_their_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one rank, a block-scaled layer computes with the checkpoint's weights, whatever its parts' sizes."""
    _pretend_rank(monkeypatch, 1, 0)
    make, modules = LAYERS[name]
    record = LayerParts(name, tuple(_module(*shape, BLOCK) for shape in modules.values()))
    layer = make(_Config(record, BLOCK))
    _poison(layer)
    weights = []
    for shard_id, shape in modules.items():
        weight, scale = _block_tensors(shape)
        weights.append(_dequantized(weight, scale))
        _load(layer, shard_id, _grown(weight, 0, BLOCK), _grown(scale, 1, (1, 1)))
    bias = torch.randn(sum(weight.shape[0] for weight in weights))
    layer.bias.data = bias.clone()
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(7, weights[0].shape[1])
    expected = torch.nn.functional.linear(x, torch.cat(weights), bias)
    # The output is gathered from parts only if one before the last has a tail.
    has_inner_tails = any(shape[0] % BLOCK[0] for shape in list(modules.values())[:-1])
    assert (len(layer.quant_method.sizes.rows) > 1) == has_inner_tails
    # Sums of up to 212 float32 products, which the CPU's GEMM groups by size.
    assert torch.allclose(layer.quant_method.apply(layer, x, layer.bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", [0, 1])
def test_a_rank_gets_whole_blocks_of_columns(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of 96 columns in blocks of 32: each computes its part of the sum, with 136 rows padded to 144."""
    _pretend_rank(monkeypatch, 2, index)
    from vllm.model_executor.layers.linear import RowParallelLinear

    config = _Config(LayerParts("x", (_module(HIDDEN, 192, BLOCK),)), BLOCK)
    layer = RowParallelLinear(192, HIDDEN, bias=False, quant_config=config)
    weight, scale = _block_tensors((HIDDEN, 192))
    _load(layer, None, _grown(weight, 0, BLOCK), scale)
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(7, 96)
    expected = torch.nn.functional.linear(x, _dequantized(weight, scale)[:, 96 * index : 96 * (index + 1)])
    assert torch.allclose(layer.quant_method.apply(layer, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("index", [0, 1])
def test_a_rank_gets_whole_blocks(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks of 112 rows in blocks of 16: each computes its half, with 136 columns padded to whole blocks."""
    _pretend_rank(monkeypatch, 2, index)
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    config = _Config(LayerParts("x", (_module(224, HIDDEN, BLOCK),)), BLOCK)
    layer = ColumnParallelLinear(HIDDEN, 224, bias=False, quant_config=config)
    weight, scale = _block_tensors((224, HIDDEN))
    _load(layer, None, _grown(weight, 0, BLOCK), scale)
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(7, HIDDEN)
    expected = torch.nn.functional.linear(x, _dequantized(weight, scale)[112 * index : 112 * (index + 1)])
    assert torch.allclose(layer.quant_method.apply(layer, x), expected, rtol=1e-4, atol=1e-4)


def test_a_rank_that_would_begin_inside_a_block_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 200 rows begins inside a block of 16: the message says what to do."""
    _pretend_rank(monkeypatch, 2, 1)
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    config = _Config(LayerParts("x", (_module(200, HIDDEN, BLOCK),)), BLOCK)
    with pytest.raises(UnsupportedLayerError, match=r"100.*fp8pad convert --absorb -tp 2"):
        ColumnParallelLinear(HIDDEN, 200, quant_config=config)


def test_a_weight_that_vllm_reads_itself_is_refused(rank: tuple[int, int]) -> None:
    """The batched products of DeepSeek-V4's `wo_a` bypass its linear method."""
    layer = _replicated(_Config(LayerParts("x", (_module(213, HIDDEN),))))
    layer.is_bmm = True
    with pytest.raises(UnsupportedLayerError, match="x: vLLM multiplies by its weight directly"):
        layer.quant_method.process_weights_after_loading(layer)


def test_a_loader_set_later_works_inside_the_view_too(rank: tuple[int, int]) -> None:
    """Models replace loaders after the layer is made, as Mamba's mixer does."""
    seen = []

    def loader(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        seen.append((tuple(param.shape), tuple(param.data.shape), tuple(loaded_weight.shape)))

    layer = _replicated(_Config(LayerParts("x", (_module(213, HIDDEN),))))
    layer.weight.weight_loader = loader
    layer.weight.weight_loader(layer.weight, torch.zeros(224, 144, dtype=torch.float8_e4m3fn))
    assert seen == [((213, HIDDEN),) * 3]
    assert layer.weight.shape == (224, 144)


def test_a_failed_load_leaves_the_parameter_whole(rank: tuple[int, int]) -> None:
    """Whatever a loader raises, the parameter gets its own shape back."""
    layer = _replicated(_Config(LayerParts("x", (_module(213, HIDDEN),))))

    def loader(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        raise ValueError("broken")

    layer.weight.weight_loader = loader
    with pytest.raises(ValueError, match="broken"):
        layer.weight.weight_loader(layer.weight, torch.zeros(213, HIDDEN, dtype=torch.float8_e4m3fn))
    assert layer.weight.shape == (224, 144)


def test_an_aligned_layer_is_left_as_vllm_makes_it(rank: tuple[int, int]) -> None:
    """If neither disk nor rank is padded, parameters keep vLLM's own classes and loaders."""
    size = rank[0]
    layer = _column_of(64 * size, _Config(LayerParts("x", (_module(64 * size, 128),))))
    plain = _column_of(64 * size, _Config(None))
    assert type(layer.weight) is type(plain.weight)
    assert layer.weight.shape == plain.weight.shape


def _column_of(n: int, config: Any) -> Any:
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    return ColumnParallelLinear(128, n, quant_config=config)


def _poison(layer: Any) -> None:
    """Fill a layer's parameters with NaN, like uninitialized memory at the start of a reload."""
    for parameter in (layer.weight, layer.weight_scale):
        parameter.data.view(torch.uint8).fill_(0xFF)
        assert parameter.data.float().isnan().all()


def _tensors(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    return weight, torch.rand((shape[0], 1), generator=generator) + 0.5


def _block_tensors(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    weight, _ = _tensors(shape)
    generator = torch.Generator().manual_seed(1 + sum(shape))
    return weight, torch.rand(*map(num_blocks, shape, BLOCK), generator=generator) + 0.5


def _dequantized(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rows, columns = (torch.arange(size) // block for size, block in zip(weight.shape, BLOCK, strict=True))
    return weight.float() * scale[rows][:, columns]


def _grown(tensor: torch.Tensor, fill: int, alignment: tuple[int, int] = ALIGNMENT) -> torch.Tensor:
    """Pad a tensor as `fp8pad convert` does: weights along N and K, scales `[N, 1]` along N."""
    n, k = padded_shape(tuple(tensor.shape), alignment)
    grown = torch.full((n, k if tensor.shape[1] > 1 else 1), float(fill)).to(tensor.dtype)
    grown[: tensor.shape[0], : tensor.shape[1]] = tensor
    return grown


def _load(layer: Any, shard_id: Any, weight: torch.Tensor, scale: torch.Tensor) -> None:
    for parameter, tensor in ((layer.weight, weight), (layer.weight_scale, scale)):
        arguments = (parameter, tensor) if shard_id is None else (parameter, tensor, shard_id)
        parameter.weight_loader(*arguments)


def _check_part(padded: torch.Tensor, original: torch.Tensor, fill: int) -> None:
    n, k = original.shape
    assert tuple(padded.shape) == (padded_shape((n,), (16,))[0], padded.shape[1])
    assert torch.equal(padded[:n, :k].float(), original.float())
    assert (padded[n:].float() == fill).all()
    assert (padded[:, k:].float() == fill).all()

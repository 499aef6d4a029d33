"""Block-scaled layers of vLLM's own method, padded, give the bits of vLLM's layers; the stand-in's sums are exact."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from absorb_models import block_scaled
from plans import FP8, headers

from fp8pad.geometry import padded_shape
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.engines import find_engine
from fp8pad.planning.verdict import Judge
from fp8pad.quantization_config import ModuleRecord
from fp8pad.record import Policy
from fp8pad.runtime.linear import padded_linear_method
from fp8pad.runtime.parts import LayerParts

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("standin_config")]

BLOCK = (32, 32)


@dataclass
class _Config:
    """Returns vLLM's method for block scales, unchanged or padded by a record."""

    record: LayerParts | None
    tool: str = "fp8"
    online_quantization_config: Any = None
    weight_block_size: list[int] = field(default_factory=lambda: list(BLOCK))

    def get_quant_method(self, layer: Any, prefix: str) -> Any:  # noqa: ARG002
        method = self._auto_round() if self.tool == "auto-round" else self._fp8()
        return method if self.record is None else padded_linear_method(method, self.record)

    def _fp8(self) -> Any:
        from vllm.model_executor.layers.quantization.fp8 import Fp8Config, Fp8LinearMethod

        return Fp8LinearMethod(Fp8Config(True, "dynamic", weight_block_size=self.weight_block_size))

    def _auto_round(self) -> Any:
        from vllm.model_executor.layers.quantization.inc.inc_linear import INCLinearMethod
        from vllm.model_executor.layers.quantization.inc.schemes.inc_fp8_linear import INCFp8LinearScheme

        return INCLinearMethod(INCFp8LinearScheme("x", BLOCK))


@pytest.mark.parametrize(
    ("kind", "sizes", "num_k", "num_ranks"),
    [
        ("ReplicatedLinear", [44], 72, 1),
        ("ColumnParallelLinear", [44], 72, 1),
        ("RowParallelLinear", [44], 72, 1),
        ("MergedColumnParallelLinear", [64, 44], 72, 1),
        ("ColumnParallelLinear", [64], 72, 2),
        ("RowParallelLinear", [44], 128, 2),
        ("MergedColumnParallelLinear", [128, 64], 72, 2),
    ],
)
def test_what_vllm_takes_gives_its_bits_on_every_rank(
    kind: str, sizes: list[int], num_k: int, num_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM takes any size if no share splits a block, except for the rows of all matrices but the last one."""
    matrices = _matrices(sizes, num_k)
    for rank in range(num_ranks):
        _pretend_rank(monkeypatch, num_ranks, rank)
        assert torch.equal(*(_output(kind, matrices, is_padded) for is_padded in (False, True)))


@pytest.mark.parametrize(("kind", "sizes"), [("ReplicatedLinear", [44]), ("MergedColumnParallelLinear", [64, 44])])
def test_a_scheme_that_passes_on_to_the_method_of_fp8(
    kind: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoRound's scheme has the block and kernel of the method that it calls."""
    matrices = _matrices(sizes, 72)
    _pretend_rank(monkeypatch, 1, 0)
    expected = _output(kind, matrices, is_padded=False, tool="auto-round")
    assert torch.equal(_output(kind, matrices, is_padded=True, tool="auto-round"), expected)
    assert torch.equal(_output(kind, matrices, is_padded=True), expected)


@pytest.mark.parametrize("sizes", [[44, 64], [44, 44], [20, 20], [72, 40, 40]])
def test_fused_matrices_give_the_bits_of_each_alone(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM places such matrices back to back: it fails, or gives rows the scales of other rows."""
    _pretend_rank(monkeypatch, 1, 0)
    matrices = _matrices(sizes, 72)
    alone = torch.cat([_output("ReplicatedLinear", [matrix], is_padded=False) for matrix in matrices], dim=-1)
    assert torch.equal(_output("MergedColumnParallelLinear", matrices, is_padded=True), alone)
    with contextlib.suppress(RuntimeError):
        assert not torch.equal(_output("MergedColumnParallelLinear", matrices, is_padded=False), alone)


def _pretend_rank(monkeypatch: pytest.MonkeyPatch, num_ranks: int, rank: int) -> None:
    from vllm import distributed
    from vllm.model_executor import parameter
    from vllm.model_executor.layers import linear

    for module in (distributed, parameter, linear):
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: num_ranks)
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)


@pytest.mark.parametrize(("half", "is_loaded"), [(56, True), (40, True), (64, True), (48, False)])
def test_what_shares_a_block_on_disk_gives_the_bits_of_the_whole(
    half: int, is_loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate and up in one tensor; 96 rows are whole blocks of 32, not padded, and vLLM has no room for the scales."""
    from vllm.model_executor.layers import linear

    _pretend_rank(monkeypatch, 1, 0)
    [(weight, scale)] = _matrices([2 * half], 64)
    record = ModuleRecord((2 * half, 64), _padded((2 * half, 64)), BLOCK)
    config = _Config(LayerParts("x", (record,)))
    layer: Any = linear.MergedColumnParallelLinear(64, [half, half], bias=False, quant_config=config)
    layer.weight.weight_loader(layer.weight, _grown(weight))
    with contextlib.nullcontext() if is_loaded else pytest.raises(RuntimeError, match="exceeds dimension size"):
        layer.weight_scale_inv.weight_loader(layer.weight_scale_inv, scale)
    if is_loaded:
        layer.quant_method.process_weights_after_loading(layer)
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float32).bfloat16()
        whole = _output("ReplicatedLinear", [(weight, scale)], is_padded=False)
        assert torch.equal(layer.quant_method.apply(layer, x), whole)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("names", [("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj")])
def test_the_plan_says_what_becomes_of_scales_of_matrices_that_are_fused(
    names: tuple[str, ...], is_fused: bool, num_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any size, in one tensor on disk or in several: scales are right, those of other rows, or cannot be loaded.

    One tensor that is not divided has the right ones, if any.
    """
    seen = set()
    for size in range(8, 400, 8):
        shares, whole = (4 // num_ranks, 4), (max(2 // num_ranks, 1), 2)
        parts = [whole, whole] if len(names) == 2 else [shares, whole, whole]
        matrices = [(size * held, size * all_of_it) for held, all_of_it in parts]
        expected = set()
        for rank in range(num_ranks):
            _pretend_rank(monkeypatch, num_ranks, rank)
            expected.add(_fate(names, matrices, is_fused, num_ranks, rank))
        said = _planned_fate(names, [rows for _, rows in matrices], is_fused, num_ranks)
        assert said == max(expected, key=("serves", "answers wrongly", "refuses").index), size
        seen.add(said)
    wrong = set() if is_fused and num_ranks == 1 else {"answers wrongly"}
    assert seen == {"serves", "refuses"} | wrong


def _fate(names: Sequence[str], matrices: Sequence[tuple[int, int]], is_fused: bool, num_ranks: int, rank: int) -> str:
    """Return what happens to the scales of matrices with these rows on a rank and in all, in blocks of 128."""
    from vllm.model_executor.layers import linear

    config, whole = _Config(None, weight_block_size=[128, 128]), [rows for _, rows in matrices]
    if len(names) == 2:
        held = [rows // num_ranks for rows in whole]
        layer: Any = linear.MergedColumnParallelLinear(256, whole, bias=False, quant_config=config)
    else:
        held = [rows for rows, _ in matrices]
        layer = linear.QKVParallelLinear(256, whole[0] // 4, 4, 2, bias=False, quant_config=config)
    rows_before = [sum(whole[:place]) for place in range(len(whole))] if is_fused else [0] * len(whole)
    num_scales = [-(-sum(whole) // 128)] if is_fused else [-(-rows // 128) for rows in whole]
    scales = [1000 * place + torch.arange(float(num)).repeat(2, 1).T for place, num in enumerate(num_scales)]
    parameter, shards = layer.weight_scale_inv, ("q", "k", "v") if len(names) == 3 else (0, 1)
    try:
        for scale, shard in zip(scales, [()] if is_fused else [(shard,) for shard in shards], strict=True):
            parameter.weight_loader(parameter, scale.contiguous(), *shard)
    except (RuntimeError, IndexError):
        return "refuses"
    begins = [
        before + rank * (all_of_it // rows) // num_ranks * rows
        for before, rows, all_of_it in zip(rows_before, held, whole, strict=True)
    ]
    wanted = [
        scales[0 if is_fused else place][(begin + torch.arange(rows)) // 128]
        for place, (begin, rows) in enumerate(zip(begins, held, strict=True))
    ]
    found = parameter.data[torch.arange(sum(held)) // 128]
    return "serves" if torch.equal(found, torch.cat(wanted)) else "answers wrongly"


def _planned_fate(names: Sequence[str], whole: Sequence[int], is_fused: bool, num_ranks: int) -> str:
    """Return the plan's verdict for the worst of these matrices."""
    parent, on_disk = ("mlp", "gate_up_proj") if len(names) == 2 else ("self_attn", "qkv_proj")
    rows = {on_disk: sum(whole)} if is_fused else dict(zip(names, whole, strict=True))
    shapes = {f"model.layers.0.{parent}.{name}": (num_n, 256) for name, num_n in rows.items()}
    config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
    return Judge(plan_checkpoint(*headers(config, FP8, shapes), Policy()), find_engine()).original(num_ranks).outcome


Matrix = tuple[torch.Tensor, torch.Tensor]


def _matrices(sizes: Sequence[int], num_k: int) -> list[Matrix]:
    """Return an FP8 weight of each size with its scales; rows grow, so that no two blocks have one scale."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, num_k, generator=generator, dtype=torch.float32) for n in sizes]
    return [block_scaled(weight * (1 + torch.arange(len(weight))[:, None] / 10), BLOCK[0]) for weight in weights]


def _output(kind: str, matrices: Sequence[Matrix], is_padded: bool, tool: str = "fp8") -> torch.Tensor:
    """Load a layer on the current rank, through vLLM's loaders, and multiply."""
    layer = _layer(kind, matrices, is_padded, tool)
    for index, (weight, scale) in enumerate(matrices):
        arguments = () if len(matrices) == 1 else (index,)
        on_disk = _grown(weight) if is_padded else weight
        layer.weight.weight_loader(layer.weight, on_disk, *arguments)
        layer.weight_scale_inv.weight_loader(layer.weight_scale_inv, scale, *arguments)
    num_k = layer.input_size_per_partition
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(5, num_k, generator=torch.Generator().manual_seed(1), dtype=torch.float32).bfloat16()
    output: torch.Tensor = layer.quant_method.apply(layer, x)
    return output


def _layer(kind: str, matrices: Sequence[Matrix], is_padded: bool, tool: str) -> Any:
    from vllm.model_executor.layers import linear

    shapes = [(weight.shape[0], weight.shape[1]) for weight, _ in matrices]
    modules = tuple(ModuleRecord(shape, _padded(shape), BLOCK) for shape in shapes)
    config = _Config(LayerParts("x", modules) if is_padded else None, tool)
    sizes = [num_n for num_n, _ in shapes]
    num_n = sizes if kind.startswith("Merged") else sizes[0]
    return getattr(linear, kind)(shapes[0][1], num_n, bias=False, quant_config=config)


def _padded(shape: tuple[int, int]) -> tuple[int, int]:
    num_n, num_k = padded_shape(shape, BLOCK)
    return num_n, num_k


def _grown(weight: torch.Tensor) -> torch.Tensor:
    grown = torch.zeros(_padded((weight.shape[0], weight.shape[1])), dtype=weight.dtype)
    grown[: weight.shape[0], : weight.shape[1]] = weight
    return grown

"""What helps at other tensor-parallel sizes, on headers alone."""

from collections.abc import Sequence

from fp8pad.planning import plan_checkpoint
from fp8pad.planning.advice import remedy
from fp8pad.record import Json, Policy
from fp8pad.tensors import ShardHeader, TensorHeader, tensor_bytes

Headers = tuple[Sequence[ShardHeader], dict[str, Json]]


def mlp_source(size: int, module: str = "mlp", **config: object) -> Headers:
    """A checkpoint of one MLP with hidden size 2048 and inner size `size`, per-channel scales."""
    shapes = {"gate_proj": (size, 2048), "up_proj": (size, 2048), "down_proj": (2048, size)}
    tensors, end = [], 0
    for name, (num_n, num_k) in shapes.items():
        weight = f"model.layers.0.{module}.{name}.weight"
        for tensor, dtype, shape in ((weight, "F8_E4M3", (num_n, num_k)), (f"{weight}_scale", "F32", (num_n, 1))):
            begin, end = end, end + tensor_bytes(dtype, shape)
            tensors.append(TensorHeader(tensor, dtype, shape, begin, end))
    document = {"hidden_size": 2048, "hidden_act": "silu", "quantization_config": {"quant_method": "fbgemm_fp8"}}
    shard = ShardHeader("model.safetensors", 8 + end, 8, tuple(tensors))
    return (shard,), {"config.json": document | config}


def remedy_of(source: Headers, policy: Policy) -> Policy | None:
    """What is suggested after planning with `policy`."""
    return remedy(*source, plan_checkpoint(*source, policy))


def test_absorbing_is_suggested_for_the_largest_size_that_needs_it() -> None:
    """10944 is fine at TP 1, 2 and 4; its eighth, 1368, is not a multiple of 16."""
    source = mlp_source(10944, model_type="llama", intermediate_size=10944)
    assert remedy_of(source, Policy()) == Policy(absorb=True, tensor_parallel_size=8)
    assert remedy_of(source, Policy(alignment=32)) == Policy(alignment=32, absorb=True, tensor_parallel_size=8)
    assert remedy_of(source, Policy(absorb=True, tensor_parallel_size=8)) is None


def test_absorbing_is_not_suggested_where_it_settles_nothing() -> None:
    """Neither for sizes that are fine, nor for a family that no file knows."""
    fine = mlp_source(11008, model_type="llama", intermediate_size=11008)
    unknown = mlp_source(10944, model_type="nobody-knows", intermediate_size=10944)
    assert remedy_of(fine, Policy()) is None
    assert remedy_of(unknown, Policy()) is None


def test_experts_are_suggested_only_where_nothing_else_helps() -> None:
    """A model whose experts alone are in the way: 88 columns on a rank at TP 8."""
    config = {"model_type": "qwen3_moe", "moe_intermediate_size": 704, "num_experts": 1, "intermediate_size": 6144}
    source = mlp_source(704, "mlp.experts.0", **config)
    assert remedy_of(source, Policy()) == Policy(absorb=True, absorb_experts=True, tensor_parallel_size=8)

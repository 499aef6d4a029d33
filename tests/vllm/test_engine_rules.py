"""The rules of planning/engines against vLLM's own checks, which are called with each layer's sizes on a rank."""

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import COMPRESSED, FP8, Shapes, attention, gated, headers

from fp8pad.planning import plan_checkpoint, weight_formats
from fp8pad.planning.engines import find_engine
from fp8pad.planning.verdict import Judge
from fp8pad.record import Policy

pytestmark = pytest.mark.vllm

LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
MOE = {"model_type": "qwen3_moe", "num_experts": 1}
MLP, EXPERT = "model.layers.0.mlp", "model.layers.0.mlp.experts.0"
RANKS = st.sampled_from([1, 2, 4])


@pytest.fixture(autouse=True, scope="module")
def one_process() -> Iterator[None]:
    """Let vLLM's check run in one process: it asks for the number of ranks even if the layer has it."""
    import vllm.distributed
    from vllm.model_executor import parameter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm.distributed, "get_tensor_model_parallel_world_size", lambda: 1)
        patch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)
        patch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
        yield


def outcomes(
    config: Mapping[str, object], quantization: Mapping[str, Any], shapes: Shapes, ranks: int
) -> dict[str, str]:
    """Return the plan's outcome for each layer that vLLM does not simply serve, by the last part of its name."""
    plan = plan_checkpoint(*headers(config, quantization, shapes), Policy())
    findings = Judge(plan, find_engine()).original(ranks).findings
    return {name.rpartition(".")[2]: finding.outcome for finding in findings for name in finding.layers}


def passes(partitions: Sequence[int], num_k: int, whole: tuple[int, int], ranks: int) -> bool:
    """Return whether vLLM's check accepts a layer of size `whole` with these matrices and columns on a rank."""
    from vllm.model_executor.layers.quantization.utils.fp8_utils import validate_fp8_block_shape

    num_n, all_k = whole
    layer = SimpleNamespace(tp_size=ranks)
    try:
        validate_fp8_block_shape(layer, all_k, num_n, num_k, list(partitions), [128, 128])
    except ValueError:
        return False
    return True


@settings(max_examples=60, deadline=None)
@given(share=st.integers(1, 80), ranks=RANKS)
def test_a_gated_mlp_is_refused_where_vllms_check_raises(share: int, ranks: int) -> None:
    """Gate and up as one layer, and down, whose columns kernels need in whole blocks, on one rank too."""
    held, inner = 16 * share, 16 * share * ranks
    said = outcomes(LLAMA, COMPRESSED, gated(MLP, inner), ranks)
    assert ("gate_proj" in said) != passes([held, held], 256, (2 * inner, 256), ranks)
    assert ("down_proj" in said) == (held % 128 != 0)
    assert passes([256], held, (256, inner), ranks) or "down_proj" in said
    assert set(said.values()) <= {"refuses"}


@settings(max_examples=40, deadline=None)
@given(head_dim=st.sampled_from([16, 32, 48, 64, 96, 128, 192, 256]), ranks=RANKS)
def test_attention_is_refused_where_vllms_check_raises(head_dim: int, ranks: int) -> None:
    """Four heads and two key-value heads, of which four ranks have copies."""
    queries, keys = 4 * head_dim // ranks, 2 * head_dim // min(ranks, 2)
    said = outcomes(LLAMA, COMPRESSED, attention(head_dim), ranks)
    whole = (queries + 2 * keys) * ranks
    assert bool(said.keys() & {"q_proj", "k_proj", "v_proj"}) != passes([queries, keys, keys], 256, (whole, 256), ranks)
    assert ("o_proj" in said) == (queries % 128 != 0)


@settings(max_examples=80, deadline=None)
@given(share=st.integers(1, 40), ranks=RANKS)
def test_experts_are_refined_refused_or_served_as_vllm_does(share: int, ranks: int) -> None:
    """Method fp8 first tries a finer block; if there is none, the check of other methods applies."""
    from vllm.model_executor.layers.fused_moe.oracle.fp8 import refine_fp8_moe_block_shape

    held = 16 * share
    config = SimpleNamespace(intermediate_size_per_partition=held, tp_size=ranks, hidden_dim=256)
    refined = refine_fp8_moe_block_shape(config, [128, 128])
    expected = "serves" if held % 128 == 0 else "Triton only" if refined else "refuses"
    model = MOE | {"moe_intermediate_size": held * ranks}
    said = outcomes(model, FP8, gated(EXPERT, held * ranks), ranks)
    assert set(said.values()) == ({expected} - {"serves"})
    others = outcomes(model, COMPRESSED, gated(EXPERT, held * ranks), ranks)
    assert set(others.values()) == ({"refuses"} if held % 128 else set())


def test_a_vocabulary_is_padded_as_vllm_pads_it() -> None:
    """A rank's rows equal those of vLLM's own embedding."""
    from vllm.model_executor.layers.vocab_parallel_embedding import pad_vocab_size

    shapes = {"lm_head": (259, 128)}
    (layer,) = plan_checkpoint(*headers(LLAMA, COMPRESSED, shapes), Policy()).layers
    assert [layer.plan.part(ranks).num_n for ranks in (1, 2, 4)] == [
        pad_vocab_size(259) // ranks for ranks in (1, 2, 4)
    ]


def test_method_fp8_has_no_place_for_a_scale_of_each_channel() -> None:
    """vLLM's own parameter takes one scale, for one matrix or for one of several, and refuses 32."""
    import torch
    from vllm.model_executor.parameter import PerTensorScaleParameter

    def load(scale: torch.Tensor, **shard: object) -> torch.Tensor:
        parameter = PerTensorScaleParameter(data=torch.zeros(2 if shard else 1), weight_loader=lambda *_: None)
        if shard:
            parameter.load_merged_column_weight(loaded_weight=scale, **shard)
        else:
            parameter.load_row_parallel_weight(loaded_weight=scale)
        return parameter.data

    assert load(torch.tensor([3.0])).tolist() == [3.0]
    assert load(torch.tensor([3.0]), shard_id=1).tolist() == [0.0, 3.0]
    for shard in ({}, {"shard_id": 1}):
        with pytest.raises(AssertionError):
            load(torch.ones(32, 1), **shard)


@pytest.mark.parametrize(("num_k", "is_taken"), [(320, True), (336, False)])
def test_deepseek_v41s_method_takes_columns_in_whole_blocks(num_k: int, is_taken: bool) -> None:
    """Blocks of 32 by 32 become a scale per row and 32 columns; the rule concerns only K."""
    import torch
    from vllm.model_executor.layers.quantization.modelopt import WEIGHT, CkptCtx, KMxfp8Static, Shapes

    layer, shapes = torch.nn.Module(), Shapes([48], num_k, torch.bfloat16)
    try:
        KMxfp8Static().create_weights(layer, WEIGHT, CkptCtx(scale_block_size=(32, 32)), shapes, lambda *_: None)
    except ValueError:
        assert not is_taken
    else:
        assert is_taken
        assert layer.weight_scale.shape == (48, num_k // 32)
    config = LLAMA | {"architectures": ["DeepseekV41ForCausalLM"]}
    blocks = {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}
    said = outcomes(config, blocks, {f"{MLP}.down_proj": (64, num_k)}, 1)
    assert said == {"down_proj": "serves" if is_taken else "refuses"}


@pytest.mark.parametrize(("leaf", "is_found"), [("weight", True), ("weight_scale", False)])
def test_granites_stacked_experts(leaf: str, is_found: bool) -> None:
    """vLLM renames their weights and leaves the scales alone, for which it has no parameter."""
    from vllm.model_executor.models.granitemoe import GraniteMoeModel

    names = [f"layers.0.block_sparse_moe.{name}.{leaf}" for name in ("input_linear", "output_linear")]
    assert [GraniteMoeModel.hf_to_vllm_mapper._map_name(name) != name for name in names] == [is_found] * 2


@pytest.mark.parametrize(
    ("backend", "share", "blocks", "size"),
    [
        ("auto", 192, 64, 192), ("auto", 48, 128, 48), ("triton", 192, 64, 192), ("triton", 48, 128, 128),
        ("marlin", 192, 128, 256), ("marlin", 48, 128, 128), ("marlin", 256, 128, 256),
    ],
)  # fmt: skip
def test_a_named_backend_makes_vllm_pad_experts_that_it_cannot_take_in_finer_blocks(
    monkeypatch: pytest.MonkeyPatch, backend: str, share: int, blocks: int, size: int
) -> None:
    """Named or not, Triton refines blocks; what is too fine for it, or for the kernel that is named, is then padded."""
    from vllm.model_executor.layers.fused_moe.experts import triton_moe
    from vllm.model_executor.layers.fused_moe.oracle.fp8 import resolve_fp8_moe_weight_block_shape
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8Dynamic128Sym

    monkeypatch.setattr(triton_moe.current_platform, "supports_fp8", lambda: True)
    config = SimpleNamespace(
        moe_backend=backend, tp_size=8, ep_size=1, intermediate_size=8 * share, intermediate_size_per_partition=share,
        hidden_dim=256, is_lora_enabled=False, has_bias=False,
    )  # fmt: skip
    found, _ = resolve_fp8_moe_weight_block_shape(config, [128, 128], kFp8Dynamic128Sym, True)
    assert (list(found), config.intermediate_size_per_partition) == ([blocks, blocks], size)
    config.intermediate_size_per_partition, config.intermediate_size = 88, 704
    if backend != "auto":
        with pytest.raises(ValueError, match="requires 128-aligned global expert dimensions"):
            resolve_fp8_moe_weight_block_shape(config, [128, 128], kFp8Dynamic128Sym, True)


def test_the_methods_that_vllm_knows_and_those_that_it_wants_an_option_for_are_its_own() -> None:
    """Of the methods that fp8pad reads: those that vLLM lists, or takes as another one."""
    from vllm.model_executor.layers.quantization import DEPRECATED_QUANTIZATION_METHODS, QUANTIZATION_METHODS
    from vllm.model_executor.layers.quantization.inc import INCConfig

    read = {*weight_formats._READERS, *weight_formats._OTHER_METHODS, *weight_formats._NOT_FP8_METHODS}
    renamed = {name for name in read if INCConfig.override_quantization_method({"quant_method": name}, None) == "inc"}
    engine = find_engine()
    assert {*engine.methods} == read & {*QUANTIZATION_METHODS} | renamed
    assert {name for rule in engine.method for name in rule.methods} == read & {*DEPRECATED_QUANTIZATION_METHODS}

"""What vLLM does with a checkpoint at a TP size, from headers alone; the source of each rule is in its file."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers import copy_case
from plans import CHANNELS, COMPRESSED, FP8, Headers, Shapes, attention, gated, headers

from fp8pad.checkpoint.read import read_unconverted
from fp8pad.errors import NotServedError, UsageError
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint, weight_formats
from fp8pad.planning.comparison import (
    Absorbed,
    AtSize,
    Growth,
    absorbed_at,
    better_absorbed,
    check_worth_converting,
    compare_sizes,
    nearest_served_policy,
)
from fp8pad.planning.engines import Engine, Said, engines, find_engine
from fp8pad.planning.plan import AlikeLayers, CheckpointPlan
from fp8pad.planning.verdict import Judge, Verdict
from fp8pad.record import Policy
from fp8pad.render.advice import advice
from fp8pad.render.console import added
from fp8pad.render.html import plan_page
from fp8pad.render.plan import plan_screen
from fp8pad.render.verdict import unabsorbed
from fp8pad.tensors import ShardHeader, TensorHeader

VLLM = find_engine()
LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu"}
MOE = {"model_type": "qwen3_moe", "num_experts": 1, "num_experts_per_tok": 1, "hidden_act": "silu"}
MLP = "model.layers.0.mlp"
EXPERT = "model.layers.0.mlp.experts.0"
INT8 = (
    "intermediate_size is not absorbed: model.layers.0.mlp.gate_proj.weight_scale [213, 1] is not a tensor that fp8pad"
    " knows how to pad"
)


def planned(made: Headers, policy: Policy) -> CheckpointPlan:
    """Return the plan for these headers."""
    return plan_checkpoint(*made, policy)


def said(verdict: Verdict) -> dict[str, set[str]]:
    """Return the last parts of module names by outcome."""
    names: dict[str, set[str]] = {}
    for finding in verdict.findings:
        names.setdefault(finding.outcome, set()).update(name.rpartition(".")[2] for name in finding.layers)
    return names


def test_every_rule_says_where_it_was_read_and_how_it_is_known() -> None:
    """Data without a source could not be checked for the next version."""
    for engine in engines().values():
        assert engine.rule
        judgements = (*engine.rule, *engine.method, *([engine.indivisible] if engine.indivisible else []))
        sources = [(each.why, each.source, each.known) for each in judgements]
        sources += [(each.why, each.source, each.known) for each in engine.unloaded]
        assert all(all(source) for source in sources)


def test_each_method_that_an_engine_knows_is_one_that_fp8pad_reads() -> None:
    """A name with a typo, or of another method, would have no effect."""
    read = {*weight_formats._READERS, *weight_formats._OTHER_METHODS, *weight_formats._NOT_FP8_METHODS}
    for engine in engines().values():
        assert set(engine.methods) <= read
        named = [*(rule.methods for rule in engine.rule), *(rule.methods for rule in engine.method)]
        assert {method for methods in named for method in methods} <= {*engine.methods}


@pytest.mark.parametrize("name", engines())
def test_a_method_that_an_engine_does_not_know_is_not_served(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that fp8pad begins to read is refused until an engine's file names it, in whatever form it is."""
    monkeypatch.setitem(weight_formats._READERS, "new", weight_formats._READERS["fp8"])
    made = headers(LLAMA | {"intermediate_size": 320}, {**FP8, "quant_method": "new"}, gated(MLP, 320), "block")
    engine = find_engine(name)
    for policy in (Policy(), Policy(absorb=True)):
        judge = Judge(planned(made, policy), engine)
        for verdict in (judge.original(2), judge.padded(2)[0], judge.converted):
            assert len(verdict.refused) == 3
        (finding,) = judge.original(2).findings
        assert (finding.outcome, finding.why) == (engine.unknown_method, "a quantization method that it does not know")
        assert finding.of_whole_model


def test_a_block_model_that_vllm_refuses_is_served_with_the_runtime_or_absorbed() -> None:
    """Like 29,568 / 2: 384 / 2 begins inside a block; with -tp 2 the record alone helps, and so does absorbing."""
    made = headers(LLAMA | {"intermediate_size": 384}, FP8, gated(MLP, 384) | attention(128))
    refused = {"refuses": {"gate_proj", "up_proj", "down_proj"}}
    plan = planned(made, Policy(tensor_parallel_size=2))
    assert said(Judge(plan, VLLM).original(2)) == refused
    assert plan.modules
    assert not plan.tensors
    assert Judge(plan, VLLM).converted == Judge(plan, VLLM).padded(2)[0] == Verdict()
    absorbed = planned(made, Policy(tensor_parallel_size=2, absorb=True))
    assert not absorbed.modules
    assert Judge(absorbed, VLLM).converted == Verdict()


def test_a_block_model_whose_mlp_cannot_be_taken_apart_is_served_by_fewer_ranks() -> None:
    """Gate and up that share a block on disk, and the MLP of an unknown family."""
    shapes = {f"{MLP}.gate_up_proj": (2 * 288, 256), f"{MLP}.down_proj": (256, 288)}
    made = headers(LLAMA | {"model_type": "phi3", "intermediate_size": 288}, FP8, shapes)
    plan = planned(made, Policy(tensor_parallel_size=2))
    assert said(Judge(plan, VLLM).converted) == {"refuses": {"gate_up_proj", "down_proj"}}
    assert nearest_served_policy(Judge(plan, VLLM)) == Policy()
    made = headers({"model_type": "unknown"}, FP8, gated(MLP, 384))
    plan = planned(made, Policy(tensor_parallel_size=2))
    assert said(Judge(plan, VLLM).converted) == {"refuses": {"gate_proj", "up_proj", "down_proj"}}
    assert nearest_served_policy(Judge(plan, VLLM)) == Policy()


def test_columns_that_are_not_whole_blocks_are_refused_as_they_are_and_padded_by_converting() -> None:
    """Activations are quantized in blocks of columns, on one rank too."""
    plan = planned(headers(LLAMA | {"intermediate_size": 320}, FP8, {f"{MLP}.down_proj": (256, 320)}), Policy())
    assert said(Judge(plan, VLLM).original(1)) == {"refuses": {"down_proj"}}
    assert Judge(plan, VLLM).converted == Verdict()


def test_attention_that_begins_inside_a_block_is_served_by_fewer_ranks() -> None:
    """Two key-value heads of 64: on two ranks each has half a block, and only fewer ranks help."""
    made = headers(LLAMA | {"intermediate_size": 512}, FP8, gated(MLP, 512) | attention(64))
    plan = planned(made, Policy(tensor_parallel_size=2))
    assert said(Judge(plan, VLLM).converted) == {"refuses": {"k_proj", "v_proj"}}
    assert nearest_served_policy(Judge(plan, VLLM)) == Policy()


def test_sizes_that_ranks_cannot_share_are_refused_until_they_are_absorbed() -> None:
    """Like 13,653: 213 rows cannot be divided between two ranks, whatever their scales."""
    made = headers(LLAMA | {"intermediate_size": 213}, CHANNELS, gated(MLP, 213))
    plan = planned(made, Policy(tensor_parallel_size=2))
    assert said(Judge(plan, VLLM).converted) == {"refuses": {"gate_proj", "up_proj", "down_proj"}}
    assert nearest_served_policy(Judge(plan, VLLM)) == Policy(tensor_parallel_size=2, absorb=True)


def test_fewer_ranks_absorbed_come_before_still_fewer_padded() -> None:
    """Two heads allow two ranks at most, and 213 rows allow two only absorbed, whether that was asked for or not."""
    shapes = gated(MLP, 213) | attention(64)
    made = headers(LLAMA | {"intermediate_size": 213, "num_attention_heads": 2}, CHANNELS, shapes)
    for absorb in (True, False):
        plan = planned(made, Policy(tensor_parallel_size=4, absorb=absorb))
        assert nearest_served_policy(Judge(plan, VLLM)) == Policy(tensor_parallel_size=2, absorb=True)


def test_fewer_ranks_and_absorbing_experts_are_named_where_it_takes_both(tmp_path: Path) -> None:
    """The table has such a row; a message that no option works would contradict it."""
    source = read_unconverted(copy_case("good/deepseek_v3_block", tmp_path))
    plan = plan_checkpoint(source.shards, source.configs, Policy(tensor_parallel_size=2, absorb=True))
    assert nearest_served_policy(Judge(plan, VLLM)) == Policy(absorb=True, absorb_experts=True)


def test_experts_of_method_fp8_are_left_to_triton_and_others_are_refused() -> None:
    """192 columns with blocks of 128: one method refines them to 64, another refuses; 24 are too few to refine."""
    shapes = gated(EXPERT, 384)
    plan = planned(headers(MOE | {"moe_intermediate_size": 384}, FP8, shapes), Policy(tensor_parallel_size=2))
    assert said(Judge(plan, VLLM).converted) == {"Triton only": {"gate_proj", "up_proj", "down_proj"}}
    assert not Judge(plan, VLLM).converted.refused
    other = headers(MOE | {"moe_intermediate_size": 384}, COMPRESSED, shapes)
    plan = planned(other, Policy(tensor_parallel_size=2))
    assert said(Judge(plan, VLLM).converted) == {"refuses": {"gate_proj", "up_proj", "down_proj"}}
    assert nearest_served_policy(Judge(plan, VLLM)) == Policy(tensor_parallel_size=2, absorb=True, absorb_experts=True)
    plan = planned(headers(MOE | {"moe_intermediate_size": 48}, FP8, gated(EXPERT, 48)), Policy(tensor_parallel_size=2))
    assert said(Judge(plan, VLLM).converted) == {"refuses": {"gate_proj", "up_proj", "down_proj"}}


def test_a_gate_that_ends_inside_a_block_is_misplaced_by_one_method_and_refused_by_another() -> None:
    """At TP 1 too: up begins where gate's last block is not full. Padded, the runtime serves it."""
    shapes = {f"{MLP}.gate_proj": (213, 256), f"{MLP}.up_proj": (213, 256)}
    for quantization, outcome in ((FP8, "answers wrongly"), (COMPRESSED, "refuses")):
        plan = planned(headers(LLAMA | {"intermediate_size": 213}, quantization, shapes), Policy())
        assert said(Judge(plan, VLLM).original(1)) == {outcome: {"gate_proj"}}
        assert Judge(plan, VLLM).padded(1)[0] == Judge(plan, VLLM).converted == Verdict()


def test_heads_that_begin_inside_a_block_are_misplaced_or_refused() -> None:
    """Heads of 112 rows have room for whole blocks of scales, one after another and on disk; heads of 64 have none."""
    for head_dim, outcome in ((112, "answers wrongly"), (64, "refuses")):
        made = headers(LLAMA, FP8, {name: shape for name, shape in attention(head_dim).items() if "o_proj" not in name})
        verdict = Judge(planned(made, Policy()), VLLM).original(2)
        whole = {112: {"q_proj"}, 64: set()}[head_dim]
        assert said(verdict) == {outcome: {"k_proj", "v_proj"} | whole}


def test_what_shares_a_block_on_disk_is_loaded_as_it_lies() -> None:
    """Gate's last and up's first rows share a scale; on one rank vLLM loads both tensors' scales as one."""
    shapes = {f"{MLP}.gate_up_proj": (2 * 192, 256)}
    plan = planned(headers(LLAMA | {"model_type": "phi3", "intermediate_size": 192}, FP8, shapes), Policy())
    assert Judge(plan, VLLM).original(1).outcome == "refuses"
    shapes = {f"{MLP}.gate_up_proj": (2 * 224, 256)}
    plan = planned(headers(LLAMA | {"model_type": "phi3", "intermediate_size": 224}, FP8, shapes), Policy())
    assert said(Judge(plan, VLLM).original(1)) == {"serves": {"gate_up_proj"}}


def test_what_shares_a_block_on_disk_and_is_not_padded_is_loaded_by_vllm() -> None:
    """Two times one and a half blocks are three: nothing is padded, and vLLM's loader has no room for four."""
    shapes = {f"{MLP}.gate_up_proj": (2 * 192, 256), f"{MLP}.down_proj": (256, 192)}
    plan = planned(headers(LLAMA | {"model_type": "phi3", "intermediate_size": 192}, FP8, shapes), Policy())
    assert said(Judge(plan, VLLM).converted) == {"refuses": {"gate_up_proj"}}
    shapes = {f"{MLP}.gate_up_proj": (2 * 160, 256), f"{MLP}.down_proj": (256, 160)}
    plan = planned(headers(LLAMA | {"model_type": "phi3", "intermediate_size": 160}, FP8, shapes), Policy())
    assert Judge(plan, VLLM).converted == Verdict()


@pytest.mark.parametrize(
    ("block", "prefix", "outcome"),
    [
        ((64, 64), MLP, "refuses"),
        ((32, 128), MLP, "refuses"),
        ((128, 64), MLP, "not known"),
        ((64, 64), EXPERT, "Triton only"),
    ],
)
def test_blocks_of_other_sizes_are_known(block: tuple[int, int], prefix: str, outcome: str) -> None:
    """64 by 64 goes to Marlin, which cannot load it; padding and absorbing do not help; Triton's experts take any."""
    quantization = {"quant_method": "fp8", "weight_block_size": list(block)}
    for inner in (512, 384):
        made = headers(MOE | {"intermediate_size": inner}, quantization, gated(prefix, inner))
        plan = planned(made, Policy())
        assert Judge(plan, VLLM).original(1).outcome == outcome
        assert Judge(plan, VLLM).converted.outcome == outcome


BLOCKS_OF_32 = {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}


def test_deepseek_v41s_layers_that_are_not_whole_blocks_are_not_known() -> None:
    """Its own method has scales for every row, and refuses columns that are not whole blocks."""
    for inner in (336, 320):
        config = LLAMA | {"architectures": ["DeepseekV41ForCausalLM"], "intermediate_size": inner}
        verdict = Judge(planned(headers(config, BLOCKS_OF_32, gated(MLP, inner)), Policy()), VLLM).original(4)
        assert said(verdict)["not known"] == {"gate_proj", "up_proj", "down_proj"}
        assert [finding.why[:23] for finding in verdict.findings] == ["not whole scale blocks:"]


def test_deepseek_v41s_blocks_of_32_are_its_own_methods() -> None:
    """Its model file gives them to MXFP8's kernels; the same blocks in another model are refused."""
    for architecture, outcome in (("DeepseekV41ForCausalLM", "serves"), ("LlamaForCausalLM", "refuses")):
        config = LLAMA | {"architectures": [architecture]}
        plan = planned(headers(config, BLOCKS_OF_32, {f"{MLP}.down_proj": (256, 320)}), Policy())
        assert Judge(plan, VLLM).original(1).outcome == outcome


@pytest.mark.parametrize(("inner", "outcome"), [(320, "serves"), (336, "refuses")])
def test_what_deepseek_v41s_own_method_takes_is_not_padded(inner: int, outcome: str) -> None:
    """The plugin does not support that method, with a scale of `[N, K / 32]`. Absorbing needs no plugin."""
    config = V4 | {"architectures": ["DeepseekV41ForCausalLM"], "moe_intermediate_size": inner, "hidden_act": "silu"}
    shapes = {"layers.0.attn.wo_b": (256, inner)}
    plan = planned(headers(config, BLOCKS_OF_32, shapes), Policy())
    assert plan.changes_nothing
    assert "which the model's own method gives to MXFP8's kernels" in plan.layers[0].plan.reason
    assert Judge(plan, VLLM).converted.outcome == Judge(plan, VLLM).original(1).outcome == outcome
    padded = planned(headers(config, FP8, shapes), Policy())
    assert padded.modules


def test_what_cutlass_pads_in_every_forward_is_padded_once_by_converting() -> None:
    """Like 10,944 / 8: 216 / 2 = 108 is not a multiple of 16, and neither is 216."""
    made = headers(LLAMA | {"intermediate_size": 216}, CHANNELS, gated(MLP, 216))
    plan = planned(made, Policy(tensor_parallel_size=2))
    assert said(Judge(plan, VLLM).original(2)) == {"pads in every forward": {"gate_proj", "up_proj", "down_proj"}}
    assert Judge(plan, VLLM).converted == Verdict()


WEIGHTS = {"type": "float", "num_bits": 8, "strategy": "channel"}


@pytest.mark.parametrize(
    ("activations", "shape", "outcome", "padded"),
    [
        ({"strategy": "token"}, (256, 216), "pads in every forward", "serves"),
        (None, (256, 216), "pads in every forward", "pads in every forward"),  # to 224, not whole tiles either
        (None, (256, 213), "refuses", "pads in every forward"),
        (None, (256, 192), "serves", "serves"),
        (None, (192, 192), "pads in every forward", "pads in every forward"),
    ],
)
def test_weights_that_alone_are_fp8_go_to_marlin(
    activations: object, shape: tuple[int, int], outcome: str, padded: str
) -> None:
    """It needs tiles of 64 by 128 or 128 by 64, and pads to them in every forward; fp8pad does with an option."""
    groups = {"group_0": {"weights": WEIGHTS, "input_activations": activations}}
    config = {"quant_method": "compressed-tensors", "config_groups": groups}
    made = headers(LLAMA, config, {f"{MLP}.down_proj": shape}, "channel")
    plan = planned(made, Policy())
    assert Judge(plan, VLLM).original(1).outcome == outcome
    assert Judge(plan, VLLM).padded(1)[0].outcome == padded
    marlin = planned(made, Policy(alignment="marlin"))
    assert Judge(marlin, VLLM).converted == Verdict()


@pytest.mark.parametrize("part", ["", "text_config", "llm_config"])
def test_heads_that_ranks_cannot_share_are_refused_where_attention_is_not_fp8(part: str) -> None:
    """vLLM checks only the number in the text model's config; other sizes that do not fit are reported once."""
    sizes = {"intermediate_size": 512, "num_attention_heads": 12, "hidden_act": "silu"}
    config = {"model_type": "x", part: sizes} if part else {"model_type": "llama", **sizes}
    plan = planned(headers(config, FP8, gated(MLP, 512)), Policy())
    assert [at.original.outcome for at in compare_sizes(Judge(plan, VLLM), (1, 2, 4, 8))] == [
        *["serves"] * 3,
        "refuses",
    ]
    (finding,) = Judge(plan, VLLM).original(8).findings
    assert finding.why == "12 attention heads, which 8 ranks cannot share evenly"
    assert finding.of_whole_model
    judge = Judge(planned(headers(config, FP8, gated(MLP, 512)), Policy(tensor_parallel_size=8)), VLLM)
    assert nearest_served_policy(judge) == Policy(tensor_parallel_size=4)


@pytest.mark.parametrize(
    ("sizes", "ranks", "why"),
    [
        ({"num_attention_heads": 40, "num_key_value_heads": 10}, 4, "10 key-value heads"),  # Phi-4
        ({"num_attention_heads": 40, "num_key_value_heads": 10, "kv_lora_rank": 64}, 4, None),  # MLA
        ({"num_attention_heads": 40, "num_key_value_heads": 10, "kv_lora_rank": None}, 4, "10 key-value heads"),
        ({"num_attention_heads": 32, "num_key_value_heads": 2}, 8, None),  # which hold copies
        ({"num_attention_heads": 32, "num_key_value_heads": 2, "model_type": "param2moe"}, 8, "2 key-value heads"),
        ({"num_attention_heads": 32, "mamba_num_heads": 64, "n_groups": 8}, 16, "8 groups of Mamba heads"),
        ({"num_attention_heads": 32, "mamba_n_heads": 64, "mamba_n_groups": 1}, 16, None),  # Bamba
        ({"num_attention_heads": 32, "mamba_num_heads": 24, "n_groups": 8}, 16, "24 Mamba heads"),
        ({"num_attention_heads": 64, "o_groups": 8}, 16, "8 groups of attention outputs"),  # DeepSeek-V4-Flash
    ],
)
def test_other_counts_that_ranks_cannot_share_are_refused_too(
    sizes: dict[str, int | None], ranks: int, why: str | None
) -> None:
    """vLLM asserts that they are divisible, whatever is FP8, and whatever happens to inner sizes."""
    config = {"model_type": "llama", "intermediate_size": 2048, **sizes}
    plan = planned(headers(config, FP8, gated(MLP, 2048)), Policy())
    found = [finding.why for finding in Judge(plan, VLLM).original(ranks).findings]
    assert found == ([f"{why}, which {ranks} ranks cannot share evenly"] if why else [])
    assert bool(absorbed_at(Judge(plan, VLLM), ranks, experts=True).verdict.refused) == bool(why)


def test_kernels_see_the_layer_that_an_engine_makes_of_several() -> None:
    """Gate and up of 72 rows are one layer of 144; only down, with 72 columns, is padded in every forward."""
    made = headers(LLAMA | {"intermediate_size": 144}, CHANNELS, gated(MLP, 144))
    assert said(Judge(planned(made, Policy()), VLLM).original(2)) == {"pads in every forward": {"down_proj"}}
    # Four heads of 40 and two key-value heads: 80 + 40 + 40 rows on two ranks, 40 + 40 + 40 on four.
    plan = planned(headers(LLAMA, CHANNELS, attention(40)), Policy())
    assert said(Judge(plan, VLLM).original(2)) == {}
    assert said(Judge(plan, VLLM).original(4)) == {"pads in every forward": {"q_proj", "k_proj", "v_proj", "o_proj"}}


def test_an_mlp_without_a_gate_has_nothing_fused_with_up() -> None:
    """Nemotron-H's 1856 rows are 232 on eight ranks, not a multiple of 16; twice that would be one."""
    mixer = "backbone.layers.0.mixer"
    shapes = {f"{mixer}.up_proj": (1856, 256), f"{mixer}.down_proj": (256, 1856)}
    config = {"model_type": "nemotron_h", "intermediate_size": 1856, "mlp_hidden_act": "relu2"}
    plan = planned(headers(config, CHANNELS, shapes), Policy())
    assert said(Judge(plan, VLLM).original(8)) == {"pads in every forward": {"up_proj", "down_proj"}}


def test_an_expert_is_one_layer() -> None:
    """A finding about an expert, at TP 1 too, names all three of its matrices."""
    for quantization, outcome in ((FP8, "Triton only"), (COMPRESSED, "refuses")):
        plan = planned(headers(MOE | {"moe_intermediate_size": 192}, quantization, gated(EXPERT, 192)), Policy())
        original = Judge(plan, VLLM).original(1)
        assert said(original) == {outcome: {"gate_proj", "up_proj", "down_proj"}}
        assert original.findings[0].why.startswith("experts, or a rank's share of them, are not whole scale blocks")


AUTO_ROUND = {"quant_method": "auto-round", "data_type": "fp", "bits": 8, "group_size": [128, 128]}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}
FBGEMM = {"quant_method": "fbgemm_fp8"}
MIXED = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {"x": MODELOPT}}


@pytest.mark.parametrize(
    ("quantization", "prefix", "outcome"),
    [
        ({"quant_method": "fp8"}, MLP, "refuses"),
        (AUTO_ROUND, MLP, "serves"),
        (AUTO_ROUND, EXPERT, "refuses"),
        (MODELOPT, MLP, "serves"),
        (MODELOPT, EXPERT, "refuses"),
        (MIXED, EXPERT, "serves"),
        (FBGEMM, EXPERT, "refuses"),
    ],
)
def test_scales_that_an_engine_has_no_place_for_are_refused_whatever_is_padded(
    quantization: dict[str, Any], prefix: str, outcome: str
) -> None:
    """Per-channel scales with method fp8, and experts that a method does not support, aligned or padded."""
    scheme = "channel" if quantization in ({"quant_method": "fp8"}, FBGEMM) else None
    for inner in (256, 208):
        made = headers(LLAMA | {"intermediate_size": inner}, quantization, gated(prefix, inner), scheme)
        plan = planned(made, Policy())
        if inner == 256 or outcome == "refuses":
            assert Judge(plan, VLLM).original(1).outcome == outcome
            assert Judge(plan, VLLM).converted.outcome == outcome


def test_a_method_that_the_engine_refuses_is_served_by_the_plugin_alone(tmp_path: Path) -> None:
    """vLLM wants an option for fbgemm_fp8; a padded checkpoint names a method of its own."""
    made = headers(LLAMA | {"intermediate_size": 216}, FBGEMM, gated(MLP, 216), "channel")
    for policy, outcome in ((Policy(), "serves"), (Policy(absorb=True), "refuses")):
        plan = planned(made, policy)
        assert Judge(plan, VLLM).converted.outcome == outcome
        of_model, of_layers = Judge(plan, VLLM).original(1).findings
        assert of_model.of_whole_model
        assert (
            of_model.why
            == "vLLM refuses method fbgemm_fp8 as deprecated, unless --allow-deprecated-quantization is given"
        )
        assert (of_layers.outcome, of_layers.layers) == ("pads in every forward", (f"{MLP}.down_proj",))
    for ranks in (1, 2):  # `plan` absorbs
        plan = planned(made, Policy(absorb=True, tensor_parallel_size=ranks))
        assert nearest_served_policy(Judge(plan, VLLM)) == Policy(tensor_parallel_size=ranks)
        with pytest.raises(NotServedError, match="vLLM refuses method fbgemm_fp8"):
            Judge(plan, VLLM).check_served()
        check_worth_converting(Judge(plan, VLLM))  # whoever absorbs can give the option
    source = read_unconverted(copy_case("good/llama_dyn", tmp_path))
    ((said, command),) = advice(PlanReport(source, plan), "OUT")
    assert said.startswith("TP 2")
    assert command.endswith("OUT --tensor-parallel-size 2")


def test_an_odd_vocabulary_is_no_wall() -> None:
    """vLLM pads 259 tokens to 320, of which two and four ranks get multiples of 16."""
    made = headers(LLAMA | {"vocab_size": 259}, CHANNELS, {"lm_head": (259, 128)} | attention(32))
    for ranks in (2, 4):
        plan = planned(made, Policy(tensor_parallel_size=ranks))
        assert Judge(plan, VLLM).original(ranks) == Judge(plan, VLLM).converted == Verdict()


V4 = {"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "num_attention_heads": 4}


def test_deepseek_v4_is_split_as_its_own_names_say() -> None:
    """wq_a, wkv and the indexer's wq_b are replicated; attention's wq_b is split; shared experts are padded."""
    attn, shared = "layers.0.attn", "layers.0.ffn.shared_experts"
    shapes = {f"{attn}.wq_a": (128, 256), f"{attn}.wkv": (96, 256), f"{attn}.wq_b": (320, 128)}
    shapes |= {f"{attn}.indexer.wq_b": (320, 128), f"{attn}.wo_a": (128, 200), f"{attn}.wo_b": (256, 128)}
    shapes |= {f"{shared}.w1": (320, 256), f"{shared}.w3": (320, 256), f"{shared}.w2": (256, 320)}
    plan = planned(headers(V4, FP8, shapes), Policy(tensor_parallel_size=2))
    axes = {layer.name.removeprefix("layers.0."): layer.plan.sharding.axis for layer in plan.layers}
    assert [name for name, axis in axes.items() if axis == "replicated"] == [
        "attn.wq_a",
        "attn.wkv",
        "attn.indexer.wq_b",
    ]
    assert [name for name, axis in axes.items() if axis == "row"] == ["attn.wo_b", "ffn.shared_experts.w2"]
    verdict = Judge(plan, VLLM).original(2)
    assert said(verdict) == {"refuses": {"wq_b", "wo_a", "wo_b"}, "serves": {"w1", "w2", "w3"}}
    assert f"{attn}.indexer.wq_b" not in verdict.refused


@pytest.mark.parametrize("inner", [320, 384])
@pytest.mark.parametrize("ranks", [1, 2, 16])
def test_what_the_models_own_code_pads_is_left_to_it(inner: int, ranks: int) -> None:
    """vLLM's DeepSeek-V4 pads its shared experts to whole blocks, only for method fp8."""
    shared = "layers.0.ffn.shared_experts"
    shapes = {f"{shared}.w1": (inner, 256), f"{shared}.w3": (inner, 256), f"{shared}.w2": (256, inner)}
    config = V4 | {"num_attention_heads": 16}
    plan = planned(headers(config, FP8, shapes), Policy(tensor_parallel_size=ranks))
    assert plan.changes_nothing
    assert Judge(plan, VLLM).original(ranks).outcome == Judge(plan, VLLM).converted.outcome == "serves"
    compressed = planned(headers(config, COMPRESSED, shapes), Policy(tensor_parallel_size=ranks))
    assert compressed.changes_nothing == (inner == 384 and ranks == 1)


def test_of_what_vllm_does_not_load_nothing_is_said() -> None:
    """Qwen3-Omni's talker has half a block per rank, which does not matter; the same sizes in the thinker do."""
    config = {"architectures": ["Qwen3OmniMoeForConditionalGeneration"], "model_type": "qwen3_omni_moe"}
    for part, outcome in (("talker", "serves"), ("thinker", "refuses")):
        shapes = gated("thinker.model.layers.0.mlp", 512) | gated(f"{part}.model.layers.1.mlp.shared_expert", 192)
        plan = planned(headers(config, FP8, shapes), Policy())
        assert Judge(plan, VLLM).original(1).outcome == outcome
        assert Judge(plan, VLLM).padded(2)[0].outcome == outcome


@pytest.mark.parametrize("part", ["talker", "thinker"])
def test_the_plugin_is_needed_for_a_part_that_vllm_does_not_load(part: str) -> None:
    """If anything is padded, config.json names the plugin, and stock vLLM refuses that, loaded or not."""
    config = {"architectures": ["Qwen3OmniMoeForConditionalGeneration"], "model_type": "qwen3_omni_moe"}
    shapes = gated("thinker.model.layers.0.mlp", 512) | gated(f"{part}.model.layers.1.mlp.shared_expert", 192)
    plan = planned(headers(config, FP8, shapes), Policy())
    assert plan.needs_runtime
    assert Judge(plan, VLLM).padded(1) == (Judge(plan, VLLM).converted, True)


def test_layers_that_are_alike_are_told_apart_by_name_where_a_rule_asks_for_it() -> None:
    """Equal sizes in the talker and in the thinker form one group, but only the thinker's layers are loaded."""
    config = {"architectures": ["Qwen3OmniMoeForConditionalGeneration"], "model_type": "qwen3_omni_moe"}
    shapes = {f"{part}.model.layers.0.self_attn.o_proj": (256, 320) for part in ("talker", "thinker")}
    plan = planned(headers(config, FP8, shapes), Policy())
    assert [len(group.places) for group in plan.alike] == [2]
    assert Judge(plan, VLLM).original(1).refused == ("thinker.model.layers.0.self_attn.o_proj",)


def test_layers_are_looked_at_in_groups_that_a_rule_may_tell_apart_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule for DeepSeek-V4's shared experts does not make each of thousands of experts a separate case."""
    shapes: Shapes = {}
    for number in range(200):
        shapes |= gated(f"layers.{number}.mlp.experts.0", 320) | gated(f"layers.{number}.mlp.shared_experts", 320)
    config = MOE | {"architectures": ["DeepseekV4ForCausalLM"], "moe_intermediate_size": 320}
    plan = planned(headers(config, FP8, shapes), Policy())
    looked_at: list[int] = []

    def count(judge: Judge, group: AlikeLayers, *args: Any) -> Said | None:
        looked_at.append(group.places[0])
        return said_of(judge, group, *args)

    said_of = Judge._said
    monkeypatch.setattr(Judge, "_said", count)
    findings = Judge(plan, VLLM).original(1).findings
    assert len(looked_at) <= 12
    by_outcome = {finding.outcome: finding.layers for finding in findings}
    assert {outcome: len(layers) for outcome, layers in by_outcome.items()} == {"Triton only": 600, "serves": 400}
    assert all("shared_experts" in name for name in by_outcome["serves"])  # gate and down: up's end is the layer's


def test_fp8_weights_that_are_no_layers_are_not_promised_either() -> None:
    """A tensor that fp8pad cannot tell is named in every verdict, unless the engine does not load it."""
    shards, configs = headers(LLAMA, FP8, {"model.layers.0.self_attn.o_proj": (256, 256)})
    odd = ShardHeader("odd.safetensors", 288, 0, (TensorHeader("mix.weight", "F8_E4M3", (8, 4, 3, 3), 0),))
    plan = plan_checkpoint([*shards, odd], configs, Policy())
    for verdict in (Judge(plan, VLLM).original(2), Judge(plan, VLLM).padded(2)[0], Judge(plan, VLLM).converted):
        assert [(found.outcome, found.layers) for found in verdict.findings] == [("not known", ("mix.weight",))]
    assert list(unabsorbed(compare_sizes(Judge(plan, VLLM), (1, 2)), plan)) == []


def test_an_engine_that_ignores_an_unknown_method_answers_wrongly_unless_sizes_differ() -> None:
    """transformers only warns, and loads tensors whose sizes the config has; SGLang refuses the method."""
    made = headers(LLAMA | {"intermediate_size": 384}, CHANNELS, gated(MLP, 1368))
    for engine, at_load in (("transformers", "answers wrongly"), ("sglang", "refuses")):
        judge = Judge(planned(made, Policy()), find_engine(engine))
        (finding,) = judge.padded(1)[0].findings  # 1368 rows become 1376 on disk
        assert (finding.outcome, len(finding.layers)) == ("refuses", 3)
        aligned = {"model.layers.0.self_attn.o_proj": (256, 160)}
        plan = planned(headers(LLAMA, CHANNELS, gated(MLP, 1368) | aligned), Policy(tensor_parallel_size=4))
        (finding,) = Judge(plan, find_engine(engine)).padded(4)[0].findings  # o_proj is padded at load alone
        assert (finding.outcome, finding.layers) == ("refuses", tuple(layer.name for layer in plan.layers))
        made_aligned = headers(LLAMA, CHANNELS, {"model.layers.0.self_attn.o_proj": (256, 144)})
        judge = Judge(planned(made_aligned, Policy()), find_engine(engine))
        verdict, needs_runtime = judge.padded(2)
        assert (verdict.outcome, needs_runtime) == (at_load, True)
        assert [finding.layers for finding in verdict.findings] == [("model.layers.0.self_attn.o_proj",)]


def test_absorbing_that_is_impossible_has_its_reason(tmp_path: Path) -> None:
    """Without --absorb too; with it, the list of layers has the reason, and the next command not the option."""
    source = read_unconverted(copy_case("good/llama_dyn", tmp_path))
    config, why = (
        LLAMA | {"model_type": "unheard_of"},
        "no file in planning/families describes the model type unheard_of",
    )
    made = headers(config, FP8, gated(MLP, 320) | {"model.layers.0.self_attn.o_proj": (200, 200)})
    general = "only inner sizes of MLPs can be absorbed", ()
    plan, asked = (planned(made, Policy(absorb=absorb)) for absorb in (False, True))
    names = tuple(layer.name for layer in plan.layers)
    told = [(said, tuple(layers)) for said, layers in unabsorbed(compare_sizes(Judge(plan, VLLM)), plan)]
    assert told == [(why, names), general]
    assert not any(why in layer.plan.reason for layer in plan.layers)
    assert all(why in layer.plan.reason for layer in asked.layers)
    assert list(unabsorbed(compare_sizes(Judge(asked, VLLM)), asked)) == [general]
    assert not any("--absorb" in command for _, command in advice(PlanReport(source, asked), "OUT"))
    source = read_unconverted(copy_case("good/llama_mixed_fp8_int8", tmp_path))  # an MLP in INT8
    for absorb in (False, True):
        plan = plan_checkpoint(source.shards, source.configs, Policy(absorb=absorb, tensor_parallel_size=2))
        reasons = [reason for reason, _ in unabsorbed(compare_sizes(Judge(plan, VLLM)), plan)]
        assert [*reasons, *plan.notes] == [*([] if absorb else [INT8]), general[0], *([INT8] if absorb else [])]


def test_mimos_striped_attention_is_left_to_the_models_own_code() -> None:
    """Four heads of 64, two keys of 64 and two values of 32 in one weight: none of its matrices is whole blocks."""
    config = {"architectures": ["MiMoV2FlashForCausalLM"], "model_type": "mimo_v2_flash", "num_attention_heads": 4}
    made = headers(config | {"num_key_value_heads": 2}, FP8, {"model.layers.0.self_attn.qkv_proj": (448, 256)})
    for ranks in (1, 2, 4):
        plan = planned(made, Policy(tensor_parallel_size=ranks))
        assert plan.changes_nothing
        assert Judge(plan, VLLM).original(ranks).outcome == Judge(plan, VLLM).converted.outcome == "serves"


def test_scales_that_are_not_understood_are_no_wall() -> None:
    """Nothing is known about such a layer: it is named, and is not refused."""
    quark = {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_group"}}}
    plan = planned(headers(LLAMA, quark, {"model.layers.0.mlp.down_proj": (256, 320)}), Policy(tensor_parallel_size=4))
    assert said(Judge(plan, VLLM).converted) == {"not known": {"down_proj"}}


@pytest.mark.parametrize("name", sorted(engines()))
def test_each_engine_is_found_by_the_name_of_its_file(name: str) -> None:
    """The option takes a name with a version."""
    engine = engines()[name]
    assert name == f"{engine.name.lower()}-{engine.version}"
    assert find_engine(name) is engine


@pytest.mark.parametrize("name", ["vllm", "sglang", "transformers", "vLLM"])
def test_an_engine_without_a_version_is_the_newest_that_is_described(name: str) -> None:
    """The name may be in any case."""
    versions = [engine for engine in engines().values() if engine.name.lower() == name.lower()]
    newest = max(versions, key=lambda engine: [int(part) for part in engine.version.split(".")])
    assert find_engine(name) is newest


def table(plan: CheckpointPlan, engine: Engine) -> list[tuple[object, ...]]:
    """Return the outcomes at each size: original, padded, absorbed, and the inner sizes that absorbing needs."""
    return [
        (
            at.num_ranks,
            at.original.outcome,
            at.padded.outcome,
            at.absorbed and at.absorbed.verdict.outcome,
            [growth.new for growth in at.absorbed.growths] if at.absorbed else None,
        )
        for at in compare_sizes(Judge(plan, engine), (1, 2, 4))
    ]


def test_the_sizes_of_a_block_model_are_compared_without_planning_again() -> None:
    """384 is whole blocks at TP 1; at TP 2 and 4 the plugin serves it unchanged, and stock vLLM serves 512."""
    made = headers(LLAMA | {"intermediate_size": 384, "num_key_value_heads": 4}, FP8, gated(MLP, 384))
    plan = planned(made, Policy())
    rows: list[tuple[object, ...]] = [(1, "serves", "serves", None, None)]
    assert table(plan, VLLM) == rows + [(size, "refuses", "serves", "serves", [512]) for size in (2, 4)]
    (_, two, _) = compare_sizes(Judge(plan, VLLM), (1, 2, 4))
    assert two.absorbed
    absorbed = planned(made, Policy(tensor_parallel_size=2, absorb=True))
    added = absorbed.bytes_after - absorbed.bytes_before
    grown = (Growth("intermediate_size", 384, 512, 128 * 3 * 256),)
    assert two.absorbed == Absorbed(Verdict(), False, False, grown, added)
    assert two.to_json()["absorbed"]["added_bytes"] == added > grown[0].added_bytes
    assert absorbed.config_edits[0].new == 512


def test_an_engine_without_a_plugin_refuses_what_is_padded_and_serves_what_is_absorbed() -> None:
    """SGLang serves 512 like vLLM, and a checkpoint that needs no padding."""
    sglang = find_engine("sglang-0.5.23")
    made = headers(LLAMA | {"intermediate_size": 384}, FP8, gated(MLP, 384))
    rows: list[tuple[object, ...]] = [(1, "serves", "serves", None, None)]
    rows += [(size, "refuses", "refuses", "serves", [512]) for size in (2, 4)]
    assert table(planned(made, Policy()), sglang) == rows
    made = headers(LLAMA | {"intermediate_size": 216}, CHANNELS, gated(MLP, 216))
    assert table(planned(made, Policy()), sglang)[0] == (1, "Triton only", "refuses", "serves", [224])


def test_the_document_of_a_size_says_why_what_is_absorbed_is_refused() -> None:
    """The table does too; the key exists only if there is such a verdict."""
    shapes = gated(MLP, 384) | attention(64)
    plan = planned(headers(LLAMA | {"intermediate_size": 384}, FP8, shapes), Policy())
    one, two = (at.to_json() for at in compare_sizes(Judge(plan, VLLM), (1, 2)))
    assert "absorbed_refused" not in one
    assert two["absorbed"] is None
    refused = two["absorbed_refused"]
    assert refused["outcome"] == refused["findings"][0]["outcome"] == "refuses"
    assert refused["findings"][0]["first"].startswith("model.layers.0.self_attn.")


def test_experts_are_absorbed_only_where_that_is_better() -> None:
    """At 384 / 2 and 384 / 4 only Triton takes them; at 512 any kernel does."""
    made = headers(MOE | {"moe_intermediate_size": 384}, FP8, gated(EXPERT, 384))
    rows: list[tuple[object, ...]] = [(1, "serves", "serves", None, None)]
    rows += [(size, "Triton only", "Triton only", "serves", [512]) for size in (2, 4)]
    assert table(planned(made, Policy()), VLLM) == rows
    (_, two) = compare_sizes(Judge(planned(made, Policy()), VLLM), (1, 2))
    assert two.to_json()["absorbed"]["absorb_experts"]


def test_the_size_asked_for_is_compared_too_and_what_is_better_there() -> None:
    """Three ranks get a row between two and four; experts that only Triton takes are absorbed for other kernels."""
    made = headers(MOE | {"moe_intermediate_size": 384}, FP8, gated(EXPERT, 384))
    plan = planned(made, Policy(tensor_parallel_size=3))
    assert [at.num_ranks for at in compare_sizes(Judge(plan, VLLM))] == [1, 2, 3, 4, 8, 16]
    plan = planned(made, Policy(tensor_parallel_size=2))
    assert plan.changes_nothing
    one, two = compare_sizes(Judge(plan, VLLM), (1, 2))
    found = better_absorbed(plan, two, "Triton only")
    assert found == (two.absorbed, Policy(tensor_parallel_size=2, absorb=True, absorb_experts=True))
    assert Judge(planned(made, found[1]), VLLM).converted == Verdict()
    assert better_absorbed(plan, two, "serves") is None
    assert better_absorbed(planned(made, Policy()), one, "refuses") is None


def test_absorbing_is_advised_wherever_it_does_better(tmp_path: Path) -> None:
    """The rule is the same whether anything is padded or not; it comes after the plan's own command, if any."""
    source = read_unconverted(copy_case("good/llama_dyn", tmp_path))
    shapes = gated(EXPERT, 384) | {"model.layers.0.self_attn.o_proj": (256, 256)}
    same = "padding changes nothing for TP 2", ""
    for num_n in (256, 200):
        shapes["model.layers.0.self_attn.o_proj"] = (num_n, 256)
        plan = planned(headers(MOE | {"moe_intermediate_size": 384}, FP8, shapes), Policy(tensor_parallel_size=2))
        first, (said, command) = advice(PlanReport(source, plan), "OUT")
        own = "", f"fp8pad convert {source} OUT --tensor-parallel-size 2"
        assert first == (same if plan.changes_nothing else own)
        num_bytes = absorbed_at(Judge(plan, VLLM), 2, experts=True).added_bytes
        assert said == f"for 'serves' instead of 'Triton only', at {added(num_bytes, plan.bytes_before)}:"
        assert command.endswith("OUT --tensor-parallel-size 2 --absorb --absorb-experts")
        written = list(advice(PlanReport(source, plan), "OUT", is_written=True))
        assert written == [(said, command)]


@pytest.mark.parametrize("aligned", [216, 20_000])
def test_absorbing_is_advised_where_it_spares_the_plugin_at_the_same_cost(tmp_path: Path, aligned: int) -> None:
    """Biases, which padding does not change, do not count; rows that ranks need together do, in a small model."""
    source = read_unconverted(copy_case("good/llama_dyn", tmp_path))
    shapes = gated(MLP, 216) | {"model.layers.0.self_attn.o_proj": (aligned // 16 * 16, 8192)}
    made = headers(LLAMA | {"intermediate_size": 216}, CHANNELS, shapes)
    ((said, command),) = advice(PlanReport(source, planned(made, Policy())), "OUT")
    assert said == "absorbed for TP 1, it needs no plugin, and adds at most 0.1 % more than padding:"
    assert command.endswith("OUT --absorb")
    ((said, command),) = advice(PlanReport(source, planned(made, Policy(tensor_parallel_size=4))), "OUT")
    assert command.endswith("OUT --tensor-parallel-size 4" + (" --absorb" if aligned > 216 else ""))
    assert list(advice(PlanReport(source, planned(made, Policy())), "OUT", is_written=True)) == []
    ((said, _),) = advice(PlanReport(source, planned(made, Policy(absorb=True))), "OUT")
    assert not said


@pytest.mark.parametrize("inner", [216, 384])
def test_a_smaller_size_gets_the_same_preference(tmp_path: Path, inner: int) -> None:
    """The largest size that helps, padded or absorbed; absorbed if that spares the plugin at the same cost."""
    source = read_unconverted(copy_case("good/llama_dyn", tmp_path))
    shapes = gated(MLP, inner) | attention(32) | {"lm_head": (8192, 8192)}
    made = headers(LLAMA | {"intermediate_size": inner}, CHANNELS, shapes)
    at_eight = planned(made, Policy(tensor_parallel_size=8))
    ((said, command),) = advice(PlanReport(source, at_eight), "OUT")
    ((_, at_four),) = advice(PlanReport(source, planned(made, Policy(tensor_parallel_size=4))), "OUT")
    if inner == 216:
        assert (said, command) == ("TP 4: its FP8 layers are served with:", at_four)
        assert command.endswith("OUT --tensor-parallel-size 4 --absorb")
    else:
        assert (said, command) == (f"TP 4: {VLLM.title} serves the FP8 layers of the original as they are", "")


def test_a_smaller_size_is_not_promised_more_than_its_outcome(tmp_path: Path) -> None:
    """Ten heads stop four ranks; on two, experts are split inside blocks, which only Triton accepts."""
    source = read_unconverted(copy_case("good/llama_dyn", tmp_path))
    heads = {"num_attention_heads": 10, "num_key_value_heads": 10, "moe_intermediate_size": 384}
    shapes = gated(EXPERT, 384) | gated(MLP, 320)
    plan = planned(headers(MOE | heads, FP8, shapes), Policy(tensor_parallel_size=4))
    ((said, command),) = advice(PlanReport(source, plan), "OUT")
    assert (said, command) == ("for 'Triton only' at TP 2:", f"fp8pad convert {source} OUT --tensor-parallel-size 2")


def test_another_size_is_named_where_padding_or_absorbing_helps_there(tmp_path: Path) -> None:
    """Experts that are whole blocks on one rank are split inside blocks on two, where absorbing helps."""
    source = read_unconverted(copy_case("good/llama_dyn", tmp_path))
    plan = planned(headers(MOE | {"moe_intermediate_size": 384}, FP8, gated(EXPERT, 384)), Policy())
    same, (said, command) = advice(PlanReport(source, plan), "OUT")
    assert same == ("nothing to convert for TP 1: the checkpoint would stay as it is", "")
    assert said == "converting helps at TP 2:"
    assert command.endswith("--tensor-parallel-size 2")


def test_sizes_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The screen, the page and the document of a plan share the table."""
    source = read_unconverted(copy_case("good/llama_dyn", tmp_path))
    report = PlanReport(source, plan_checkpoint(source.shards, source.configs, Policy()))
    compared: list[Judge] = []

    def counted(judge: Judge) -> Iterator[AtSize]:
        compared.append(judge)
        return compare_sizes(judge)

    monkeypatch.setattr("fp8pad.planned.compare_sizes", counted)
    assert plan_screen(report)
    assert "serves" in plan_page(report)
    assert len(report.to_json()["engine"]["tensor_parallel"]) == 5
    assert compared == [report.judge]


def test_nothing_is_gained_where_the_original_is_served(tmp_path: Path) -> None:
    """vLLM pads an odd vocabulary itself; kernels that one asks for are another reason to convert."""
    source = read_unconverted(copy_case("good/llama_dyn", tmp_path))
    made = headers(LLAMA | {"vocab_size": 259}, CHANNELS, {"lm_head": (259, 128)} | attention(32))
    plan = planned(made, Policy())
    assert not plan.changes_nothing
    (same,) = advice(PlanReport(source, plan), "OUT")
    assert same == (f"nothing to gain at TP 1: {VLLM.title} serves the original as it is", "")
    ((said, command),) = advice(PlanReport(source, planned(made, Policy(alignment="marlin"))), "OUT")
    assert not said
    assert command.endswith("OUT --alignment marlin")


def test_an_original_that_is_served_is_not_converted(tmp_path: Path) -> None:
    """Fewer ranks do not help if nothing is wrong; absorbing may, if it does better than the original."""
    source = read_unconverted(copy_case("good/llama_dyn", tmp_path))
    made = headers(LLAMA | {"intermediate_size": 384}, COMPRESSED, {f"{MLP}.down_proj": (200, 384)})
    steps = list(advice(PlanReport(source, planned(made, Policy()), find_engine("transformers-5.24")), "OUT"))
    assert steps == [
        ("transformers 5.24 does better with the original ('serves'): do not convert it for this engine", "")
    ]
    made = headers(LLAMA, FBGEMM, {f"{MLP}.down_proj": (200, 216)}, "channel")
    ((said, _),) = advice(PlanReport(source, planned(made, Policy()), find_engine("transformers-5.24")), "OUT")
    assert said == "transformers 5.24 does better with the original ('not known'): do not convert it for this engine"
    keeps = "SGLang 0.5.23 does better with the original ('Triton only'): do not convert it"
    for model_type in ("llama", "unknown"):
        config = LLAMA | {"model_type": model_type, "intermediate_size": 216}
        plan = planned(headers(config, CHANNELS, gated(MLP, 216)), Policy())
        first, *rest = advice(PlanReport(source, plan, find_engine("sglang-0.5.23")), "OUT")
        assert first == (f"{keeps} {'this way ' if rest else ''}for this engine", "")
        assert all(said.startswith("for 'serves' instead of 'Triton only', at +") for said, _ in rest)
        assert bool(rest) == bool(plan.absorbable)
        assert bool(rest) == (model_type == "llama")
        assert all(command.endswith(" OUT --absorb") for _, command in rest)


def test_comparing_sizes_says_what_plans_for_them_would() -> None:
    """For each size, both forms get the same verdict as from the plans that make them."""
    shapes = gated(MLP, 384) | gated("model.layers.1.mlp", 384) | attention(64)
    made = headers(LLAMA | {"intermediate_size": 384}, FP8, shapes)
    for at in compare_sizes(Judge(planned(made, Policy()), VLLM), (1, 2, 4)):
        padded = planned(made, Policy(tensor_parallel_size=at.num_ranks))
        absorbed = planned(made, Policy(tensor_parallel_size=at.num_ranks, absorb=True))
        assert at.padded == Judge(padded, VLLM).converted
        assert absorbed_at(Judge(padded, VLLM), at.num_ranks, experts=False).verdict == Judge(absorbed, VLLM).converted


def test_transformers_spreads_scales_over_rows_that_are_not_whole_blocks() -> None:
    """Gate's 192 rows are one and a half blocks; 256 has no finding; of ModelOpt's method it ignores the scales."""
    transformers = find_engine("transformers-5.24")
    for inner, outcome in ((192, "answers wrongly"), (256, "serves")):
        made = headers(LLAMA | {"intermediate_size": inner}, FP8, gated(MLP, inner))
        assert Judge(planned(made, Policy()), transformers).original(1).outcome == outcome
    shards, configs = headers(LLAMA, CHANNELS, gated(MLP, 256))
    modelopt = {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}
    plan = plan_checkpoint(
        shards, {"config.json": {**configs["config.json"], "quantization_config": modelopt}}, Policy()
    )
    assert Judge(plan, transformers).original(1).outcome == "answers wrongly"


def beside_fp8(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    quantization: Mapping[str, Any] = CHANNELS,
) -> Headers:
    """Return headers with attention in FP8 and these additional tensors."""
    (shard,), configs = headers(config, quantization, attention(128 if quantization == CHANNELS else 256))
    tensors = list(shard.tensors)
    for name, (dtype, shape) in shapes.items():
        tensors.append(TensorHeader(name, dtype, shape, tensors[-1].end))
    return (replace(shard, tensors=tuple(tensors), file_bytes=tensors[-1].end),), configs


def plain(prefix: str, inner: int, dtype: str = "BF16", leaf: str = "weight") -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return gate, up and down in a dtype other than FP8."""
    return {f"{name}.{leaf}": (dtype, shape) for name, shape in gated(prefix, inner).items()}


def test_mlps_that_are_not_fp8_are_refused_where_ranks_cannot_share_them() -> None:
    """vLLM divides MLPs and experts of any dtype: 214 neurons fit two ranks but not four, 213 fit neither."""
    leaves = {"BF16": "weight", "F16": "weight", "I8": "weight", "U8": "weight", "I32": "weight_packed"}
    for inner, served in ((213, {1}), (214, {1, 2}), (216, {1, 2, 4})):
        dense = LLAMA | {"intermediate_size": inner}
        routed = LLAMA | MOE | {"moe_intermediate_size": inner}
        stacks = {f"{MLP}.experts.down_proj": (256, inner), f"{MLP}.experts.gate_up_proj": (2 * inner, 256)}
        models: list[tuple[str, Mapping[str, Any], dict[str, tuple[str, tuple[int, ...]]]]] = [
            *((dtype, dense, plain(MLP, inner, dtype, leaf)) for dtype, leaf in leaves.items()),
            *((dtype, routed, plain(f"{MLP}.experts.0", inner, dtype, leaf)) for dtype, leaf in leaves.items()),
            *(
                ("BF16", routed, {name: ("BF16", (4, *shape[::step])) for name, shape in stacks.items()})
                for step in (1, -1)
            ),
        ]
        for (dtype, config, tensors), ranks in product(models, (1, 2, 4)):
            judge = Judge(planned(beside_fp8(config, tensors), Policy()), VLLM)
            experts = "the experts of " if config is routed else ""
            why = f"{inner} neurons of {experts}{MLP} ({dtype}), which {ranks} ranks cannot share evenly"
            for verdict in (judge.original(ranks), judge.padded(ranks)[0]):
                found = {finding.why for finding in verdict.findings if finding.outcome == "refuses"}
                assert found == (set() if ranks in served else {why})


def test_absorbing_grows_mlps_that_are_not_fp8_where_ranks_cannot_share_them_and_only_there() -> None:
    """BF16 grows to a size that ranks can share, and no more; INT8 does not, and the plan says why."""
    for ranks, grown in ((1, ()), (2, (214,)), (4, (216,))):
        made = beside_fp8(LLAMA | {"intermediate_size": 213}, plain(MLP, 213))
        plan = planned(made, Policy(tensor_parallel_size=ranks, absorb=True))
        assert tuple(edit.new for edit in plan.config_edits) == grown
        assert {tensor.padded_shape for tensor in plan.tensors.values()} == {
            shape for new in grown for shape in ((new, 256), (256, new))
        }
        assert Judge(plan, VLLM).converted == Verdict()
        as_it_is = planned(made, Policy())
        claimed = absorbed_at(Judge(as_it_is, VLLM), ranks, experts=False)
        assert claimed.verdict == Verdict()
        assert claimed.added_bytes == plan.bytes_after - plan.bytes_before
    refused = planned(made, Policy(tensor_parallel_size=2))
    assert nearest_served_policy(Judge(refused, VLLM)) == Policy(tensor_parallel_size=2, absorb=True)
    for policy in (Policy(tensor_parallel_size=2), Policy(tensor_parallel_size=2, absorb=True, absorb_experts=True)):
        routed = planned(
            beside_fp8(LLAMA | MOE | {"moe_intermediate_size": 213}, plain(f"{MLP}.experts.0", 213)), policy
        )
        assert Judge(routed, VLLM).converted.outcome == ("serves" if policy.absorb else "refuses")
    int8 = beside_fp8(LLAMA | {"intermediate_size": 213}, plain(MLP, 213, "I8"))
    plan = planned(int8, Policy(tensor_parallel_size=2, absorb=True))
    assert not plan.config_edits
    assert any("is I8 [213, 256], a layout that fp8pad does not pad" in note for note in plan.notes)
    assert Judge(plan, VLLM).converted.outcome == "refuses"


def test_a_config_that_contradicts_an_mlp_that_is_not_fp8_is_no_concern_of_the_plan() -> None:
    """The MLP is carried unchanged, without reading it."""
    made = beside_fp8(LLAMA | {"intermediate_size": 999}, plain(MLP, 213))
    for policy in (Policy(tensor_parallel_size=2), Policy(tensor_parallel_size=2, absorb=True)):
        plan = planned(made, policy)
        assert not plan.notes
        assert not plan.config_edits


KIMI_MLP = {f"vision_tower.encoder.blocks.0.mlp.{name}.weight": ("BF16", (213, 256)) for name in ("fc0", "fc1")}


@pytest.mark.parametrize(
    ("config", "shapes", "ranks", "outcome"),
    [
        # vLLM replicates the towers of Gemma 4 and Muse Glimmer, and divides that of Qwen2.5-VL.
        ("muse_glimmer", {"model.vision_tower.layers.0.mlp.fc1.weight": ("BF16", (213, 256))}, 2, "serves"),
        ("gemma4", plain("model.vision_tower.encoder.layers.0.mlp", 213, leaf="linear.weight"), 2, "serves"),
        ("qwen2_5_vl", plain("visual.blocks.0.mlp", 213), 2, "refuses"),
        # If ranks cannot share the heads, towers of some models are replicated, such as Kimi's.
        ("qwen2_5_vl", plain("visual.blocks.0.mlp", 212), 8, "serves"),
        ("kimi_k25", KIMI_MLP, 2, "refuses"),
        ("kimi_k25", KIMI_MLP, 8, "serves"),
    ],
)
def test_towers_that_are_not_fp8_are_refused_only_where_vllm_divides_them(
    config: str, shapes: dict[str, tuple[str, tuple[int, ...]]], ranks: int, outcome: str
) -> None:
    """A tower that is not divided can have any size, and one that may not be divided is not reported."""
    text = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 8}
    heads = "vt_num_attention_heads" if config == "kimi_k25" else "num_attention_heads"
    tower = {"model_type": config, heads: 4, "intermediate_size": 213, "hidden_act": "silu"}
    made = beside_fp8({"model_type": config, "text_config": text, "vision_config": tower}, shapes)
    assert Judge(planned(made, Policy()), VLLM).original(ranks).outcome == outcome
    if outcome == "refuses":  # what is in the way is no FP8 layer
        with pytest.raises(
            NotServedError, match=rf"at TP {ranks}: 213 neurons of {re.escape(next(iter(shapes))[:12])}"
        ):
            Judge(planned(made, Policy(tensor_parallel_size=ranks)), VLLM).check_served()


@pytest.mark.parametrize(
    ("kind", "outcome"), [("GraniteMoe", "refuses"), ("GraniteMoeShared", "refuses"), ("GraniteMoeHybrid", "serves")]
)
def test_stacked_experts_whose_scales_a_model_does_not_load_are_refused(kind: str, outcome: str) -> None:
    """Of Granite's models only the hybrid one loads the scales of `input_linear` and `output_linear`."""
    stacks = {"input_linear": (2, 192, 256), "output_linear": (2, 256, 96)}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (experts, num_n, num_k) in stacks.items():
        module = f"model.layers.0.block_sparse_moe.{name}"
        tensors[f"{module}.weight"] = ("F8_E4M3", (experts, num_n, num_k))
        tensors[f"{module}.weight_scale"] = ("F32", (experts, num_n, 1))
    config = {"model_type": kind.lower(), "architectures": [f"{kind}ForCausalLM"], "intermediate_size": 96}
    assert Judge(planned(beside_fp8(config, tensors), Policy()), VLLM).original(1).outcome == outcome


def test_an_mlp_that_the_models_own_file_pads_is_not_refused() -> None:
    """DeepSeek-V4's shared experts of any dtype: the rule for method fp8 names them by module."""
    shared = {f"layers.0.ffn.shared_experts.{name}.weight": ("BF16", (213, 256)) for name in ("w1", "w3")}
    for quantization, outcome in ((FP8, "serves"), (COMPRESSED, "refuses")):
        made = beside_fp8(V4 | {"moe_intermediate_size": 213}, shared, quantization)
        assert Judge(planned(made, Policy()), VLLM).original(2).outcome == outcome


def test_an_engine_that_is_not_described_is_refused_with_those_that_are() -> None:
    """The error lists the accepted names; another version is not suggested as if the name were mistyped."""
    known = re.escape(", ".join(engines()))
    with pytest.raises(
        UsageError, match=rf"^engine vllm-9: expected one of {known}; of its versions only 0\.33 is described$"
    ):
        find_engine("vllm-9")


def test_a_family_file_says_how_its_own_modules_are_divided() -> None:
    """`merger.proj` is column-parallel in GLM-4V, where every other `proj` is row-parallel."""
    config = {"model_type": "glm4v", "vision_config": {"model_type": "glm4v_vision", "num_heads": 4}}
    shapes = {"model.visual.merger.proj": (256, 256), "model.visual.blocks.0.attn.proj": (256, 256)}
    plan = planned(headers(config, CHANNELS, shapes), Policy())
    assert [layer.plan.sharding.axis for layer in plan.layers] == ["column", "row"]


@pytest.mark.parametrize("name", ["llama_bias_dyn", "llama_layer0_skip"])
def test_what_absorbing_adds_counts_tensors_that_are_not_fp8(name: str, tmp_path: Path) -> None:
    """BF16 biases and weights grow with the inner size too."""
    source = read_unconverted(copy_case(f"good/{name}", tmp_path))
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    assert any(size.other_bytes for size in plan.absorbable)
    for ranks in (1, 2, 4):
        absorbed = plan_checkpoint(source.shards, source.configs, Policy(tensor_parallel_size=ranks, absorb=True))
        claimed = absorbed_at(Judge(plan, VLLM), ranks, experts=False)
        assert claimed.added_bytes == absorbed.bytes_after - absorbed.bytes_before

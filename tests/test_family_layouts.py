"""Families that transformers does not have, or has under other names: tensors as vLLM's loaders expect them.

Each layout is taken from the loader that its comment names (vLLM 0.33), independently of the family files. Sizes are
different primes, one for each config key; every tensor that has a key's size must be governed by that key.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from fp8pad.errors import ConfigError
from fp8pad.planning.absorb.assessment import assess
from fp8pad.planning.absorb.config_size import config_size
from fp8pad.planning.absorb.matching import find_governed
from fp8pad.planning.families import sections_of
from fp8pad.record import Policy
from fp8pad.tensors import TensorHeader

Shapes = dict[str, tuple[int, ...]]

H, DENSE, EXPERT, SHARED, TOWER = 32, 67, 71, 79, 83


def mlp(prefix: str, size: int, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Shapes:
    """Return a gated MLP."""
    return {
        f"{prefix}.{gate}.weight": (size, H),
        f"{prefix}.{up}.weight": (size, H),
        f"{prefix}.{down}.weight": (H, size),
    }


def plain(prefix: str, size: int, up: str = "fc1", down: str = "fc2") -> Shapes:
    """Return an MLP without a gate, with biases."""
    return {
        f"{prefix}.{up}.weight": (size, H),
        f"{prefix}.{up}.bias": (size,),
        f"{prefix}.{down}.weight": (H, size),
        f"{prefix}.{down}.bias": (H,),
    }


def fused(prefix: str, size: int, gate_up: str, down: str) -> Shapes:
    """Return an MLP with gate and up in one tensor."""
    return {f"{prefix}.{gate_up}.weight": (2 * size, H), f"{prefix}.{down}.weight": (H, size)}


def moe(prefix: str, shared: str | None = "shared_experts", size: int = EXPERT, times: int = 1) -> Shapes:
    """Return two routed experts, a router, and a shared expert of `times` the size."""
    tensors = mlp(f"{prefix}.experts.0", size) | mlp(f"{prefix}.experts.1", size) | {f"{prefix}.gate.weight": (2, H)}
    return tensors | (mlp(f"{prefix}.{shared}", size * times) if shared else {})


def stack(prefix: str, size: int) -> Shapes:
    """Return Step's experts: three 3-D weights."""
    return {
        f"{prefix}.gate_proj.weight": (4, size, H),
        f"{prefix}.up_proj.weight": (4, size, H),
        f"{prefix}.down_proj.weight": (4, H, size),
        f"{prefix}.gate.weight": (4, H),
    }


L = "model.layers.0.mlp"
MOE = {"intermediate_size": DENSE, "moe_intermediate_size": EXPERT}

# Model type (or a whole config), its sizes, its tensors; loaders are in vllm/model_executor/models unless given a path.
LAYOUTS: list[tuple[str, Mapping[str, Any], Shapes]] = [
    # bailing_moe.py `BailingMoE.load_weights`, `moe_shared_expert_intermediate_size` absent and present
    ("bailing_moe", MOE | {"num_shared_experts": 2}, mlp("model.layers.1.mlp", DENSE) | moe(L, times=2)),
    (
        "bailing_hybrid",
        MOE | {"num_shared_experts": 1, "moe_shared_expert_intermediate_size": SHARED},
        mlp("model.layers.1.mlp", DENSE) | moe(L, shared=None) | mlp(f"{L}.shared_experts", SHARED),
    ),
    # sarvam.py, param2moe.py
    ("sarvam_moe", MOE, mlp("model.layers.1.mlp", DENSE) | moe(L, times=2)),
    ("param2moe", MOE, mlp("model.layers.1.mlp", DENSE) | moe(L)),
    # exaone.py, internlm2.py, telechat2.py, chatglm.py, plamo3.py `hf_to_vllm_mapper` and `packed_modules_mapping`
    ("exaone", {"intermediate_size": DENSE}, mlp("transformer.h.0.mlp", DENSE, "c_fc_0", "c_fc_1", "c_proj")),
    ("internlm2", {"intermediate_size": DENSE}, mlp("model.layers.0.feed_forward", DENSE, "w1", "w3", "w2")),
    ("telechat", {"ffn_hidden_size": DENSE}, mlp("transformer.h.0.mlp", DENSE)),
    (
        "chatglm",
        {"ffn_hidden_size": DENSE},
        fused("transformer.encoder.layers.0.mlp", DENSE, "dense_h_to_4h", "dense_4h_to_h"),
    ),
    ("plamo3", {"intermediate_size": DENSE}, fused("model.layers.layers.0.mlp", DENSE, "gate_up_proj", "down_proj")),
    ("gptj", {"n_inner": DENSE}, plain("transformer.h.0.mlp", DENSE, "fc_in", "fc_out")),
    # Llama's MLP under other model types: minicpm.py, orion.py, solar.py, step1.py, iquest_loopcoder.py, llama.py
    *((name, {"intermediate_size": DENSE}, mlp(L, DENSE)) for name in (
        "minicpm", "orion", "solar", "step1", "iquestloopcoder", "internlm3", "teleflm", "PanguEmbedded", "domyn_edge",
    )),
    # mimo_mtp.py: layers for multi-token prediction next to the others
    ("mimo", {"intermediate_size": DENSE}, mlp(L, DENSE) | mlp("model.mtp_layers.0.mlp", DENSE)),
    ("mimo_v2", MOE, mlp("model.layers.1.mlp", DENSE) | moe(L, None) | mlp("model.mtp.layers.0.mlp", DENSE)),
    # step3p5.py `load_weights`: stacks, or one by one; step3p5_mtp.py: `.transformer.`
    (
        "step3p5",
        MOE | {"share_expert_dim": SHARED},
        mlp(L, DENSE)
        | stack("model.layers.1.moe", EXPERT)
        | mlp("model.layers.1.share_expert", SHARED)
        | mlp("model.layers.2.transformer.mlp", DENSE),
    ),
    (
        "step5",
        MOE | {"share_expert_dim": SHARED},
        mlp(L, DENSE) | moe("model.layers.1.moe", None) | mlp("model.layers.1.share_expert", SHARED),
    ),
    # deepseek_v4 (vllm/models): its own names, at the top
    (
        "deepseek_v4",
        {"moe_intermediate_size": EXPERT, "n_shared_experts": 1},
        mlp("layers.0.ffn.experts.0", EXPERT, "w1", "w3", "w2")
        | mlp("layers.0.ffn.shared_experts", EXPERT, "w1", "w3", "w2")
        | mlp("mtp.0.ffn.experts.0", EXPERT, "w1", "w3", "w2")
        | mlp("mtp.0.ffn.shared_experts", EXPERT, "w1", "w3", "w2"),
    ),
    # hy_v3.py: configs have the size of an expert twice
    (
        "hy_v3",
        MOE | {"expert_hidden_dim": EXPERT, "num_shared_experts": 1},
        mlp("model.layers.1.mlp", DENSE) | moe(L, "shared_mlp"),
    ),
    ("dots1", MOE | {"n_shared_experts": 2}, mlp("model.layers.1.mlp", DENSE) | moe(L, times=2)),
    ("dots3_note", MOE | {"n_shared_experts": 1}, mlp("model.layers.1.mlp", DENSE) | moe(L)),
    ("solar_open", {"moe_intermediate_size": EXPERT, "n_shared_experts": 1}, moe(L)),
    # vllm/models/qwen4_exp/nvidia/model.py, which has Qwen3-Next's MLPs, and `mtp.`
    (
        "qwen4_exp",
        {
            "text_config": {
                "model_type": "qwen4_exp_text",
                "moe_intermediate_size": EXPERT,
                "shared_expert_intermediate_size": SHARED,
            },
            "vision_config": {"intermediate_size": TOWER},
        },
        moe("model.language_model.layers.0.mlp", None)
        | mlp("model.language_model.layers.0.mlp.shared_expert", SHARED)
        | moe("mtp.layers.0.mlp", None)
        | plain("model.visual.blocks.0.mlp", TOWER, "linear_fc1", "linear_fc2"),
    ),
    # qwen3_omni_moe_thinker.py `hf_to_vllm_mapper`
    (
        "qwen3_omni_moe",
        {
            "thinker_config": {
                "text_config": {"model_type": "qwen3_omni_moe_text", "moe_intermediate_size": EXPERT},
                "audio_config": {"encoder_ffn_dim": SHARED}, "vision_config": {"intermediate_size": TOWER},
            },
            "talker_config": {},
        },
        moe("thinker.model.layers.0.mlp", None)
        | plain("thinker.audio_tower.layers.0", SHARED)
        | plain("thinker.visual.blocks.0.mlp", TOWER, "linear_fc1", "linear_fc2"),
    ),
    # vllm/models/glm5next
    (
        "glm5_next",
        {
            "text_config": {**MOE, "n_shared_experts": 1},
            "vision_config": {"intermediate_size": TOWER, "projection_intermediate_size": SHARED},
        },
        mlp("model.language_model.layers.1.mlp", DENSE)
        | moe("model.language_model.layers.0.mlp")
        | mlp("model.visual.blocks.0.mlp", TOWER)
        | mlp("model.visual.merger", SHARED),
    ),
    ("alice_ai", MOE | {"shared_expert_intermediate_size": SHARED}, moe(L, None) | mlp(f"{L}.shared_expert", SHARED)),
    ("flint", MOE | {"shared_expert_intermediate_size": SHARED}, moe(L, None) | mlp(f"{L}.shared_expert", SHARED)),
    ("beam", MOE, mlp("model.layers.1.mlp", DENSE) | moe(L, None)),
    ("pangu_ultra_moe", MOE | {"n_shared_experts": 1}, mlp("model.layers.1.mlp", DENSE) | moe(L)),
    ("k2_horizon", MOE | {"num_shared_experts": 2}, mlp("model.layers.1.mlp", DENSE) | moe(L, times=2)),
    # kimi_k25.py, kimi_k25_vit.py, vllm/models/kimi_k3
    (
        "kimi_k25",
        {
            "text_config": {"model_type": "kimi_k2", **MOE, "n_shared_experts": 1},
            "vision_config": {"vt_intermediate_size": TOWER},
        },
        mlp("language_model.model.layers.1.mlp", DENSE)
        | moe("language_model.model.layers.0.mlp")
        | plain("vision_tower.encoder.blocks.0.mlp", TOWER, "fc0", "fc1"),
    ),
    (
        "kimi_k3",
        {"text_config": {"model_type": "kimi_linear", **MOE, "num_shared_experts": 1}},
        mlp("language_model.model.layers.1.mlp", DENSE)
        | mlp("language_model.model.layers.0.block_sparse_moe.experts.0", EXPERT, "w1", "w3", "w2")
        | mlp("language_model.model.layers.0.block_sparse_moe.shared_experts", EXPERT),
    ),
    # dots_ocr.py `DotsSwiGLUFFN`, minicpmv.py, keye.py, deepseek_vl2.py, deepseek_ocr.py, ovis2_5.py, qwen3_asr.py
    (
        "dots_ocr",
        {"intermediate_size": DENSE, "vision_config": {"intermediate_size": TOWER}},
        mlp(L, DENSE) | mlp("vision_tower.blocks.0.mlp", TOWER, "fc1", "fc3", "fc2"),
    ),
    (
        "minicpmv",
        {"intermediate_size": DENSE, "vision_config": {"intermediate_size": TOWER}},
        mlp("llm.model.layers.0.mlp", DENSE) | plain("vpm.encoder.layers.0.mlp", TOWER),
    ),
    (
        "Keye",
        {"intermediate_size": DENSE, "vision_config": {"intermediate_size": TOWER}},
        mlp(L, DENSE) | plain("visual.vision_model.encoder.layers.0.mlp", TOWER),
    ),
    (
        "deepseek_vl_v2",
        {"language_config": {**MOE, "n_shared_experts": 2}},
        mlp("language.model.layers.1.mlp", DENSE) | moe("language.model.layers.0.mlp", times=2),
    ),
    (
        "ovis2_5",
        {"text_config": {"model_type": "qwen3", "intermediate_size": DENSE}},
        mlp("llm.model.layers.0.mlp", DENSE),
    ),
    (
        "qwen3_asr",
        {"thinker_config": {"text_config": {"intermediate_size": DENSE}, "audio_config": {"encoder_ffn_dim": TOWER}}},
        mlp("thinker.model.layers.0.mlp", DENSE) | plain("thinker.audio_tower.layers.0", TOWER),
    ),
    (
        "gemma4",
        {
            "text_config": {"model_type": "gemma4_text", "moe_intermediate_size": EXPERT, "intermediate_size": DENSE},
            "vision_config": {"intermediate_size": TOWER},
        },
        mlp("model.language_model.layers.0.mlp", DENSE)
        | mlp("model.language_model.layers.1.mlp", 2 * DENSE)
        | mlp("model.language_model.layers.0.experts.0", EXPERT)
        | mlp("vision_tower.encoder.layers.0.mlp", TOWER, "gate_proj.linear", "up_proj.linear", "down_proj.linear"),
    ),
    # alpamayo2_super.py, bagel.py, cohere_compass.py, colultravbert.py: `hf_to_vllm_mapper`
    (
        "alpamayo2_super",
        {
            "vlm_config": {
                "text_config": {"model_type": "qwen3_vl_text", "intermediate_size": DENSE},
                "vision_config": {"intermediate_size": TOWER},
            },
        },
        mlp("vlm.model.language_model.layers.0.mlp", DENSE)
        | plain("vlm.model.visual.blocks.0.mlp", TOWER, "linear_fc1", "linear_fc2"),
    ),
    (
        "bagel",
        {"llm_config": {"intermediate_size": DENSE}, "vit_config": {"intermediate_size": TOWER}},
        mlp("language_model.model.layers.0.mlp", DENSE)
        | mlp("language_model.model.layers.0.mlp_moe_gen", DENSE)
        | plain("vit_model.vision_model.encoder.layers.0.mlp", TOWER),
    ),
    (
        "cohere_compass",
        {"text_config": {"intermediate_size": DENSE}, "vision_config": {"intermediate_size": TOWER}},
        mlp("model.language_model.layers.0.mlp", DENSE)
        | plain("model.visual.blocks.0.mlp", TOWER, "linear_fc1", "linear_fc2"),
    ),
    (
        "ultravbert",
        {"text_config": {"intermediate_size": DENSE}, "vision_config": {"intermediate_size": TOWER}},
        mlp("text_model.layers.0.mlp", DENSE) | plain("vision_model.vision_model.encoder.layers.0.mlp", TOWER),
    ),
    # diffusion_gemma.py, embedding_gemma2.py, cosmos3_edge.py `_cosmos3_edge_diffusers_prefix_map`
    (
        "diffusion_gemma",
        {
            "text_config": {"model_type": "diffusion_gemma_text", "intermediate_size": DENSE},
            "vision_config": {"intermediate_size": TOWER},
        },
        mlp("model.decoder.layers.0.mlp", DENSE)
        | mlp("model.encoder.language_model.layers.0.mlp", DENSE)
        | mlp("model.decoder.self_conditioning", DENSE)
        | mlp("model.encoder.vision_tower.encoder.layers.0.mlp", TOWER, "gate_proj.linear", "up_proj.linear",
              "down_proj.linear"),
    ),
    ("embedding_gemma2", {"text_config": {"intermediate_size": DENSE}}, mlp("language_model.layers.0.mlp", DENSE)),
    (
        "cosmos3_edge",
        {"text_config": {"intermediate_size": DENSE}},
        plain("layers.0.mlp", DENSE, "up_proj", "down_proj")
        | plain("layers.0.mlp_moe_gen", DENSE, "up_proj", "down_proj")
        | plain("model.language_model.layers.1.mlp", DENSE),
    ),
    # cosmos3.py `hf_to_vllm_mapper`
    (
        "cosmos3_omni",
        {"text_config": {"intermediate_size": DENSE}, "vision_config": {"intermediate_size": TOWER}},
        mlp("layers.0.mlp", DENSE)
        | mlp("layers.0.mlp_moe_gen", DENSE)
        | plain("blocks.0.mlp", TOWER, "linear_fc1", "linear_fc2"),
    ),
    # gpt_oss.py `_load_weights_quark`
    ("gpt_oss", {"intermediate_size": DENSE}, fused(f"{L}.experts.1", DENSE, "gate_up_proj", "down_proj")),
    # molmo2.py, hyperclovax_vision_v2.py, mimo_v2_omni.py `hf_to_vllm_mapper`; interns2_mobius.py; d3.py
    (
        "molmo2",
        {
            "text_config": {"intermediate_size": DENSE}, "vit_config": {"intermediate_size": TOWER},
            "adapter_config": {"intermediate_size": SHARED},
        },
        fused("model.transformer.blocks.0.mlp", DENSE, "ff_proj", "ff_out")
        | plain("model.vision_backbone.image_vit.transformer.resblocks.0.feed_forward", TOWER, "w1", "w2")
        | mlp("model.vision_backbone.image_projector", SHARED, "w1", "w3", "w2"),
    ),
    (
        "hyperclovax_vision_v2",
        {
            "text_config": {"model_type": "hyperclovax", "intermediate_size": DENSE},
            "vision_config": {"intermediate_size": TOWER},
        },
        mlp("model.language_model.model.layers.0.mlp", DENSE) | mlp("model.vision_model.blocks.0.mlp", TOWER),
    ),
    (
        "mimo_v2_omni",
        MOE | {"vision_config": {"intermediate_size": TOWER}},
        mlp("model.layers.1.mlp", DENSE) | moe(L, None) | mlp("visual.blocks.0.mlp", TOWER),
    ),
    (
        "interns2_mobius",
        {
            "text_config": {"moe_intermediate_size": EXPERT, "shared_expert_intermediate_size": SHARED},
            "vision_config": {"intermediate_size": TOWER},
        },
        mlp("model.language_model.layers.0.mlp.shared_expert", SHARED)
        | moe("model.language_model.meta_mlp.0", None)
        | plain("model.visual.blocks.0.mlp", TOWER, "linear_fc1", "linear_fc2"),
    ),
    (
        "qwen3_5",
        {
            "text_config": {"model_type": "qwen3_5_text", "intermediate_size": DENSE},
            "vision_config": {"intermediate_size": TOWER},
        },
        mlp("language_model.layers.0.mlp", DENSE) | plain("visual.blocks.0.mlp", TOWER, "linear_fc1", "linear_fc2"),
    ),
    (
        "kolibri1",
        {"moe_intermediate_size": EXPERT, "shared_expert_intermediate_size": SHARED},
        moe(L, None) | mlp(f"{L}.shared_experts", SHARED),
    ),
    ("fireredasr2", {"intermediate_size": DENSE}, mlp("llm.model.layers.0.mlp", DENSE)),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "sizes", "shapes"), LAYOUTS)
def test_a_layout_of_vllm_is_described(model_type: str, sizes: Mapping[str, Any], shapes: Shapes) -> None:
    """Every tensor with an inner size is governed by the key that has it, and by no other; the sizes fit."""
    config = {"model_type": model_type, **sizes}
    governed = find_governed(
        sections_of(config), {name: TensorHeader(name, "BF16", shape, 0) for name, shape in shapes.items()}
    )
    found: set[str] = set()
    for size in governed.sizes:
        assert not isinstance(assess(size, {}, Policy()).obstacle, ConfigError)
        assert config_size(size) in {DENSE, EXPERT, SHARED, TOWER}
        assert not size.unclaimed_tensors
        found |= {governed.tensor.name for governed in size.axes if governed.leaf != "bias" or governed.axis == "n"}
    inner = {times * size for times in (1, 2) for size in (DENSE, EXPERT, SHARED, TOWER)}
    assert found == {name for name, shape in shapes.items() if inner & set(shape)}

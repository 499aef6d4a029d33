"""Published FP8 checkpoints: the sizes in their configs, one layer of each kind, and which layers are FP8.

The sizes come from copies of the models' config.json in public repositories (ai-dynamo/aiconfigurator holds most of
them) and, for Ministral 3, GLM-4.7, Llama 4's and Qwen3.5's FP8 forms, from their base models' configs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fp8pad.tensors import ShardHeader, TensorHeader

Scales = Literal["tensor", "channel", "block", "compressed block", "exponents", "mistral", "NVFP4", "MXFP4", "BF16"]
Json = dict[str, Any]
# Rows, columns, and scales other than the checkpoint's.
Linears = dict[str, tuple[int, int] | tuple[int, int, Scales]]

BLOCK: Json = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
CHANNEL: Json = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"type": "float", "num_bits": 8, "strategy": "channel"},
            "input_activations": {"type": "float", "num_bits": 8, "strategy": "token", "dynamic": True},
        }
    },
}
STATIC: Json = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
MODELOPT: Json = {"quant_method": "modelopt", "quant_algo": "FP8"}
MIXED: Json = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}


@dataclass(frozen=True)
class Published:
    """A checkpoint, and what vLLM 0.33 does with it on 1, 2, 4, 8 and 16 ranks, by reading its code."""

    name: str
    config: Json
    scales: Scales
    linears: Linears
    outcomes: str

    def header(self) -> ShardHeader:
        """Return the header of a file with these Linears and their scales."""
        tensors: list[TensorHeader] = []
        for name, (num_n, num_k, *others) in self.linears.items():
            for leaf, dtype, shape in _stored(num_n, num_k, others[0] if others else self.scales):
                begin = tensors[-1].end if tensors else 0
                tensors.append(TensorHeader(f"{name}.{leaf}", dtype, shape, begin))
        return ShardHeader("model.safetensors", tensors[-1].end, 0, tuple(tensors))


def _stored(num_n: int, num_k: int, scales: Scales) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield the tensors of a Linear: names in the module, dtypes and shapes."""
    grid = -(-num_n // 128), -(-num_k // 128)
    match scales:
        case "BF16":
            yield "weight", "BF16", (num_n, num_k)
            return
        case "NVFP4":
            yield "weight", "U8", (num_n, num_k // 2)
            yield "weight_scale", "F8_E4M3", (num_n, num_k // 16)
            yield "weight_scale_2", "F32", ()
            return
        case "MXFP4":
            yield "weight", "I8", (num_n, num_k // 2)
            yield "scale", "F8_E8M0", (num_n, num_k // 32)
            return
    yield "weight", "F8_E4M3", (num_n, num_k)
    match scales:
        case "tensor":
            yield "weight_scale", "F32", ()
            yield "input_scale", "F32", ()
        case "channel":
            yield "weight_scale", "BF16", (num_n, 1)
        case "block":
            yield "weight_scale_inv", "F32", grid
        case "compressed block":
            yield "weight_scale", "BF16", grid
        case "exponents":
            yield "scale", "F8_E8M0", grid
        case "mistral":
            yield "weight_scale_inv", "BF16", ()
            yield "activation_scale", "BF16", ()


def attention(prefix: str, heads: int, key_heads: int, head_dim: int, hidden: int, *, queries: int = 1) -> Linears:
    """Return grouped-query attention; `queries` is 2 if the query projection holds gates too."""
    return {
        f"{prefix}.q_proj": (heads * head_dim * queries, hidden),
        f"{prefix}.k_proj": (key_heads * head_dim, hidden),
        f"{prefix}.v_proj": (key_heads * head_dim, hidden),
        f"{prefix}.o_proj": (hidden, heads * head_dim),
    }


def latent(prefix: str, config: Mapping[str, Any]) -> Linears:
    """Return DeepSeek's latent attention, with the indexer of sparse attention if it has one."""
    heads, hidden, ranks = config["num_attention_heads"], config["hidden_size"], config["q_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    found: Linears = {
        f"{prefix}.q_a_proj": (ranks, hidden),
        f"{prefix}.kv_a_proj_with_mqa": (config["kv_lora_rank"] + rope, hidden),
        f"{prefix}.q_b_proj": (heads * (nope + rope), ranks),
        f"{prefix}.kv_b_proj": (heads * (nope + value), config["kv_lora_rank"]),
        f"{prefix}.o_proj": (hidden, heads * value),
    }
    if "index_n_heads" in config:
        found[f"{prefix}.indexer.wq_b"] = (config["index_n_heads"] * 128, ranks)
        found[f"{prefix}.indexer.wk"] = (128, hidden)
    return found


def mlp(prefix: str, inner: int, hidden: int, names: str = "gate_proj up_proj down_proj") -> Linears:
    """Return an MLP: all but the last are `[inner, hidden]`."""
    *first, last = (f"{prefix}.{name}" for name in names.split())
    return {**dict.fromkeys(first, (inner, hidden)), last: (hidden, inner)}


def stored_as(scales: Scales, linears: Linears) -> Linears:
    """Return Linears with scales other than the checkpoint's."""
    return {name: (shape[0], shape[1], scales) for name, shape in linears.items()}


def _heads(heads: int, key_heads: int, head_dim: int, hidden: int, inner: int = 0) -> Json:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": key_heads, "head_dim": head_dim}
    return {**sizes, "hidden_size": hidden, "hidden_act": "silu", **({"intermediate_size": inner} if inner else {})}


def _latent_config(
    name: str, heads: int, hidden: int, inner: int, dims: tuple[int, int] = (128, 128), **more: Any
) -> Json:
    nope, value = dims
    return {
        "model_type": name, **_heads(heads, heads, nope + 64, hidden, inner), "kv_lora_rank": 512,
        "qk_nope_head_dim": nope, "qk_rope_head_dim": 64, "v_head_dim": value, "moe_intermediate_size": 2048,
        "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "q_lora_rank": 1536, **more,
    }  # fmt: skip


_LAYER = "model.layers.0"
_QWEN = "model.language_model.layers.0"
_GLM5 = _latent_config("glm_moe_dsa", 64, 6144, 12288, (192, 256), q_lora_rank=2048, index_n_heads=32)
_V32 = _latent_config("deepseek_v32", 128, 7168, 18432, index_n_heads=64)
_R1 = _latent_config("deepseek_v3", 128, 7168, 18432)
_KIMI = _latent_config("kimi_k2", 64, 7168, 18432, n_routed_experts=384)


def _deepseek(config: Json) -> Linears:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    return {
        **latent(f"{_LAYER}.self_attn", config),
        **mlp(f"{_LAYER}.mlp", config["intermediate_size"], hidden),
        **mlp("model.layers.3.mlp.shared_experts", inner, hidden),
        **mlp("model.layers.3.mlp.experts.0", inner, hidden),
    }


def _nemotron(hidden: int, heads: int, mamba_heads: int, inner: int, latent_size: int) -> tuple[Json, Linears]:
    config = {
        "model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"], **_heads(heads, 2, 128, hidden, inner),
        "mamba_num_heads": mamba_heads, "n_groups": 8, "moe_intermediate_size": inner, "n_routed_experts": 512,
        "moe_shared_expert_intermediate_size": 2 * inner, "n_shared_experts": 1, "mlp_hidden_act": "relu2",
    }  # fmt: skip
    rows, mixer = mamba_heads * 64, "backbone.layers.{}.mixer"
    linears: Linears = {
        f"{mixer.format(0)}.in_proj": (2 * rows + 2 * 8 * 128 + mamba_heads, hidden),
        f"{mixer.format(0)}.out_proj": (hidden, rows),
        **attention(mixer.format(7), heads, 2, 128, hidden),
        **mlp(f"{mixer.format(1)}.shared_experts", 2 * inner, hidden, "up_proj down_proj"),
        **mlp(f"{mixer.format(1)}.experts.0", inner, latent_size, "up_proj down_proj"),
        **stored_as("BF16", {f"{mixer.format(1)}.fc1_latent_proj": (latent_size, hidden)}),
    }
    return config, linears


def _deepseek_v4(sizes: tuple[int, ...], experts: Scales) -> tuple[Json, Linears]:
    heads, hidden, inner, query_rank, groups = sizes
    config = {
        "model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"], **_heads(heads, 1, 512, hidden),
        "moe_intermediate_size": inner, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 6,
        "o_groups": groups, "o_lora_rank": 1024, "expert_dtype": "fp4" if experts == "MXFP4" else "fp8",
    }  # fmt: skip
    names = "w1 w3 w2"
    linears: Linears = {
        "layers.0.attn.wq_a": (query_rank, hidden),
        "layers.0.attn.wkv": (512, hidden),
        "layers.0.attn.wq_b": (heads * 512, query_rank),
        "layers.0.attn.wo_a": (groups * 1024, heads * 512 // groups),
        "layers.0.attn.wo_b": (hidden, groups * 1024),
        **mlp("layers.0.ffn.shared_experts", inner, hidden, names),
        **stored_as(experts, mlp("layers.0.ffn.experts.0", inner, hidden, names)),
    }
    return config, linears


def _gated_delta(hidden: int, keys: int, values: int, heads: int, key_heads: int) -> Linears:
    return {
        f"{_QWEN}.linear_attn.in_proj_qkv": ((2 * keys + values) * 128, hidden),
        f"{_QWEN}.linear_attn.in_proj_z": (values * 128, hidden),
        f"{_QWEN}.linear_attn.out_proj": (hidden, values * 128),
        **attention("model.language_model.layers.3.self_attn", heads, key_heads, 256, hidden, queries=2),
    }


def _qwen3_5(kind: str, text: Json) -> Json:
    return {
        "model_type": kind, "architectures": ["Qwen3_5ForConditionalGeneration"],
        "text_config": {"model_type": f"{kind}_text", **text},
    }  # fmt: skip


def published() -> Iterator[Published]:
    """Yield the checkpoints. Outcomes: serves, pads in every forward, Triton only, not known or refuses."""
    dense, moe = f"{_LAYER}.mlp", f"{_LAYER}.mlp.experts.0"
    qwen = {"model_type": "qwen3", **_heads(64, 8, 128, 5120, 25600)}
    layers = {**attention(f"{_LAYER}.self_attn", 64, 8, 128, 5120), **mlp(dense, 25600, 5120)}
    yield Published("Qwen3-32B-FP8", {**qwen, "quantization_config": BLOCK}, "block", layers, "SSSSR")
    yield Published(
        "Qwen3-32B-FP8-Static-PerTensor", {**qwen, "quantization_config": MODELOPT}, "tensor", layers, "SSSSS"
    )
    config = {"model_type": "qwen3_moe", **_heads(64, 4, 128, 4096), "moe_intermediate_size": 1536, "num_experts": 128}
    layers = {**attention(f"{_LAYER}.self_attn", 64, 4, 128, 4096), **mlp(moe, 1536, 4096)}
    yield Published("Qwen3-235B-A22B-FP8", {**config, "quantization_config": BLOCK}, "block", layers, "SSSTT")
    config = {"model_type": "llama", **_heads(64, 8, 128, 8192, 28672)}
    layers = {**attention(f"{_LAYER}.self_attn", 64, 8, 128, 8192), **mlp(dense, 28672, 8192)}
    yield Published(
        "Llama-3.1-70B-Instruct-FP8", {**config, "quantization_config": MODELOPT}, "tensor", layers, "SSSSS"
    )
    for name, sizes in (
        ("Super-120B-A12B", (4096, 32, 128, 2688, 1024)),
        ("Ultra-550B-A55B", (8192, 64, 256, 5120, 2048)),
    ):
        config, layers = _nemotron(*sizes)
        yield Published(
            f"Nemotron-3-{name}-FP8", {**config, "quantization_config": MODELOPT}, "tensor", layers, "SSSSR"
        )
    config, layers = _nemotron(2688, 32, 64, 1856, 2688)
    layers = {name: (shape[0], shape[1], "NVFP4") if "expert" in name else shape for name, shape in layers.items()}
    layers |= stored_as("BF16", attention("backbone.layers.7.mixer", 32, 2, 128, 2688))
    yield Published(
        "Nemotron-3.5-Lightning-30B-A3B-NVFP4", {**config, "quantization_config": MIXED}, "tensor", layers, "SSSPR"
    )
    config = {"model_type": "minimax_m2", **_heads(48, 8, 128, 3072, 1536), "num_local_experts": 256}
    layers = {
        **attention(f"{_LAYER}.self_attn", 48, 8, 128, 3072),
        **mlp(f"{_LAYER}.block_sparse_moe.experts.0", 1536, 3072, "w1 w3 w2"),
    }
    yield Published("MiniMax-M2.5", {**config, "quantization_config": BLOCK}, "block", layers, "SSSTT")
    for name, config in (
        ("GLM-5.2-FP8", _GLM5),
        ("DeepSeek-V3.2", _V32),
        ("DeepSeek-R1", _R1),
        ("Kimi-K2-Instruct", _KIMI),
    ):
        yield Published(name, {**config, "quantization_config": BLOCK}, "block", _deepseek(config), "SSSSS")
    flash, pro = (64, 4096, 2048, 1024, 8), (128, 7168, 3072, 1536, 16)
    v4: tuple[tuple[str, tuple[int, ...], Scales, str], ...] = (
        ("DeepSeek-V4-Flash", flash, "MXFP4", "SSSSR"), ("DeepSeek-V4-Pro", pro, "MXFP4", "SSSSS"),
        ("DeepSeek-V4-Flash-FP8", flash, "exponents", "SSSSR"), ("DeepSeek-V4-Pro-FP8", pro, "exponents", "SSSST"),
    )  # fmt: skip
    for name, shape, experts, outcomes in v4:
        config, layers = _deepseek_v4(shape, experts)
        yield Published(name, {**config, "quantization_config": BLOCK}, "exponents", layers, outcomes)
    # Its layers with full attention have scales for keys and values together, which fp8pad does not understand; the
    # others, of twice as many key-value heads, are refused on 8 ranks: SGLang's pull request 21102.
    config = {
        "model_type": "mimo_v2_flash", **_heads(64, 4, 192, 4096, 16384), "v_head_dim": 128, "n_routed_experts": 256,
        "moe_intermediate_size": 2048, "swa_num_key_value_heads": 8, "swa_head_dim": 192, "swa_v_head_dim": 128,
    }  # fmt: skip
    layers = {
        **mlp(dense, 16384, 4096),
        **mlp("model.layers.1.mlp.experts.0", 2048, 4096),
        "model.layers.1.self_attn.q_proj": (64 * 192, 4096),
        "model.layers.1.self_attn.k_proj": (8 * 192, 4096),
        "model.layers.1.self_attn.v_proj": (8 * 128, 4096),
    }
    yield Published("MiMo-V2-Flash", {**config, "quantization_config": BLOCK}, "block", layers, "SSSRR")
    text = {**_heads(24, 4, 256, 5120, 17408), "linear_num_key_heads": 16, "linear_num_value_heads": 48}
    layers = {**_gated_delta(5120, 16, 48, 24, 4), **stored_as("NVFP4", mlp(f"{_QWEN}.mlp", 17408, 5120))}
    config = {**_qwen3_5("qwen3_5", text), "quantization_config": MIXED}
    yield Published("Qwen3.6-27B-NVFP4", config, "tensor", layers, "SSSSR")
    for name, sizes, inner, quantization, scales, outcomes in (
        ("Qwen3.6-35B-A3B-NVFP4", (2048, 16, 32, 16, 2), 512, MIXED, "tensor", "SSSSS"),
        ("Qwen3.5-122B-A10B-FP8", (3072, 16, 64, 32, 2), 1024, BLOCK, "block", "SSSSR"),
    ):
        hidden, keys, values, heads, key_heads = sizes
        text = {**_heads(heads, key_heads, 256, hidden), "linear_num_key_heads": keys, "linear_num_value_heads": values}
        text |= {"moe_intermediate_size": inner, "shared_expert_intermediate_size": inner, "num_experts": 256}
        shared, routed = mlp(f"{_QWEN}.mlp.shared_expert", inner, hidden), mlp(f"{_QWEN}.mlp.experts.0", inner, hidden)
        layers = {**_gated_delta(hidden, keys, values, heads, key_heads), **shared, **routed}
        if quantization is MIXED:
            layers |= stored_as("NVFP4", {**shared, **routed})
        config = {**_qwen3_5("qwen3_5_moe", text), "quantization_config": quantization}
        yield Published(name, config, "tensor" if scales == "tensor" else "block", layers, outcomes)
    text = {"model_type": "llama4_text", **_heads(40, 8, 128, 5120, 8192), "intermediate_size_mlp": 16384}
    config = {"model_type": "llama4", "text_config": text, "quantization_config": CHANNEL}
    layers = {
        **stored_as("BF16", attention(f"language_model.{_LAYER}.self_attn", 40, 8, 128, 5120)),
        **mlp(f"language_model.{_LAYER}.feed_forward", 16384, 5120),
        **mlp("language_model.model.layers.1.feed_forward.shared_expert", 8192, 5120),
        **mlp("language_model.model.layers.1.feed_forward.experts.0", 8192, 5120),
    }
    yield Published("Llama-4-Maverick-17B-128E-Instruct-FP8", config, "channel", layers, "SSSSR")
    config = {"model_type": "nemotron-nas", "hidden_size": 8192, "num_attention_heads": 64}
    layers = {**attention(f"{_LAYER}.self_attn", 64, 8, 128, 8192), **mlp("model.layers.52.mlp", 2816, 8192)}
    yield Published(
        "Llama-3.3-Nemotron-Super-49B-v1-FP8", {**config, "quantization_config": MODELOPT}, "tensor", layers, "SSSSS"
    )
    text = {"model_type": "ministral3", **_heads(32, 8, 128, 3072, 9216)}
    config = {"model_type": "mistral3", "text_config": text, "quantization_config": STATIC}
    prefix = f"language_model.{_LAYER}"
    layers = {**attention(f"{prefix}.self_attn", 32, 8, 128, 3072), **mlp(f"{prefix}.mlp", 9216, 3072)}
    yield Published("Ministral-3-3B-Instruct-2512", config, "mistral", layers, "SSSSS")
    config = {"model_type": "glm4_moe", **_heads(96, 8, 128, 5120, 12288), "moe_intermediate_size": 1536}
    config |= {"n_routed_experts": 160, "n_shared_experts": 1, "quantization_config": CHANNEL}
    layers = {
        **attention(f"{_LAYER}.self_attn", 96, 8, 128, 5120),
        **mlp(dense, 12288, 5120),
        **mlp("model.layers.3.mlp.shared_experts", 1536, 5120),
        **mlp("model.layers.3.mlp.experts.0", 1536, 5120),
    }
    yield Published("GLM-4.7-FP8", config, "channel", layers, "SSSSS")
    blocks = {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 128]}
    inputs = {"type": "float", "num_bits": 8, "strategy": "group", "group_size": 128, "dynamic": True}
    group = {"targets": ["Linear"], "weights": blocks, "input_activations": inputs}
    config = {
        "model_type": "laguna",
        **_heads(48, 8, 128, 2048, 8192),
        "moe_intermediate_size": 512,
        "num_experts": 256,
    }
    config |= {"shared_expert_intermediate_size": 512, "num_experts_per_tok": 8}
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    layers = {
        **stored_as("BF16", attention("model.layers.1.self_attn", 64, 8, 128, 2048)),
        **mlp(dense, 8192, 2048),
        **mlp("model.layers.1.mlp.shared_expert", 512, 2048),
        **mlp("model.layers.1.mlp.experts.0", 512, 2048),
    }
    yield Published("Laguna-XS.2-FP8", config, "compressed block", layers, "SSSRR")

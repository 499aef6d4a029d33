"""Decoders of real sizes: their tensors by name, and their config.json."""

from dataclasses import dataclass
from typing import Any

from fp8_schemes import SCHEMES, Fp8Scheme, Tensors, normal
from needed import torch


@dataclass(frozen=True, slots=True)
class Decoder:
    """The sizes of a Llama-like decoder, and the scheme of its weights."""

    hidden: int
    intermediate: int
    layers: int = 12
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 32000
    qkv_bias: bool = False
    scheme: Fp8Scheme = SCHEMES["channel"]

    def tensors(self) -> Tensors:
        """Yield every tensor under its checkpoint name."""
        yield "model.embed_tokens.weight", normal(self.vocabulary, self.hidden)
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            yield f"{name}.input_layernorm.weight", ones(self.hidden)
            yield from self.attention(name)
            yield f"{name}.post_attention_layernorm.weight", ones(self.hidden)
            yield from self.mlp(name)
        yield "model.norm.weight", ones(self.hidden)
        yield "lm_head.weight", normal(self.vocabulary, self.hidden) * self.hidden**-0.5

    def attention(self, name: str) -> Tensors:
        """Yield the projections of the layer `name`."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for part, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield from self.scheme.linear(f"{name}.self_attn.{part}_proj", rows, self.hidden, bias=self.qkv_bias)
        yield from self.scheme.linear(f"{name}.self_attn.o_proj", self.hidden, queries)

    def mlp(self, name: str) -> Tensors:
        """Yield the MLP of the layer `name`."""
        yield from gated_mlp(self.scheme, f"{name}.mlp", self.hidden, self.intermediate)

    def not_converted(self) -> list[str]:
        """Return the Linears that are not quantized though others of their kind are."""
        return []

    def config(self) -> dict[str, Any]:
        """Return its sizes under the names that Hugging Face configs use."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 16384,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }


@dataclass(frozen=True, slots=True)
class LatentDecoder(Decoder):
    """A DeepSeek-like decoder without experts, whose keys and values come from a latent vector (MLA)."""

    q_rank: int = 1536
    kv_rank: int = 512
    nope_dim: int = 128
    rope_dim: int = 64
    v_dim: int = 128

    def attention(self, name: str) -> Tensors:
        """Yield the projections of the layer `name`."""
        linear, name = self.scheme.linear, f"{name}.self_attn"
        yield from linear(f"{name}.q_a_proj", self.q_rank, self.hidden)
        yield f"{name}.q_a_layernorm.weight", ones(self.q_rank)
        yield from linear(f"{name}.q_b_proj", self.heads * (self.nope_dim + self.rope_dim), self.q_rank)
        yield from linear(f"{name}.kv_a_proj_with_mqa", self.kv_rank + self.rope_dim, self.hidden)
        yield f"{name}.kv_a_layernorm.weight", ones(self.kv_rank)
        yield from linear(f"{name}.kv_b_proj", self.heads * (self.nope_dim + self.v_dim), self.kv_rank)
        yield from linear(f"{name}.o_proj", self.hidden, self.heads * self.v_dim)

    def config(self) -> dict[str, Any]:
        """Return its sizes under the names that Hugging Face configs use: every layer is dense."""
        return {
            **Decoder.config(self),
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "q_lora_rank": self.q_rank,
            "kv_lora_rank": self.kv_rank,
            "qk_nope_head_dim": self.nope_dim,
            "qk_rope_head_dim": self.rope_dim,
            "v_head_dim": self.v_dim,
            "head_dim": self.rope_dim,
            "first_k_dense_replace": self.layers,
        }


@dataclass(frozen=True, slots=True)
class SharedExpertDecoder(Decoder):
    """A Qwen2-MoE-like decoder: `intermediate` is the size of the shared expert, `routed` that of a routed one."""

    routed: int = 1536
    experts: int = 8
    experts_per_token: int = 2

    def mlp(self, name: str) -> Tensors:
        """Yield the shared expert and the routed ones."""
        mlp = f"{name}.mlp"
        yield from gated_mlp(self.scheme, f"{mlp}.shared_expert", self.hidden, self.intermediate)
        yield f"{mlp}.gate.weight", normal(self.experts, self.hidden) * self.hidden**-0.5
        yield f"{mlp}.shared_expert_gate.weight", normal(1, self.hidden) * self.hidden**-0.5
        for expert in range(self.experts):
            yield from gated_mlp(self.scheme, f"{mlp}.experts.{expert}", self.hidden, self.routed)

    def config(self) -> dict[str, Any]:
        """Return its sizes under the names that Hugging Face configs use: every layer has experts."""
        return {
            **Decoder.config(self),
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            "shared_expert_intermediate_size": self.intermediate,
            "moe_intermediate_size": self.routed,
            "num_experts": self.experts,
            "num_experts_per_tok": self.experts_per_token,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }


@dataclass(frozen=True, slots=True)
class GatedDeltaDecoder(SharedExpertDecoder):
    """The text part of Qwen3.5 and 3.6 MoE: gated delta nets alternate with gated attention."""

    linear_keys: int = 16
    linear_values: int = 32
    linear_dim: int = 128

    def attention(self, name: str) -> Tensors:
        """Yield the projections of the layer `name`, and the unquantized tensors between them."""
        linear = self.scheme.linear
        if int(name.rpartition(".")[2]) % 2:
            queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
            for part, rows in (("q", 2 * queries), ("k", keys), ("v", keys)):
                yield from linear(f"{name}.self_attn.{part}_proj", rows, self.hidden)
            yield from linear(f"{name}.self_attn.o_proj", self.hidden, queries)
            for part in "qk":
                yield f"{name}.self_attn.{part}_norm.weight", ones(self.head_dim)
            return
        name = f"{name}.linear_attn"
        keys, values = self.linear_keys * self.linear_dim, self.linear_values * self.linear_dim
        yield from linear(f"{name}.in_proj_qkv", 2 * keys + values, self.hidden)
        yield from linear(f"{name}.in_proj_z", values, self.hidden)
        for part in "ab":
            yield f"{name}.in_proj_{part}.weight", normal(self.linear_values, self.hidden) * self.hidden**-0.5
        yield f"{name}.conv1d.weight", normal(2 * keys + values, 1, 4) * 0.5
        yield f"{name}.A_log", torch.zeros(self.linear_values)
        yield f"{name}.dt_bias", ones(self.linear_values)
        yield f"{name}.norm.weight", ones(self.linear_dim)
        yield from linear(f"{name}.out_proj", self.hidden, values)

    def not_converted(self) -> list[str]:
        """Return the Linears that are not quantized though others of their kind are."""
        return [
            f"model.layers.{layer}.linear_attn.in_proj_{part}" for layer in range(0, self.layers, 2) for part in "ab"
        ]

    def config(self) -> dict[str, Any]:
        """Return its sizes under the names that Hugging Face configs use."""
        kinds = ["full_attention" if layer % 2 else "linear_attention" for layer in range(self.layers)]
        return {
            **SharedExpertDecoder.config(self),
            "architectures": ["Qwen3_5MoeForCausalLM"],
            "model_type": "qwen3_5_moe_text",
            "layer_types": kinds,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": self.linear_dim,
            "linear_value_head_dim": self.linear_dim,
            "linear_num_key_heads": self.linear_keys,
            "linear_num_value_heads": self.linear_values,
        }


@dataclass(frozen=True, slots=True)
class StepDecoder(SharedExpertDecoder):
    """Step-3.5 without a gate in its attention: the first layer is dense, routed experts are stacked in 3-D weights."""

    dense: int = 11264

    def attention(self, name: str) -> Tensors:
        """Yield the projections of the layer `name` and its per-head norms."""
        yield from Decoder.attention(self, name)
        for part in "qk":
            yield f"{name}.self_attn.{part}_norm.weight", ones(self.head_dim)

    def mlp(self, name: str) -> Tensors:
        """Yield the dense MLP, or the shared expert and the routed ones."""
        if name.endswith(".0"):
            yield from gated_mlp(self.scheme, f"{name}.mlp", self.hidden, self.dense)
            return
        yield from gated_mlp(self.scheme, f"{name}.share_expert", self.hidden, self.intermediate)
        yield f"{name}.moe.gate.weight", normal(self.experts, self.hidden).float() * self.hidden**-0.5
        yield f"{name}.moe.router_bias", torch.zeros(self.experts)
        experts = [dict(gated_mlp(self.scheme, f"{name}.moe", self.hidden, self.routed)) for _ in range(self.experts)]
        for tensor in experts[0]:
            yield tensor, torch.stack([expert[tensor] for expert in experts])

    def config(self) -> dict[str, Any]:
        """Return its sizes under the names that Step-3.5's config uses."""
        return {
            **Decoder.config(self),
            "architectures": ["Step3p5ForCausalLM"],
            "model_type": "step3p5",
            "intermediate_size": self.dense,
            "share_expert_dim": self.intermediate,
            "moe_intermediate_size": self.routed,
            "num_attention_groups": self.kv_heads,
            "moe_num_experts": self.experts,
            "moe_top_k": self.experts_per_token,
            "moe_layers_enum": ",".join(map(str, range(1, self.layers))),
            "layer_types": ["full_attention"] * self.layers,
            "norm_expert_weight": True,
            "use_moe_router_bias": True,
            "moe_router_activation": "sigmoid",
            "moe_router_scaling_factor": 3.0,
            "need_fp32_gate": True,
            "use_head_wise_attn_gate": False,
            "rope_theta": 10000.0,
        }


def ones(size: int) -> torch.Tensor:
    """Return the weight of a norm that changes nothing."""
    return torch.ones(size, dtype=torch.bfloat16)


def gated_mlp(scheme: Fp8Scheme, name: str, hidden: int, intermediate: int, *, bias: bool = False) -> Tensors:
    """Yield the three projections of an MLP."""
    yield from scheme.linear(f"{name}.gate_proj", intermediate, hidden, bias=bias)
    yield from scheme.linear(f"{name}.up_proj", intermediate, hidden, bias=bias)
    yield from scheme.linear(f"{name}.down_proj", hidden, intermediate, bias=bias)

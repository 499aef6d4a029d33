"""What a name says: whether a module is a Linear, how ranks divide it, which tensors are its scales.

An engine loads an FP8 weight `[N, K]` into a Linear if its model has one of that name. The words below cover the names
of every Linear in vLLM 0.33 (vllm/models and vllm/model_executor/models) and transformers 5; a module without any of
them, such as a table with a new name, is not considered a Linear.
"""

import re
from functools import lru_cache
from typing import Literal

_LINEAR_WORDS = frozenset(
    {"adapter", "adaptor", "attn", "classifier", "connector", "conv", "decoder", "dense", "down", "fc",
     "feedforward", "ff", "ffn", "ffw", "fused", "gate", "gates", "glu", "head", "heads", "in",
     "intermediate", "k", "keys", "kv", "layer", "lin", "linear", "lora", "merger", "mixer", "mlp", "mod",
     "net", "o", "out", "output", "outputs", "pooler", "predictor", "proj", "project", "projection",
     "projections", "projector", "projs", "q", "qk", "qkv", "receptance", "reduction", "router", "score",
     "scorer", "to", "transform", "transformation", "up", "v", "values", "weights"}
)  # fmt: skip
_LINEAR_NAMES = re.compile(r"w[qkvoigr]{0,4}\d*(_(?!te|pe)\w+)?|(\w+_)?(query|key|value)(_proj)?|[abgx]")
_TABLE_WORDS = re.compile(r"emb|embed(s|der|ders|ding|dings)?|wte|wpe|vte|tables?|codebooks?|lookup")
# A name with one of these is a Linear's even if it mentions embeddings too: `embedding_projection`, `embed_out`.
_PROJECTIONS = frozenset(
    {"dense", "fc", "head", "lin", "linear", "mlp", "out", "proj", "project", "projection", "projections", "projector",
     "transformation"}
)  # fmt: skip
# Parts of a name that are only numbers or containers: `mlp.0`, `projector.layers.1`, `ngram_embedding.shard_3`.
_HOLDERS = re.compile(r"\d+|(shard|part|chunk|split)s?_?\d*|layers|blocks|modules?|base_layer|original_module")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


Division = Literal["column", "row", "replicated"]
Part = Division | Literal["gate_up"]
# The last part of the names of every `RowParallelLinear` and `ReplicatedLinear` in vLLM 0.33.
# Everything else is column-parallel.
_ROW = frozenset(
    {"Wo", "c_proj", "dense", "dense_4h_to_h", "down_proj", "fc2", "fc_out", "linear2", "linear_2",
     "linear_fc2", "linear_right", "o_proj", "out_mid", "out_proj", "out_projection", "output_linear",
     "post_projection", "proj", "projection", "v_head", "vision_projection", "w2", "wo", "wo_b", "wo_ud",
     "x_proj"}
)  # fmt: skip
_REPLICATED = frozenset(
    {"attn_res_proj", "classifier", "context_proj", "context_wkv_proj", "conv_out", "correction_coefs",
     "e_proj", "eh_proj", "embedding_projection", "fc", "fc1_latent_proj", "fc2_latent_proj", "fc3",
     "fused_qkv_a_proj", "fused_wkv_wgate", "fused_wqa_wkv", "g_a_proj", "gate", "h_proj", "hc_fn",
     "hc_head_fn", "hidden_projection", "index_qk_proj", "input_mix_weight_down", "input_mix_weight_up",
     "input_proj", "kernel_projection", "kv_a_proj_with_mqa", "linear_proj", "main_proj", "mlp_res_proj",
     "modality_projection", "modality_router", "output_attn_res_proj", "per_layer_input_gate",
     "per_layer_projection", "pooler", "prediction_coefs", "proj1", "proj2", "project_in", "project_out",
     "q_a_proj", "res_proj", "routed_expert_down_proj", "routed_expert_up_proj", "router", "score",
     "self_attention_res_proj", "shared_expert_gate", "stem_proj", "text_experts_gate", "unpooler", "v_router",
     "vision_experts_gate", "weights_proj", "wk_weights_proj", "wq_a"}
)  # fmt: skip
# Every Linear inside these is replicated: DeepSeek V3.2's and V4's indexers and compressors.
_REPLICATED_PARENTS = frozenset({"compressor", "indexer"})
# Gate and up in one tensor on disk, one after the other.
_FUSED_MLP = frozenset({"gate_up_proj", "input_linear"})

INPUT_SCALES = ("input_scale", "input_activation_scale", "activation_scale")
# What tools append to a weight's name for the name of its scale, the usual one first.
SCALE_SUFFIXES = ("_scale", "_scale_inv")
_SCALE_ENDINGS = (*(suffix[1:] for suffix in SCALE_SUFFIXES), "scales", "scale_2", "scale_ub", "zero_point")


def type_by_name(module: str) -> Literal["linear", "table"] | None:
    """Return what a module is according to its name; None if the name does not tell."""
    return _type_by_name(own_name(module))


@lru_cache
def _type_by_name(name: str) -> Literal["linear", "table"] | None:
    words = {word.lower() for word in _WORD.findall(name)}
    if any(_TABLE_WORDS.fullmatch(word) for word in words) and words.isdisjoint(_PROJECTIONS):
        return "table"
    if "bias" in words and words.isdisjoint(_PROJECTIONS):
        return None
    is_linear = not words.isdisjoint(_LINEAR_WORDS) or _LINEAR_NAMES.fullmatch(name.lower())
    return "linear" if is_linear else None


def own_name(module: str) -> str:
    """Return the last part of a module's name that is not a number or a holder of numbered parts."""
    parts = module.split(".")
    return next((part for part in reversed(parts) if not _HOLDERS.fullmatch(part)), parts[-1])


def part_by_name(name: str) -> Part | None:
    """Return how ranks divide a module according to its name; None if the name does not tell."""
    *_, parent, last = ("", *name.split("."))
    if last in _REPLICATED or parent in _REPLICATED_PARENTS:
        return "replicated"
    # A merger or projector is a sequence: `mlp.0`, an activation, `mlp.2`.
    if last in _ROW or (last == "2" and parent == "mlp"):
        return "row"
    return "gate_up" if last in _FUSED_MLP else None


def module_name(weight_name: str) -> str:
    """Return the module that a weight belongs to; a bare parameter is its own module."""
    return weight_name.removesuffix(".weight")


def scale_names(weight_name: str) -> tuple[str, ...]:
    """Return the names under which tools store the scale of a weight, the usual ones first."""
    module = module_name(weight_name)
    return *(weight_name + suffix for suffix in SCALE_SUFFIXES), f"{module}.scale", f"{module}_weight_scale"


def is_scale_name(name: str) -> bool:
    """Return whether a tensor is a scale or a zero point, judging by its name."""
    return name.endswith(_SCALE_ENDINGS)

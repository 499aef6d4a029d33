"""Telling by its name whether a module is a Linear, a table of embeddings, or neither.

An engine loads an FP8 weight `[N, K]` into a Linear where its model has one of that name. The words below are those of
the names of every Linear in vLLM 0.33 (vllm/models and vllm/model_executor/models) and transformers 5; what has none of
them, a table under some new name for one, is not taken for a Linear.
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
# A name with one of these is a Linear's although it speaks of embeddings too: `embedding_projection`, `embed_out`.
_PROJECTIONS = frozenset(
    {"dense", "fc", "head", "lin", "linear", "mlp", "out", "proj", "project", "projection", "projections", "projector",
     "transformation"}
)  # fmt: skip
# Parts that only number or hold others: `mlp.0`, `projector.layers.1`, `ngram_embedding.shard_3`.
_HOLDERS = re.compile(r"\d+|(shard|part|chunk|split)s?_?\d*|layers|blocks|modules?|base_layer|original_module")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def kind_of(module: str) -> Literal["linear", "table"] | None:
    """Return what the name of a module says that it is; None where it says neither."""
    return _kind_of(own_name(module))


@lru_cache
def _kind_of(name: str) -> Literal["linear", "table"] | None:
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

"""How engines divide each Linear of a model among tensor-parallel ranks.

Which way a module is divided follows from its place in the network. Its name says it (planning/linear_names.py); where
two models use one name for two things, the family file says which is meant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import itemgetter

from fp8pad.planning.families import Section
from fp8pad.planning.families.family import Role
from fp8pad.planning.linear_names import Division, Part, part_by_name
from fp8pad.planning.sharding import COLUMN, REPLICATED, ROW, RowGroup, Sharding
from fp8pad.record import Json

_PART_OF_ROLE: Mapping[Role, Part] = {"gate": "column", "up": "column", "gate_up": "gate_up", "down": "row"}

# Rows of these are tokens, whose number engines pad (`VocabParallelEmbedding` and `ParallelLMHead` in vLLM).
_VOCABULARY = frozenset(
    {"embed", "embed_out", "embed_tokens", "embed_tokens_per_layer", "embedding", "head", "lm_head",
     "output_layer", "per_layer_embed_tokens", "proj_out", "word_embeddings", "wte"}
)  # fmt: skip

_QUERIES = frozenset({"q_proj"})
_KEY_VALUE = frozenset({"k_proj", "v_proj"})
# Queries, keys and values in one tensor on disk.
_FUSED_ATTENTION = frozenset({"W_pack", "Wqkv", "att_proj", "c_attn", "qkv", "qkv_proj", "query_key_value"})
_ATTENTION = _QUERIES | _KEY_VALUE | _FUSED_ATTENTION
# Engines fuse these with the matrix that follows: up, the key, the value, or the latent key-value projection.
_FOLLOWED_BY = {
    "gate_proj": "up_proj", "k_proj": "v_proj", "q_a_proj": "kv_a_proj_with_mqa", "q_proj": "k_proj", "w1": "w3",
    "wq_a": "wkv"
}  # fmt: skip
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_TEXT_PARTS = ("thinker_config", "text_config", "llm_config", "language_config")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")


def shardings(
    shapes: Mapping[str, tuple[int, int]],
    sections: Sequence[Section],
    roles: Mapping[str, Role],
    divided: Mapping[str, Division] = {},
) -> dict[str, Sharding]:
    """Return how each of `shapes`, `(N, K)` by module, is divided among ranks.

    `roles` are those that modules have in MLPs, `divided` how others are divided, as family files say.
    """
    described = {name: _PART_OF_ROLE[role] for name, role in roles.items()} | dict(divided)
    found: dict[str, Sharding] = {}
    for name, (num_n, _) in shapes.items():
        how = _sharding(name, num_n, described[name] if name in described else part_by_name(name), sections)
        is_followed = roles.get(name) == "gate" or _follower(name) in shapes
        found[name] = _followed(how) if is_followed else how
    return found


@cache
def _followed(how: Sharding) -> Sharding:
    return replace(how, is_followed=True)


def _follower(name: str) -> str | None:
    parent, dot, last = name.rpartition(".")
    return f"{parent}{dot}{_FOLLOWED_BY[last]}" if last in _FOLLOWED_BY else None


def _sharding(name: str, num_n: int, part: Part | None, sections: Sequence[Section]) -> Sharding:
    last = name.rpartition(".")[2]
    if part == "row":
        return ROW
    if part == "replicated":
        return REPLICATED
    if part is None and last in _VOCABULARY:
        return Sharding(is_vocabulary=True)
    if part != "gate_up" and last not in _ATTENTION:
        return COLUMN
    groups = (RowGroup(), RowGroup()) if part == "gate_up" else _attention(last, *num_heads(name, sections))
    return Sharding(groups=groups) if num_n % sum(group.weight for group in groups) == 0 else COLUMN


def _attention(last: str, queries: int | None, keys: int | None) -> tuple[RowGroup, ...]:
    """The matrices of attention that a layer named so holds, in a part of the model with so many heads."""
    if queries and last in _QUERIES:
        return (RowGroup(queries, queries),)
    if keys and last in _KEY_VALUE:
        return (RowGroup(keys, keys, is_copied=True),)
    if queries and keys and last in _FUSED_ATTENTION:
        key_value = RowGroup(keys, keys, is_copied=True)
        return RowGroup(queries, queries), key_value, key_value
    return (RowGroup(),)


def num_heads(module: str, sections: Sequence[Section]) -> tuple[int | None, int | None]:
    """Return the numbers of heads and of key-value heads of the part of the model in which `module` lies.

    None is what its config does not say; a config without key-value heads has as many as heads.
    """
    around = [
        (len(prefix), section) for section in sections for prefix in section.prefixes if module.startswith(prefix)
    ]
    if not around:
        return None, None
    config = max(around, key=itemgetter(0))[1].config
    queries = _first_count(config, _HEADS)
    keys = 1 if config.get("multi_query") else _first_count(config, _KEY_VALUE_HEADS)
    return queries, keys or queries


def text_heads(config: Json) -> int | None:
    """Return the attention heads that the config of a model, or of its text part, says; None if it does not."""
    parts = (config.get(key) for key in _TEXT_PARTS)
    text = next((part for part in parts if isinstance(part, Mapping)), None)
    return text_heads(text) if text is not None else _first_count(config, _HEADS)


def _first_count(config: Json, keys: Sequence[str]) -> int | None:
    counts = (config[key] for key in keys if key in config)
    return next((count for count in counts if type(count) is int and count > 0), None)

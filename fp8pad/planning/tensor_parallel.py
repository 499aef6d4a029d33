"""How engines divide each Linear of a model among tensor-parallel ranks.

How a module is divided depends on its place in the network. Its name tells (planning/linear_names.py); if two models
use one name for different things, the family file says which is meant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import itemgetter
from types import MappingProxyType

from fp8pad.planning.absorb.governed import GovernedAxis
from fp8pad.planning.families import Section
from fp8pad.planning.families.family import Role
from fp8pad.planning.linear_names import Division, Part, part_by_name
from fp8pad.planning.sharding import COLUMN, REPLICATED, ROW, Neighbour, RowGroup, Shape, Sharding
from fp8pad.record import Json

_PART_OF_ROLE: Mapping[Role, Part] = {"gate": "column", "up": "column", "gate_up": "gate_up", "down": "row"}

# Rows of these are tokens; engines pad their number (`VocabParallelEmbedding` and `ParallelLMHead` in vLLM).
_VOCABULARY = frozenset(
    {"embed", "embed_out", "embed_tokens", "embed_tokens_per_layer", "embedding", "head", "lm_head",
     "output_layer", "per_layer_embed_tokens", "proj_out", "word_embeddings", "wte"}
)  # fmt: skip

_QUERIES = frozenset({"q_proj"})
_KEY_VALUE = frozenset({"k_proj", "v_proj"})
# Queries, keys and values in one tensor on disk.
_FUSED_ATTENTION = frozenset({"W_pack", "Wqkv", "att_proj", "c_attn", "qkv", "qkv_proj", "query_key_value"})
_ATTENTION = _QUERIES | _KEY_VALUE | _FUSED_ATTENTION
# What engines fuse into one layer, in this order: gate and up, attention, or the latent projections.
_FUSED = {
    last: names for names in (
        ("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"), ("q_a_proj", "kv_a_proj_with_mqa"), ("w1", "w3"),
        ("wq_a", "wkv"),
    ) for last in names
}  # fmt: skip
_HEADS = ("num_attention_heads", "n_head", "num_heads", "vt_num_attention_heads")
_TEXT_PARTS = ("thinker_config", "text_config", "llm_config", "language_config")
_KEY_VALUE_HEADS = (
    "n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups"
)  # fmt: skip
# Layers of a second kind may have another number of key-value heads, and heads of other sizes: MiMo-V2, Gemma 4.
_OTHER_KEY_VALUE_HEADS = ("swa_num_key_value_heads", "num_global_key_value_heads")
_HEAD_SIZES = ("head_dim", "v_head_dim", "swa_head_dim", "swa_v_head_dim", "global_head_dim")
# Models whose ranks hold no copies of key-value heads: vllm/model_executor/models/param2moe.py:121,
# vllm/models/inkling/nvidia/sconv_swa_attn.py:142, vllm/models/muse_spark/common/layers.py:369.
_WITHOUT_COPIES = frozenset({"inkling_model", "inkling_text", "muse_spark_text", "musespark1x_text", "param2moe"})
_MAMBA_HEADS = ("mamba_num_heads", "mamba_n_heads", "n_mamba_heads")
_MAMBA_GROUPS = ("n_groups", "mamba_n_groups", "mamba_ngroups")
_OUTPUT_GROUPS = ("o_groups",)
Sizes = Mapping[str, tuple[int, int]]
# In an MLP with both, gate and up have the same size, absorbed or not.
_OTHER_HALF = (Neighbour(1, 1, COLUMN.groups),)


@dataclass(frozen=True, slots=True)
class SharedCount:
    """The number of things in a model that ranks must share evenly; there may be fewer than ranks if they are copied.

    For neurons of an MLP, `module` is where they are, and `path` is the config key of their number. Nothing is known
    about them if ranks cannot share the `heads` of their part of the model: some models then replicate the whole part.
    """

    number: int
    what: str
    is_copied: bool = False
    module: str = ""
    path: str = ""
    heads: int = 0

    def is_shared_by(self, num_ranks: int, grown: Sizes = MappingProxyType({})) -> bool:
        """Return whether `num_ranks` ranks can share them, as far as is known; for `grown`, see `number_of`."""
        if self.heads % num_ranks:
            return True
        return RowGroup(is_copied=self.is_copied).rank_rows(self.number_of(grown), num_ranks) is not None

    def number_of(self, grown: Sizes) -> int:
        """Return how many there are after config keys have grown; `grown` maps their paths to `(old, new)`."""
        old, new = grown.get(self.path, (1, 1))
        return self.number * new // old


def shardings(
    shapes: Mapping[str, tuple[int, int]],
    sections: Sequence[Section],
    modules: Mapping[str, GovernedAxis] = MappingProxyType({}),
    divided: Mapping[str, Division] = MappingProxyType({}),
) -> dict[str, Sharding]:
    """Return how each of `shapes`, `(N, K)` by module, is divided among ranks.

    `modules` are those in MLPs, and `divided` is how others are divided, according to family files.
    """
    described = {name: _PART_OF_ROLE[axis.role] for name, axis in modules.items()} | dict(divided)
    found = {
        name: _sharding(name, num_n, described[name] if name in described else part_by_name(name), sections)
        for name, (num_n, _) in shapes.items()
    }
    halves = {
        name: axis.role
        for name, axis in modules.items()
        if axis.role in ("gate", "up") and axis.mlp.is_gated and divided.get(name) != "replicated"
    }
    return {name: _fused(how, *_beside(name, shapes, halves.get(name), found)) for name, how in found.items()}


@cache
def _fused(how: Sharding, place: int, others: tuple[Neighbour, ...]) -> Sharding:
    return replace(how, place=place, fused_with=others) if others else how


def _beside(
    name: str, shapes: Mapping[str, Shape], half: Role | None, found: Mapping[str, Sharding]
) -> tuple[int, tuple[Neighbour, ...]]:
    """Return the position of a matrix in the layer that an engine fuses it into, and the others in that layer."""
    if half:
        return ("gate", "up").index(half), _OTHER_HALF
    parent, dot, last = name.rpartition(".")
    if last not in _FUSED:
        return 0, ()
    names = [other for part in _FUSED[last] if (other := f"{parent}{dot}{part}") in shapes]
    own_n = shapes[name][0]
    others = (Neighbour(shapes[other][0], own_n, found[other].groups) for other in names if other != name)
    return names.index(name), tuple(others)


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
    groups = (RowGroup(), RowGroup()) if part == "gate_up" else _attention(last, num_n, _config_of(name, sections))
    return Sharding(groups=groups) if num_n % sum(group.weight for group in groups) == 0 else COLUMN


def _attention(last: str, num_n: int, config: Json) -> tuple[RowGroup, ...]:
    """Return the attention matrices in a layer of `num_n` rows by its last name and the config's numbers of heads.

    Nothing is known of heads that the config does not count; without key-value heads it has as many as heads.
    """
    queries = num_heads(config)
    keys = _key_value_heads(config) or queries
    if queries and last in _QUERIES:
        return (RowGroup(queries, queries),)
    if keys and last in _KEY_VALUE:
        sizes = [config.get(key) for key in _HEAD_SIZES]
        counts = [keys, *(count for key in _OTHER_KEY_VALUE_HEADS if (count := _first_count(config, (key,))))]
        keys = next((count for count in counts if num_n % count == 0 and num_n // count in sizes), keys)
        return (RowGroup(keys, keys, is_copied=True),)
    if queries and keys and last in _FUSED_ATTENTION:
        key_value = RowGroup(keys, keys, is_copied=True)
        return RowGroup(queries, queries), key_value, key_value
    return (RowGroup(),)


def _config_of(module: str, sections: Sequence[Section]) -> Json:
    """Return the config of the part of the model that a module belongs to; it is empty if none is known."""
    around = [
        (len(prefix), section) for section in sections for prefix in section.prefixes if module.startswith(prefix)
    ]
    return max(around, key=itemgetter(0))[1].config if around else {}


def num_heads(config: Json) -> int | None:
    """Return the number of attention heads of a part of a model; None if its config does not say."""
    return _first_count(config, _HEADS)


def shared_counts(config: Json) -> tuple[SharedCount, ...]:
    """Return the counts in the config of a model, or of its text part, that ranks must share evenly, FP8 or not.

    vLLM requires the same: config/model.py `verify_with_parallel_config`; the attention of each model for key-value
    heads; layers/mamba/mamba_mixer2.py; models/deepseek_v4/attention.py for groups of the output.
    """
    parts = (config.get(key) for key in _TEXT_PARTS)
    text = next((part for part in parts if isinstance(part, Mapping)), None)
    if text is not None:
        return shared_counts(text)
    groups, are_copied = _first_count(config, _MAMBA_GROUPS), str(config.get("model_type")) not in _WITHOUT_COPIES
    found = [
        (num_heads(config), "attention heads", False),
        (None if config.get("kv_lora_rank") else _key_value_heads(config), "key-value heads", are_copied),
        (_first_count(config, _MAMBA_HEADS), "Mamba heads", False),
        (groups if groups != 1 else None, "groups of Mamba heads", False),
        (_first_count(config, _OUTPUT_GROUPS), "groups of attention outputs", False),
    ]
    return tuple(SharedCount(number, what, is_copied) for number, what, is_copied in found if number)


def _key_value_heads(config: Json) -> int | None:
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    return _first_count(config, _KEY_VALUE_HEADS)


def _first_count(config: Json, keys: Sequence[str]) -> int | None:
    counts = (config[key] for key in keys if key in config)
    return next((count for count in counts if type(count) is int and count > 0), None)

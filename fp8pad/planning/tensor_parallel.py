"""How engines divide a Linear among tensor-parallel ranks: arithmetic on sizes, no engine asked.

An engine splits a column-parallel layer along N, a row-parallel one along K, and a replicated one not at all. Which of
these a module is follows from its place in the network. Its name says it (planning/linear_names.py); where two models
use one name for two things, the family file says which is meant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import itemgetter
from typing import Literal

from fp8pad.geometry import round_up
from fp8pad.planning.families import Section
from fp8pad.planning.families.family import Role
from fp8pad.planning.linear_names import Division, Part, part_by_name
from fp8pad.record import Json

Rows = tuple[int, ...]
Shape = tuple[int, int]
Fit = Literal["aligned", "unaligned", "ends inside block", "inside block", "indivisible", "not assessed"]

_PART_OF_ROLE: Mapping[Role, Part] = {"gate": "column", "up": "column", "gate_up": "gate_up", "down": "row"}

# Rows of these are tokens, whose number engines pad (`VocabParallelEmbedding` and `ParallelLMHead` in vLLM).
_VOCABULARY = frozenset(
    {"embed", "embed_out", "embed_tokens", "embed_tokens_per_layer", "embedding", "head", "lm_head",
     "output_layer", "per_layer_embed_tokens", "proj_out", "word_embeddings", "wte"}
)  # fmt: skip
_VOCABULARY_MULTIPLE = 64  # `DEFAULT_VOCAB_PADDING_SIZE`, vllm/model_executor/layers/vocab_parallel_embedding.py

_QUERIES = frozenset({"q_proj"})
_KEY_VALUE = frozenset({"k_proj", "v_proj"})
# Queries, keys and values in one tensor on disk.
_FUSED_ATTENTION = frozenset({"W_pack", "Wqkv", "att_proj", "c_attn", "qkv", "qkv_proj", "query_key_value"})
# Engines fuse these with the matrix that follows: up, the key, the value, or the latent key-value projection.
_FOLLOWED_BY = {
    "gate_proj": "up_proj", "k_proj": "v_proj", "q_a_proj": "kv_a_proj_with_mqa", "q_proj": "k_proj", "w1": "w3",
    "wq_a": "wkv"
}  # fmt: skip
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_TEXT_PARTS = ("thinker_config", "text_config", "llm_config", "language_config")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One of the matrices that lie one behind another along N.

    `weight` is its share of N, relative to the others'. `heads` is the number of attention heads that it holds, none of
    which is ever split; None where single rows can be. Where there are more ranks than heads, ranks hold copies of
    key-value heads, which `is_copied` marks (vllm/model_executor/layers/linear.py, `QKVParallelLinear`).
    """

    weight: int = 1
    heads: int | None = None
    is_copied: bool = False

    def rank_rows(self, num_n: int, num_ranks: int) -> int | None:
        """Return how many of `num_n` rows a rank holds; None where they cannot be split evenly."""
        units = self.heads or num_n
        if self.is_copied and units < num_ranks:
            return num_n // units if num_ranks % units == 0 else None
        return num_n // num_ranks if units % num_ranks == 0 else None


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a Linear is divided among ranks.

    `groups` are the matrices of a column-parallel layer, several where it is fused on disk. `is_vocabulary` marks one
    whose rows are tokens: engines pad their number to a multiple of 64 before they split it. `is_followed` marks one
    that engines fuse with a matrix behind it.
    """

    axis: Division = "column"
    groups: tuple[RowGroup, ...] = (RowGroup(),)
    is_vocabulary: bool = False
    is_followed: bool = False

    def part(self, shape: Shape, num_ranks: int) -> "RankPart":
        """Return what one of `num_ranks` ranks holds of a layer `(N, K)`."""
        num_n, num_k = shape
        if self.axis == "column":
            rows = self.rank_rows(num_n, num_ranks)
            return RankPart(num_ranks, sum(rows) if rows else None, num_k, rows)
        return RankPart(num_ranks, num_n, _share(num_k, num_ranks) if self.axis == "row" else num_k)

    def fit(self, shape: Shape, block: Shape, alignment: Shape, num_ranks: int) -> Fit:
        """Return how a rank's part of a layer `(N, K)` fits scale blocks and kernels.

        Only a size that is split can be "unaligned": padding the whole layer is what aligns the others.
        """
        part = self.part(shape, num_ranks)
        if part.num_n is None or part.num_k is None:
            return "indivisible"
        if self.begins_inside_block(part, block):
            return "inside block"
        sizes = zip((part.num_n, part.num_k), shape, alignment, strict=True)
        return "unaligned" if any(share != size and share % multiple for share, size, multiple in sizes) else "aligned"

    def begins_inside_block(self, part: "RankPart", block: Shape) -> bool:
        """Return whether a rank's `part` begins inside a scale block `(n, k)`: no scale on disk would be right for it.

        In a column-parallel layer that goes for each matrix, a copied key or value too: it lies beside split queries.
        """
        if part.num_ranks == 1:
            return False
        if self.axis == "row":
            return part.num_k is not None and part.num_k % block[1] != 0
        return any(rows % block[0] for rows in part.rows)

    def ends_inside_block(self, part: "RankPart", block: Shape) -> bool:
        """Return whether a matrix of a rank's `part` that another follows ends inside a scale block `(n, k)`."""
        rows = part.rows or (part.num_n or 0,)
        return any(num_n % block[0] for num_n in (rows if self.is_followed else rows[:-1]))

    def rank_rows(self, num_n: int, num_ranks: int) -> Rows:
        """Return the N of each matrix that a column-parallel layer holds on a rank.

        Empty for other layers, and where one cannot be split evenly.
        """
        if self.axis != "column":
            return ()
        num_n = round_up(num_n, _VOCABULARY_MULTIPLE) if self.is_vocabulary else num_n
        groups = zip(self.groups, self.group_rows(num_n), strict=True)
        rows = [group.rank_rows(size, num_ranks) for group, size in groups]
        return tuple(size for size in rows if size) if all(rows) else ()

    def group_rows(self, num_n: int) -> Rows:
        """Return the N of each of the matrices that a layer holds in all."""
        whole = sum(group.weight for group in self.groups)
        return tuple(num_n * group.weight // whole for group in self.groups)


@dataclass(frozen=True, slots=True)
class RankPart:
    """What one rank holds of a layer: N, K, and the N of each matrix of a column-parallel one.

    N or K is None where it cannot be split evenly, and there are no rows then.
    """

    num_ranks: int
    num_n: int | None
    num_k: int | None
    rows: Rows = ()

    def is_aligned(self, alignment: Shape) -> bool:
        """Return whether N and K can be split and are multiples of `alignment`."""
        sizes = zip((self.num_n, self.num_k), alignment, strict=True)
        return all(size is not None and size % multiple == 0 for size, multiple in sizes)


COLUMN = Sharding()


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
    parts = {name: described[name] if name in described else part_by_name(name) for name in shapes}
    followed = {name for name in shapes if roles.get(name) == "gate" or _follower(name) in shapes}
    found = {name: _sharding(name, num_n, parts[name], sections) for name, (num_n, _) in shapes.items()}
    return {name: _followed(how) if name in followed else how for name, how in found.items()}


@cache
def _followed(how: Sharding) -> Sharding:
    return replace(how, is_followed=True)


def _follower(name: str) -> str | None:
    parent, dot, last = name.rpartition(".")
    return f"{parent}{dot}{_FOLLOWED_BY[last]}" if last in _FOLLOWED_BY else None


def _sharding(name: str, num_n: int, part: Part | None, sections: Sequence[Section]) -> Sharding:
    last = name.rpartition(".")[2]
    if part in ("row", "replicated"):
        return Sharding(part)
    if part is None and last in _VOCABULARY:
        return Sharding(is_vocabulary=True)
    groups = (RowGroup(), RowGroup()) if part == "gate_up" else _attention(name, sections)
    return Sharding(groups=groups) if num_n % sum(group.weight for group in groups) == 0 else COLUMN


def _attention(name: str, sections: Sequence[Section]) -> tuple[RowGroup, ...]:
    """The matrices of attention that a layer named so holds, if the part of the model that it lies in has heads."""
    last = name.rpartition(".")[2]
    if last not in _QUERIES | _KEY_VALUE | _FUSED_ATTENTION:
        return (RowGroup(),)
    queries, keys = num_heads(name, sections)
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


def _share(size: int, num_ranks: int) -> int | None:
    return size // num_ranks if size % num_ranks == 0 else None

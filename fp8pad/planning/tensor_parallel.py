"""Which layers a tensor-parallel size would leave unaligned on its ranks: arithmetic on the plan, no engine asked.

An engine splits a column-parallel layer along N, a row-parallel one along K, and a replicated one not at all. Whether a
module is one or the other is a matter of its place in the network, and its name says it: the tables below hold the
last part of the names of every `RowParallelLinear` and `ReplicatedLinear` in vLLM 0.33's models
(vllm/model_executor/models); everything else is taken as column-parallel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal

from fp8pad.planning.families import Section
from fp8pad.planning.plan import LayerPlan

Parallelism = Literal["column", "row", "replicated"]

_ROW = frozenset(
    {"Wo", "c_proj", "dense", "dense_4h_to_h", "down_proj", "fc2", "fc_out", "linear_fc2", "o_proj", "out_proj",
     "output_linear", "proj", "w2", "wo"}
)  # fmt: skip
_REPLICATED = frozenset(
    {"fc1_latent_proj", "fc2_latent_proj", "gate", "kv_a_proj_with_mqa", "project_in", "project_out", "q_a_proj",
     "router", "shared_expert_gate", "wk", "wq_b"}
)  # fmt: skip
_KEY_VALUE = frozenset({"k_proj", "v_proj"})
# Queries, keys and values in one tensor on disk.
_FUSED_ATTENTION = frozenset({"W_pack", "Wqkv", "c_attn", "qkv", "qkv_proj", "query_key_value"})
# Gate and up in one tensor on disk, one behind the other.
_FUSED_MLP = frozenset({"gate_up_proj", "input_linear"})
_HEADS = ("num_attention_heads", "n_head", "num_heads")


@dataclass(frozen=True, slots=True)
class RankOutlook:
    """What a tensor-parallel size would meet in the converted checkpoint, by module names.

    `unaligned` layers have a size on a rank that is not a multiple of their alignment; `indivisible` ones cannot be
    split evenly, which engines refuse. `inside_block` are the block-scaled layers that no padding at load helps,
    unaligned or not: a fused one may be aligned though its matrices are not.
    """

    tensor_parallel_size: int
    unaligned: tuple[str, ...]
    indivisible: tuple[str, ...]
    inside_block: tuple[str, ...]

    @property
    def is_clear(self) -> bool:
        """Whether every layer, and every matrix of a block-scaled one, is aligned on every rank."""
        return not (self.unaligned or self.indivisible or self.inside_block)

    @property
    def options(self) -> str:
        """The options of `fp8pad convert` that make this size possible wherever MLPs are what stands in its way."""
        return f"--absorb --tensor-parallel-size {self.tensor_parallel_size}"


def parallelism_of(module: str) -> Parallelism:
    """Return how engines split a module, told from the last part of its name."""
    *_, parent, last = ("", *module.split("."))
    if last in _REPLICATED:
        return "replicated"
    # A merger or projector is a sequence: `mlp.0`, an activation, `mlp.2`.
    if last in _ROW or (last == "2" and parent == "mlp"):
        return "row"
    return "column"


def is_attention(module: str) -> bool:
    """Return whether a module is a part of attention, whose sizes nothing can absorb, told from its name."""
    return any("attn" in part or "attention" in part for part in module.split("."))


def num_heads(module: str, sections: Sequence[Section]) -> tuple[int | None, int | None]:
    """Return the numbers of heads and of key-value heads of the part of the model in which `module` lies.

    None is what its config does not say.
    """
    around = [
        (len(prefix), section) for section in sections for prefix in section.prefixes if module.startswith(prefix)
    ]
    if not around:
        return None, None
    config = max(around, key=itemgetter(0))[1].config
    queries = next((config[key] for key in _HEADS if key in config), None)
    keys = config.get("num_key_value_heads", 1 if config.get("multi_query") else None)
    return _count(queries), _count(keys)


def rank_shape(
    layer: LayerPlan, tensor_parallel_size: int, sections: Sequence[Section] = ()
) -> tuple[int | None, int | None]:
    """Return the `(N, K)` that one of `tensor_parallel_size` ranks holds; None for a size that cannot be split evenly.

    The sizes split are those that the converted config asks for. Key-value heads are never split: where there are
    fewer heads than ranks, ranks hold copies (vllm/model_executor/layers/linear.py, `QKVParallelLinear`).
    """
    num_n, num_k = layer.config_shape[-2:]
    match parallelism_of(layer.name):
        case "row":
            return num_n, _share(num_k, tensor_parallel_size)
        case "column":
            rows = _columns(layer.name, num_n, tensor_parallel_size, sections)
            return sum(rows) if rows else None, num_k
        case "replicated":
            return num_n, num_k


def rank_rows(layer: LayerPlan, tensor_parallel_size: int, sections: Sequence[Section] = ()) -> tuple[int, ...]:
    """Return the N of each matrix that a column-parallel layer holds on a rank: several where it is fused on disk.

    Empty for other layers, and where it cannot be split evenly.
    """
    if parallelism_of(layer.name) != "column":
        return ()
    return _columns(layer.name, layer.config_shape[-2], tensor_parallel_size, sections)


def _columns(module: str, num_n: int, num_ranks: int, sections: Sequence[Section]) -> tuple[int, ...]:
    """What a rank holds of the N of a column-parallel layer, by matrix; nothing where it cannot be split evenly."""
    last = module.rpartition(".")[2]
    queries, keys = num_heads(module, sections)
    if keys and last in _KEY_VALUE:
        return _rows(_share(num_n, min(num_ranks, keys)))
    if keys and queries and last in _FUSED_ATTENTION and num_n % (queries + 2 * keys) == 0:
        head_dim = num_n // (queries + 2 * keys)
        own, common = _share(queries, num_ranks), _share(keys, min(num_ranks, keys))
        return _rows(*(heads and heads * head_dim for heads in (own, common, common)))
    if last in _FUSED_MLP and (half := _share(num_n, 2 * num_ranks)):
        return half, half
    return _rows(_share(num_n, num_ranks))


def _rows(*shares: int | None) -> tuple[int, ...]:
    rows = tuple(share for share in shares if share is not None)
    return rows if len(rows) == len(shares) else ()


def unaligned_at(layer: LayerPlan, tensor_parallel_size: int, sections: Sequence[Section] = ()) -> tuple[bool, bool]:
    """Return whether N and whether K of a rank's part are not multiples of the layer's alignment.

    A size that cannot be split evenly counts as unaligned. Without `sections` (`architectures.sections_of`) key and
    value projections are split like any other layer.
    """
    num_n, num_k = rank_shape(layer, tensor_parallel_size, sections)
    return (
        num_n is None or num_n % layer.alignment[0] != 0,
        num_k is None or num_k % layer.alignment[1] != 0,
    )


def begins_inside_block(layer: LayerPlan, tensor_parallel_size: int, sections: Sequence[Section] = ()) -> bool:
    """Return whether a rank's share of a layer would begin inside a scale block: no scale would be right for it.

    In a column-parallel layer that goes for each matrix, a copied key or value too: it lies beside split queries.
    """
    if tensor_parallel_size == 1:
        return False
    if parallelism_of(layer.name) == "row":
        num_k = rank_shape(layer, tensor_parallel_size, sections)[1]
        return num_k is not None and num_k % layer.block[1] != 0
    return any(rows % layer.block[0] for rows in rank_rows(layer, tensor_parallel_size, sections))


def straddles_gate_and_up(layer: LayerPlan) -> bool:
    """Return whether a scale block of a layer lies on both gate and up, fused on disk; such a layer is not absorbed."""
    if layer.name.rpartition(".")[2] not in _FUSED_MLP:
        return False
    return layer.config_shape[-2] % (2 * layer.block[0]) != 0


def tp_outlook(
    layers: Sequence[LayerPlan], sections: Sequence[Section] = (), sizes: Sequence[int] = (2, 4, 8)
) -> tuple[RankOutlook, ...]:
    """Return what each tensor-parallel size would meet, for the FP8 Linears of a plan."""
    return tuple(_at(layers, size, sections) for size in sizes)


def _at(layers: Sequence[LayerPlan], size: int, sections: Sequence[Section]) -> RankOutlook:
    unaligned, indivisible = [], []
    for layer in layers:
        if None in rank_shape(layer, size, sections):
            indivisible.append(layer.name)
        elif any(unaligned_at(layer, size, sections)):
            unaligned.append(layer.name)
    inside = tuple(layer.name for layer in layers if begins_inside_block(layer, size, sections))
    return RankOutlook(size, tuple(unaligned), tuple(indivisible), inside)


def _share(size: int, num_ranks: int) -> int | None:
    return size // num_ranks if size % num_ranks == 0 else None


def _count(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None

"""What absorbing costs: bytes, memory and arithmetic, per key and in all, and what to do where it is too much."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fp8pad.geometry import num_elements
from fp8pad.planning.absorb.governed import GovernedAxis, GovernedSize
from fp8pad.record import PaddedTensor
from fp8pad.tensors import TensorHeader, tensor_bytes

# Above this share of added arithmetic the plan recommends another way.
HIGH_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class KeyCost:
    """The cost of one key.

    `added_bytes` are bytes on disk and, as engines load them unchanged, of weight memory over all ranks together.
    `added_flops` counts two for each added weight that a token uses: of routed experts, those that it is sent to.
    `governed_flops` is the same count of the weights as they were. `sizes` maps smaller tensor-parallel sizes, divisors
    of the one asked for, to the inner sizes that they need.
    """

    path: str
    old: int
    new: int
    tensor_parallel_size: int
    added_bytes: int
    added_flops: float
    governed_flops: float
    is_expert: bool
    sizes: Mapping[int, int]

    @property
    def share(self) -> float:
        """The added size over the old one."""
        return self.new / self.old - 1


def key_cost(size: GovernedSize, old: int, sizes: Mapping[int, int], padded: Mapping[str, PaddedTensor]) -> KeyCost:
    """Return what a key costs; `sizes` maps tensor-parallel sizes to inner sizes, the one asked for last."""
    weights = [governed for governed in size.axes if governed.leaf == "weight"]
    activity = _activity(size, weights)
    *smaller, asked = sizes
    return KeyCost(
        path=size.path,
        old=old,
        new=sizes[asked],
        tensor_parallel_size=asked,
        added_bytes=sum(_added_bytes(governed.tensor, padded) for governed in size.axes),
        added_flops=sum(
            2 * _added_elements(governed.tensor, padded) * activity[governed.tensor.name] for governed in weights
        ),
        governed_flops=sum(
            2 * num_elements(governed.tensor.shape) * activity[governed.tensor.name] for governed in weights
        ),
        is_expert=any(governed.mlp.experts for governed in weights),
        sizes={ranks: sizes[ranks] for ranks in smaller},
    )


def cost_notes(costs: Sequence[KeyCost]) -> tuple[str, ...]:
    """Return the cost in sentences: one per key, one for all, one for each key that costs too much."""
    lines = [
        f"{cost.path} {cost.old} -> {cost.new}: {cost.share:+.1%}, {_amounts(cost.added_bytes, cost.added_flops)}"
        for cost in costs
    ]
    if len(costs) > 1:
        added_bytes, added_flops = (sum(cost.added_bytes for cost in costs), sum(cost.added_flops for cost in costs))
        share = added_flops / sum(cost.governed_flops for cost in costs)
        lines.append(f"absorbed in all: {share:+.1%}, {_amounts(added_bytes, added_flops)}")
    return (*lines, *(_recommendation(cost) for cost in costs if cost.share > HIGH_SHARE))


def _amounts(added_bytes: int, added_flops: float) -> str:
    return f"{_amount(added_bytes, 'B')} more on disk and in memory, {_amount(added_flops, 'FLOP')} more per token"


def _recommendation(cost: KeyCost) -> str:
    better = " or ".join(_alternatives(cost))
    if not better:
        return f"{cost.path} grows by {cost.share:.0%}, and by no less for fewer ranks"
    return f"{cost.path} grows by {cost.share:.0%}: better {better}"


def _alternatives(cost: KeyCost) -> Iterator[str]:
    if cost.is_expert and cost.tensor_parallel_size > 1:
        yield f"expert parallelism, which keeps experts whole (inner size {cost.sizes[1]})"
    cheaper = [size for size, new in cost.sizes.items() if new < cost.new]
    cheap = [size for size in cheaper if cost.sizes[size] / cost.old - 1 <= HIGH_SHARE]
    if cheaper:
        size = max(cheap) if cheap else min(cheaper)
        yield f"--tensor-parallel-size {size} ({cost.sizes[size] / cost.old - 1:+.1%})"


def _activity(size: GovernedSize, weights: Sequence[GovernedAxis]) -> dict[str, float]:
    """The share of each weight's entries that one token uses: of routed experts, those that it is sent to."""
    siblings = Counter((governed.mlp, governed.role, governed.instance[:-1]) for governed in weights)
    activity = {}
    for governed in weights:
        active = (
            size.section.config.get(governed.mlp.experts_per_token_key) if governed.mlp.experts_per_token_key else None
        )
        siblings_here = siblings[governed.mlp, governed.role, governed.instance[:-1]]
        num_experts = governed.tensor.shape[0] if governed.mlp.stacked else siblings_here
        activity[governed.tensor.name] = (
            min(1.0, active / num_experts) if isinstance(active, int) and num_experts else 1.0
        )
    return activity


def _added_bytes(tensor: TensorHeader, padded: Mapping[str, PaddedTensor]) -> int:
    if tensor.name not in padded:
        return 0
    return tensor_bytes(tensor.dtype, padded[tensor.name].padded_shape) - tensor.num_bytes


def _added_elements(tensor: TensorHeader, padded: Mapping[str, PaddedTensor]) -> int:
    if tensor.name not in padded:
        return 0
    return num_elements(padded[tensor.name].padded_shape) - num_elements(tensor.shape)


def _amount(amount: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if abs(amount) < 1000 or prefix == "T":
            break
        amount /= 1000
    return f"{amount:.3g} {prefix}{unit}"

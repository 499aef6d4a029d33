"""What absorbing costs: bytes, memory and arithmetic, per key and in all, and what to do where it is too much."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fp8pad.geometry import num_elements
from fp8pad.planning.absorb.assessment import AlikeTensors, Assessment
from fp8pad.record import Json, PaddedTensor
from fp8pad.tensors import tensor_bytes

# Above this share of added arithmetic the plan recommends another way.
HIGH_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class KeyCost:
    """The cost of one key.

    `sizes` maps tensor-parallel sizes to the inner sizes that they need: the one asked for last, its divisors before
    it. `added_bytes` are bytes on disk and, as engines load them unchanged, of weight memory over all ranks together.
    `flops` counts two for each weight under the key that a token uses: of routed experts, those that it is sent to.
    """

    path: str
    old: int
    sizes: Mapping[int, int]
    added_bytes: int
    flops: float
    is_expert: bool

    @property
    def new(self) -> int:
        """The inner size for the tensor-parallel size asked for."""
        return self.sizes[max(self.sizes)]

    @property
    def share(self) -> float:
        """The added size over the old one."""
        return self.new / self.old - 1

    @property
    def added_flops(self) -> float:
        """What a token costs more: every weight under the key grows in proportion."""
        return self.flops * self.share


def key_cost(assessment: Assessment, old: int, sizes: Mapping[int, int], padded: Mapping[str, PaddedTensor]) -> KeyCost:
    """Return what a key costs; `sizes` maps tensor-parallel sizes to inner sizes, `padded` are the grown tensors."""
    return KeyCost(
        path=assessment.size.path,
        old=old,
        sizes=sizes,
        added_bytes=sum(_added_bytes(alike, padded) for alike in assessment.tensors),
        flops=sum(2 * _weights_of_token(alike, assessment.size.section.config) for alike in assessment.weights),
        is_expert=assessment.size.has_experts,
    )


def cost_notes(costs: Sequence[KeyCost]) -> tuple[str, ...]:
    """Return the cost in sentences: one per key, one for all, one for each key that costs too much."""
    lines = [
        f"{cost.path} {cost.old} -> {cost.new}: {cost.share:+.1%}, {_amounts(cost.added_bytes, cost.added_flops)}"
        for cost in costs
    ]
    if len(costs) > 1:
        added_bytes, added_flops = (sum(cost.added_bytes for cost in costs), sum(cost.added_flops for cost in costs))
        share = added_flops / sum(cost.flops for cost in costs)
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
    if cost.is_expert and len(cost.sizes) > 1:
        yield f"expert parallelism, which keeps experts whole (inner size {cost.sizes[1]})"
    cheaper = [size for size, new in cost.sizes.items() if new < cost.new]
    cheap = [size for size in cheaper if cost.sizes[size] / cost.old - 1 <= HIGH_SHARE]
    if cheaper:
        size = max(cheap) if cheap else min(cheaper)
        yield f"--tensor-parallel-size {size} ({cost.sizes[size] / cost.old - 1:+.1%})"


def _weights_of_token(alike: AlikeTensors, config: Json) -> float:
    """How many entries of these weights one token uses: of routed experts, those that it is sent to."""
    mlp, shape = alike.example.mlp, alike.example.tensor.shape
    num_weights = len(alike.members) * num_elements(shape)
    active = config.get(mlp.experts_per_token_key) if mlp.experts_per_token_key else None
    num_layers = len({governed.instance[:-1] for governed in alike.members})
    num_experts = shape[0] if mlp.stacked else len(alike.members) / num_layers
    return num_weights * min(1.0, active / num_experts) if isinstance(active, int) and num_experts else num_weights


def _added_bytes(alike: AlikeTensors, padded: Mapping[str, PaddedTensor]) -> int:
    tensor = alike.example.tensor
    if tensor.name not in padded:
        return 0
    return len(alike.members) * (tensor_bytes(tensor.dtype, padded[tensor.name].padded_shape) - tensor.num_bytes)


def _amount(amount: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if abs(amount) < 1000 or prefix == "T":
            break
        amount /= 1000
    return f"{amount:.3g} {prefix}{unit}"

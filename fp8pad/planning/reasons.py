"""Why a layer is treated as it is, in sentences for the plan."""

from collections.abc import Iterator

from fp8pad.planning.linear import LayerPlan
from fp8pad.planning.sharding import RankPart


def reason_of(layer: LayerPlan, num_ranks: int, skip_reason: str | None = None, refusal: str = "") -> str:
    """Return the reason for what is done to a layer; `refusal` says why it is not absorbed."""
    parts = [_absorbed(layer), _own(layer, skip_reason), refusal, _on_rank(layer, num_ranks)]
    return "; ".join(part for part in parts if part)


def _absorbed(layer: LayerPlan) -> str:
    names = ("", "", "N", "K")[-len(layer.logical_shape) :]
    sizes = zip(names, layer.logical_shape, layer.config_shape, strict=True)
    grown = [f"{axis} = {old} becomes {new}" for axis, old, new in sizes if old != new]
    return f"{' and '.join(grown)} in the config" if grown else ""


def _own(layer: LayerPlan, skip_reason: str | None) -> str:
    """Return why the axes that are not absorbed are treated as they are; empty if there is nothing to say."""
    if skip_reason and layer.is_skipped:
        return skip_reason
    broken = [
        f"{axis} = {size} is not a multiple of {multiple}"
        for axis, size, multiple in zip("NK", layer.matrix_shape, layer.alignment, strict=True)
        if size % multiple
    ]
    if broken or layer.is_absorbed:
        return " and ".join(broken)
    return "N and K are multiples of " + " and ".join(map(str, dict.fromkeys(layer.alignment)))


def _on_rank(layer: LayerPlan, num_ranks: int) -> str:
    """Return what is unaligned on a rank, although aligned as a whole, and what follows from it."""
    if not layer.is_for_runtime:
        return ""
    part = layer.part(num_ranks)
    match layer.rank_fit:
        case "unaligned":
            broken = list(_broken(layer, part, layer.alignment)) or [_broken_rows(layer, part)]
            return f"{' and '.join(broken)}: the plugin pads it at load"
        case "inside block":
            broken = list(_broken(layer, part, layer.block)) or [_broken_rows(layer, part)]
            return f"{' and '.join(broken)}: a rank's share begins inside a scale block"
    return ""


def _broken(layer: LayerPlan, part: RankPart, multiples: tuple[int, int]) -> Iterator[str]:
    """Yield the split sizes that are not multiples on a rank."""
    shares = (part.num_n, part.num_k)
    for axis, size, share, multiple in zip("NK", layer.matrix_shape, shares, multiples, strict=True):
        if share is not None and share != size and share % multiple:
            yield f"{axis} = {_split(size, share, part.num_ranks)} is not a multiple of {multiple}"


def _split(size: int, share: int, num_ranks: int) -> str:
    """Return a rank's share of a size in words; copies of key-value heads make it more than an even share."""
    return f"{size} / {num_ranks} = {share}" if share * num_ranks == size else f"{share} on each of {num_ranks} ranks"


def _broken_rows(layer: LayerPlan, part: RankPart) -> str:
    """Return which of a rank's matrices is not whole blocks, although all together are, or although it is not split."""
    block = layer.block[0]
    broken = next(num_n for num_n in part.rows if num_n % block)
    if len(part.rows) == 1:
        return f"N = {broken} on each of {part.num_ranks} ranks is not a multiple of {block}"
    held = f"N = {layer.matrix_shape[0]} is {' + '.join(map(str, part.rows))} on each of {part.num_ranks} ranks"
    return f"{held}, where {broken} is not a multiple of {block}"

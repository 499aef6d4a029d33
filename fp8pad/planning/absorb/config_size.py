"""What config.json says about an inner size, and about the factor by which it is multiplied in an MLP."""

from collections.abc import Sequence
from typing import Any

from fp8pad.planning.absorb.governed import GovernedAxis, GovernedSize, inner_sizes
from fp8pad.planning.absorb.growth import NotAbsorbableError
from fp8pad.record import CONFIG_FILE

_MOST_LAYERS = 4096


def config_size(size: GovernedSize) -> int:
    """Return the value of a key; `NotAbsorbableError` if it is not a single size, or differs where it is repeated.

    A list, one size per layer, counts if it is the same throughout. If the key is missing or null, the model's default
    applies, which the tensors show.
    """
    if reason := next((governed.mlp.unabsorbable for governed in size.axes if governed.mlp.unabsorbable), None):
        raise NotAbsorbableError(reason)
    key = size.key or ""
    value = _one_of(size.section.config.get(key))
    if value is None:
        return _implied_size(size)
    if isinstance(value, list):
        raise NotAbsorbableError("its value is a list, not of one size for each layer")
    if not _is_count(value):
        raise NotAbsorbableError(f"its value is not a size: {value!r}")
    for other in size.repeats:
        if _one_of(size.section.config[other]) != value:
            raise NotAbsorbableError(f"{other} is {size.section.config[other]!r}, where {key} is {value}")
    for path, mirror in size.section.mirrors:
        if _one_of(mirror.get(key, value)) != value:
            raise NotAbsorbableError(f"{path or CONFIG_FILE} has another value for it, {mirror[key]!r}")
    return int(value)


def _one_of(value: Any) -> Any:
    """Return the value that all items of a list share; any other value, and a list that is too long, unchanged."""
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_LAYERS:
        return value
    return value[0] if all(item == value[0] for item in value) else value


def _implied_size(size: GovernedSize) -> int:
    if others := next((governed.mlp.other_keys for governed in size.axes if governed.mlp.other_keys), ()):
        raise NotAbsorbableError(f"the config has neither it nor {' nor '.join(others)}")
    sizes = {inner // (_config_multiplier(mlp, size) or 1) for mlp in size.mlps for inner in inner_sizes(mlp)}
    if len(sizes) != 1:
        raise NotAbsorbableError("the config does not have the key, and the tensors have more than one size")
    return sizes.pop()


def multiplier(axes: Sequence[GovernedAxis], size: GovernedSize, value: int) -> int:
    """Return an MLP's inner size divided by the key's `value`; `NotAbsorbableError` if that is not known."""
    times = _config_multiplier(axes, size)
    if times is not None:
        return times
    rule, inner = axes[0].mlp, inner_sizes(axes)
    if len(inner) == 1:
        times, rest = divmod(inner.pop(), value)
        if rest or not times:
            raise NotAbsorbableError(f"the size of {axes[0].module} is not a multiple of it")
    if times is None:
        raise NotAbsorbableError(f"{size.section.dotted(rule.multiplier_key or '')} is not in the config")
    return times


def _config_multiplier(axes: Sequence[GovernedAxis], size: GovernedSize) -> int | None:
    """Return the factor of the key's value according to the config; None if only the tensors show it."""
    rule = axes[0].mlp
    if rule.multiples:
        return None
    if rule.multiplier_key is None:
        return 1
    value = size.section.config.get(rule.multiplier_key, 0)
    if rule.multiplier_key in size.section.config and not _is_count(value):
        raise NotAbsorbableError(f"{size.section.dotted(rule.multiplier_key)} is not a number: {value!r}")
    return int(value) or None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1

"""What must hold of an inner size before it is absorbed; `growth` asks the same of each tensor."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from fp8pad.errors import ConfigError
from fp8pad.planning.absorb.governed import GovernedAxis, GovernedSize, MlpId, inner_sizes
from fp8pad.planning.absorb.growth import NotAbsorbableError
from fp8pad.planning.families import Mlp, Section
from fp8pad.planning.families.family import FINITE_AT_ZERO, ZERO_AT_ZERO
from fp8pad.record import CONFIG_FILE, Policy


def config_size(size: GovernedSize) -> int:
    """Return the value of a key; `NotAbsorbableError` where it is not one size, the same wherever it is repeated.

    A key that the config does not have, or has as null, is left to a default that the tensors tell.
    """
    if reason := next((governed.mlp.unabsorbable for governed in size.axes if governed.mlp.unabsorbable), None):
        raise NotAbsorbableError(reason)
    key = size.key or ""
    value = size.section.config.get(key)
    if value is None:
        return _implied_size(size)
    if isinstance(value, list):
        raise NotAbsorbableError("its value is a list")
    if not _is_count(value):
        raise NotAbsorbableError(f"its value is not a size: {value!r}")
    for other in size.repeats:
        if size.section.config[other] != value:
            raise NotAbsorbableError(f"{other} is {size.section.config[other]!r}, where {key} is {value}")
    for path, mirror in size.section.mirrors:
        if mirror.get(key, value) != value:
            raise NotAbsorbableError(f"{path or CONFIG_FILE} repeats it with another value, {mirror[key]!r}")
    return int(value)


def multipliers(size: GovernedSize, value: int) -> Mapping[MlpId, int]:
    """Return for each MLP how often a key's value goes into its inner size.

    `NotAbsorbableError` where neither the config nor the tensors say.
    """
    return {axes[0].mlp_id: _multiplier(axes, size, value) for axes in size.mlps}


def check_sizes(size: GovernedSize) -> None:
    """Raise `ConfigError` where the key is an integer and a weight under it has another size."""
    try:
        value = config_size(size)
        times = multipliers(size, value)
    except NotAbsorbableError:
        return
    for governed in size.axes:
        length = value * times[governed.mlp_id] * governed.width
        if governed.is_plain_weight and governed.tensor.shape[governed.index] != length:
            raise ConfigError(
                f"{CONFIG_FILE}: {size.path} asks for {length} {'rows' if governed.axis == 'n' else 'columns'}"
                f" of {governed.tensor.name}, got {list(governed.tensor.shape)}"
            )


def _implied_size(size: GovernedSize) -> int:
    if others := next((governed.mlp.other_keys for governed in size.axes if governed.mlp.other_keys), ()):
        raise NotAbsorbableError(f"the config has neither it nor {' nor '.join(others)}")
    sizes = {inner // (_config_multiplier(mlp, size) or 1) for mlp in size.mlps for inner in inner_sizes(mlp)}
    if len(sizes) != 1:
        raise NotAbsorbableError("the config does not have the key, and the tensors have more than one size")
    return sizes.pop()


def _multiplier(axes: Sequence[GovernedAxis], size: GovernedSize, value: int) -> int:
    times = _config_multiplier(axes, size)
    if times is not None:
        return times
    rule, inner = axes[0].mlp, inner_sizes(axes)
    if len(inner) == 1:
        times, rest = divmod(inner.pop(), value)
        if rest or not times:
            raise NotAbsorbableError(f"the size of {axes[0].module} is no multiple of it")
    if times is None:
        raise NotAbsorbableError(f"{size.section.dotted(rule.multiplier_key or '')} is not in the config")
    return times


def _config_multiplier(axes: Sequence[GovernedAxis], size: GovernedSize) -> int | None:
    """How often the key's value goes into an MLP's inner size by the config; None where only the tensors tell."""
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


def check_absorbable(size: GovernedSize, policy: Policy) -> None:
    """Raise `NotAbsorbableError` where anything but a single tensor's layout stands in the way of absorbing a key."""
    _check_skipped(size, policy)
    _check_experts(size, policy)
    for mlp in {governed.mlp for governed in size.axes}:
        check_activation(mlp, size.section)
    _check_complete(size)


def _check_skipped(size: GovernedSize, policy: Policy) -> None:
    for module in dict.fromkeys(governed.module for governed in size.axes):
        if any(fnmatchcase(module, pattern) for pattern in policy.skip):
            raise NotAbsorbableError(f"{module} is to be carried unchanged (--skip)")


def _check_experts(size: GovernedSize, policy: Policy) -> None:
    experts = {governed.mlp.experts for governed in size.axes}
    if True in experts and not policy.absorb_experts:
        too = "sizes the routed experts too" if False in experts else "sizes the routed experts"
        raise NotAbsorbableError(f"it {too}, which are absorbed only with --absorb-experts")


def check_activation(mlp: Mlp, section: Section) -> None:
    """Raise `NotAbsorbableError` where zeros behind gate and up would not stay zeros behind the activation."""
    if mlp.unless and section.config.get(mlp.unless):
        raise NotAbsorbableError(f"{section.dotted(mlp.unless)} is set")
    named = section.config.get(mlp.activation_key) if mlp.activation_key else None
    activation = named or mlp.activation
    if not isinstance(activation, str) or activation.lower() not in FINITE_AT_ZERO:
        raise NotAbsorbableError(f"the activation {activation!r} is not known to be finite at 0")
    if not mlp.is_gated and activation.lower() not in ZERO_AT_ZERO:
        raise NotAbsorbableError(f"there is no gate and the activation {activation!r} is not 0 at 0")


def _check_complete(size: GovernedSize) -> None:
    """Refuse what has parts missing, tied weights for one, or tensors that look governed but are not described."""
    for mlp in size.mlps:
        parts: dict[str, GovernedAxis] = {}
        for governed in mlp:
            if governed.leaf == "weight" or governed.role not in parts:
                parts[governed.role] = governed
        some = next(iter(parts.values()))
        for role in some.mlp.parts:
            if role not in parts:
                raise NotAbsorbableError(f"{some.block.rstrip('.')} has no {role} weight: it may be tied to another")
            if parts[role].leaf != "weight":
                raise NotAbsorbableError(f"{parts[role].tensor.name} has no weight beside it: a layout not padded")
    if size.unclaimed_tensors:
        unclaimed_tensor = size.unclaimed_tensors[0]
        raise NotAbsorbableError(
            f"{unclaimed_tensor.name} {list(unclaimed_tensor.shape)} has that size too and is not described"
        )

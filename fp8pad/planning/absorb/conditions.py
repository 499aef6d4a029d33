"""What must hold of an inner size before it is absorbed; `growth` asks the same of each tensor."""

from collections.abc import Sequence

from fp8pad.errors import ConfigError
from fp8pad.planning.absorb.governed import GovernedAxis, GovernedSize
from fp8pad.planning.absorb.growth import NotAbsorbableError
from fp8pad.planning.families import Mlp, Section
from fp8pad.planning.families.family import FINITE_AT_ZERO, ZERO_AT_ZERO
from fp8pad.planning.quantization import CONFIG_FILE
from fp8pad.record import Policy


def config_size(size: GovernedSize) -> int:
    """Return the value of a key; `NotAbsorbableError` where it is not one size, the same wherever it is repeated."""
    if reason := next((claim.mlp.unabsorbable for claim in size.claims if claim.mlp.unabsorbable), None):
        raise NotAbsorbableError(reason)
    key = size.key or ""
    if key not in size.section.config:
        raise NotAbsorbableError("the config does not have the key")
    value = size.section.config[key]
    if value is None or isinstance(value, list):
        raise NotAbsorbableError("its value is null" if value is None else "its value is a list")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise NotAbsorbableError(f"its value is not a size: {value!r}")
    for path, mirror in size.section.mirrors:
        if mirror.get(key, value) != value:
            raise NotAbsorbableError(f"{path or CONFIG_FILE} repeats it with another value, {mirror[key]!r}")
    return value


def multiplier_of(claim: GovernedAxis, size: GovernedSize) -> int:
    """Return how often the key's value goes into the inner size; `NotAbsorbableError` where the config does not say."""
    if claim.mlp.multiplier_key is None:
        return 1
    value = size.section.config.get(claim.mlp.multiplier_key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise NotAbsorbableError(f"{size.section.dotted(claim.mlp.multiplier_key)} is not a number: {value!r}")
    return value


def check_sizes(size: GovernedSize, weights: Sequence[GovernedAxis]) -> None:
    """Raise `ConfigError` where the key is an integer and a weight under it has another size."""
    try:
        asked = [config_size(size) * multiplier_of(claim, size) * claim.num_segments for claim in weights]
    except NotAbsorbableError:
        return
    for claim, length in zip(weights, asked, strict=True):
        if claim.is_plain_weight and claim.tensor.shape[claim.index] != length:
            raise ConfigError(
                f"{CONFIG_FILE}: {size.path} asks for {length} {'rows' if claim.axis == 'n' else 'columns'}"
                f" of {claim.tensor.name}, got {list(claim.tensor.shape)}"
            )


def check_absorbable(size: GovernedSize, policy: Policy) -> None:
    """Raise `NotAbsorbableError` where anything but a single tensor's layout stands in the way of absorbing a key."""
    _check_experts(size, policy)
    for mlp in {claim.mlp for claim in size.claims}:
        check_activation(mlp, size.section)
    _check_complete(size)


def _check_experts(size: GovernedSize, policy: Policy) -> None:
    experts = {claim.mlp.experts for claim in size.claims}
    if True in experts and not policy.absorb_experts:
        too = "sizes the routed experts too" if False in experts else "sizes the routed experts"
        raise NotAbsorbableError(f"it {too}, which are absorbed only with --absorb-experts")


def check_activation(mlp: Mlp, section: Section) -> None:
    """Raise `NotAbsorbableError` where zeros behind gate and up would not stay zeros behind the activation."""
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
        for claim in mlp:
            if claim.leaf == "weight" or claim.role not in parts:
                parts[claim.role] = claim
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

"""What must hold of a config key before it is absorbed; `growing` asks the same of each tensor."""

from collections.abc import Sequence

from fp8pad.errors import ConfigError
from fp8pad.planning.absorb.governed import GovernedAxis, GovernedKey
from fp8pad.planning.absorb.growth import NotAbsorbableError
from fp8pad.planning.families import Mlp, Section
from fp8pad.planning.families.family import FINITE_AT_ZERO, ZERO_AT_ZERO
from fp8pad.planning.quantization import CONFIG_FILE
from fp8pad.record import Policy


def config_size(key: GovernedKey) -> int:
    """Return the value of a key; `NotAbsorbableError` where it is not one size, the same wherever it is repeated."""
    if key.key not in key.section.config:
        raise NotAbsorbableError("the config does not have the key")
    value = key.section.config[key.key]
    if value is None or isinstance(value, list):
        raise NotAbsorbableError("its value is null" if value is None else "its value is a list")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise NotAbsorbableError(f"its value is not a size: {value!r}")
    for path, mirror in key.section.mirrors:
        if mirror.get(key.key, value) != value:
            raise NotAbsorbableError(f"{path or CONFIG_FILE} repeats it with another value, {mirror[key.key]!r}")
    return value


def multiplier_of(claim: GovernedAxis, key: GovernedKey) -> int:
    """Return how often the key's value goes into the inner size; `NotAbsorbableError` where the config does not say."""
    if claim.mlp.multiplier_key is None:
        return 1
    value = key.section.config.get(claim.mlp.multiplier_key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise NotAbsorbableError(f"{key.section.dotted(claim.mlp.multiplier_key)} is not a number: {value!r}")
    return value


def check_sizes(key: GovernedKey, weights: Sequence[GovernedAxis]) -> None:
    """Raise `ConfigError` where the key is an integer and a weight under it has another size."""
    try:
        sizes = [config_size(key) * multiplier_of(claim, key) * claim.num_segments for claim in weights]
    except NotAbsorbableError:
        return
    for claim, size in zip(weights, sizes, strict=True):
        if claim.is_plain_weight and claim.tensor.shape[claim.index] != size:
            raise ConfigError(
                f"{CONFIG_FILE}: {key.path} asks for {size} {'rows' if claim.axis == 'n' else 'columns'}"
                f" of {claim.tensor.name}, got {list(claim.tensor.shape)}"
            )


def check_absorbable(key: GovernedKey, policy: Policy) -> None:
    """Raise `NotAbsorbableError` where anything but a single tensor's layout stands in the way of absorbing a key."""
    _check_experts(key, policy)
    for mlp in {claim.mlp for claim in key.claims}:
        _check_activation(mlp, key.section)
    _check_complete(key)


def _check_experts(key: GovernedKey, policy: Policy) -> None:
    experts = {claim.mlp.experts for claim in key.claims}
    if True in experts and not policy.absorb_experts:
        too = "sizes the routed experts too" if False in experts else "sizes the routed experts"
        raise NotAbsorbableError(f"it {too}, which are absorbed only with --absorb-experts")


def _check_activation(mlp: Mlp, section: Section) -> None:
    named = section.config.get(mlp.activation_key) if mlp.activation_key else None
    activation = named or mlp.activation
    if not isinstance(activation, str) or activation.lower() not in FINITE_AT_ZERO:
        raise NotAbsorbableError(f"the activation {activation!r} is not known to be finite at 0")
    if not mlp.is_gated and activation.lower() not in ZERO_AT_ZERO:
        raise NotAbsorbableError(f"there is no gate and the activation {activation!r} is not 0 at 0")


def _check_complete(key: GovernedKey) -> None:
    """Refuse what has parts missing, tied weights for one, or tensors that look governed but are not described."""
    found: dict[tuple[Mlp, tuple[str, ...]], dict[str, GovernedAxis]] = {}
    for claim in key.claims:
        parts = found.setdefault((claim.mlp, claim.instance), {})
        if claim.leaf == "weight" or claim.role not in parts:
            parts[claim.role] = claim
    for parts in found.values():
        some = next(iter(parts.values()))
        for role in some.mlp.parts:
            if role not in parts:
                raise NotAbsorbableError(f"{some.block.rstrip('.')} has no {role} weight: it may be tied to another")
            if parts[role].leaf != "weight":
                raise NotAbsorbableError(f"{parts[role].tensor.name} has no weight beside it: a layout not padded")
    if key.unclaimed_tensors:
        unclaimed_tensor = key.unclaimed_tensors[0]
        raise NotAbsorbableError(
            f"{unclaimed_tensor.name} {list(unclaimed_tensor.shape)} has that size too and is not described"
        )

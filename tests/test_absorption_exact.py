"""The absorbed MLP equals the original in exact arithmetic, for every family file, over random shapes and schemes.

Weights, scales and activations are small integers, so that int64 holds every sum exactly and equality has no tolerance.
The activation function is an arbitrary integer function: with f(0) = 0 if there is no gate, any f(0) on a gate.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fp8pad.geometry import as_matrices, num_blocks
from fp8pad.padded import PaddedTensor
from fp8pad.planning.absorb.absorption import Absorption, absorb
from fp8pad.planning.absorb.matching import find_governed
from fp8pad.planning.families import Description, Mlp, Section, families, sections_of
from fp8pad.planning.layers import recognise
from fp8pad.planning.quantization import find_quantization
from fp8pad.record import Policy
from fp8pad.tensors import TensorHeader

Array = NDArray[np.int64]
Arrays = dict[str, Array]

# The first model type of each family.
MODEL_TYPES = sorted({family.model_types[0] for family in families().values()})


@dataclass(frozen=True)
class Case:
    """The values that hypothesis varies."""

    hidden_size: int
    inner_sizes: tuple[int, ...]
    times: int
    scheme: str
    block: tuple[int, int]
    bias: bool
    plain_layers: frozenset[int]
    tensor_parallel_size: int
    seed: int


cases = st.builds(
    Case,
    hidden_size=st.integers(1, 9),
    inner_sizes=st.lists(st.integers(1, 40), min_size=12, max_size=12).map(tuple),
    times=st.integers(1, 3),
    scheme=st.sampled_from(["tensor", "channel", "block"]),
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    plain_layers=st.frozensets(st.integers(0, 1)),
    tensor_parallel_size=st.sampled_from([1, 2, 3, 8]),
    seed=st.integers(0, 2**32 - 1),
)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@settings(max_examples=2, deadline=None)
@given(case=cases)
def test_the_absorbed_mlp_equals_the_original(model_type: str, case: Case) -> None:
    """Every MLP of a model of this family has equal outputs, and its sizes are multiples of the requested ones."""
    config = config_of(model_type, case)
    arrays, dtypes = checkpoint_of(config, case)
    absorption = plan_layer(config, arrays, dtypes, case)
    absorbed = {name: grow(array, absorption.tensors.get(name), name) for name, array in arrays.items()}
    edits = {edit.key: edit for edit in absorption.edits}
    for section, mlp in described(config):
        for numbers in instances(mlp):
            before, after = Network(section, mlp, numbers, arrays, case), Network(section, mlp, numbers, absorbed, case)
            tokens = np.random.default_rng(case.seed).integers(-3, 4, (4, case.hidden_size))
            assert np.array_equal(before.scale_of_activations(tokens), after.scale_of_activations(tokens))
            assert np.array_equal(before.answer(tokens), after.answer(tokens))
            edit = edits.get(section.dotted(mlp.size_key)) if mlp.size_key else None
            times = times_of(mlp, case)
            assert after.inner_size == (edit.new * times if edit else before.inner_size)
            if edit:
                assert edit.new > edit.old


def config_of(model_type: str, case: Case) -> dict[str, Any]:
    """Return a config with every section and every key that the family describes, each with a size of its own."""
    quantization: dict[str, Any] = {"quant_method": "fp8"}
    if case.scheme == "block":
        quantization["weight_block_size"] = list(case.block)
    sizes = iter(case.inner_sizes)
    return {**section_config(families()[model_type], model_type, sizes, case), "quantization_config": quantization}


def section_config(family: Description, model_type: str, sizes: Iterator[int], case: Case) -> dict[str, Any]:
    config: dict[str, Any] = {"model_type": model_type}
    for mlp in family.mlp:
        config |= {mlp.size_key: next(sizes)} if mlp.size_key and mlp.size_key not in config else {}
        config |= {mlp.multiplier_key: case.times} if mlp.multiplier_key else {}
    for rule in family.section:
        part = rule.like or "llama"
        inner = section_config(rule if rule.is_described else families()[part], part, sizes, case)
        key = rule.keys[0]
        config = config | {key: inner | config.get(key, {})} if key else inner | config
    return config


def times_of(mlp: Mlp, case: Case) -> int:
    """Return the factor between the key's value and the inner size."""
    return case.times if mlp.multiplier_key or mlp.multiples else 1


def described(config: Mapping[str, Any]) -> list[tuple[Section, Mlp]]:
    """Return every MLP that the family files describe, with its section."""
    return [(section, mlp) for section in sections_of(config) for mlp in (section.family.mlp if section.family else ())]


def instances(mlp: Mlp) -> list[tuple[int, ...]]:
    """Return the numbers of the layers, and experts, that the tests make: two of each."""
    count = mlp.down.count("{")
    return [tuple(map(int, np.unravel_index(index, (2,) * count))) for index in range(2**count)] if count else [()]


def module_of(section: Section, mlp: Mlp, role: Any, numbers: tuple[int, ...]) -> str:
    """Return a module's name with numbers instead of the braces."""
    name = mlp.parts[role]
    for number in numbers:
        name = name[: name.index("{")] + str(number) + name[name.index("}") + 1 :]
    return section.prefixes[0] + name


def checkpoint_of(config: Mapping[str, Any], case: Case) -> tuple[Arrays, dict[str, str]]:
    """Return random weights, scales and biases for every described MLP; some layers stay unquantized."""
    random = np.random.default_rng(case.seed)
    arrays: Arrays = {}
    dtypes: dict[str, str] = {}

    def put(name: str, dtype: str, shape: tuple[int, ...], low: int) -> None:
        arrays[name], dtypes[name] = random.integers(low, 4, shape), dtype

    for section, mlp in described(config):
        for numbers in instances(mlp):
            inner_size = section.config[mlp.size_key] if mlp.size_key else case.inner_sizes[0]
            inner_size *= times_of(mlp, case)
            for role in mlp.parts:
                module = module_of(section, mlp, role, numbers)
                num_n, num_k = inner_size * (2 if role == "gate_up" else 1), case.hidden_size
                shape = (num_k, num_n) if role == "down" else (num_n, num_k)
                is_plain = mlp.stacked or (bool(numbers) and numbers[0] in case.plain_layers)
                weight = f"{module}.weight"
                if mlp.stacked:
                    shape = (3, *(shape))
                put(weight, "BF16" if is_plain else "F8_E4M3", shape, -3)
                if case.bias:
                    put(f"{module}.bias", "BF16", (3, max(num_n, 1)) if mlp.stacked else (shape[0],), -3)
                    if mlp.stacked and role == "down":
                        put(f"{module}.bias", "BF16", (3, case.hidden_size), -3)
                if not is_plain:
                    put(f"{module}.weight_scale", "F32", scale_shape(shape, case), 1)
    return arrays, dtypes


def scale_shape(shape: tuple[int, ...], case: Case) -> tuple[int, ...]:
    """Return the shape of a weight's scale in this case's scheme."""
    blocks = tuple(num_blocks(size, side) for size, side in zip(shape, case.block, strict=True))
    return {"tensor": (), "channel": (shape[0], 1), "block": blocks}[case.scheme]


def plan_layer(config: Mapping[str, Any], arrays: Arrays, dtypes: Mapping[str, str], case: Case) -> Absorption:
    """Absorb everything, including experts, and check that only blocks that straddle gate and up are refused."""
    headers = {name: TensorHeader(name, dtypes[name], array.shape, 0) for name, array in arrays.items()}
    quantization = find_quantization({"config.json": config})
    sections = sections_of(config)
    governed = find_governed(sections, headers)
    linears, _ = recognise(headers, quantization, config, governed.modules)
    policy = Policy(absorb=True, absorb_experts=True, tensor_parallel_size=case.tensor_parallel_size)
    absorption = absorb(governed, sections, linears, policy)
    reasons = {mlp.unabsorbable for _, mlp in described(config)}
    refused = {*absorption.refused.values(), *absorption.unabsorbed.values()}
    assert all("straddles gate and up" in reason or reason in reasons for reason in refused)
    return absorption


def grow(array: Array, padded: PaddedTensor | None, name: str) -> Array:
    """Pad according to the record alone, as the format describes it: at the tail of each segment."""
    if padded is None:
        return array
    assert array.shape == padded.logical_shape
    matrices = array.reshape(as_matrices(array.shape))
    num_matrices, num_n, num_k = as_matrices(padded.padded_shape)
    rows = columns = None
    if padded.segments:
        places = segment_places(padded.segments.logical, padded.segments.padded)
        rows, columns = (None, places) if padded.segments.axis == -1 else (places, None)
    result = np.full((num_matrices, num_n, num_k), padded.fill, dtype=np.int64)
    rows = np.arange(matrices.shape[1]) if rows is None else rows
    columns = np.arange(matrices.shape[2]) if columns is None else columns
    result[:, rows[:, None], columns[None, :]] = matrices
    assert ("scale" in name) == (padded.fill == 1)
    return result.reshape(padded.padded_shape)


def segment_places(logical: tuple[int, ...], padded: tuple[int, ...]) -> Array:
    """Return the positions of the logical rows of several segments, each padded at its own tail."""
    starts = np.cumsum((0, *padded[:-1]))
    return np.concatenate([start + np.arange(size) for start, size in zip(starts, logical, strict=True)])


class Network:
    """One MLP, or a stack of experts, in integers."""

    def __init__(self, section: Section, mlp: Mlp, numbers: tuple[int, ...], arrays: Arrays, case: Case) -> None:
        self.mlp, self.case = mlp, case
        self.parts = {role: self._part(module_of(section, mlp, role, numbers), arrays) for role in mlp.parts}
        self.inner_size = self.parts["down"][0].shape[2]

    def _part(self, module: str, arrays: Arrays) -> tuple[Array, Array]:
        """Return weights `[num_matrices, N, K]`, multiplied by their scales, and biases `[num_matrices, 1, N]`."""
        weight = arrays[f"{module}.weight"]
        scale = arrays.get(f"{module}.weight_scale")
        if scale is not None:
            weight = weight * self._spread(scale, weight.shape)
        weight = weight.reshape(as_matrices(weight.shape))
        bias = arrays.get(f"{module}.bias", np.zeros(weight.shape[1], dtype=np.int64))
        return weight, bias.reshape(-1, 1, weight.shape[1])

    def _spread(self, scale: Array, shape: tuple[int, ...]) -> Array:
        if self.case.scheme != "block":
            return scale
        block_n, block_k = self.case.block
        return scale.repeat(block_n, 0).repeat(block_k, 1)[: shape[0], : shape[1]]

    def _apply(self, role: str, tokens: Array) -> Array:
        weight, bias = self.parts[role]  # type: ignore[index]
        return np.asarray(tokens @ weight.swapaxes(1, 2) + bias, dtype=np.int64)

    def activations(self, tokens: Array) -> Array:
        """Return the input of down: act(gate) * up, or act(up)."""
        if not self.mlp.is_gated:
            return activation(0)(self._apply("up", tokens))
        if "gate_up" in self.parts:
            both = self._apply("gate_up", tokens)
            gate, up = (both[..., ::2], both[..., 1::2]) if self.mlp.interleaved else np.split(both, 2, axis=-1)
        else:
            gate, up = self._apply("gate", tokens), self._apply("up", tokens)
        return np.asarray(activation(5)(gate) * up, dtype=np.int64)

    def scale_of_activations(self, tokens: Array) -> Array:
        """Return the maximum per token, by which dynamic quantization divides."""
        return np.asarray(np.abs(self.activations(tokens)).max(axis=-1))

    def answer(self, tokens: Array) -> Array:
        """Return the output of the MLP."""
        return self._apply("down", self.activations(tokens))


def activation(at_zero: int) -> Callable[[Array], Array]:
    """Return an integer function with the given value at zero."""
    return lambda values: np.asarray(values * values - 3 * values + at_zero, dtype=np.int64)


def test_padding_that_is_not_inert_is_seen() -> None:
    """Ones instead of the added zeros change the scale of the activations, and ones in down the output too."""
    case = Case(4, (5,) * 12, 1, "tensor", (1, 1), False, frozenset(), 1, 7)
    config = config_of("llama", case)
    arrays, dtypes = checkpoint_of(config, case)
    absorption = plan_layer(config, arrays, dtypes, case)
    absorbed = {name: grow(array, absorption.tensors.get(name), name) for name, array in arrays.items()}
    ((section, mlp),) = described(config)
    tokens = np.full((1, 4), 3)
    honest = Network(section, mlp, (0,), absorbed, case)
    absorbed["model.layers.0.mlp.gate_proj.weight"][5:] = 3
    absorbed["model.layers.0.mlp.up_proj.weight"][5:] = 3
    assert not np.array_equal(
        honest.scale_of_activations(tokens), Network(section, mlp, (0,), absorbed, case).scale_of_activations(tokens)
    )
    absorbed["model.layers.0.mlp.down_proj.weight"][:, 5:] = 1
    assert not np.array_equal(honest.answer(tokens), Network(section, mlp, (0,), absorbed, case).answer(tokens))

"""Folding names into patterns: no name is lost, and layers that are treated differently stay separate."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from fp8pad.padded import AxisActions
from fp8pad.planning.linear import LayerPlan
from fp8pad.render.folding import group_layers, name_patterns
from fp8pad.scales import PerChannel


def layer(name: str, logical: tuple[int, int], padded: tuple[int, int]) -> LayerPlan:
    """Return a channel-scaled layer, padded along every axis that grows."""
    axes = AxisActions("pad" if logical[0] < padded[0] else "aligned", "pad" if logical[1] < padded[1] else "aligned")
    return LayerPlan(name, PerChannel(), logical, padded, (16, 16), axes, "because", logical)


def test_numbers_become_ranges() -> None:
    """Layer numbers are written as ranges, with gaps."""
    names = [f"model.layers.{index}.mlp.down_proj" for index in range(100) if index not in (50, 52)]
    assert name_patterns(names) == ["model.layers.{0-49,51,53-99}.mlp.down_proj"]


def test_only_whole_products_are_folded() -> None:
    """A pattern stands for every combination of its numbers, so a layer with other experts has its own."""
    names = [f"l.{layer}.experts.{expert}.w1" for layer, expert in product((1, 2, 4), range(8))]
    assert name_patterns([*names, "l.3.experts.7.w1"]) == ["l.{1-2,4}.experts.{0-6}.w1", "l.{1-4}.experts.7.w1"]


def test_siblings_are_folded() -> None:
    """Names that differ in one word share a pattern; numbers are listed before words."""
    names = [f"l.0.mlp.{module}.{tensor}" for module in ("gate", "up") for tensor in ("weight", "bias")]
    assert name_patterns(names) == ["l.0.mlp.{gate,up}.{weight,bias}"]
    assert name_patterns(["a.0.w", "a.1.w", "a.norm.w", "a.head.w"]) == ["a.{0-1,norm,head}.w"]


def test_names_that_are_no_paths_stay() -> None:
    """Top-level names are not folded; leading zeros, empty parts and digits in words are not layer numbers."""
    names = ["lm_head", "norm", "x.07", "", "a..b", "fc1", "fc2"]
    assert name_patterns(names) == names


@given(st.lists(st.lists(st.sampled_from(["", "a", "b", *map(str, range(11))]), max_size=5).map(".".join), unique=True))
def test_every_name_is_in_exactly_one_pattern(names: list[str]) -> None:
    """Unfolding the patterns gives the same names, each once."""
    unfolded = [name for pattern in name_patterns(names) for name in unfold(pattern)]
    assert sorted(unfolded) == sorted(names)


def unfold(pattern: str) -> list[str]:
    """Return the names that a pattern stands for."""
    choices = []
    for part in pattern.split("."):
        words = part[1:-1].split(",") if part.startswith("{") else [part]
        ends = [word.split("-") for word in words]
        choices.append([str(n) for end in ends for n in (range(int(end[0]), int(end[-1]) + 1) if end[1:] else end)])
    return [".".join(parts) for parts in product(*choices)]


def test_layers_are_grouped_by_what_happens_to_them() -> None:
    """Layers that are padded differently are in different groups, whatever their names."""
    small, large = ((10, 16), (16, 16)), ((20, 16), (32, 16))
    groups = group_layers([layer("l.0.up", *small), layer("l.1.up", *large), layer("l.2.up", *small)])
    assert [(pattern, example.padded_shape) for pattern, example in groups] == [
        ("l.{0,2}.up", (16, 16)),
        ("l.1.up", (32, 16)),
    ]

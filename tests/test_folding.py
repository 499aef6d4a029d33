"""Folding names into patterns: no name is lost, and each pattern knows how many it stands for."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from fp8pad.render.folding import folded, name_patterns


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
    """Unfolding the patterns gives the same names, each once, as many as were counted."""
    patterns = [(unfold(pattern), num_names) for pattern, num_names in folded(names)]
    assert sorted(name for unfolded, _ in patterns for name in unfolded) == sorted(names)
    assert all(len(unfolded) == num_names for unfolded, num_names in patterns)


def unfold(pattern: str) -> list[str]:
    """Return the names that a pattern stands for."""
    choices = []
    for part in pattern.split("."):
        words = part[1:-1].split(",") if part.startswith("{") else [part]
        ends = [word.split("-") for word in words]
        choices.append([str(n) for end in ends for n in (range(int(end[0]), int(end[-1]) + 1) if end[1:] else end)])
    return [".".join(parts) for parts in product(*choices)]

"""The summary of a plan: shares and files."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import llama

from fp8pad import library
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.padded import AxisActions
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.linear import Layer, LayerPlan
from fp8pad.record import ConfigEdit, Policy
from fp8pad.scales import PerChannel
from fp8pad.summary import flops_added_share, output_files


def layer(name: str, logical: tuple[int, int], padded: tuple[int, int]) -> Layer:
    """Return a channel-scaled layer, padded along every axis that grows."""
    axes = AxisActions("pad" if logical[0] < padded[0] else "aligned", "pad" if logical[1] < padded[1] else "aligned")
    return Layer(name, LayerPlan(PerChannel(), logical, padded, (16, 16), axes, "because", logical))


def test_the_share_of_flops_counts_multiplications() -> None:
    """100 x 100 becomes 112 x 112, next to an aligned 64 x 64: 2544 more than 14096."""
    layers = [layer("a", (100, 100), (112, 112)), layer("b", (64, 64), (64, 64))]
    assert flops_added_share(layers) == (112 * 112 - 100 * 100) / (100 * 100 + 64 * 64)
    assert flops_added_share([]) == 0.0


def test_files_are_rewritten_only_where_something_changes(example: Path) -> None:
    """Padding rewrites shards and config.json, absorbing alone config.json, and an empty plan neither."""
    source = read_unconverted(example)
    padded = plan_checkpoint(source.shards, source.configs, Policy())
    nothing = replace(padded, tensors={}, modules={}, shards_rewritten=())
    edited = replace(nothing, config_edits=(ConfigEdit("config.json", "intermediate_size", 213, 224),))
    others = ("generation_config.json", "recipe.yaml", "tokenizer.json", "tokenizer_config.json")
    assert output_files(source, padded).rewritten == ("README.md", "config.json", "model.safetensors")
    assert output_files(source, padded).kept == others
    assert output_files(source, edited, with_card=False).rewritten == ("config.json",)
    assert output_files(source, nothing).rewritten == ()
    assert set(output_files(source, nothing).kept) == {"config.json", "model.safetensors", *others}


@pytest.mark.parametrize("card", [True, False])
@pytest.mark.parametrize("readme", [None, b"", b"# A model\n", b"\xff\xfe"])
@pytest.mark.parametrize("size", [21, 32])
def test_a_plan_names_the_files_that_converting_writes(
    tmp_path: Path, size: int, readme: bytes | None, card: bool
) -> None:
    """README.md is included, whether it exists or is created, unless it cannot be read as text."""
    model = llama(tmp_path / "model", n=size, k=32)
    if readme is not None:
        (model / "README.md").write_bytes(readme)
    planned = library.plan(model, card=card).to_json()
    done = library.convert(model, tmp_path / "out", card=card).to_json()
    for key in ("files_rewritten", "files_kept", "files_left_out"):
        assert planned[key] == done[key]

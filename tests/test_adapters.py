"""Adapters in a checkpoint's folder: copied along, with a note where they no longer fit."""

import json
from pathlib import Path

import pytest
from helpers import linear, safetensors_bytes, write_checkpoint

from fp8pad.adapters import adapter_notes
from fp8pad.checkpoint.checkpoint import read_unconverted
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy

DOWN = "model.layers.0.mlp.down_proj"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 1,
    "hidden_act": "silu",
    "quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama of one layer whose inner size can be absorbed."""
    layers = linear(DOWN, 64, 100) | linear("model.layers.0.self_attn.o_proj", 64, 64)
    layers |= linear("model.layers.0.mlp.gate_proj", 100, 64) | linear("model.layers.0.mlp.up_proj", 100, 64)
    return write_checkpoint(tmp_path / "model", {"model.safetensors": layers}, CONFIG)


def notes(model: Path, absorb: bool = True) -> list[str]:
    """Return where adapters lie that do not fit any more."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy(absorb=absorb))
    return [note.partition(":")[0] for note in adapter_notes(source, plan)]


def write_adapter(folder: Path, *modules: str) -> None:
    """Write the weights of a LoRA adapter as PEFT names them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"base_model.model.{module}.lora_{part}.weight" for module in modules for part in "AB"]
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(dict.fromkeys(names, ("F32", (1,)))))


def test_an_adapter_of_an_absorbed_module_is_named(model: Path) -> None:
    """Its matrices have the old sizes; one of another module, or of one that is padded, still fits."""
    write_adapter(model, "model.layers.0.self_attn.o_proj")
    write_adapter(model / "adapters" / "one", DOWN, "model.layers.0.self_attn.o_proj")
    assert notes(model) == ["adapters/one/"]
    assert notes(model, absorb=False) == []
    write_adapter(model, DOWN)
    assert notes(model) == ["./", "adapters/one/"]
    assert "adapters/one/adapter_model.safetensors" in read_unconverted(model).other_files


@pytest.mark.parametrize(
    ("targets", "touches"),
    [(["down_proj"], True), (["o_proj", "own_proj"], False), ("all-linear", True), ([], False), (None, False)],
)
def test_an_adapter_in_a_pickle_is_known_by_its_config(model: Path, targets: object, touches: bool) -> None:
    """Pickles are not opened."""
    (model / "lora").mkdir()
    (model / "lora" / "adapter_model.bin").write_bytes(b"a pickle")
    (model / "lora" / "adapter_config.json").write_text(json.dumps({"target_modules": targets}))
    assert notes(model) == (["lora/"] if touches else [])


def test_a_broken_adapter_is_no_error(model: Path) -> None:
    """It is not needed to convert the checkpoint."""
    (model / "lora").mkdir()
    (model / "lora" / "adapter_model.safetensors").write_bytes(b"x")
    (model / "lora" / "adapter_config.json").write_text("{")
    assert notes(model) == []

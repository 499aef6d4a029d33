"""Adapters in a checkpoint's folder: they are copied, with a note if they no longer fit."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers import gated, linear, safetensors_bytes, write_checkpoint

import fp8pad
from fp8pad.adapters import _touched, adapter_notes
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.errors import PlanError
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.render.console import stdout_console
from fp8pad.render.reports import conversion_screen
from fp8pad.render.terminal import write

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
    """Write a Llama of one layer whose inner size can be absorbed."""
    layers = gated("model.layers.0.mlp", 100, 64) | linear("model.layers.0.self_attn.o_proj", 64, 64)
    return write_checkpoint(tmp_path / "model", {"model.safetensors": layers}, CONFIG)


def notes(model: Path, absorb: bool = True) -> list[str]:
    """Return the folders of adapters that no longer fit."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy(absorb=absorb))
    return [note.partition(":")[0] for note in adapter_notes(source, plan)]


def write_adapter(folder: Path, *modules: str) -> None:
    """Write the weights of a LoRA adapter under PEFT's names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"base_model.model.{module}.lora_{part}.weight" for module in modules for part in "AB"]
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(dict.fromkeys(names, ("F32", (1,)))))


def test_an_adapter_of_an_absorbed_module_is_named(model: Path) -> None:
    """Its matrices have the old sizes; an adapter of another module, or of a padded one, still fits."""
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


def test_names_in_an_adapter_are_not_tried_one_by_one(model: Path) -> None:
    """An untrusted file may hold hundreds of thousands of names, and a model as many modules."""
    (model / "adapter_config.json").write_text(json.dumps({"target_modules": [f"q{i}" for i in range(1000)]}))
    source, calls = read_unconverted(model), []
    sys.setprofile(lambda _frame, event, _arg: calls.append(event))
    try:
        assert _touched(source, "", [f"model.layers.{i}.mlp.down_proj" for i in range(300)]) == []
    finally:
        sys.setprofile(None)
    assert len(calls) < 30_000


def test_other_layers_beside_a_single_shard_are_not_left_behind(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an index an engine would load them too, with the old sizes after absorbing, so that is refused."""
    (model / "extra.safetensors").write_bytes(safetensors_bytes(linear("model.layers.1.mlp.down_proj", 64, 100)))
    for call in (fp8pad.plan, partial(fp8pad.convert, out_dir=tmp_path / "out")):
        with pytest.raises(PlanError, match=r"^extra\.safetensors: holds FP8 layers, as model\.safetensors does"):
            call(model, absorb=True)
    assert list(tmp_path.iterdir()) == [model]
    report = fp8pad.convert(model, tmp_path / "out")
    (note,) = report.plan.notes
    assert note.startswith("extra.safetensors: holds FP8 layers, but no index lists it")
    write(conversion_screen(report), stdout_console())
    assert "extra.safetensors: holds FP8 layers" in capsys.readouterr().out


def test_weights_of_another_kind_beside_a_single_shard_may_stay(model: Path) -> None:
    """Files without FP8 layers, or without their scales, have nothing that is padded or absorbed."""
    (model / "extra.safetensors").write_bytes(safetensors_bytes({"x.weight": ("BF16", (2, 2)), "y": ("F8_E4M3", (1,))}))
    (model / "broken.safetensors").write_bytes(b"x")
    assert not any("extra" in note or "broken" in note for note in fp8pad.plan(model, absorb=True).plan.notes)


def test_the_summary_of_a_conversion_has_the_notes_of_its_plan(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter that no longer fits is named by `convert`, not only by `plan`."""
    write_adapter(model, DOWN)
    report = fp8pad.convert(model, tmp_path / "out", absorb=True)
    write(conversion_screen(report), stdout_console())
    told = " ".join(capsys.readouterr().out.split())
    assert report.plan.notes
    assert all(note in told for note in report.plan.notes)


def test_a_broken_adapter_is_no_error(model: Path) -> None:
    """A broken adapter does not stop a conversion, which does not need it."""
    (model / "lora").mkdir()
    (model / "lora" / "adapter_model.safetensors").write_bytes(b"x")
    (model / "lora" / "adapter_config.json").write_text("{")
    assert notes(model) == []

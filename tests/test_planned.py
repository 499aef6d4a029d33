"""A model opened and planned: which errors, notes and refusals come from here."""

import json
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from helpers import gated, linear, llama, safetensors_bytes, write_checkpoint

from fp8pad.errors import CheckpointError, NotServedError
from fp8pad.planned import PlanReport, planned
from fp8pad.planning.engines import find_engine
from fp8pad.record import Policy

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def open_and_plan(model: Path, policy: Policy = Policy(), **options: Any) -> AbstractContextManager[PlanReport]:  # noqa: B008
    """Open and plan with the defaults of `plan`."""
    usual = {"strict": False, "follow_links": False, "card": True, "engine": None}
    return planned(str(model), policy, **(usual | options))


def test_the_report_is_what_plan_prints(tmp_path: Path) -> None:
    """The source stays open meanwhile; the engine and the card are those that were asked for."""
    model = llama(tmp_path / "model")
    with open_and_plan(model, engine="sglang", card=False) as report:
        assert (report.source.root, report.engine, report.card) == (model, find_engine("sglang"), False)
        document = json.loads(json.dumps(report.to_json()))
    assert document["model"] == str(model)
    assert [layer["name"] for layer in document["layers"]] == [
        "model.layers.0.mlp.down_proj",
        "model.layers.0.self_attn.o_proj",
    ]


def test_an_error_of_the_plan_begins_with_the_model(tmp_path: Path) -> None:
    """As errors of reading do."""
    shard = linear("a.proj", 21, 24) | {
        "a.proj.weight_scale_2": ("F32", (1,)),
        "a.proj.input_scale": ("F8_E4M3", (3, 5)),
    }
    shard["a.proj.bias"] = ("BF16", (20,))
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": shard})
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(model))}: a.proj.bias: "), open_and_plan(model):
        pass


def test_what_is_not_understood_is_refused_only_on_request(tmp_path: Path) -> None:
    """Otherwise such a layer is carried unchanged."""
    shard = linear("a.proj", 21, 24) | {"b.proj.weight": ("F8_E4M3", (21, 24))}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": shard})
    with open_and_plan(model) as report:
        assert [layer.name for layer in report.plan.layers] == ["a.proj", "b.proj"]
    with (
        pytest.raises(CheckpointError, match=r"1 FP8 layer is not understood: b.proj: "),
        open_and_plan(model, strict=True),
    ):
        pass


def test_notes_of_files_follow_those_of_the_plan(tmp_path: Path) -> None:
    """An adapter that no longer fits: the plan itself knows no files."""
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 1}
    quantization = {"quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}}
    model = write_checkpoint(
        tmp_path / "model", {"model.safetensors": gated("model.layers.0.mlp", 100, 64)}, config | quantization
    )
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    (model / "lora").mkdir()
    (model / "lora" / "adapter_model.safetensors").write_bytes(safetensors_bytes({name: ("F32", (1,))}))
    with open_and_plan(model, Policy(absorb=True)) as report:
        of_the_plan, of_a_file = report.plan.notes
    assert of_the_plan.startswith("LoRA adapters trained on the original do not fit")
    assert of_a_file.startswith("lora/: ")


@pytest.mark.parametrize("force", [True, False])
def test_what_the_engine_refuses_is_an_error_without_force(tmp_path: Path, force: bool) -> None:
    """The error carries the plan, which shows what helps."""
    shard = {"a.o_proj.weight": ("F8_E4M3", (128, 384)), "a.o_proj.weight_scale_inv": ("F32", (1, 3))}
    config = {"model_type": "llama", "quantization_config": FP8}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": shard}, config)
    opened = open_and_plan(model, Policy(tensor_parallel_size=2), force=force)
    if force:
        with opened as report:
            assert report.plan.layers
        return
    with pytest.raises(NotServedError) as refused, opened:
        pass
    assert refused.value.report.plan.policy.tensor_parallel_size == 2
    assert refused.value.__notes__ == ["nothing was written; use --force to convert anyway"]

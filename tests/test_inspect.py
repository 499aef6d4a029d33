"""Inspecting: what the records say, and where they disagree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import llama, safetensors_bytes, stored
from test_verify import convert_to, edit_json

from fp8pad.errors import RecordError
from fp8pad.inspect import inspect_checkpoint
from fp8pad.record import AxisActions, PaddedTensor, Policy

NAME = "model.layers.0.mlp.down_proj"


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    """A padded checkpoint."""
    return convert_to(llama(tmp_path / "model"), tmp_path / "out", Policy(alignment=32))


def test_the_records_are_read(out_dir: Path) -> None:
    """All three of them, and they agree."""
    found = inspect_checkpoint(out_dir)
    assert found.disagreements == ()
    assert found.record is not None
    assert found.record.policy == Policy(alignment=32)
    assert found.record.tensors[f"{NAME}.weight"] == PaddedTensor((21, 24), (32, 32), 0, AxisActions("pad", "pad"))
    assert found.quantization is not None
    assert found.quantization.modules[NAME].padded_shape == (32, 32)
    assert found.logical_shapes[f"{NAME}.weight"] == (21, 24)


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        (
            "fp8pad.json",
            lambda d: d["tensors"].pop(f"{NAME}.weight"),
            f"{NAME}.weight: is in a shard's metadata, but not in fp8pad.json",
        ),
        (
            "fp8pad.json",
            lambda d: d["tensors"][f"{NAME}.weight"].update(logical_shape=[20, 24]),
            f"{NAME}.weight: logical_shape [20, 24] in fp8pad.json is [21, 24] in its shard's metadata",
        ),
        (
            "fp8pad.json",
            lambda d: d["tensors"][f"{NAME}.weight"].update(padded_shape=[48, 32]),
            f"{NAME}.weight: expected [48, 32] on disk, got [32, 32]",
        ),
        (
            "config.json",
            lambda d: d["quantization_config"]["modules"][NAME].update(padded_shape=[48, 32]),
            f"config.json: {NAME}: padded_shape [48, 32], but on disk [32, 32]",
        ),
        (
            "config.json",
            lambda d: d["quantization_config"]["modules"][NAME].update(logical_shape=[20, 24]),
            f"config.json: {NAME}: logical_shape [20, 24], but by fp8pad.json [21, 24]",
        ),
        (
            "config.json",
            lambda d: d["quantization_config"]["modules"][NAME].update(alignment=[32, 48]),
            f"config.json: {NAME}: alignment [32, 48] does not divide [32, 32]",
        ),
        (
            "config.json",
            lambda d: d["quantization_config"]["modules"].pop(NAME),
            f"{NAME}.weight_scale: is padded, but config.json has no module for it",
        ),
        (
            "config.json",
            lambda d: d.pop("quantization_config"),
            f"{NAME}.weight: is padded, but config.json has no quantization config of fp8pad",
        ),
        (
            "config.json",
            lambda d: d["quantization_config"]["base"].clear(),
            "config.json: base is not what fp8pad.json says of the original",
        ),
        (
            "fp8pad.json",
            lambda d: d["config_edits"].append({"file": "config.json", "key": "text.size", "old": 1, "new": 2}),
            "config.json: text.size: expected 2, got None",
        ),
        (
            "fp8pad.json",
            lambda d: d["files"].update(x={"source_size": 1, "size": 1}),
            "x: expected 1 bytes, got no such file",
        ),
    ],
)
def test_disagreements_are_told(out_dir: Path, file: str, edit: Callable[[Any], None], expected: str) -> None:
    """Each record against the others, and against what lies on disk."""
    edit_json(out_dir / file, edit)
    assert expected in inspect_checkpoint(out_dir).disagreements


def test_an_absorbed_axis_has_its_padded_size_in_the_config(example: Path, tmp_path: Path) -> None:
    """down_proj is absorbed along K and padded along N: config.json asks for the larger K, and for the source's N."""
    out_dir = convert_to(example, tmp_path / "absorbed", Policy(absorb=True))
    found = inspect_checkpoint(out_dir)
    assert found.disagreements == ()
    assert found.quantization is not None
    assert found.quantization.modules[NAME].logical_shape == (136, 224)

    def source_shape(config: Any) -> None:
        config["quantization_config"]["modules"][NAME]["logical_shape"] = [136, 213]

    edit_json(out_dir / "config.json", source_shape)
    assert inspect_checkpoint(out_dir).disagreements[0] == (
        f"config.json: {NAME}: logical_shape [136, 213], but by fp8pad.json [136, 224]"
    )


def test_a_garbled_record_is_a_disagreement(out_dir: Path) -> None:
    """What the other records say is still told."""
    (out_dir / "fp8pad.json").write_text("garbage")
    edit_json(out_dir / "config.json", lambda document: document["quantization_config"].pop("modules"))
    found = inspect_checkpoint(out_dir)
    assert found.record is None
    assert found.quantization is None
    assert f"{NAME}.weight" in found.logical_shapes
    assert [fault.split(":")[0] for fault in found.disagreements] == ["fp8pad.json", "config.json"]


def test_a_missing_record_is_a_disagreement(out_dir: Path) -> None:
    """The other records tell that the checkpoint was padded."""
    (out_dir / "fp8pad.json").unlink()
    found = inspect_checkpoint(out_dir)
    assert found.record is None
    assert any("fp8pad.json: is missing" in fault for fault in found.disagreements)


def test_shards_without_their_record_are_a_disagreement(out_dir: Path) -> None:
    """A tool that saved the tensors anew may have lost the metadata."""
    path = out_dir / "model.safetensors"
    path.write_bytes(safetensors_bytes({name: (dtype, shape) for name, (dtype, shape, _) in stored(path).items()}))
    found = inspect_checkpoint(out_dir).disagreements
    assert f"{NAME}.weight: logical_shape [21, 24] in fp8pad.json is missing in its shard's metadata" in found


def test_any_other_checkpoint_is_refused(tmp_path: Path) -> None:
    """It has nothing to tell."""
    model = llama(tmp_path / "model")
    with pytest.raises(RecordError, match="was not padded by fp8pad"):
        inspect_checkpoint(model)
    assert json.loads((model / "config.json").read_text())

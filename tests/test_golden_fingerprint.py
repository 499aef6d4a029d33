"""Fingerprints: equal before and after padding, different for any other model."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import case_names, copy_case, linear, write_checkpoint

from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_checkpoint, read_unconverted
from fp8pad.conversion import convert
from fp8pad.errors import RecordError
from fp8pad.golden.fingerprint import fingerprint
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy

BOTH = [Policy(), Policy(absorb=True, absorb_experts=True)]
CASES = [path for path in case_names("good") if "_tf_" not in path]


def converted(model: Path, out_dir: Path, policy: Policy) -> Path:
    """Convert a checkpoint and return the output folder."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, policy)
    convert(PlanReport(source, plan, card=False), out_dir, WriteOptions(), Progress())
    return out_dir


def known_as(model: Path) -> str:
    """Return the fingerprint of a folder."""
    return fingerprint(read_checkpoint(model))


@pytest.mark.parametrize("policy", BOTH)
def test_the_example_keeps_its_fingerprint(example: Path, tmp_path: Path, policy: Policy) -> None:
    """A padded or absorbed checkpoint is the same model."""
    assert known_as(converted(example, tmp_path / "out", policy)) == known_as(example)


@pytest.mark.parametrize("policy", BOTH)
@pytest.mark.parametrize("path", CASES)
def test_checkpoints_of_every_tool_keep_their_fingerprints(path: str, policy: Policy, tmp_path: Path) -> None:
    """Wherever the quantization config is, and whatever was absorbed."""
    model = copy_case(path, tmp_path)
    assert known_as(converted(model, tmp_path / "out", policy)) == known_as(model)


def test_the_fingerprint_is_literally_this(tmp_path: Path) -> None:
    """It is part of the file format, so that other implementations can compute it."""
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": linear("b", 3, 5) | linear("a", 16, 16)})
    content = (
        '[[["a.weight","F8_E4M3",[16,16]],["a.weight_scale","F32",[16,1]],'
        '["b.weight","F8_E4M3",[3,5]],["b.weight_scale","F32",[3,1]]],{"model_type":"llama"}]'
    )
    assert known_as(model) == f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def test_no_tensor_bytes_are_read(example: Path, tmp_path: Path) -> None:
    """Other weights of the same shapes have the same fingerprint: `verify` compares weights."""
    model = tmp_path / "model"
    shutil.copytree(example, model)
    shard = model / "model.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert known_as(model) == known_as(example)


def config_with(**values: Any) -> Callable[[Path], None]:
    """Return a function that changes config.json."""

    def change(model: Path) -> None:
        config = json.loads((model / "config.json").read_text()) | values
        (model / "config.json").write_text(json.dumps(config))

    return change


def other_tensor(model: Path) -> None:
    """Rename a tensor, in a header of the same length."""
    shard = model / "model.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b"model.norm.weight", b"model.nOrm.weight", 1))


@pytest.mark.parametrize("change", [config_with(hidden_act="gelu"), config_with(rope_theta=1), other_tensor])
def test_another_model_has_another_fingerprint(example: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Another key in the config or another name of a tensor makes it another model."""
    model = tmp_path / "model"
    shutil.copytree(example, model)
    change(model)
    assert known_as(model) != known_as(example)


def test_the_order_of_keys_and_tensors_does_not_matter(tmp_path: Path) -> None:
    """A checkpoint that was saved again, in one shard or in two, has the same fingerprint."""
    one = write_checkpoint(tmp_path / "one", {"model.safetensors": linear("a", 3, 5) | linear("b", 4, 5)})
    shards = {
        "model-00001-of-00002.safetensors": linear("b", 4, 5),
        "model-00002-of-00002.safetensors": linear("a", 3, 5),
    }
    two = write_checkpoint(tmp_path / "two", shards)
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    assert known_as(one) == known_as(two)


def test_an_absorbed_size_that_is_not_as_recorded_is_named(example: Path, tmp_path: Path) -> None:
    """A config.json that was edited after converting gives a clear error."""
    out_dir = converted(example, tmp_path / "out", Policy(absorb=True))
    config_with(intermediate_size=240)(out_dir)
    with pytest.raises(RecordError, match=r"config\.json: intermediate_size: expected 224, .*, got 240"):
        known_as(out_dir)


def test_a_padded_checkpoint_without_its_record_is_named(example: Path, tmp_path: Path) -> None:
    """Only fp8pad.json has the source shapes."""
    out_dir = converted(example, tmp_path / "out", Policy())
    (out_dir / "fp8pad.json").unlink()
    with pytest.raises(RecordError, match=r"fp8pad\.json is missing"):
        known_as(out_dir)

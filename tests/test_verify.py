"""Verifying: an honest checkpoint passes, and no damage to any byte of any file does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import INDEX, files_of, llama, stored, stored_header, write_checkpoint

from fp8pad.checkpoint.checkpoint import read_unconverted
from fp8pad.checkpoint.compare import Mismatch
from fp8pad.convert import ConvertOptions, Silence, convert
from fp8pad.errors import CheckpointError, RecordError
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.verify import VerifyReport, verify


def convert_to(model: Path, out_dir: Path, policy: Policy = Policy(), full: bool = False) -> Path:  # noqa: B008
    """Plan and convert `model`."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, policy)
    convert(source, plan, out_dir, ConvertOptions(verify="full" if full else "padded"), Silence())
    return out_dir


def check(model: Path, out_dir: Path) -> VerifyReport:
    """Verify without a word."""
    return verify(model, out_dir, Silence())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of two shards that needs padding."""
    return llama(tmp_path / "model", num_shards=2, n=5, k=3)


@pytest.fixture
def out_dir(model: Path, tmp_path: Path) -> Path:
    """What it converts to."""
    return convert_to(model, tmp_path / "out")


def test_an_honest_checkpoint_passes(model: Path, out_dir: Path) -> None:
    """Every tensor is counted."""
    assert check(model, out_dir) == VerifyReport(tensors_checked=10)


@pytest.mark.parametrize("policy", [Policy(alignment=64), Policy(tensor_parallel_size=4)])
def test_the_policy_is_the_one_of_the_record(model: Path, tmp_path: Path, policy: Policy) -> None:
    """Whatever was asked for when it was converted."""
    assert check(model, convert_to(model, tmp_path / "other", policy, full=True)).ok


def test_every_damaged_byte_is_noticed(model: Path, tmp_path: Path) -> None:
    """One byte after the other, of every file, records and side files included."""
    out_dir = convert_to(model, tmp_path / "out", full=True)
    for name, content in files_of(out_dir).items():
        # Data lies at the end of a shard and is covered byte by byte in test_shards.py.
        for offset in range(0, len(content), 1 if len(content) < 500 else 7):
            damaged = bytearray(content)
            damaged[offset] ^= 0x01
            (out_dir / name).write_bytes(damaged)
            try:
                noticed = not check(model, out_dir).ok
            except CheckpointError:
                noticed = True
            assert noticed, f"{name}: byte {offset}"
        (out_dir / name).write_bytes(content)
    assert check(model, out_dir).ok


def test_mismatches_name_tensor_and_position(model: Path, out_dir: Path) -> None:
    """Row and column of the first byte that differs in each tensor, at most twenty in all."""
    path = out_dir / "model-00001-of-00002.safetensors"
    header = stored_header(path)
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    weight = "model.layers.0.mlp.down_proj.weight"
    norm = "model.layers.0.input_layernorm.weight"
    content[start + header[weight]["data_offsets"][0] + 16 * 15 + 7] = 9
    content[start + header[norm]["data_offsets"][1] - 1] ^= 1
    path.write_bytes(content)
    places = [(mismatch.file, mismatch.place) for mismatch in check(model, out_dir).mismatches]
    assert places == [(path.name, f"{norm}[2]"), (path.name, f"{weight}[15, 7]")]


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    """Change a JSON file in place."""
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("file", "edit", "place"),
    [
        ("fp8pad.json", lambda d: d["policy"].update(tensor_parallel_size=2), None),
        ("fp8pad.json", lambda d: d["tensors"].popitem(), "tensors"),
        ("fp8pad.json", lambda d: next(iter(d["tensors"].values())).update(fill=1), "tensors"),
        ("fp8pad.json", lambda d: d["originals"].update({"config.json": "{}"}), "originals.config.json"),
        ("fp8pad.json", lambda d: d["files"].pop("config.json"), "files.config.json"),
        ("fp8pad.json", lambda d: d["files"]["config.json"].update(sha256="0" * 64), "files.config.json.sha256"),
        ("fp8pad.json", lambda d: d.update(fp8pad_version="9"), None),
        ("config.json", lambda d: d.update(model_type="other"), "model_type"),
        ("config.json", lambda d: d.update(extra=1), "extra"),
        ("config.json", lambda d: d["quantization_config"]["base"].clear(), "quantization_config.base"),
        ("config.json", lambda d: d["quantization_config"]["modules"].popitem(), "quantization_config.modules"),
        (INDEX, lambda d: d["metadata"].update(total_size=1), "metadata.total_size"),
    ],
)
def test_records_that_lie_are_named(
    model: Path, out_dir: Path, file: str, edit: Callable[[Any], None], place: str | None
) -> None:
    """A record is compared with a plan made anew, not with another record."""
    edit_json(out_dir / file, edit)
    report = check(model, out_dir)
    found = [mismatch for mismatch in report.mismatches if mismatch.file in (file, "config.json")]
    assert found
    assert place is None or found[0].place.startswith(place)


def test_a_file_that_is_missing_or_too_many_is_named(model: Path, out_dir: Path) -> None:
    """A tokenizer that is gone; shards that an engine might load besides."""
    (out_dir / "tokenizer.json").unlink()
    (out_dir / "consolidated.safetensors").write_bytes(b"")
    (out_dir / "README.md").write_text("a card of its own is no mismatch")
    (out_dir / ".git").mkdir()
    places = [(mismatch.file, mismatch.got) for mismatch in check(model, out_dir).mismatches]
    assert places[0] == ("tokenizer.json", "no such file")
    assert places[1][0] == "consolidated.safetensors"
    assert len(places) == 2


def test_an_index_that_the_source_has_not_is_named(tmp_path: Path) -> None:
    """It may name the right shards and still is not what was converted."""
    model = llama(tmp_path / "model")
    out_dir = convert_to(model, tmp_path / "out")
    weight_map = dict.fromkeys(stored(out_dir / "model.safetensors"), "model.safetensors")
    (out_dir / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert [mismatch.file for mismatch in check(model, out_dir).mismatches] == [INDEX]


def test_a_missing_record_is_an_error(model: Path, out_dir: Path) -> None:
    """Without the policy nothing can be derived; that the other records are there tells that one is missing."""
    (out_dir / "fp8pad.json").unlink()
    with pytest.raises(RecordError, match=r"fp8pad\.json is missing"):
        check(model, out_dir)


def test_an_equal_copy_passes_and_a_different_one_does_not(tmp_path: Path) -> None:
    """A checkpoint without records has to equal its source."""
    model = llama(tmp_path / "model", n=32, k=16)
    out_dir = convert_to(model, tmp_path / "out")
    assert check(model, out_dir).ok
    content = bytearray((out_dir / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (out_dir / "model.safetensors").write_bytes(content)
    assert [mismatch.place for mismatch in check(model, out_dir).mismatches] == [
        "model.layers.0.self_attn.o_proj.weight_scale[31, 0]"
    ]


def test_a_copy_that_was_never_converted_is_a_mismatch(model: Path, tmp_path: Path) -> None:
    """Where there is something to pad, an equal copy lacks the record; other differences are told beside it."""
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    missing = Mismatch("fp8pad.json", "file", "a record", "no such file")
    assert check(model, copy).mismatches == (missing,)
    (copy / "tokenizer.json").write_text("{}")
    assert [mismatch.file for mismatch in check(model, copy).mismatches] == ["fp8pad.json", "tokenizer.json"]


def test_another_source_is_no_match(out_dir: Path, tmp_path: Path) -> None:
    """The same shapes with other bytes: every tensor differs, and at most twenty are told."""
    other = llama(tmp_path / "other", num_shards=2, n=5, k=3)
    names = sorted(path.name for path in other.glob("*.safetensors"))
    one, two = (other / name for name in names)
    first, second = one.read_bytes(), two.read_bytes()
    size = int.from_bytes(first[:8], "little") + 8
    one.write_bytes(first[:size] + second[size:])
    two.write_bytes(second[:size] + first[size:])
    assert len(check(other, out_dir).mismatches) == 10


def test_mismatches_are_capped(tmp_path: Path) -> None:
    """Twenty are enough to see what is wrong."""
    tensors = {f"t{number}": ("U8", (1,)) for number in range(50)}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": tensors}, {"model_type": "llama"})
    out_dir = convert_to(model, tmp_path / "out")
    path = out_dir / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-50] + bytes(byte ^ 1 for byte in content[-50:]))
    assert len(check(model, out_dir).mismatches) == 20

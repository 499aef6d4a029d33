"""Unpadding: the source is restored byte for byte, for any checkpoint."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    FBGEMM,
    INDEX,
    case_names,
    copy_case,
    files_of,
    framed,
    gated,
    llama,
    safetensors_bytes,
    stored,
    stored_header,
    write_checkpoint,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_verify import convert_to, edit_json

from fp8pad.checkpoint.lock import hold_staging
from fp8pad.checkpoint.options import VerifyDepth, WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_checkpoint, read_unconverted
from fp8pad.checkpoint.writer import Writer
from fp8pad.conversion import convert
from fp8pad.errors import AlteredPaddingError, CheckpointError, OutputError, RecordError, VerifyError
from fp8pad.inspection import inspect_checkpoint
from fp8pad.padded import AxisActions, PaddedTensor, Segments
from fp8pad.planned import PlanReport
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.record import ConfigEdit, Policy, by_key
from fp8pad.render.console import stdout_console
from fp8pad.render.reports import restoration_screen
from fp8pad.render.terminal import write
from fp8pad.unpadding import UnpadReport, unpad
from fp8pad.verification import NO_HASHES, verify
from fp8pad.verification.disagreements import examine

OPTIONS = WriteOptions()


def restore(out_dir: Path, restored_dir: Path, options: WriteOptions = OPTIONS) -> UnpadReport:
    """Unpad without progress output."""
    return unpad(out_dir, restored_dir, options, Progress())


@pytest.mark.parametrize("policy", [Policy(), Policy(absorb=True, absorb_experts=True, tensor_parallel_size=4)])
@pytest.mark.parametrize("path", case_names("good", "variants"))
def test_checkpoints_of_other_tools_come_back(path: str, policy: Policy, tmp_path: Path) -> None:
    """Every known layout, including links of a hub cache and odd names, with and without hashes: there and back.

    The output passes verification, its records agree, and the source does not change.
    """
    model, restored = copy_case(path, tmp_path), tmp_path / "restored"
    source, before = read_unconverted(model), files_of(model)
    copied = {name: content for name, content in before.items() if name not in source.excluded}
    out_dir = convert_to(model, tmp_path / "out", policy, full=not policy.absorb)
    assert files_of(model) == before
    assert files_of(out_dir).keys() - {"fp8pad.json"} == copied.keys()
    checked = verify(model, out_dir, Progress())
    assert (checked.ok, checked.mismatches) == (True, ())
    assert checked.tensors_checked == sum(len(shard.tensors) for shard in source.shards)
    if (out_dir / "fp8pad.json").exists():
        assert inspect_checkpoint(out_dir).disagreements == ()
        restore(out_dir, restored)
        assert files_of(restored) == copied
    else:
        assert files_of(out_dir) == copied


def test_what_does_not_come_along_is_named_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of another form that somebody added, and folders that are never copied."""
    out_dir = convert_to(llama(tmp_path / "model"), tmp_path / "out")
    (out_dir / "pytorch_model.bin").write_bytes(b"")
    (out_dir / ".git").mkdir()
    write(restoration_screen(restore(out_dir, tmp_path / "restored")), stdout_console())
    shown = capsys.readouterr().out
    assert "  excluded  links out of the folder, or never copied: .git\n" in shown
    assert "  excluded  other forms of the weights: pytorch_model.bin\n" in shown


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_unpadding_undoes_converting_for_any_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any shapes, scales per channel or block, shards, with or without index and metadata, and any alignment."""
    area = tmp_path_factory.mktemp("area")
    sizes = st.integers(1, 40)
    block = data.draw(st.none() | st.tuples(sizes, sizes))
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number in range(data.draw(st.integers(1, 5))):
        n, k = data.draw(sizes), data.draw(sizes)
        grids = [(-(-n // block[0]), -(-k // block[1]))] if block else [(n, 1), (n,)]
        scale = data.draw(st.sampled_from(grids))
        tensors[f"m.{number}_proj.weight"] = ("F8_E4M3", (n, k))
        tensors[f"m.{number}_proj.weight_scale"] = (data.draw(st.sampled_from(["F32", "BF16", "F16"])), scale)
        tensors[f"m.{number}.norm"] = ("BF16", (data.draw(st.integers(0, 9)),))
    names = data.draw(st.permutations(sorted(tensors)))
    num_shards = data.draw(st.integers(1, 3))
    shards = {
        f"model-{number + 1:05}-of-{num_shards:05}.safetensors": {
            name: tensors[name] for name in names[number::num_shards]
        }
        for number in range(num_shards)
    }
    metadata = data.draw(st.sampled_from([None, {}, {"format": "pt"}, {"b": "1", "a": "ü"}]))
    quantization = {"quant_method": "fp8", "weight_block_size": list(block)} if block else FBGEMM["quantization_config"]
    config = {"model_type": "llama", "quantization_config": quantization}
    model = write_checkpoint(area / "model", shards, config, metadata, data.draw(st.booleans()))
    out_dir = convert_to(model, area / "out", Policy(alignment=data.draw(st.sampled_from(["auto", 16, 32, 64, 128]))))
    if (out_dir / "fp8pad.json").exists():
        restore(out_dir, area / "restored")
        assert files_of(area / "restored") == files_of(model)
    else:
        assert files_of(out_dir) == files_of(model)


def test_absorbed_tensors_in_segments_come_back(tmp_path: Path) -> None:
    """Stacked experts and a bias with segments, each padded at its own tail, along N and along K."""
    tensors = {"gate_up": ("F8_E4M3", (2, 6, 5)), "bias": ("BF16", (6,)), "down": ("F8_E4M3", (2, 4, 6))}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": tensors}, {"intermediate_size": 3, "é": "ü"})
    (model / "config.json").write_text('{"intermediate_size": 3, "é": "ü"}')
    source = read_unconverted(model)
    absorbed, halves = AxisActions("absorb", "absorb"), ((3, 3), (16, 16))
    edit = ConfigEdit("config.json", "intermediate_size", 3, 16)
    plan = CheckpointPlan(
        policy=Policy(absorb=True),
        layers=(),
        untouched=(),
        tensors={
            "gate_up": PaddedTensor((2, 6, 5), (2, 32, 16), 0, absorbed, Segments(*halves)),
            "bias": PaddedTensor((6,), (32,), 0, absorbed, Segments(*halves)),
            "down": PaddedTensor((2, 4, 6), (2, 4, 32), 0, absorbed, Segments(*halves, axis=-1)),
        },
        modules={},
        config_edits=(edit,),
        base=None,
        base_source=None,
        shards_rewritten=("model.safetensors",),
        bytes_before=0,
        bytes_after=0,
    )
    convert(PlanReport(source, plan, card=False), tmp_path / "out", OPTIONS, Progress())
    assert (tmp_path / "out" / "config.json").read_text() == '{"intermediate_size": 16, "é": "ü"}'
    restore(tmp_path / "out", tmp_path / "restored", WriteOptions(verify="full"))
    assert files_of(tmp_path / "restored") == files_of(model)


@pytest.mark.parametrize("per_layer", [[21, 21], 21])
def test_a_size_that_a_list_repeats_for_each_layer_comes_back(per_layer: object, tmp_path: Path) -> None:
    """Each place of the list is edited, as Hunyuan's published configs need; and one number is still one edit."""
    config = FBGEMM | {
        "model_type": "hunyuan_v1_moe",
        "hidden_act": "silu",
        "intermediate_size": 21,
        "moe_intermediate_size": per_layer,
    }
    tensors = gated("model.layers.0.mlp.shared_mlp", 21, 32) | gated("model.layers.1.mlp.experts.0", 21, 32)
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": tensors}, config)
    out_dir = convert_to(model, tmp_path / "out", Policy(absorb=True, absorb_experts=True))
    written = json.loads((out_dir / "config.json").read_text())
    assert written["intermediate_size"] == 32
    assert written["moe_intermediate_size"] == ([32, 32] if isinstance(per_layer, list) else 32)
    record = read_checkpoint(out_dir).read_record()
    edits = by_key(record.config_edits) if record else ()
    assert [(edit.key, edit.new) for edit in edits] == [("intermediate_size", 32), ("moe_intermediate_size", 32)]
    assert verify(model, out_dir, Progress()).ok
    restore(out_dir, tmp_path / "restored", WriteOptions(verify="full"))
    assert files_of(tmp_path / "restored") == files_of(model)


def test_odd_spellings_come_back_too(tmp_path: Path) -> None:
    """An oddly formatted header and index, and a wrong total_size, are kept exactly."""
    model = llama(tmp_path / "model", num_shards=2)
    path = model / "model-00001-of-00002.safetensors"
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(framed(json.dumps(json.loads(content[8:size])).encode()) + content[size:])
    index = json.loads((model / INDEX).read_text())
    (model / INDEX).write_text(json.dumps({"weight_map": index["weight_map"], "x": 1e-06, "metadata": {}}, indent="\t"))
    (model / "config.json").write_text((model / "config.json").read_text().replace("1200.0", "1.2E3"))
    out_dir = convert_to(model, tmp_path / "out")
    record = json.loads((out_dir / "fp8pad.json").read_text())
    assert record["originals"].keys() == {"config.json", INDEX, path.name}
    restore(out_dir, tmp_path / "restored")
    assert files_of(tmp_path / "restored") == files_of(model)


def test_what_was_added_later_comes_along(tmp_path: Path) -> None:
    """A model card that the publisher wrote is not lost; fp8pad's record is removed."""
    model = llama(tmp_path / "model")
    out_dir = convert_to(model, tmp_path / "out")
    (out_dir / "README.md").write_text("padded")
    (out_dir / "tokenizer.json").write_text("edited")
    report = restore(out_dir, tmp_path / "restored")
    assert files_of(tmp_path / "restored") == files_of(model) | {"README.md": b"padded", "tokenizer.json": b"edited"}
    notes = (
        "README.md: was added (6 bytes): it is copied unchanged",
        "tokenizer.json: size: expected 18 bytes, got 6 bytes: it is copied unchanged",
        NO_HASHES,
    )
    assert report == UnpadReport(tmp_path / "restored", tensors_unpadded=2, excluded=(), resumed=(), notes=notes)


def test_restoring_again_says_that_nothing_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As converting again does, in the same words."""
    out_dir, said = convert_to(llama(tmp_path / "model"), tmp_path / "out", full=True), list[Any]()
    for _ in range(2):
        report = restore(out_dir, tmp_path / "back")
        write(restoration_screen(report), stdout_console())
        said.append((report.was_complete, report.to_json().get("was_complete"), capsys.readouterr().out))
    back = tmp_path / "back"
    assert said == [
        (False, None, f"{back}: restored, 2 tensors as before padding\n"),
        (True, True, f"{back}: complete already, 2 tensors as before padding\n"),
    ]


def test_an_edit_of_the_same_size_is_told_by_its_hash(tmp_path: Path) -> None:
    """The file is copied unchanged, with a note."""
    model = llama(tmp_path / "model")
    out_dir = convert_to(model, tmp_path / "out", full=True)
    (out_dir / "tokenizer.json").write_bytes(b"x" * (model / "tokenizer.json").stat().st_size)
    (note,) = restore(out_dir, tmp_path / "restored").notes
    assert note.startswith("tokenizer.json: sha256: expected ")
    assert note.endswith(": it is copied unchanged")


@pytest.mark.parametrize("is_padded", [True, False])
def test_without_a_record_nothing_can_be_undone(tmp_path: Path, is_padded: bool) -> None:
    """A padded checkpoint lacks it; any other was never padded."""
    model = llama(tmp_path / "model")
    out_dir = convert_to(model, tmp_path / "out")
    (out_dir / "fp8pad.json").unlink()
    with pytest.raises(RecordError, match=r"fp8pad\.json"):
        restore(out_dir if is_padded else model, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format_version": 1', '"format_version": 2', "format_version: expected 1, got 2"),
        ("21,", "20,", r"expected \[20, 24\], as in fp8pad.json, got \[21, 24\]"),
        ('"config.json": "', '"other.json": "', "originals: config.json is missing"),
        ("{", "[", "not JSON"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """An unknown version, sizes that differ from the shards', a missing original config, and invalid JSON."""
    out_dir = convert_to(llama(tmp_path / "model"), tmp_path / "out")
    text = (out_dir / "fp8pad.json").read_text()
    (out_dir / "fp8pad.json").write_text(text.replace(old, new))
    with pytest.raises(RecordError, match=message):
        restore(out_dir, tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_a_shard_of_another_shape_is_refused(tmp_path: Path) -> None:
    """Another tool has saved the tensors again."""
    out_dir = convert_to(llama(tmp_path / "model"), tmp_path / "out")
    (out_dir / "model.safetensors").write_bytes(safetensors_bytes({"a": ("U8", (1,))}))
    with pytest.raises(RecordError, match="padded_shape: expected a tensor of the shards"):
        restore(out_dir, tmp_path / "restored")


def test_damage_shows_where_the_source_was_hashed(tmp_path: Path) -> None:
    """With recorded hashes, restored files are compared with the original."""
    out_dir = convert_to(llama(tmp_path / "model"), tmp_path / "out", full=True)
    path = out_dir / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerifyError, match=r"model\.safetensors: sha256"):
        restore(out_dir, tmp_path / "restored", WriteOptions(verify="full"))
    assert not (tmp_path / "restored").exists()


def alter(path: Path, name: str, *place: int) -> None:
    """Alter the first byte of an element of a tensor."""
    content, entry = bytearray(path.read_bytes()), stored_header(path)[name]
    begin, end = (8 + int.from_bytes(content[:8], "little") + offset for offset in entry["data_offsets"])
    element_bytes = (end - begin) // math.prod(entry["shape"])
    content[begin + element_bytes * int(np.ravel_multi_index(place, entry["shape"]))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("weight", (31, 31)),
        ("weight", (0, 24)),
        ("weight", (20, 31)),
        ("weight", (21, 0)),
        ("weight_scale", (21, 0)),
        ("weight_scale", (31, 0)),
    ],
)
def test_padding_that_was_altered_is_not_dropped_unseen(
    tmp_path: Path, name: str, place: tuple[int, ...], hashed: bool
) -> None:
    """In added rows, columns and scales: the logical bytes, and their hashes, did not change."""
    model = llama(tmp_path / "model")
    out_dir, tensor = convert_to(model, tmp_path / "out", full=hashed), f"model.layers.0.mlp.down_proj.{name}"
    alter(out_dir / "model.safetensors", tensor, *place)
    where = re.escape(f"model.safetensors: {tensor}{list(place)}: expected byte 0x00, got 0x01: its padding")
    with pytest.raises(
        VerifyError, match=f"^{where} was altered, and unpadding would discard it; --verify none allows that$"
    ):
        restore(out_dir, tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    with pytest.raises(VerifyError, match=where):  # even though nothing would be written
        restore(out_dir, model)
    restore(out_dir, tmp_path / "restored", WriteOptions(verify="none"))
    assert files_of(tmp_path / "restored") == files_of(model)


def test_shards_before_one_whose_padding_was_altered_are_kept_for_the_next_run(tmp_path: Path) -> None:
    """Once the shard is intact again, the same command resumes."""
    model = llama(tmp_path / "model", num_shards=3)
    out_dir = convert_to(model, tmp_path / "out")
    shard = out_dir / "model-00003-of-00003.safetensors"
    intact = shard.read_bytes()
    alter(shard, "model.layers.2.mlp.down_proj.weight", 31, 31)
    with pytest.raises(VerifyError, match="padding was altered") as failure:
        restore(out_dir, tmp_path / "restored", WriteOptions(jobs=1))
    assert failure.value.__notes__[0].startswith("2 of 3 shards are finished in "), "the same command fails again"
    shard.write_bytes(intact)
    assert len(restore(out_dir, tmp_path / "restored").resumed) == 2
    assert files_of(tmp_path / "restored") == files_of(model)


def test_what_lies_there_is_dropped_on_request_alone(tmp_path: Path) -> None:
    """As the error says, using the shards that were finished before."""
    model = llama(tmp_path / "model", num_shards=2)
    out_dir = convert_to(model, tmp_path / "out")
    alter(out_dir / "model-00002-of-00002.safetensors", "model.layers.1.mlp.down_proj.weight", 31, 31)
    with pytest.raises(AlteredPaddingError, match="--verify none allows that"):
        restore(out_dir, tmp_path / "restored", WriteOptions(jobs=1))
    assert len(restore(out_dir, tmp_path / "restored", WriteOptions(verify="none")).resumed) == 1
    assert files_of(tmp_path / "restored") == files_of(model)


def test_the_check_of_padding_stops_and_knows_its_shard(tmp_path: Path) -> None:
    """It stops early when another shard fails, and a replaced shard is not reported as altered."""
    out_dir = convert_to(llama(tmp_path / "model"), tmp_path / "out")
    source = read_checkpoint(out_dir)
    record = source.read_record()
    assert record is not None
    _, original = examine(source, record)
    assert original is not None

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with hold_staging(tmp_path / "restored") as staging:
        writer = Writer(source, staging, OPTIONS)
        with pytest.raises(KeyboardInterrupt):
            writer.check_dropped(original.layouts[0], stop)
        shard = out_dir / "model.safetensors"
        shard.write_bytes(shard.read_bytes())
        alter(shard, WEIGHT, 31, 31)
        with pytest.raises(CheckpointError, match="changed"):
            writer.check_dropped(original.layouts[0], lambda _: None)
        staging.remove()


@pytest.mark.parametrize("depth", ["padded", "full"])
def test_hashes_are_compared_whatever_the_depth(tmp_path: Path, depth: VerifyDepth) -> None:
    """Recorded hashes of the source are compared with every restored shard, unless verification is off."""
    out_dir = convert_to(llama(tmp_path / "model"), tmp_path / "out", full=True)
    edit_json(out_dir / "fp8pad.json", lambda d: d["files"]["model.safetensors"].update(source_sha256="0" * 64))
    with pytest.raises(VerifyError, match=r"model\.safetensors: sha256: expected 0000") as failure:
        restore(out_dir, tmp_path / "restored", WriteOptions(verify=depth))
    assert not hasattr(failure.value, "__notes__"), "running it again would fail again: there is nothing to resume"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    restore(out_dir, tmp_path / "restored", WriteOptions(verify="none"))


@pytest.mark.parametrize("depth", ["padded", "full"])
def test_hashes_are_compared_where_nothing_is_written(tmp_path: Path, depth: VerifyDepth) -> None:
    """A restored folder is complete, but equals a checkpoint whose logical bytes were altered."""
    out_dir, restored = convert_to(llama(tmp_path / "model"), tmp_path / "out", full=True), tmp_path / "restored"
    alter(out_dir / "model.safetensors", WEIGHT, 0, 0)
    restore(out_dir, restored, WriteOptions(verify="none"))
    with pytest.raises(VerifyError, match=r"out: model\.safetensors: sha256: expected"):
        restore(out_dir, restored, WriteOptions(verify=depth))
    assert restore(out_dir, restored, WriteOptions(verify="none")).resumed == ("model.safetensors",)


def test_other_files_are_held_against_their_hashes_where_nothing_is_written(tmp_path: Path) -> None:
    """As if they were written: a note, and an error on request."""
    out_dir, restored = convert_to(llama(tmp_path / "model"), tmp_path / "out", full=True), tmp_path / "restored"
    size = (out_dir / "tokenizer.json").stat().st_size
    (out_dir / "tokenizer.json").write_bytes(bytes(size))
    notes = restore(out_dir, restored).notes
    assert len(notes) == 1
    assert restore(out_dir, restored).notes == notes
    with pytest.raises(VerifyError, match=r"tokenizer\.json: sha256"):
        restore(out_dir, restored, WriteOptions(verify="full"))


def test_the_original_config_is_held_against_its_hash(tmp_path: Path) -> None:
    """Same size, other text, and the converted config.json altered to match it: only the hash reveals it."""
    out_dir = convert_to(llama(tmp_path / "model"), tmp_path / "out", full=True)
    for file in ("fp8pad.json", "config.json"):
        (out_dir / file).write_text((out_dir / file).read_text().replace("llama", "lemma"))
    with pytest.raises(VerifyError, match=r"config\.json: sha256"):
        restore(out_dir, tmp_path / "restored")


def test_a_model_card_may_change_after_hashing(tmp_path: Path) -> None:
    """Other files are compared only if full verification is requested."""
    out_dir = convert_to(llama(tmp_path / "model"), tmp_path / "out", full=True)
    (out_dir / "tokenizer.json").write_text("{}")
    with pytest.raises(VerifyError, match=r"tokenizer\.json: sha256"):
        restore(out_dir, tmp_path / "restored", WriteOptions(verify="full"))
    restore(out_dir, tmp_path / "restored")
    assert (tmp_path / "restored" / "tokenizer.json").read_text() == "{}"


WEIGHT = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d["tensors"].clear(),
            "expected no entry, as in fp8pad.json, got \\[21, 24\\]",
        ),
        (lambda d: d["tensors"].pop(WEIGHT), f"{WEIGHT}: logical_shape: expected no entry"),
        (
            lambda d: d["tensors"][WEIGHT].update(logical_shape=[20, 24]),
            "expected \\[20, 24\\], as in fp8pad.json",
        ),
        (
            lambda d: d["tensors"].update({WEIGHT.replace("mlp.down", "self_attn.o"): d["tensors"][WEIGHT]}),
            "self_attn.o_proj.weight: logical_shape: expected \\[21, 24\\], as in fp8pad.json, got no entry",
        ),
        (
            lambda d: d["files"].update({"x.py": {"source_size": 1, "size": 1}}),
            r"out: x\.py is missing \(1 bytes\)",
        ),
        (
            lambda d: d["files"]["model.safetensors"].update(source_size=1),
            "files: model.safetensors: source_size: expected 1820 bytes, got 1",
        ),
        (
            lambda d: d["files"]["config.json"].update(source_size=1),
            "config.json: source_size: expected 128 bytes",
        ),
        (lambda d: d["originals"].update({"config.json": "[]"}), "originals: config.json: expected a JSON object"),
        (lambda d: d["originals"].update({INDEX: "no"}), f"originals: {INDEX}: not JSON"),
    ],
)
def test_records_that_disagree_restore_nothing(tmp_path: Path, edit: Callable[[Any], None], message: str) -> None:
    """fp8pad.json is compared with the metadata of the shards, and with the files that it names."""
    out_dir = convert_to(llama(tmp_path / "model"), tmp_path / "out")
    edit_json(out_dir / "fp8pad.json", edit)
    with pytest.raises(RecordError, match=message):
        restore(out_dir, tmp_path / "restored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_a_mark_on_a_shard_that_nothing_explains_is_refused(tmp_path: Path) -> None:
    """The shard says that fp8pad wrote it and names no tensor; the source cannot have been like that."""
    model = llama(tmp_path / "model", num_shards=2)
    out_dir = convert_to(model, tmp_path / "out")
    shard = out_dir / "model-00002-of-00002.safetensors"
    tensors = {name: (dtype, shape) for name, (dtype, shape, _) in stored(model / shard.name).items()}
    shard.write_bytes(safetensors_bytes(tensors, {"fp8pad": '{"format_version":1,"tensors":{}}'}))
    edit_json(
        out_dir / "fp8pad.json",
        lambda d: d.update(tensors={name: tensor for name, tensor in d["tensors"].items() if ".1." not in name}),
    )
    with pytest.raises(RecordError, match="expected none, since no tensor"):
        restore(out_dir, tmp_path / "restored")


def test_a_missing_file_that_no_engine_obeys_is_a_note(tmp_path: Path) -> None:
    """As for `verify`: a licence or a tokenizer may be missing, code and configs may not."""
    model = llama(tmp_path / "model")
    (model / "LICENSE").write_text("free")
    (model / "modeling_x.py").write_text("x = 1")
    out_dir = convert_to(model, tmp_path / "out")
    (out_dir / "LICENSE").unlink()
    report = restore(out_dir, tmp_path / "restored")
    assert report.notes == ("LICENSE is missing (4 bytes): it is not restored", NO_HASHES)
    assert not (tmp_path / "restored" / "LICENSE").exists()
    (out_dir / "modeling_x.py").unlink()
    with pytest.raises(RecordError, match=r"out: modeling_x\.py is missing \(5 bytes\)$"):
        restore(out_dir, tmp_path / "other")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """As in converting; a folder that already holds the result is compared with it."""
    model = llama(tmp_path / "model")
    out_dir = convert_to(model, tmp_path / "out")
    assert restore(out_dir, model).resumed == ("model.safetensors",)
    (model / "tokenizer.json").write_text("edited")
    with pytest.raises(OutputError, match="--overwrite"):
        restore(out_dir, model)

"""Verifying: an intact checkpoint passes, and no damage to any byte of any file does."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import INDEX, files_of, llama, stored, stored_header, write_checkpoint

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.conversion import convert
from fp8pad.errors import AlreadyPaddedError, CheckpointError, RecordError
from fp8pad.inspection import inspect_checkpoint
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.linear_names import scale_names
from fp8pad.record import Policy
from fp8pad.unpadding import unpad
from fp8pad.verification import VerifyReport, verify


def convert_to(model: Path, out_dir: Path, policy: Policy = Policy(), full: bool = False) -> Path:  # noqa: B008
    """Plan and convert `model`."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, policy)
    options = WriteOptions(verify="full" if full else "padded")
    convert(PlanReport(source, plan, card=False), out_dir, options, Progress())
    return out_dir


def check(model: Path, out_dir: Path) -> VerifyReport:
    """Verify without progress output."""
    return verify(model, out_dir, Progress())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a checkpoint of two shards that needs padding."""
    return llama(tmp_path / "model", num_shards=2, n=5, k=3)


@pytest.fixture
def out_dir(model: Path, tmp_path: Path) -> Path:
    """Convert the model."""
    return convert_to(model, tmp_path / "out")


def test_an_honest_checkpoint_passes(model: Path, out_dir: Path) -> None:
    """Every tensor is counted."""
    report = check(model, out_dir)
    assert (report.ok, report.tensors_checked, report.is_complete) == (True, 10, True)
    assert report.notes == ()


@pytest.mark.parametrize("scale", scale_names("model.layers.0.mlp.down_proj.weight"))
def test_the_scale_has_any_name_that_tools_give_it(tmp_path: Path, scale: str) -> None:
    """It converts, verifies and is restored, though a record names the module after the weight alone."""
    tensors = {"model.layers.0.mlp.down_proj.weight": ("F8_E4M3", (21, 24)), scale: ("F32", (21, 1))}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": tensors})
    out_dir = convert_to(model, tmp_path / "out")
    assert stored(out_dir / "model.safetensors")[scale][1] == (32, 1)
    assert (check(model, out_dir).mismatches, inspect_checkpoint(out_dir).disagreements) == ((), ())
    unpad(out_dir, tmp_path / "restored", WriteOptions(), Progress())
    assert files_of(tmp_path / "restored") == files_of(model)


@pytest.mark.parametrize("policy", [Policy(alignment=64), Policy(tensor_parallel_size=4)])
def test_the_policy_is_the_one_of_the_record(model: Path, tmp_path: Path, policy: Policy) -> None:
    """Verification uses the policy of the conversion."""
    assert check(model, convert_to(model, tmp_path / "other", policy, full=True)).ok


@pytest.mark.parametrize("alone", [False, True])
def test_a_damaged_byte_is_noticed_wherever_it_is(model: Path, tmp_path: Path, alone: bool) -> None:
    """Every 37th byte of every file, all bytes of short ones, without the source too; a note for the model card."""
    for name in ("README.md", "modeling_x.py", "chat_template.jinja", "LICENSE", "pictures/a.png"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("01")
    out_dir = convert_to(model, tmp_path / "out", full=True)
    known = None if alone else model
    for name, content in files_of(out_dir).items():
        for offset in range(0, len(content), 1 if len(content) < 200 else 37):
            damaged = bytearray(content)
            damaged[offset] ^= 0x01
            (out_dir / name).write_bytes(damaged)
            try:
                report = verify(known, out_dir, Progress())
                is_noted = any(note.startswith("README.md: ") for note in report.notes)
                noticed = not report.ok or (is_noted and name in {"README.md", "fp8pad.json"})
            except CheckpointError:
                noticed = True
            assert noticed, f"{name}: byte {offset}"
            if name.endswith(".safetensors"):  # that of the source would differ for the same reason
                assert sum("sha256" in found.place for found in report.mismatches) <= 1
        (out_dir / name).write_bytes(content)
    found = verify(known, out_dir, Progress())
    assert found == VerifyReport(out_dir, None if alone else str(model), 10, files_hashed=10, has_records=True)


def test_mismatches_name_tensor_and_position(model: Path, out_dir: Path) -> None:
    """Row and column of the first different byte in each tensor, for at most twenty tensors."""
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
        ("fp8pad.json", lambda d: d["tensors"].clear(), None),
        ("fp8pad.json", lambda d: next(iter(d["tensors"].values())).update(fill=1), "record"),
        ("fp8pad.json", lambda d: d["originals"].update({"config.json": "{}"}), None),
        ("fp8pad.json", lambda d: d["files"].pop("config.json"), "files: config.json"),
        ("fp8pad.json", lambda d: d["files"]["config.json"].update(sha256="0" * 64), "files: config.json"),
        ("fp8pad.json", lambda d: d.update(fp8pad_version="9"), None),
        ("config.json", lambda d: d.update(model_type="other"), "model_type"),
        ("config.json", lambda d: d.update(extra=1), "extra"),
        ("config.json", lambda d: d["quantization_config"]["base"].clear(), "quantization_config.base"),
        ("config.json", lambda d: d["quantization_config"]["modules"].popitem(), "modules"),
        (INDEX, lambda d: d["metadata"].update(total_size=1), "metadata.total_size"),
    ],
)
def test_records_that_lie_are_named(
    model: Path, out_dir: Path, file: str, edit: Callable[[Any], None], place: str | None
) -> None:
    """With the source and without."""
    edit_json(out_dir / file, edit)
    found = [m for m in check(model, out_dir).mismatches if place is None or m.file in (file, "config.json")]
    assert found
    assert not verify(None, out_dir, Progress()).ok
    assert place is None or found[0].place.startswith(place)


def test_files_that_came_and_went_are_told_by_their_danger(model: Path, out_dir: Path) -> None:
    """Weights, code and configs that an engine might use are mismatches; a card and a licence are notes."""
    (out_dir / "LICENSE").write_text("free")
    (out_dir / "README.md").write_text("a card of its own")
    (out_dir / ".git").mkdir()
    report = check(model, out_dir)
    assert report.ok
    assert report.notes[:2] == (
        "LICENSE: was added (4 bytes)",
        "README.md: was added (17 bytes)",
    )
    dangerous = ["chat_template.jinja", "consolidated.safetensors", "generation_config.json", "m/modeling.py", "x.pkl"]
    (out_dir / "m").mkdir()
    for name in dangerous:
        (out_dir / name).write_text("{}")
    for report in (check(model, out_dir), verify(None, out_dir, Progress())):
        assert sorted(mismatch.file for mismatch in report.mismatches) == dangerous


@pytest.mark.parametrize("change", ["missing", "longer", "a flipped bit"])
def test_every_file_of_the_record_has_to_be_as_it_was(model: Path, tmp_path: Path, change: str) -> None:
    """Any kind of file, including index and shards; only a model card may be edited, and is then not counted."""
    for name in ("README.md", "LICENSE", "tokenizer_config.json", "modeling.py", "assets/logo.png"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("text")
    out_dir = convert_to(model, tmp_path / "out", full=True)
    kept = files_of(out_dir)
    named = kept.keys() - {"fp8pad.json"}
    assert verify(None, out_dir, Progress()).files_hashed == len(named)
    for name in sorted(named):
        path = out_dir / name
        if change == "missing":
            path.unlink()
        else:
            path.write_bytes(kept[name] + b" " if change == "longer" else kept[name][:-1] + bytes([kept[name][-1] ^ 1]))
        for source in (None, model):
            try:
                report = verify(source, out_dir, Progress())
                found = {mismatch.file for mismatch in report.mismatches}
            except CheckpointError:
                found = {name}
            if name == "README.md":
                assert (found, report.files_hashed) == (set(), len(named) - 1)
                assert report.notes[0].startswith("README.md")
            else:
                assert found & {name, "fp8pad.json"}, name
        path.write_bytes(kept[name])
    assert verify(None, out_dir, Progress()).ok


@pytest.mark.parametrize("change", ["altered", "altered and an original", "added", "gone"])
@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", "modeling.py"])
def test_other_files_are_those_of_the_source_whatever_the_record_says(
    model: Path, tmp_path: Path, file: str, change: str
) -> None:
    """A forged `fp8pad.json` hides no forged file; an added tokenizer is reported too."""
    path = model / file
    path.unlink(missing_ok=True)
    if change != "added":
        path.write_text("text")
    out_dir = convert_to(model, tmp_path / "out", full=True)
    assert check(model, out_dir).ok
    (out_dir / file).write_text("TEXT")
    digest = hashlib.sha256(b"TEXT").hexdigest()
    entry = {"source_size": 4, "size": 4, "sha256": digest, "source_sha256": digest}
    if change == "gone":
        (out_dir / file).unlink()
    for is_named in (False, True) if change != "gone" else (False,):
        edit_json(out_dir / "fp8pad.json", lambda d: d["files"].pop(file, None))
        if is_named:
            edit_json(out_dir / "fp8pad.json", lambda d: d["files"].update({file: entry}))
        if change == "altered and an original":
            edit_json(out_dir / "fp8pad.json", lambda d: d["originals"].update({file: "text"}))
            assert f"originals: {file}" in {each.place for each in verify(None, out_dir, Progress()).mismatches}
        found = {each.file for each in check(model, out_dir).mismatches}
        assert (file in found) == (change != "added" or file != "tokenizer.json")


def test_links_and_open_modes_are_noted(model: Path, out_dir: Path, tmp_path: Path) -> None:
    """Anyone who can change a link's target, or a world-writable file, can change the model."""
    (out_dir / "tokenizer.json").chmod(0o666)
    (out_dir / "config.json").rename(tmp_path / "moved.json")
    (out_dir / "config.json").symlink_to(tmp_path / "moved.json")
    report = check(model, out_dir)
    assert report.ok
    assert f"config.json: is a link to {tmp_path / 'moved.json'}" in report.notes
    assert "tokenizer.json: is writable by every user" in report.notes


def test_a_snapshot_in_a_cache_is_all_links(model: Path, tmp_path: Path) -> None:
    """Its files are in `blobs`, as huggingface_hub downloads them, which is not reported."""
    out_dir = convert_to(model, tmp_path / "out", full=True)
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(out_dir.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert verify(None, snapshot, Progress()) == VerifyReport(snapshot, None, 10, files_hashed=5, has_records=True)


def test_an_index_that_the_source_has_not_is_named(tmp_path: Path) -> None:
    """Even an index with the right shards was not part of the conversion."""
    model = llama(tmp_path / "model")
    out_dir = convert_to(model, tmp_path / "out")
    weight_map = dict.fromkeys(stored(out_dir / "model.safetensors"), "model.safetensors")
    (out_dir / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert INDEX in {mismatch.file for mismatch in check(model, out_dir).mismatches}
    assert not verify(None, out_dir, Progress()).ok


@pytest.mark.parametrize("levels", range(90, 100))
def test_what_nests_too_deep_to_be_read_is_not_written(tmp_path: Path, levels: int) -> None:
    """The original config is nested one level deeper, in `base`; what is written can be read again."""
    model = llama(tmp_path / "model", n=5, k=3)
    nested: dict[str, Any] = {}
    for _ in range(levels):
        nested = {"a": nested}
    edit_json(model / "config.json", lambda d: d["quantization_config"].update(x=nested))
    if levels <= 96:
        assert check(model, convert_to(model, tmp_path / "out")).ok
        return
    with pytest.raises(CheckpointError, match=r"config\.json"):
        convert_to(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_quantization_config_that_was_planned_with_is_copied_wherever_it_lies(model: Path, tmp_path: Path) -> None:
    """Like config.json, and unlike other links out of the folder; a copy without it is not equal."""
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "elsewhere.json").write_text(json.dumps(config.pop("quantization_config")))
    (model / "config.json").write_text(json.dumps(config))
    (model / "hf_quant_config.json").symlink_to(tmp_path / "elsewhere.json")
    out_dir = tmp_path / "copy"
    shutil.copytree(model, out_dir)
    assert check(model, out_dir).ok
    assert "hf_quant_config.json" in read_unconverted(model).other_files
    (out_dir / "hf_quant_config.json").unlink()
    assert [each.file for each in check(model, out_dir).mismatches] == ["hf_quant_config.json"]


def test_a_missing_record_is_an_error(model: Path, out_dir: Path) -> None:
    """Without the policy nothing can be derived; the other records show that one is missing."""
    (out_dir / "fp8pad.json").unlink()
    with pytest.raises(RecordError, match=r"fp8pad\.json is missing"):
        check(model, out_dir)


def test_an_equal_copy_passes_and_a_different_one_does_not(tmp_path: Path) -> None:
    """A checkpoint without records must equal its source."""
    model = llama(tmp_path / "model", n=32, k=16)
    out_dir = convert_to(model, tmp_path / "out")
    assert check(model, out_dir).ok
    content = bytearray((out_dir / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (out_dir / "model.safetensors").write_bytes(content)
    assert [mismatch.place for mismatch in check(model, out_dir).mismatches] == [
        "model.layers.0.self_attn.o_proj.weight_scale[31, 0]"
    ]


def test_a_copy_that_was_never_converted_is_only_a_copy(model: Path, tmp_path: Path) -> None:
    """It equals its source, and that is all; that converting would pad something is a note."""
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    report = check(model, copy)
    assert (report.ok, report.has_records) == (True, False)
    assert report.notes == (f"{copy}: was not converted; converting would pad 4 tensors",)
    with pytest.raises(RecordError, match=r"has no fp8pad\.json; to compare it with the original"):
        verify(None, copy, Progress())


def test_arguments_the_other_way_round_are_said(model: Path, out_dir: Path) -> None:
    """The hint is the right command, instead of the advice to unpad first."""
    with pytest.raises(AlreadyPaddedError, match=f"the arguments are swapped: fp8pad verify {model} {out_dir}"):
        check(out_dir, model)
    with pytest.raises(AlreadyPaddedError, match=r"name the original of .* instead, or .* alone"):
        check(out_dir, out_dir)


def test_no_later_version_makes_a_published_checkpoint_wrong(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records decide, and differences are notes, also for an edit by a version that knew more about the model."""
    absorbed = convert_to(example, tmp_path / "absorbed", Policy(absorb=True))
    with monkeypatch.context() as patch:
        patch.setattr("fp8pad.planning.families.families", dict)
        padded = convert_to(example, tmp_path / "padded", Policy(absorb=True))
        without = check(example, absorbed)
    assert without.ok
    assert any("differently than this version would" in note for note in without.notes)
    assert any("would not change intermediate_size from 213 to 224" in note for note in without.notes)
    report = check(example, padded)
    assert report.ok
    assert any("differently than this version would" in note for note in report.notes)


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("key", ["num_hidden_layers", "eos_token_id", "intermediate_size_of_mine"])
def test_no_edit_of_config_json_is_believed(example: Path, tmp_path: Path, key: str, absorb: bool) -> None:
    """A recorded edit is right only if absorbed tensors grow accordingly, and today's plan edits that key too."""
    out_dir = convert_to(example, tmp_path / "out", Policy(absorb=absorb))
    assert check(example, out_dir).ok
    old = json.loads((example / "config.json").read_text()).get(key, 213)
    edit = {"file": "config.json", "key": key, "old": old, "new": 224 if old == 213 else old * 3}
    edit_json(out_dir / "fp8pad.json", lambda d: d["config_edits"].append(edit))
    edit_json(out_dir / "config.json", lambda d: d.update({key: edit["new"]}))
    places = {mismatch.place for mismatch in check(example, out_dir).mismatches}
    assert key in places or not absorb  # if this version edits nothing, it is a note
    is_plausible = absorb and old == 213
    assert (f"config_edits: {key}" in places) == (not is_plausible)
    alone = {mismatch.place for mismatch in verify(None, out_dir, Progress()).mismatches}
    assert (f"config_edits: {key}" in alone) == (not is_plausible)


@pytest.mark.parametrize("full", [False, True])
def test_padding_is_checked_without_the_source(model: Path, tmp_path: Path, full: bool) -> None:
    """A changed padding byte is found by its required value, a logical one by a hash."""
    out_dir = convert_to(model, tmp_path / "out", full=full)
    assert verify(None, out_dir, Progress()).ok
    path = out_dir / "model-00001-of-00002.safetensors"
    content = path.read_bytes()
    begin, end = stored_header(path)["model.layers.0.mlp.down_proj.weight"]["data_offsets"]
    start = 8 + int.from_bytes(content[:8], "little")
    for position, is_padding in ((start + begin, False), (start + end - 1, True), (start + begin + 3, True)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert verify(None, out_dir, Progress()).ok == (not is_padding and not full)


def test_another_source_is_no_match(out_dir: Path, tmp_path: Path) -> None:
    """The same shapes with other bytes: every tensor differs, and at most twenty are listed."""
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
    report = check(model, out_dir)
    assert (len(report.mismatches), report.is_complete) == (20, False)


def test_texts_are_read_as_often_as_they_are_needed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index may be as large as all headers: it is neither kept in memory nor read for each of its uses."""
    reads: Counter[tuple[str, str]] = Counter()
    read, has = Checkpoint.text, Checkpoint.has_text

    def counted(checkpoint: Checkpoint, file: str) -> str:
        reads[checkpoint.root.name, file] += 1
        return read(checkpoint, file)

    def compared(checkpoint: Checkpoint, file: str, text: str) -> bool:
        reads[checkpoint.root.name, file] += 1
        return has(checkpoint, file, text)

    monkeypatch.setattr(Checkpoint, "text", counted)
    monkeypatch.setattr(Checkpoint, "has_text", compared)
    out_dir = convert_to(model, tmp_path / "out")
    assert reads == {("model", INDEX): 2, ("model", "config.json"): 2}  # to derive the new one, and for unpadding
    reads.clear()
    assert check(model, out_dir).ok
    assert reads == {("model", INDEX): 1, ("model", "config.json"): 1, ("out", INDEX): 3, ("out", "config.json"): 1}

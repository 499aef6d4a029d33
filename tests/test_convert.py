"""Converting: what is on disk afterwards, and that nothing incomplete is ever visible."""

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    FBGEMM,
    INDEX,
    files_of,
    linear,
    llama,
    stored,
    stored_header,
    tensor_rows,
    write_checkpoint,
)

from fp8pad.checkpoint import writer
from fp8pad.checkpoint.destination import Replaced
from fp8pad.checkpoint.files import Advance, OpenFile
from fp8pad.checkpoint.layout import Transfer
from fp8pad.checkpoint.moving import Sums
from fp8pad.checkpoint.options import Link, VerifyDepth, WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.checkpoint.staging import Staging
from fp8pad.conversion import ConvertReport, convert
from fp8pad.converted import converted_files
from fp8pad.errors import CheckpointError, OutputError, PlanError
from fp8pad.output import Output
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.engines import find_engine
from fp8pad.record import Policy, parse_record
from fp8pad.unpadding import unpad
from fp8pad.verification import verify


def converted(
    model: Path,
    out_dir: Path,
    options: WriteOptions = WriteOptions(jobs=1),  # noqa: B008
    card: bool = False,
) -> ConvertReport:
    """Plan and convert `model` with the default policy."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    return convert(PlanReport(source, plan, card=card), out_dir, options, Progress())


def test_shards_hold_the_padded_tensors(tmp_path: Path) -> None:
    """Weights end in zeros, channel scales in ones, and everything else is unchanged."""
    model = llama(tmp_path / "model", n=21, k=24)
    report = converted(model, tmp_path / "out")
    before, after = model / "model.safetensors", tmp_path / "out" / "model.safetensors"
    weight, scale = "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight_scale"
    assert stored(after) == stored(before) | {
        weight: ("F8_E4M3", (32, 32), 1024),
        scale: ("F32", (32, 1), 128),
    }
    assert list(stored(after)) == list(stored(before))
    rows = np.zeros((32, 32, 1), np.uint8)
    rows[:21, :24] = tensor_rows(before, weight)
    assert np.array_equal(tensor_rows(after, weight), rows)
    ones = np.tile(np.array([0, 0, 128, 63], np.uint8), (32, 1, 1))
    ones[:21] = tensor_rows(before, scale)
    assert np.array_equal(tensor_rows(after, scale), ones)
    for name in stored(before).keys() - {weight, scale}:
        assert np.array_equal(tensor_rows(after, name), tensor_rows(before, name))
    assert report == ConvertReport(
        source=report.source,
        plan=report.plan,
        engine=find_engine(),
        card=False,
        out_dir=tmp_path / "out",
        tensors_padded=2,
        source_bytes=sum(len(content) for content in files_of(model).values()),
        written_bytes=sum(len(content) for content in files_of(tmp_path / "out").values()),
        rewritten=("config.json", "model.safetensors"),
        kept=("tokenizer.json",),
        excluded=(),
        resumed=(),
        verified="padded",
    )


def test_grids_of_block_scales_end_in_ones(tmp_path: Path) -> None:
    """Multiples of 16 in blocks of 4 x 8: five rows and three columns of BF16 scales become eight and four."""
    weight, scale = "mlp.down_proj.weight", "mlp.down_proj.weight_scale_inv"
    tensors = {weight: ("F8_E4M3", (18, 20)), scale: ("BF16", (5, 3))}
    config = {"model_type": "llama", "quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 8]}}
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": tensors}, config)
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy(alignment=16))
    convert(PlanReport(source, plan, card=False), tmp_path / "out", WriteOptions(), Progress())
    before, after = model / "model.safetensors", tmp_path / "out" / "model.safetensors"
    rows = np.zeros((32, 32, 1), np.uint8)
    rows[:18, :20] = tensor_rows(before, weight)
    assert np.array_equal(tensor_rows(after, weight), rows)
    grid = np.tile(np.array([128, 63], np.uint8), (8, 4, 1))
    grid[:5, :3] = tensor_rows(before, scale)
    assert np.array_equal(tensor_rows(after, scale), grid)


def test_the_three_records_are_written(tmp_path: Path) -> None:
    """Shard metadata, config.json and fp8pad.json are written as specified."""
    model = llama(tmp_path / "model", n=21, k=24)
    converted(model, tmp_path / "out")
    name = "model.layers.0.mlp.down_proj"
    logical = {f"{name}.weight": {"logical_shape": [21, 24]}, f"{name}.weight_scale": {"logical_shape": [21, 1]}}
    metadata = stored_header(tmp_path / "out" / "model.safetensors")["__metadata__"]
    assert metadata.keys() == {"format", "fp8pad"}
    assert json.loads(metadata["fp8pad"]) == {"format_version": 1, "tensors": logical}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config) == ["model_type", "quantization_config"]
    assert config["quantization_config"]["quant_method"] == "fp8pad"
    assert config["quantization_config"]["base"] == FBGEMM["quantization_config"]
    record = json.loads((tmp_path / "out" / "fp8pad.json").read_text())
    assert record["format_version"] == 1
    assert record["originals"] == {"config.json": (model / "config.json").read_text()}
    assert record["tensors"].keys() == logical.keys()
    sizes = {
        file: {"source_size": len(content), "size": (tmp_path / "out" / file).stat().st_size}
        for file, content in files_of(model).items()
    }
    assert record["files"] == sizes


@pytest.mark.parametrize("file", ["fp8pad.json", "config.json", INDEX])
def test_a_text_that_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Reading has a size limit, which is checked before anything is written, with the hashes of all files."""
    model = llama(tmp_path / "model", num_shards=2)
    converted(model, tmp_path / "out", WriteOptions(hash=True))
    files = files_of(tmp_path / "out")
    longer = {name for name, data in files.items() if len(data) > len(files[file])}
    before = files_of(tmp_path)
    monkeypatch.setattr("fp8pad.converted.max_text_bytes", lambda _: len(files[file]))
    if not longer & {"fp8pad.json", "config.json", INDEX}:
        converted(model, tmp_path / "again", WriteOptions(hash=True))
        monkeypatch.setattr("fp8pad.converted.max_text_bytes", lambda _: len(files[file]) - 1)
        shutil.rmtree(tmp_path / "again")
    with pytest.raises(PlanError, match=r"would have \d+ bytes, more than the \d+ that fp8pad reads"):
        converted(model, tmp_path / "again", WriteOptions(hash=True))
    assert files_of(tmp_path) == before


def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    """It contains the old model card, whose brackets count as lists."""
    model = llama(tmp_path / "model")
    (model / "README.md").write_text("[" * 150_000)
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    with pytest.raises(PlanError, match=r"fp8pad\.json: could not be read back: expected fewer lists and objects"):
        converted_files(source, plan, with_card=True)


def test_the_index_tells_the_true_size_and_keeps_the_rest(tmp_path: Path) -> None:
    """`weight_map` and foreign metadata stay; `total_size` counts the padded bytes."""
    model = llama(tmp_path / "model", num_shards=3)
    document = json.loads((model / INDEX).read_text())
    document["metadata"] = {"total_size": 1, "made by": "ä"}
    (model / INDEX).write_text(json.dumps(document, ensure_ascii=False))
    converted(model, tmp_path / "out")
    total = sum(size for path in (tmp_path / "out").glob("*.safetensors") for _, _, size in stored(path).values())
    text = (tmp_path / "out" / INDEX).read_text()
    assert json.loads(text) == document | {"metadata": {"total_size": total, "made by": "ä"}}
    assert "ä" in text
    assert "\n" not in text


def test_shards_without_padded_tensors_stay_as_they_are(tmp_path: Path) -> None:
    """Their bytes equal the source's, header included."""
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    model = write_checkpoint(
        tmp_path / "model", {one: {"model.norm.weight": ("BF16", (7,))}, two: linear("model.x_proj", 17, 16)}
    )
    report = converted(model, tmp_path / "out")
    assert (tmp_path / "out" / one).read_bytes() == (model / one).read_bytes()
    assert report.kept == (one, "tokenizer.json")
    assert report.rewritten == ("config.json", two, INDEX)


def test_with_nothing_to_pad_the_checkpoint_is_equal(tmp_path: Path) -> None:
    """No record is added, since fp8pad changed nothing."""
    model = llama(tmp_path / "model", num_shards=2, n=32, k=16)
    report = converted(model, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(model)
    assert (report.tensors_padded, report.rewritten) == (0, ())


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("depth", ["none", "padded", "full"])
def test_jobs_and_depth_of_checking_do_not_change_what_is_written(tmp_path: Path, jobs: int, depth: str) -> None:
    """Only hashes are added if every byte was read."""
    model = llama(tmp_path / "model", num_shards=5)
    converted(model, tmp_path / "expected")
    converted(model, tmp_path / "out", WriteOptions(jobs=jobs, verify=depth))  # type: ignore[arg-type]
    expected, found = files_of(tmp_path / "expected"), files_of(tmp_path / "out")
    records = [json.loads(files.pop("fp8pad.json")) for files in (expected, found)]
    assert found == expected
    hashes = [entry.pop(key, None) for entry in records[1]["files"].values() for key in ("sha256", "source_sha256")]
    assert all((len(digest) == 64) if depth == "full" else digest is None for digest in hashes)
    assert records[0] == records[1]


def test_nothing_is_looked_at_after_publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check could fail although OUT_DIR is complete; somebody may even have moved it."""
    original = Output.publish

    def publish(out: Output) -> Replaced | None:
        replaced = original(out)
        out.out_dir.rename(tmp_path / "moved")
        return replaced

    monkeypatch.setattr(Output, "publish", publish)
    report = converted(llama(tmp_path / "model"), tmp_path / "out")
    assert report.written_bytes == sum(len(content) for content in files_of(tmp_path / "moved").values())


MODES = {  # of the source, of its copy under the umask 027, and under none
    "private": (0o600, 0o600, 0o600),
    "usual": (0o644, 0o640, 0o644),
    "to be run": (0o755, 0o750, 0o755),
    "of a group": (0o664, 0o640, 0o664),
    "read-only": (0o444, 0o640, 0o644),
    "of everybody": (0o666, 0o640, 0o664),
    "set-user-ID": (0o4711, 0o710, 0o711),
}
FOLDER_MODES = {  # the same of folders
    "private": (0o700, 0o700, 0o700),
    "usual": (0o755, 0o750, 0o755),
    "read-only": (0o555, 0o750, 0o755),
    "of everybody": (0o1777, 0o750, 0o775),
}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set another umask inside the context."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    """Return the permissions of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o027, 0])
def test_nothing_becomes_readable_or_writable_for_more_people(tmp_path: Path, mask: int) -> None:
    """Copies get what both the source and the umask allow, also when restored; nobody else may write to them."""
    model, place = llama(tmp_path / "model", num_shards=2), 1 if mask else 2
    for name, (before, *_) in MODES.items():
        (model / name).write_text(name)
        (model / name).chmod(before)
    for name, (before, *_) in FOLDER_MODES.items():
        (model / "folders" / name).mkdir(parents=True)
        (model / "folders" / name / "notes.txt").write_text("")
        (model / "folders" / name).chmod(before)
    with umask(mask):
        converted(model, tmp_path / "made" / "out")
        unpad(tmp_path / "made" / "out", tmp_path / "made" / "restored", WriteOptions(), Progress())
    for folder in (tmp_path / "made" / "out", tmp_path / "made" / "restored"):
        assert {name: mode(folder / name) for name in MODES} == {name: modes[place] for name, modes in MODES.items()}
        found = {name: mode(folder / "folders" / name) for name in FOLDER_MODES}
        assert found == {name: modes[place] for name, modes in FOLDER_MODES.items()}


@pytest.mark.parametrize("link", ["auto", "copy", "hardlink"])
def test_shards_and_texts_are_as_private_as_the_source(tmp_path: Path, link: Link) -> None:
    """Each has the mode of its original; fp8pad.json and a new card have that of config.json."""
    shards = {"padded.safetensors": linear("a.proj", 21, 24), "whole.safetensors": linear("b.proj", 32, 16)}
    model = write_checkpoint(tmp_path / "model", shards)
    modes = {
        "config.json": 0o640,
        INDEX: 0o644,
        "padded.safetensors": 0o600,
        "tokenizer.json": 0o644,
        "whole.safetensors": 0o604,
    }
    for name, private in modes.items():
        (model / name).chmod(private)
    model.chmod(0o710)
    with umask(0o022):
        converted(model, tmp_path / "out", WriteOptions(link=link), card=True)
    assert {path.name: mode(path) for path in (tmp_path / "out").iterdir()} == {
        **modes,
        "fp8pad.json": 0o640,
        "README.md": 0o640,
    }
    assert mode(tmp_path / "out") == 0o710


def test_a_record_is_as_private_as_every_text_that_it_holds(tmp_path: Path) -> None:
    """fp8pad.json contains the whole card, and restores it if it was removed."""
    model = llama(tmp_path / "model")
    (model / "README.md").write_text("a secret")
    (model / "README.md").chmod(0o600)
    with umask(0o022):
        converted(model, tmp_path / "out", card=True)
        assert (mode(tmp_path / "out" / "fp8pad.json"), mode(tmp_path / "out" / "config.json")) == (0o600, 0o644)
        (tmp_path / "out" / "README.md").unlink()
        unpad(tmp_path / "out", tmp_path / "restored", WriteOptions(), Progress())
    assert mode(tmp_path / "restored" / "README.md") == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file to any group")
@pytest.mark.parametrize(("before", "expected"), [(0o640, 0o600), (0o664, 0o644), (0o604, 0o600), (0o644, 0o644)])
@pytest.mark.parametrize("is_inherited", [False, True], ids=["another group", "set-group-ID"])
def test_another_group_gets_no_right_of_the_old_one(
    tmp_path: Path, before: int, expected: int, is_inherited: bool
) -> None:
    """The old group gets no right of others either; if a folder passes its group on, the group is the same."""
    model, place = llama(tmp_path / "model", num_shards=2), tmp_path / "place"
    for folder in (model, place):
        folder.mkdir(exist_ok=True)
        os.chown(folder, -1, 4242)
    model.chmod(0o750)
    place.chmod(0o2755 if is_inherited else 0o755)
    for path in model.iterdir():
        os.chown(path, -1, 4242)
        path.chmod(before)
    with umask(0):
        converted(model, place / "out")
    assert {mode(path) for path in (place / "out").iterdir()} == {before if is_inherited else expected}
    assert mode(place / "out") & 0o777 == (0o750 if is_inherited else 0o700)


@pytest.mark.parametrize(
    ("old", "new", "expected"), [(0o700, 0o755, 0o700), (0o755, 0o700, 0o700), (0o770, 0o755, 0o750)]
)
def test_a_folder_that_is_replaced_keeps_out_whom_it_kept_out(
    tmp_path: Path, old: int, new: int, expected: int
) -> None:
    """Whether it was empty or an earlier conversion, neither it nor the source is opened to more people."""
    model = llama(tmp_path / "model")
    model.chmod(new)
    for options in (WriteOptions(), WriteOptions(overwrite=True)):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out").chmod(old)
        with umask(0o022):
            converted(model, tmp_path / "out", options)
        assert mode(tmp_path / "out") == expected


def test_files_and_folders_with_the_longest_names_come_along(tmp_path: Path) -> None:
    """Names of 255 bytes, in letters of one byte and of several, are copied."""
    model = llama(tmp_path / "model")
    for name in ("f" * 255, "é" * 127, "語" * 85):
        (model / name).write_text(name)
        (model / name[::-1].replace("f", "d").replace("é", "è").replace("語", "文")).mkdir()
    out_dir = tmp_path / ("o" * 255)
    converted(model, out_dir)
    assert files_of(out_dir).items() >= {name: name.encode() for name in ("f" * 255, "é" * 127, "語" * 85)}.items()


def test_hard_links_are_made_only_on_request_and_only_of_untouched_shards(tmp_path: Path) -> None:
    """By default, writing to the output can never change the source."""
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    model = write_checkpoint(
        tmp_path / "model", {one: {"model.norm.weight": ("BF16", (7,))}, two: linear("model.x_proj", 17, 16)}
    )
    for link, linked in (("auto", set()), ("copy", set()), ("hardlink", {one})):
        converted(model, tmp_path / link, WriteOptions(link=link))  # type: ignore[arg-type]
        found = {path.name for path in (tmp_path / link).iterdir() if path.stat().st_nlink > 1}
        assert found == linked
        assert verify(model, tmp_path / link, Progress()).ok


def test_a_hard_link_to_another_file_than_was_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the source is the original again by the time of publishing."""
    model = llama(tmp_path / "model", n=32, k=16)
    shard, link = model / "model.safetensors", os.link
    (tmp_path / "other").write_bytes(bytes(shard.stat().st_size))

    def link_meanwhile(origin: Path, *arguments: Any, **keywords: Any) -> None:
        link(tmp_path / "other" if origin == shard else origin, *arguments, **keywords)

    monkeypatch.setattr(os, "link", link_meanwhile)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: was changed"):
        converted(model, tmp_path / "out", WriteOptions(link="hardlink"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]


def test_a_reflink_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not fall back to a copy, which was not requested."""
    model = llama(tmp_path / "model", n=32, k=16)
    monkeypatch.setattr("fp8pad.checkpoint.writer.clone", lambda *_: False)
    with pytest.raises(OutputError, match="cannot be reflinked"):
        converted(model, tmp_path / "out", WriteOptions(link="reflink"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_hard_link_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a reflink; an I/O error is reported as such."""
    model = llama(tmp_path / "model", n=32, k=16)
    for code, message in (
        (errno.EPERM, "cannot be hard-linked to .*; use --link auto"),
        (errno.EIO, "cannot be written"),
    ):

        def refuse(*_: object, code: int = code, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "link", refuse)
        with pytest.raises(OutputError, match=message):
            converted(model, tmp_path / "out", WriteOptions(link="hardlink"))
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_in_use_is_refused_and_replaced_only_on_request(tmp_path: Path) -> None:
    """An empty one is used; an earlier output is replaced completely with --overwrite, and the report says so."""
    model = llama(tmp_path / "model")
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    assert converted(model, out_dir).replaced is None
    expected = files_of(out_dir)
    (out_dir / "tokenizer.json").write_text("edited")
    edited = files_of(out_dir)
    with pytest.raises(OutputError, match="is not empty; use --overwrite"):
        converted(model, out_dir)
    assert files_of(out_dir) == edited
    report = converted(model, out_dir, WriteOptions(overwrite=True))
    assert report.replaced == Replaced(tuple(sorted(expected)), edited=("tokenizer.json",))
    assert files_of(out_dir) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("changed", ["", "tokenizer.json", "model.safetensors", "config.json", "fp8pad.json"])
def test_what_is_complete_already_is_compared_and_kept(tmp_path: Path, changed: str) -> None:
    """When the same command runs again, every byte is compared and nothing written; a difference is refused."""
    model = llama(tmp_path / "model")
    first = converted(model, tmp_path / "out")
    inode = (tmp_path / "out").stat().st_ino
    if changed:
        content = bytearray((tmp_path / "out" / changed).read_bytes())
        content[-3] ^= 1
        (tmp_path / "out" / changed).write_bytes(content)
        expected = files_of(tmp_path / "out")
        with pytest.raises(OutputError, match="is not empty; use --overwrite"):
            converted(model, tmp_path / "out")
        assert files_of(tmp_path / "out") == expected
    else:
        again = converted(model, tmp_path / "out")
        assert (again.resumed, again.written_bytes) == (("model.safetensors",), first.written_bytes)
        assert (first.was_complete, again.was_complete) == (False, True)
    assert (tmp_path / "out").stat().st_ino == inode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_a_folder_is_named_as_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its absolute path, when the same command runs again or is refused."""
    monkeypatch.chdir(tmp_path)
    model, told, progress = llama(tmp_path / "model"), list[str](), Progress()
    monkeypatch.setattr(progress, "say", told.append)
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    for _ in range(2):
        convert(PlanReport(source, plan, card=False), Path("out"), WriteOptions(), progress)
    assert told == ["out: seems complete; comparing its bytes"]
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match=r"^out: is not empty"):
        convert(PlanReport(source, plan, card=False), Path("out"), WriteOptions(), progress)


def test_options_that_an_equal_copy_ignores_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no fp8pad.json for hashes, and no size to enlarge."""
    told, progress = list[str](), Progress()
    monkeypatch.setattr(progress, "say", told.append)
    for inner, expected in (
        (32, ["--hash, --absorb: no effect, since nothing was changed"]),
        (21, list[str]()),
    ):
        source = read_unconverted(llama(tmp_path / f"model{inner}", n=inner, k=32))
        plan = plan_checkpoint(source.shards, source.configs, Policy(absorb=True))
        convert(PlanReport(source, plan, card=False), tmp_path / f"out{inner}", WriteOptions(hash=True), progress)
        assert told == expected
        told.clear()


def test_what_was_made_in_the_place_of_an_output_is_not_replaced_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even after a run that failed in its last calls, and if the folder has the inode of the output."""
    model, out_dir = llama(tmp_path / "model"), tmp_path / "out"

    def lost(_: Staging) -> None:
        raise OutputError("lost")

    monkeypatch.setattr(Staging, "remove", lost)
    with pytest.raises(OutputError, match="lost"):
        converted(model, out_dir)
    monkeypatch.undo()
    for path in out_dir.iterdir():
        path.write_text("mine")
    expected = files_of(out_dir)
    with pytest.raises(OutputError, match="is not empty; use --overwrite") as refused:
        converted(model, out_dir)
    assert not hasattr(refused.value, "__notes__")
    assert files_of(out_dir) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("options", [WriteOptions(verify="full"), WriteOptions(hash=True)])
def test_an_output_without_hashes_is_not_complete_where_they_are_asked_for(
    tmp_path: Path, options: WriteOptions
) -> None:
    """With --hash or --verify full, it is replaced only with --overwrite, and then has them."""
    model, out_dir = llama(tmp_path / "model"), tmp_path / "out"
    converted(model, out_dir)
    with pytest.raises(OutputError, match="is not empty; use --overwrite"):
        converted(model, out_dir, options)
    assert not converted(model, out_dir, replace(options, overwrite=True)).was_complete
    record = parse_record((out_dir / "fp8pad.json").read_text())
    assert all(entry.sha256 and entry.source_sha256 for entry in record.files.values())
    assert converted(model, out_dir, options).was_complete
    assert converted(model, out_dir).was_complete


@pytest.mark.parametrize("options", [WriteOptions(), WriteOptions(hash=True)])
@pytest.mark.parametrize("key", ["sha256", "source_sha256"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_output_with_false_hashes_is_not_complete(
    tmp_path: Path, file: str, key: str, options: WriteOptions
) -> None:
    """Recorded hashes are computed again, whether they are requested this time or not."""
    model, out_dir = llama(tmp_path / "model"), tmp_path / "out"
    converted(model, out_dir, WriteOptions(hash=True))
    record = json.loads((out_dir / "fp8pad.json").read_text())
    record["files"][file][key] = "0" * 64
    (out_dir / "fp8pad.json").write_text(json.dumps(record))
    with pytest.raises(OutputError, match="is not empty; use --overwrite"):
        converted(model, out_dir, options)
    converted(model, out_dir, replace(options, overwrite=True))
    assert converted(model, out_dir, options).was_complete


def test_a_failing_replacement_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old folder is removed only when the new one is complete."""
    model = llama(tmp_path / "model")
    converted(model, tmp_path / "out")
    before = files_of(tmp_path)
    monkeypatch.setattr(os, "pwrite", failing_with(errno.ENOSPC))
    with pytest.raises(OutputError, match="No space left"):
        converted(model, tmp_path / "out", WriteOptions(overwrite=True))
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("where", ["model", "model/out", ".", "link", "link/out", "file"])
def test_destinations_that_would_harm_the_source_are_refused(tmp_path: Path, where: str, overwrite: bool) -> None:
    """The model itself, a folder inside or around it, a link to it, and a file."""
    model = llama(tmp_path / "around" / "model")
    (tmp_path / "around" / "link").symlink_to(model)
    (tmp_path / "around" / "file").write_text("mine")
    before = files_of(tmp_path)
    with pytest.raises(OutputError):
        converted(model, tmp_path / "around" / where, WriteOptions(overwrite=overwrite))
    assert files_of(tmp_path) == before


def test_a_destination_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    """A loop of links and a folder inside a file are refused."""
    model = llama(tmp_path / "model")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("mine")
    for where in ("loop", "loop/out", "file/out"):
        with pytest.raises(OutputError):
            converted(model, tmp_path / where)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "model"]


def test_a_destination_that_holds_linked_blobs_is_refused(tmp_path: Path) -> None:
    """Replacing it would remove the targets of the model's links."""
    blobs = llama(tmp_path / "blobs")
    (tmp_path / "model").mkdir()
    for path in blobs.iterdir():
        (tmp_path / "model" / path.name).symlink_to(path)
    with pytest.raises(OutputError, match="links to: "):
        converted(tmp_path / "model", blobs, WriteOptions(overwrite=True))


def test_a_mount_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be renamed onto it, which would only fail at the end."""
    model = llama(tmp_path / "model")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    with pytest.raises(OutputError, match="is a mount point"):
        converted(model, tmp_path / "out")


def test_too_little_space_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of an earlier run count as free space: they are reused or removed."""
    model = llama(tmp_path / "model")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="not enough disk space"):
        converted(model, tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / ".out.fp8pad" / "staged").mkdir(parents=True)
    (tmp_path / ".out.fp8pad" / "staged" / "a.unfinished").write_bytes(bytes(4000))
    (tmp_path / ".out.fp8pad").chmod(0o700)
    converted(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    """It is refused before the shards are read."""
    model = llama(tmp_path / "model")
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="is not writable"):
        converted(model, tmp_path / "closed" / "out")


@pytest.mark.parametrize("link", ["copy", "hardlink"])
def test_a_shard_that_becomes_a_loop_of_links_is_an_error(tmp_path: Path, link: Link) -> None:
    """Python has an exception of its own for that, which is no `OSError`."""
    model = write_checkpoint(tmp_path / "model", {"a.safetensors": linear("model.layers.0.mlp.down_proj", 32, 32)})
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    (model / "a.safetensors").unlink()
    (model / "a.safetensors").symlink_to("a.safetensors")
    with pytest.raises((CheckpointError, OSError), match="safetensors"):
        convert(PlanReport(source, plan, card=False), tmp_path / "out", WriteOptions(link=link), Progress())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_source_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    """The data may come half from each version."""
    model = llama(tmp_path / "model")
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    os.utime(model / "model.safetensors", ns=(0, 0))
    with pytest.raises(CheckpointError, match="was changed while"):
        convert(PlanReport(source, plan, card=False), tmp_path / "out", WriteOptions(), Progress())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def failing_with(code: int, after: int = 0) -> Callable[..., int]:
    """Return a stand-in for a system call that fails after `after` calls."""
    original, calls = os.pwrite, []

    def fail(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) > after:
            raise OSError(code, os.strerror(code))
        return original(*arguments)  # type: ignore[arg-type]

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_a_disk_that_fills_up_leaves_finished_shards_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, after: int
) -> None:
    """Whichever write fails, the error names a file, and what is not finished is removed."""
    model = llama(tmp_path / "model", num_shards=3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing_with(code, after))
        with pytest.raises(OutputError, match=r"^(model-|config|fp8pad).*cannot be written: "):
            converted(model, tmp_path / "out", WriteOptions(jobs=1))
    staged = list((tmp_path / ".out.fp8pad" / "staged").glob("*"))
    assert {path.suffix for path in staged} <= {".finished"}
    assert not (tmp_path / "out").exists()
    assert len(converted(model, tmp_path / "out").resumed) == len(staged)


def test_progress_that_fails_costs_no_finished_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example on a full disk behind stderr. The second shard may be finished too."""
    model = llama(tmp_path / "model", num_shards=2)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "finish_file", failing_with(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left") as raised:
            converted(model, tmp_path / "out", WriteOptions(jobs=1))
    resumed = converted(model, tmp_path / "out").resumed
    assert "model-00001-of-00002.safetensors" in resumed
    assert f"{len(resumed)} of 2 shards are finished" in str(raised.value.__notes__)


@pytest.mark.parametrize("options", [WriteOptions(jobs=1), WriteOptions(jobs=1, resume=False)])
def test_any_other_error_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: WriteOptions
) -> None:
    """The error says how much is finished, where it is, and how to resume."""
    model = llama(tmp_path / "model", num_shards=3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing_with(errno.EIO, after=4))
        with pytest.raises(OutputError, match="Input/output error") as raised:
            converted(model, tmp_path / "a" / "out", options)
    command = "the same command" if options.resume else "the same command without --no-resume"
    finished = f"1 of 3 shards are finished in {tmp_path / 'a' / '.out.fp8pad'}"
    assert raised.value.__notes__ == [f"run {command} to resume: {finished}"]
    report = converted(model, tmp_path / "a" / "out")
    assert report.resumed == ("model-00001-of-00003.safetensors",)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


def test_folders_made_on_the_way_go_again_when_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parent folders that the run created are removed if nothing is kept."""
    model = llama(tmp_path / "model")
    monkeypatch.setattr(os, "pwrite", failing_with(errno.EIO))
    with pytest.raises(OutputError, match="Input/output error") as raised:
        converted(model, tmp_path / "a" / "b" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not hasattr(raised.value, "__notes__")


def killed_at(number: int, model: Path, out_dir: Path, options: WriteOptions) -> None:
    """Convert a checkpoint and die at the call with this number."""
    kill_at(number)
    converted(model, out_dir, options)


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked process; return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except OutputError:
            os._exit(3)
        finally:
            os._exit(4)
    return os.waitpid(child, 0)[1]


def test_a_limit_on_file_sizes_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    """Here the kernel refuses the write."""
    model = llama(tmp_path / "model", num_shards=2)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        converted(model, tmp_path / "out")

    assert os.waitstatus_to_exitcode(in_child(limited)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


SYSTEM_CALLS = ("pwrite", "copy_file_range", "fsync", "rename", "mkdir", "preadv", "unlink", "link", "rmdir", "open")


def kill_at(number: int) -> None:
    """Make the process die before the system call with this number, among those counted here."""
    calls = []

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            calls.append(original)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        return call

    for name in SYSTEM_CALLS:
        setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize(("resume", "exists"), [(True, True), (False, False)])
def test_a_run_that_is_killed_anywhere_leaves_nothing_to_load(tmp_path: Path, resume: bool, exists: bool) -> None:
    """Killed before any of its system calls, the destination is the old one or complete, and the next run succeeds.

    This tests every fifth of the counted calls; `make faults` tests all of them.
    """
    model = llama(tmp_path / "model", num_shards=2)
    converted(model, tmp_path / "expected")
    expected = files_of(tmp_path / "expected")
    old = expected | {"tokenizer.json": b"old"} if exists else {}
    options = WriteOptions(jobs=1, overwrite=True, resume=resume)
    for number in range(1, 500, 5):
        area = tmp_path / str(number)
        area.mkdir()
        if exists:
            shutil.copytree(tmp_path / "expected", area / "out")
            (area / "out" / "tokenizer.json").write_text("old")
        status = in_child(partial(killed_at, number, model, area / "out", options))
        found = files_of(area / "out") if (area / "out").exists() else {}
        assert found in (old, expected)
        assert all(files_of(path.parent) in (old, expected) for path in area.rglob("config.json"))
        converted(model, area / "out", options)
        assert files_of(area / "out") == expected
        assert [path.name for path in area.iterdir()] == ["out"]
        if os.waitstatus_to_exitcode(status) == 0:
            break
    else:
        pytest.fail("it never ran to its end")
    assert number > 40


def test_finished_shards_are_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interruption, finished shards are checked and not written again."""
    model = llama(tmp_path / "model", num_shards=2)
    interrupt_second_shard(tmp_path, monkeypatch, model)
    report = converted(model, tmp_path / "out")
    assert report.resumed == ("model-00001-of-00002.safetensors",)
    assert verify(model, tmp_path / "out", Progress()).ok


ALTERATIONS: dict[str, Callable[[Path, Path], object]] = {
    "a flipped byte": lambda finished, _: finished.write_bytes(flipped(finished.read_bytes(), -1)),
    "a flipped byte of the header": lambda finished, _: finished.write_bytes(flipped(finished.read_bytes(), 9)),
    "a size that is off": lambda finished, _: os.truncate(finished, finished.stat().st_size - 1),
    "a hard link": lambda finished, private: private.hardlink_to(finished),
}


def flipped(content: bytes, position: int) -> bytes:
    """Return the bytes with one of them changed."""
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("depth", ["padded", "full"])
@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_a_finished_shard_that_was_altered_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alteration: str, depth: VerifyDepth
) -> None:
    """A shard that was changed between two runs is not published."""
    model = llama(tmp_path / "model", num_shards=2)
    converted(model, tmp_path / "expected", WriteOptions(verify=depth))
    interrupt_second_shard(tmp_path, monkeypatch, model)
    (finished,) = (tmp_path / ".out.fp8pad" / "staged").iterdir()
    ALTERATIONS[alteration](finished, tmp_path / "private")
    report = converted(model, tmp_path / "out", WriteOptions(verify=depth))
    assert report.resumed == ()
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_a_link_in_the_place_of_a_finished_shard_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is published through a link, whatever its target."""
    model = llama(tmp_path / "model", num_shards=2)
    interrupt_second_shard(tmp_path, monkeypatch, model)
    (finished,) = (tmp_path / ".out.fp8pad" / "staged").iterdir()
    finished.rename(tmp_path / "private")
    finished.symlink_to(tmp_path / "private")
    with pytest.raises(OutputError, match="was not put there by fp8pad"):
        converted(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "private").exists()


@pytest.mark.parametrize("change", ["source", "plan", "no-resume", "damage"])
def test_shards_of_another_run_are_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """After a touched source, another plan, other options or another file size, all shards are written again."""
    model = llama(tmp_path / "model", num_shards=2)
    interrupt_second_shard(tmp_path, monkeypatch, model)
    (finished,) = (tmp_path / ".out.fp8pad" / "staged").iterdir()
    policy = Policy(alignment=64) if change == "plan" else Policy()
    if change == "source":
        os.utime(model / "model-00001-of-00002.safetensors", ns=(0, 0))
    if change == "damage":
        os.truncate(finished, finished.stat().st_size - 1)
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, policy)
    options = WriteOptions(jobs=1, resume=change != "no-resume")
    report = convert(PlanReport(source, plan, card=False), tmp_path / "out", options, Progress())
    assert report.resumed == ()
    assert verify(model, tmp_path / "out", Progress()).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def interrupt_second_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Convert a checkpoint of two shards and interrupt it while the second is being written."""
    original = writer.write_shard  # type: ignore[attr-defined]

    def interrupt(transfer: Transfer, source: OpenFile, target: OpenFile, sums: Sums, advance: Advance) -> None:
        original(transfer, source, target, sums, advance)
        if transfer.layout.file == "model-00002-of-00002.safetensors":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            converted(model, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} - {"expected"} == {".out.fp8pad", "model"}


def test_full_checking_hashes_every_file(tmp_path: Path) -> None:
    """The hashes equal those that any other tool computes."""
    model = llama(tmp_path / "model", num_shards=2)
    converted(model, tmp_path / "out", WriteOptions(verify="full"))
    record = parse_record((tmp_path / "out" / "fp8pad.json").read_text())
    assert record.files.keys() == files_of(model).keys()
    for file, entry in record.files.items():
        assert entry.sha256 == hashlib.sha256((tmp_path / "out" / file).read_bytes()).hexdigest()
        assert entry.source_sha256 == hashlib.sha256((model / file).read_bytes()).hexdigest()

"""Reading a checkpoint folder: which shards, which other files, and everything that is inconsistent."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import FBGEMM, INDEX, llama, safetensors_bytes, write_checkpoint

from fp8pad.checkpoint.read import _FolderReader, _other_copies, read_checkpoint, read_unconverted
from fp8pad.errors import AlreadyPaddedError, CheckpointError, ConfigError
from fp8pad.record import shard_metadata
from fp8pad.verification.changed_files import notes_on_files

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def edit_index(root: Path, **weight_map: Any) -> None:
    """Change entries of the weight map; None removes one."""
    document = json.loads((root / INDEX).read_text())
    for name, file in weight_map.items():
        document["weight_map"].pop(name, None)
        if file is not None:
            document["weight_map"][name] = file
    (root / INDEX).write_text(json.dumps(document))


@pytest.fixture
def two_shards(tmp_path: Path) -> Path:
    """Write a checkpoint with tensor `a` in one shard and `b` in the other."""
    return write_checkpoint(tmp_path / "model", {ONE: {"a": ("U8", (3,))}, TWO: {"b": ("U8", (4,))}})


def test_a_checkpoint_is_read_whole(two_shards: Path) -> None:
    """Shards are in order of name; the index, configs and other files are found."""
    (two_shards / "hf_quant_config.json").write_text('{"quantization": {}}')
    source = read_unconverted(two_shards)
    assert [shard.file for shard in source.shards] == [ONE, TWO]
    assert source.text(INDEX) == (two_shards / INDEX).read_text()
    assert source.configs == {"config.json": FBGEMM, "hf_quant_config.json": {"quantization": {}}}
    assert source.text("config.json") == (two_shards / "config.json").read_text()
    assert source.other_files == ("hf_quant_config.json", "tokenizer.json")
    assert source.excluded == ()
    assert source.identities.keys() == {ONE, TWO, INDEX, "config.json", "hf_quant_config.json", "tokenizer.json"}


def test_everything_comes_along_but_other_forms_of_the_same_weights(tmp_path: Path) -> None:
    """Other forms are in the root or in two known folders; a weight file anywhere else may be needed by the model."""
    root = llama(tmp_path / "model")
    along = [
        ".gitattributes",
        "README.md",
        "modeling.py",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
        "3/original/x.pth",
        "3/onnx/x.onnx",
        "model.safetensors.tmp",
        "spk_dict.pt",
        "params.json",
        "training_args.bin",
        "flow.onnx",
        "vocoder.safetensors",
        "a/c.gguf",
        "a/b/c.txt",
        "lora/adapter_model.safetensors",
    ]
    left = [
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.fp16.bin",
        "pytorch_model.bin.index.json",
        "pytorch_model.bin.index.fp16.json",
        "c.Q4_K_M.gguf",
        "D.GGUF",
        "onnx/m.onnx",
        "tf_model.h5",
        "tf_model.h5.index.json",
        "flax_model.msgpack",
        "flax_model.msgpack.index.json",
        "rust_model.ot",
        "consolidated.safetensors",
        "consolidated.00.pth",
        "consolidated.safetensors.index.json",
        "original/params.json",
        "original/a/old.safetensors",
    ]
    for name in (*along, *left):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    source = read_unconverted(root)
    assert source.other_files == tuple(sorted([*along, "tokenizer.json"]))
    assert source.excluded == tuple(sorted(left))
    assert source.identities.keys() == {*source.other_files, "config.json", "model.safetensors"}


def test_params_json_is_excluded_with_its_weights_where_config_json_is_edited(tmp_path: Path) -> None:
    """It would have outdated sizes; without such weights it belongs to something else."""
    root = llama(tmp_path / "model")
    (root / "params.json").write_text("{}")
    assert "params.json" in read_unconverted(root).with_edited_config().other_files
    (root / "consolidated.safetensors").write_bytes(b"")
    source = read_unconverted(root)
    assert (source.other_files, source.excluded) == (("params.json", "tokenizer.json"), ("consolidated.safetensors",))
    edited = source.with_edited_config()
    assert (edited.other_files, edited.excluded) == (("tokenizer.json",), ("consolidated.safetensors", "params.json"))


@pytest.mark.parametrize("with_config", [True, False])
def test_mistrals_own_format_alone_is_refused_with_what_to_do(tmp_path: Path, with_config: bool) -> None:
    """Messages about a missing config.json or missing shards would not say what to do."""
    root = llama(tmp_path / "model")
    (root / "model.safetensors").rename(root / "consolidated.safetensors")
    (root / "params.json").write_text("{}")
    if not with_config:
        (root / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"Mistral's own format.*needs the Hugging Face format"):
        read_unconverted(root)


def test_what_is_no_file_is_left_out_by_name(tmp_path: Path) -> None:
    """Pipes, sockets, links to folders and a clone's history are excluded, and reading never blocks on them."""
    root = llama(tmp_path / "model")
    os.mkfifo(root / "pipe")
    os.mknod(root / "socket", 0o600 | stat.S_IFSOCK)
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / ".git" / "objects").mkdir(parents=True)
    (root / ".git" / "objects" / "ab").write_bytes(b"the weights once more")
    (root / "sub" / ".cache" / "huggingface").mkdir(parents=True)
    source = read_unconverted(root)
    assert source.other_files == ("tokenizer.json",)
    assert source.excluded == (".git", "loop", "pipe", "socket", "sub/.cache")


def test_a_hub_snapshot_of_links_is_read_through(tmp_path: Path) -> None:
    """In the hub's cache every file is a relative link to a blob of the same model."""
    root = llama(tmp_path / "model", num_shards=2)
    expected = read_unconverted(root)
    snapshot = snapshot_of(root, tmp_path / "models--org--name")
    (snapshot / "passwd.txt").symlink_to("/etc/passwd")
    source = read_unconverted(snapshot)
    assert (source.shards, source.other_files) == (expected.shards, expected.other_files)
    assert source.excluded == ("passwd.txt",)


def snapshot_of(root: Path, entry: Path) -> Path:
    """Move a folder's files into the layout of huggingface_hub's cache."""
    snapshot = entry / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    root.rename(entry / "blobs")
    for path in (entry / "blobs").iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs", path.name))
    return snapshot


@pytest.mark.parametrize(
    ("entry", "link", "target"),
    [
        ("u", "notes.txt", "../../.ssh/id_rsa"),
        ("u", "notes.txt", "../../blobs/secret"),
        ("models--org--name", "notes.txt", "../../.ssh/id_rsa"),
        ("models--org--name", "notes.txt", "../0b1c/notes.txt"),
        ("models--org--name", "notes.txt", "../../blobs/out"),
        ("models--org--name", "sub/notes.txt", "../../../.ssh/id_rsa"),
    ],
)
def test_a_folder_called_snapshots_opens_nothing_but_blobs(tmp_path: Path, entry: str, link: str, target: str) -> None:
    """The folder's name cannot be trusted: only links to files in the cache's own layout are followed."""
    snapshot = snapshot_of(llama(tmp_path / "model"), tmp_path / entry)
    for name in (".ssh/id_rsa", "blobs/secret", "snapshots/0b1c/notes.txt"):
        (tmp_path / entry / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / entry / name).write_text("private")
    (tmp_path / entry / "blobs" / "out").symlink_to("../.ssh/id_rsa")
    (snapshot / link).parent.mkdir(exist_ok=True)
    (snapshot / link).symlink_to(target)
    source = read_unconverted(snapshot)
    assert link in source.excluded
    assert link not in source.identities
    if entry == "u":
        assert f"config.json: is a link to {tmp_path / entry / 'blobs' / 'config.json'}" in list(notes_on_files(source))


def test_blobs_that_lead_elsewhere_are_no_blobs(tmp_path: Path) -> None:
    """A symbolic link instead of the `blobs` folder is not trusted."""
    snapshot = snapshot_of(llama(tmp_path / "model"), tmp_path / "models--org--name")
    (tmp_path / "models--org--name" / "blobs").rename(tmp_path / "private")
    (tmp_path / "models--org--name" / "blobs").symlink_to(tmp_path / "private")
    assert read_unconverted(snapshot).excluded == ("tokenizer.json",)


def test_links_out_of_the_folder_are_followed_only_on_request(tmp_path: Path) -> None:
    """Otherwise an untrusted checkpoint could publish any file of ours; links that stay inside count as files."""
    root = llama(tmp_path / "model")
    (tmp_path / "private").write_text("private")
    (tmp_path / "model-2").mkdir()
    (tmp_path / "model-2" / "x").write_text("a folder whose name begins alike")
    for name, target in (("a", "../private"), ("b", "../model-2/x"), ("c", "tokenizer.json"), ("d", "a")):
        (root / name).symlink_to(target)
    source = read_checkpoint(root)
    assert (source.other_files, source.excluded) == (("c", "tokenizer.json"), ("a", "b", "d"))
    followed = read_checkpoint(root, follow_links=True)
    assert (followed.other_files, followed.excluded) == (("a", "b", "c", "d", "tokenizer.json"), ())


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", INDEX])
def test_a_dangling_link_is_an_incomplete_checkpoint(tmp_path: Path, name: str) -> None:
    """A file that is named but missing is never excluded silently."""
    root = llama(tmp_path / "model")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=name):
        read_unconverted(root)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Such a name cannot be written into a record."""
    root = llama(tmp_path / "model")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.txt")).write_text("")
    with pytest.raises(CheckpointError, match="UTF-8"):
        read_unconverted(root)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"a": "../model/" + ONE}, "a: expected the name of a file"),
        ({"a": "/etc/x.safetensors"}, "a: expected the name of a file"),
        ({"a": "sub/x.safetensors"}, "a: expected the name of a file"),
        ({"a": "x\0.safetensors"}, "a: expected the name of a file"),
        ({"a": "weights.bin"}, "a: expected the name of a file"),
        ({"a": 1}, "a: expected the name of a file"),
        ({"a": TWO, "b": ONE}, f"a: expected in {TWO}, but it is in {ONE}"),
        ({"c": ONE}, f"c: expected in {ONE}, but it is not there"),
        ({"c": "other.safetensors"}, "other.safetensors: is missing"),
    ],
)
def test_an_index_that_disagrees_with_the_shards_is_refused(
    two_shards: Path, edits: dict[str, Any], message: str
) -> None:
    """Names that leave the folder, tensors in the wrong shard, and missing tensors or shards are refused."""
    edit_index(two_shards, **edits)
    with pytest.raises(CheckpointError, match=message):
        read_unconverted(two_shards)


def test_a_tensor_that_the_index_does_not_name_is_refused(two_shards: Path) -> None:
    """It would be lost in the conversion."""
    (two_shards / ONE).write_bytes(safetensors_bytes({"a": ("U8", (3,)), "extra": ("U8", (1,))}))
    with pytest.raises(CheckpointError, match=f"extra: is in {ONE}, but"):
        read_unconverted(two_shards)


def test_a_tensor_in_two_shards_is_refused(two_shards: Path) -> None:
    """It is undefined which of them counts."""
    (two_shards / TWO).write_bytes(safetensors_bytes({"a": ("U8", (3,)), "b": ("U8", (4,))}))
    with pytest.raises(CheckpointError, match=f"a: is in both {ONE} and {TWO}"):
        read_unconverted(two_shards)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[]", "{", ""])
def test_an_index_without_a_weight_map_is_refused(two_shards: Path, text: str) -> None:
    """An index must name shards."""
    (two_shards / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=INDEX):
        read_unconverted(two_shards)


def test_shards_that_the_index_does_not_name_are_left_out(two_shards: Path) -> None:
    """The index decides which shards belong to the checkpoint."""
    shutil.copy(two_shards / ONE, two_shards / "consolidated.00.safetensors")
    shutil.copy(two_shards / ONE, two_shards / "model.safetensors")
    source = read_unconverted(two_shards)
    assert [shard.file for shard in source.shards] == [ONE, TWO]
    assert source.excluded == ("consolidated.00.safetensors", "model.safetensors")


def test_a_series_without_index_is_taken_whole(two_shards: Path) -> None:
    """Engines load every shard of such a folder, so fp8pad does too."""
    (two_shards / INDEX).unlink()
    source = read_unconverted(two_shards)
    assert [shard.file for shard in source.shards] == [ONE, TWO]
    assert not source.has_index


def test_a_series_with_a_gap_is_refused(two_shards: Path) -> None:
    """Without an index, the names show that a shard is missing."""
    (two_shards / INDEX).unlink()
    (two_shards / TWO).unlink()
    with pytest.raises(CheckpointError, match="expected 2 shards, got 1"):
        read_unconverted(two_shards)


def test_many_files_beside_the_shards_are_compared_with_one_set_of_names(two_shards: Path) -> None:
    """A folder may hold thousands of other files, and the shards hundreds of thousands of tensors."""
    for file in ("a", "b"):
        (two_shards / f"{file}.safetensors").write_bytes((two_shards / ONE).read_bytes())
    reader = _FolderReader(two_shards)
    shards = iter([reader.header(ONE)])  # can be iterated only once
    assert _other_copies(reader, ["a.safetensors", "b.safetensors"], shards) == {"a.safetensors", "b.safetensors"}


def test_without_an_index_one_file_of_the_usual_name_is_the_checkpoint(tmp_path: Path) -> None:
    """Files with other tensors are copied; files with the same ones, in any form, are excluded and named."""
    root = llama(tmp_path / "model")
    (root / "adapter_model.safetensors").write_bytes(safetensors_bytes({"x": ("U8", (1,))}))
    shutil.copy(root / "model.safetensors", root / "model.fp16.safetensors")
    source = read_unconverted(root)
    assert [shard.file for shard in source.shards] == ["model.safetensors"]
    assert source.other_files == ("adapter_model.safetensors", "tokenizer.json")
    assert source.excluded == ("model.fp16.safetensors",)
    assert "model.fp16.safetensors" not in source.identities


def test_a_text_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    """The size is limited before anything is read."""
    root = llama(tmp_path / "model")
    os.truncate(root / "config.json", 1 << 40)
    with pytest.raises(ConfigError, match=r"config.json: expected at most 32000000 bytes of text, got 1099511627776"):
        read_unconverted(root)


def nested_folders(root: Path, name: str, number: int) -> None:
    """Nest more folders than a path can name."""
    folder = os.open(root, os.O_RDONLY)
    for _ in range(number):
        os.mkdir(name, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)


def test_folders_in_folders_without_end_are_walked(tmp_path: Path) -> None:
    """Nesting may be deeper than Python's stack; deeper than a path can name is an error of one line."""
    root = llama(tmp_path / "model")
    nested_folders(root, "d", 1500)
    assert read_unconverted(root).other_files == ("tokenizer.json",)
    nested_folders(root, "e" * 250, 20)
    with pytest.raises(CheckpointError, match="File name too long"):
        read_unconverted(root)
    subprocess.run(["rm", "-rf", root], check=True)  # shutil.rmtree would recurse


def test_weights_of_another_format_alone_are_refused_with_a_hint(tmp_path: Path) -> None:
    """Pickles must be converted to safetensors first."""
    root = llama(tmp_path / "model")
    (root / "model.safetensors").rename(root / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"convert pytorch_model\.bin to safetensors first"):
        read_unconverted(root)


def test_a_folder_of_the_hubs_cache_is_told_from_its_snapshots(tmp_path: Path) -> None:
    """For a folder one level too high, the error lists the snapshots."""
    cached = tmp_path / "models--org--name"
    llama(cached / "snapshots" / "0123abc")
    with pytest.raises(CheckpointError, match=f"^{cached}: is a model in the hub's cache; .* snapshots: 0123abc$"):
        read_unconverted(cached)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    """A missing folder and a file are refused."""
    (tmp_path / "file").write_text("")
    for name, message in (("none", "no such folder"), ("file", "expected a folder")):
        with pytest.raises(CheckpointError, match=message):
            read_unconverted(tmp_path / name)


@pytest.mark.parametrize("text", [b"{", b"[]", b"null", b"\xff{}", b"", b'{"a":' * 100_000])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    """An incomplete object, a list, bytes that are not UTF-8 and excessive nesting are refused."""
    root = llama(tmp_path / "model")
    (root / "config.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r": config\.json: "):
        read_unconverted(root)


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    """Nothing can be planned without it."""
    root = llama(tmp_path / "model")
    (root / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json: is missing"):
        read_unconverted(root)


@pytest.mark.parametrize("mark", ["record", "method", "nested method", "metadata"])
def test_any_record_marks_a_checkpoint_as_padded_already(tmp_path: Path, mark: str) -> None:
    """One of the three records is enough, even if malformed; the message says what to do."""
    root = llama(tmp_path / "model")
    garbage = {"quant_method": "fp8pad", "modules": 7}
    if mark == "record":
        (root / "fp8pad.json").write_text("garbage")
    elif mark == "metadata":
        content = safetensors_bytes({"a": ("U8", (1,))}, {"fp8pad": shard_metadata({"a": (1,)})})
        (root / "model.safetensors").write_bytes(content)
    else:
        config = {"quantization_config": garbage}
        (root / "config.json").write_text(json.dumps(config if mark == "method" else {"text_config": config}))
    assert read_checkpoint(root).padding_mark
    with pytest.raises(AlreadyPaddedError, match="fp8pad unpad"):
        read_unconverted(root)


def test_a_change_while_reading_is_noticed(tmp_path: Path) -> None:
    """Size, mtime and inode must not change, or the data may come half from each version."""
    root = llama(tmp_path / "model")
    source = read_unconverted(root)
    source.check_unchanged()
    os.utime(root / "tokenizer.json", ns=(0, 0))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: was changed"):
        source.check_unchanged()
    (root / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: can no longer be read"):
        source.check_unchanged()


@pytest.mark.parametrize("file", ["config.json", "hf_quant_config.json", INDEX])
@pytest.mark.parametrize("value", ['"\\ud800"', "[" * 400 + "]" * 400, "[" * 5000 + "]" * 5000, "[1e999]"])
def test_json_that_could_not_be_written_again_is_refused(tmp_path: Path, file: str, value: str) -> None:
    """Unpaired surrogates, and nesting too deep for recursion, are found before anything is written."""
    model = llama(tmp_path / "model", num_shards=2)
    text = (model / file).read_text() if (model / file).exists() else "{}"
    (model / file).write_text(f'{{"x": {value}{"," if len(text) > 2 else ""}{text.lstrip()[1:]}')
    with pytest.raises(
        ConfigError, match=f": {file}: not JSON: .*(surrogates not allowed|at most 100 levels|a double)"
    ):
        read_unconverted(model)

"""The files of a folder: which come along, which links are followed, and what cannot be read."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
from helpers import llama

from fp8pad.checkpoint.read import read_checkpoint, read_unconverted
from fp8pad.errors import CheckpointError, ConfigError
from fp8pad.verification.changed_files import notes_on_files


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


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Such a name cannot be written into a record."""
    root = llama(tmp_path / "model")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.txt")).write_text("")
    with pytest.raises(CheckpointError, match="UTF-8"):
        read_unconverted(root)


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

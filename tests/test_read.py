"""Reading a checkpoint folder: which files are its shards, and everything that is missing or inconsistent."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import FBGEMM, INDEX, llama, safetensors_bytes, write_checkpoint

from fp8pad.checkpoint.read import _FolderReader, _other_copies, read_unconverted
from fp8pad.errors import CheckpointError, ConfigError

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


def test_a_ranks_share_that_vllm_saved_is_no_checkpoint(tmp_path: Path) -> None:
    """vLLM saves weights as its kernels take them: a square one that is transposed would look like any other."""
    root = llama(tmp_path / "model")
    (root / "model.safetensors").rename(root / "model-rank-0-part-0.safetensors")
    with pytest.raises(CheckpointError, match=r"model-rank-0-part-0.safetensors: is one rank's share of a model"):
        read_unconverted(root)


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


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", INDEX])
def test_a_dangling_link_is_an_incomplete_checkpoint(tmp_path: Path, name: str) -> None:
    """A file that is named but missing is never excluded silently."""
    root = llama(tmp_path / "model")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=name):
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

"""A checkpoint that was read: whether fp8pad wrote it, what an edited config.json excludes, and later changes."""

import json
import os
from pathlib import Path

import pytest
from helpers import llama, safetensors_bytes

from fp8pad.checkpoint.read import read_checkpoint, read_unconverted
from fp8pad.errors import AlreadyPaddedError, CheckpointError
from fp8pad.record import shard_metadata


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

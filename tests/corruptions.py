"""Ways in which a converted checkpoint can be wrong, one at a time, and the checkpoint on which they are tried."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from helpers import framed, stored_header, tensor_rows

SHARD = "model.safetensors"
GATE, UP, DOWN = (f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down"))
QUERY = "model.layers.0.self_attn.q_proj"
OUTPUT = "model.layers.0.self_attn.o_proj"


def with_biases(example: Path, root: Path) -> Path:
    """Write the example again, with a bias for every FP8 weight: 1/64 to 1 in steps of 1/64, BF16."""
    root.mkdir(parents=True)
    config = json.loads((example / "config.json").read_text()) | {"attention_bias": True, "mlp_bias": True}
    (root / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    data = (example / SHARD).read_bytes()
    header = stored_header(example / SHARD)
    body = data[8 + int.from_bytes(data[:8], "little") :]
    for name, entry in list(header.items()):
        if entry.get("dtype") == "F8_E4M3":
            bias = b"".join(_bf16((row % 64 + 1) / 64) for row in range(entry["shape"][0]))
            offsets = [len(body), len(body) + len(bias)]
            header[name.replace(".weight", ".bias")] = {
                "dtype": "BF16",
                "shape": entry["shape"][:1],
                "data_offsets": offsets,
            }
            body += bias
    (root / SHARD).write_bytes(framed(json.dumps(header).encode()) + body)
    return root


def _bf16(value: float) -> bytes:
    return struct.pack("<f", value)[2:]


def _overwrite(out_dir: Path, name: str, index: int, value: bytes) -> None:
    """Overwrite the elements of a tensor from `index` on; this must change something."""
    shard = out_dir / SHARD
    data = bytearray(shard.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little") + stored_header(shard)[name]["data_offsets"][0]
    begin += index * tensor_rows(shard, name).shape[-1]
    assert data[begin : begin + len(value)] != value
    data[begin : begin + len(value)] = value
    shard.write_bytes(data)


def _element(out_dir: Path, name: str, row: int, column: int) -> int:
    return row * int(stored_header(out_dir / SHARD)[name]["shape"][1]) + column


def logical_byte(out_dir: Path) -> None:
    """Make one logical element of a weight -448."""
    _overwrite(out_dir, f"{DOWN}.weight", _element(out_dir, f"{DOWN}.weight", 5, 7), b"\xfe")


def scale(out_dir: Path) -> None:
    """Make one row's scale 0.5."""
    _overwrite(out_dir, f"{QUERY}.weight_scale", 3, _bf16(0.5))


def padded_byte(out_dir: Path) -> None:
    """Make one element of the tail of K 1.0, where there must be a zero."""
    _overwrite(out_dir, f"{QUERY}.weight", _element(out_dir, f"{QUERY}.weight", 0, 143), b"\x38")


def padded_row(out_dir: Path) -> None:
    """Make one element of an absorbed row 1.0, where there must be a zero."""
    _overwrite(out_dir, f"{GATE}.weight", _element(out_dir, f"{GATE}.weight", 223, 0), b"\x38")


def bias(out_dir: Path) -> None:
    """Make one value of a bias 2.0."""
    _overwrite(out_dir, f"{OUTPUT}.bias", 9, _bf16(2.0))


def config_edit(out_dir: Path) -> None:
    """Set the absorbed size in config.json to another value."""
    _edit(out_dir / "config.json", lambda config: config.update(intermediate_size=240))


def swapped_gate_up(out_dir: Path) -> None:
    """Swap the weights and scales of gate and up."""
    for suffix in ("weight", "weight_scale"):
        gate, up = (tensor_rows(out_dir / SHARD, f"{name}.{suffix}").tobytes() for name in (GATE, UP))
        _overwrite(out_dir, f"{GATE}.{suffix}", 0, up)
        _overwrite(out_dir, f"{UP}.{suffix}", 0, gate)


def size_in_config(out_dir: Path) -> None:
    """Make config.json record one column fewer than there are."""

    def edit(config: dict[str, Any]) -> None:
        config["quantization_config"]["modules"][QUERY]["logical_shape"][1] -= 1

    _edit(out_dir / "config.json", edit)


def size_in_record(out_dir: Path) -> None:
    """Make fp8pad.json record one column fewer than there are."""

    def edit(record: dict[str, Any]) -> None:
        record["tensors"][f"{QUERY}.weight"]["logical_shape"][1] -= 1

    _edit(out_dir / "fp8pad.json", edit)


def size_in_shard(out_dir: Path) -> None:
    """Make the shard's metadata record one column fewer than there are."""
    shard = out_dir / SHARD
    data = shard.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    wrong = data[:length].replace(
        b'weight\\":{\\"logical_shape\\":[128,136]', b'weight\\":{\\"logical_shape\\":[128,135]', 1
    )
    assert wrong != data[:length]
    shard.write_bytes(wrong + data[length:])


def _edit(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document, indent=2) + "\n")


# By their names in docs/equality.md.
CORRUPTIONS: Mapping[str, Callable[[Path], None]] = {
    "one logical byte of a weight": logical_byte,
    "one scale": scale,
    "one padded byte, in the tail of K": padded_byte,
    "one padded byte, in an absorbed row": padded_row,
    "one value of a bias": bias,
    "an edited size in config.json": config_edit,
    "gate and up swapped": swapped_gate_up,
    "a logical size off by one, in config.json": size_in_config,
    "a logical size off by one, in fp8pad.json": size_in_record,
    "a logical size off by one, in the shard's metadata": size_in_shard,
}

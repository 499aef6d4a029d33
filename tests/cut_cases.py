"""Checkpoints of other tools without the bytes of their tensors, which are a hundred times larger than all the rest.

`tests/cases` was made from a folder of whole checkpoints, in every layout that these tools write, by

    python tests/cut_cases.py FOLDER tests/cases

Headers, configs, indexes and tokenizers are kept as they are; a file larger than 30 kB is cut after its header. A test
that copies a checkpoint fills such files up again, to the size that cut.json names, with values that never change.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

CUT_FILE = "cut.json"
LARGEST_WHOLE_FILE = 30_000
KEPT_OF_MALFORMED = 16_384
FP8_DTYPES = {"F8_E4M3", "F8_E5M2"}
ONE = {"BF16": (2, 0x80, 0x3F), "F16": (2, 0x00, 0x3C), "F32": (4, 0x80, 0x3F)}  # bytes, and the upper two of 1.0
KEPT_KEYS = {"path", "kind", "tool", "tool_version", "scheme", "note", "quant_method", "expect"}

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def cut(cases: Path, target: Path) -> None:
    """Copy a folder of whole checkpoints to `target`, without the bytes of tensors."""
    sizes: dict[str, int] = {}
    for path in sorted(path for path in cases.rglob("*") if path.is_file() and path.name != "cases.json"):
        copy = target / path.relative_to(cases)
        copy.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        if len(data) > LARGEST_WHOLE_FILE:
            sizes[path.relative_to(cases).as_posix()] = len(data)
            data = data[: min(8 + int.from_bytes(data[:8], "little"), KEPT_OF_MALFORMED)]
        copy.write_bytes(data)
    described = json.loads((cases / "cases.json").read_text())["cases"]
    kept = {name: {key: case[key] for key in case if key in KEPT_KEYS} for name, case in described.items()}
    (target / "cases.json").write_text(json.dumps({"cases": kept}, indent=1, ensure_ascii=False) + "\n")
    (target / CUT_FILE).write_text(json.dumps(sizes, indent=1, ensure_ascii=False) + "\n")


def copy_folder(folder: Path, copy: Path) -> None:
    """Copy one case, a folder in a folder of cases, with the bytes that were cut off."""
    cases = folder.parents[1]
    shutil.copytree(folder, copy)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    sizes = json.loads((cases / CUT_FILE).read_text()) if (cases / CUT_FILE).exists() else {}
    for name, size in sizes.items():
        if (cases / name).is_relative_to(folder):
            fill(copy / (cases / name).relative_to(folder), size)


def fill(path: Path, size: int) -> None:
    """Fill a file that was cut off, up to `size` bytes."""
    kept = path.read_bytes()
    data = np.random.default_rng(crc32(path.name.encode())).integers(0, 256, size - len(kept), np.uint8)
    for entry in entries(kept):
        begin, end = entry["data_offsets"]
        if 0 <= begin < end <= len(data):
            data[begin:end] = finite(data[begin:end], entry["dtype"])
    path.write_bytes(kept + data.tobytes())


def entries(header: bytes) -> list[dict[str, Any]]:
    """Return the tensors of a safetensors header; none if it is malformed."""
    try:
        document = json.loads(header[8:])
    except ValueError:
        return []
    return [entry for name, entry in document.items() if name != "__metadata__"]


def finite(data: Bytes, dtype: str) -> Bytes:
    """Turn random bytes into numbers that are neither huge nor NaN: floats of more than one byte are from 1 to 2."""
    if dtype in FP8_DTYPES:
        return data & np.uint8(0xBB)
    if dtype not in ONE:
        return data
    num_bytes, low, high = ONE[dtype]
    numbers = data.reshape(-1, num_bytes).copy()
    numbers[:, -2] |= low
    numbers[:, -1] = high
    return numbers.reshape(-1)


if __name__ == "__main__":
    cut(Path(sys.argv[1]), Path(sys.argv[2]))

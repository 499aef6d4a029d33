"""The builder of small checkpoints, functions that read them independently of fp8pad, and a progress that counts."""

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cut_cases import copy_folder

from fp8pad.checkpoint.progress import Progress

BITS = {
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U8": 8, "I8": 8, "BF16": 16, "F16": 16, "F32": 32, "F4": 4, "I64": 64,
}  # fmt: skip
INDEX = "model.safetensors.index.json"
FBGEMM = {"model_type": "llama", "quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}}

Tensors = Mapping[str, tuple[str, Sequence[int]]]


def safetensors_bytes(
    tensors: Tensors,
    metadata: Mapping[str, str] | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> bytes:
    """Return a safetensors file with random data, in the form that the safetensors library writes.

    Data is in the order of `tensors`; the header is in the order of `names`, if given.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    header |= dict.fromkeys(names or ())
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    data = np.random.default_rng(seed).integers(0, 256, end, np.uint8).tobytes()
    return framed(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()) + data


def framed(header: bytes) -> bytes:
    """Put the length before a safetensors header that is filled up to a multiple of eight bytes."""
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def write_checkpoint(
    root: Path,
    shards: Mapping[str, Tensors],
    config: Mapping[str, Any] = FBGEMM,
    metadata: Mapping[str, str] | None = {"format": "pt"},
    index: bool | None = None,
) -> Path:
    """Write shards of random bytes, an index (by default if there are several), config.json and a tokenizer."""
    root.mkdir(parents=True)
    for seed, (file, tensors) in enumerate(shards.items()):
        (root / file).write_bytes(safetensors_bytes(tensors, metadata, seed))
    if index or (index is None and len(shards) > 1):
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
        total = sum(size for shard in shards for _, _, size in stored(root / shard).values())
        document = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (root / INDEX).write_text(json.dumps(document, indent=2) + "\n")
    (root / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (root / "tokenizer.json").write_text('{"version": "1.0"}')
    return root


def linear(name: str, n: int, k: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return an FP8 Linear `[n, k]` with a scale for each output channel."""
    return {f"{name}.weight": ("F8_E4M3", (n, k)), f"{name}.weight_scale": ("F32", (n, 1))}


def gated(
    prefix: str,
    inner: int,
    hidden: int,
    make: Callable[[str, int, int], dict[str, tuple[str, tuple[int, ...]]]] = linear,
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return Llama's MLP: gate, up and down."""
    return {
        **make(f"{prefix}.gate_proj", inner, hidden),
        **make(f"{prefix}.up_proj", inner, hidden),
        **make(f"{prefix}.down_proj", hidden, inner),
    }


def llama(root: Path, num_shards: int = 1, n: int = 21, k: int = 24) -> Path:
    """Write a checkpoint of one FP8 Linear, an aligned one and a norm in each shard."""
    shards: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for number in range(num_shards):
        file = "model.safetensors" if num_shards == 1 else f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        layer = f"model.layers.{number}"
        shards[file] = {
            f"{layer}.input_layernorm.weight": ("BF16", (k,)),
            **linear(f"{layer}.mlp.down_proj", n, k),
            **linear(f"{layer}.self_attn.o_proj", 32, 16),
        }
    return write_checkpoint(root, shards)


def stored(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Return dtype, shape and bytes of every tensor, in the order of the header, read without fp8pad."""
    header = stored_header(path)
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def stored_header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file, read without fp8pad."""
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])  # type: ignore[no-any-return]


def tensor_rows(path: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a tensor as uint8 `[*shape, element bytes]`, read without fp8pad."""
    data = path.read_bytes()
    entry = stored_header(path)[name]
    begin, end = (8 + int.from_bytes(data[:8], "little") + offset for offset in entry["data_offsets"])
    return np.frombuffer(data[begin:end], np.uint8).reshape(*entry["shape"], BITS[entry["dtype"]] // 8)


class Counter(Progress):
    """Adds up the bytes of the last step."""

    def __init__(self) -> None:
        self.num_bytes = self.total_bytes = 0
        self._lock = threading.Lock()

    def start(self, label: str, total_bytes: int, num_files: int = 0) -> None:
        """Reset the counts."""
        assert label
        assert num_files >= 0
        self.num_bytes, self.total_bytes = 0, total_bytes

    def advance(self, num_bytes: int) -> None:
        """Add bytes."""
        with self._lock:
            self.num_bytes += num_bytes


def fast_folder() -> str | None:
    """Return a folder in memory, where syncing costs nothing."""
    folder = "/dev/shm"  # noqa: S108  only its subfolders with random names are used
    return folder if os.access(folder, os.W_OK) else None


def files_of(root: Path) -> dict[str, bytes]:
    """Return the bytes of every file below `root`, hidden ones included, by relative name."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def cases_dir() -> Path:
    """Return the folder of checkpoints made by other tools: FP8PAD_CASES with whole ones, else tests/cases."""
    return Path(os.environ.get("FP8PAD_CASES") or Path(__file__).parent / "cases")


def case_names(*kinds: str) -> list[str]:
    """Return the paths of the cases in the folders `kinds`, relative to the folder of cases."""
    described = json.loads((cases_dir() / "cases.json").read_text())["cases"].values()
    return [case["path"] for case in described if case["path"].split("/")[0] in kinds]


def copy_case(path: str, target: Path) -> Path:
    """Copy a case to `target` and return its folder; symbolic links that were stored as text become links again."""
    kind, name, *rest = path.split("/")
    copy_folder(cases_dir() / kind / name, target / name)
    for file in [file for file in (target / name).rglob("*") if file.is_file() and file.stat().st_size < 200]:
        text = file.read_bytes()
        if text.startswith(b"../") and b"\n" not in text:
            file.unlink()
            file.symlink_to(text.decode())
    return Path(target, name, *rest)

"""Measure `fp8pad convert` against `cp -r` and `sync`, the least that any copy of a checkpoint costs.

A checkpoint of several GB is made of random bytes with real headers: Llama layers of hidden size 4096 and intermediate
size 13653, so that 71 % of the FP8 bytes belong to padded weights. Copies and conversions alternate, with the source
in the page cache (warm) and not (cold); convert is run with each depth of `--verify`. Wall times are medians. Peak
memory is the high-water mark of resident memory (VmHWM), above that of a Python interpreter that does nothing.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, gettempdir

HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 13653, 32000
LAYER_BYTES = 4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE
LAYERS_PER_SHARD = 4
CHUNK_BYTES = 1 << 24
DEPTHS = ("none", "padded", "full")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
}
# Runs a command of fp8pad, or nothing, and writes the high-water mark of its own resident memory, in KiB, to a file.
MEASURED = r"""
import re, sys
from pathlib import Path
peak_file, *arguments = sys.argv[1:]
try:
    if arguments:
        from fp8pad.cli.main import main
        sys.argv[1:] = arguments
        main()
finally:
    Path(peak_file).write_text(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""


@dataclass(frozen=True)
class Run:
    """One measured run; `peak_bytes` is None for `cp`."""

    what: str
    cache: str
    seconds: float
    peak_bytes: int | None = None


def main() -> None:
    """Make the checkpoint, run everything, print the table and write the figures."""
    options = parse_options()
    with TemporaryDirectory(prefix="fp8pad-bench-", dir=options.scratch) as scratch:
        model = Path(scratch, "model")
        make_checkpoint(model, round(options.gigabytes * 1e9 / LAYER_BYTES))
        host = describe_host(model)
        interpreter_bytes = run_measured(Path(scratch))
        runs = list(measure(model, Path(scratch), options.repeats))
    document = {"host": host, "interpreter_bytes": interpreter_bytes, "runs": [asdict(run) for run in runs]}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(host, indent=1))
    print_table(runs, interpreter_bytes)
    print(f"written to {options.output}")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint (default: 4)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument(
        "--scratch", default=gettempdir(), help="folder on the disk to measure, with room for two copies"
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench_convert.json"), help="where the figures go")
    return parser.parse_args()


def make_checkpoint(model: Path, num_layers: int) -> None:
    """Write shards of `LAYERS_PER_SHARD` layers each, an index and a config."""
    model.mkdir()
    weight_map: dict[str, str] = {}
    total_size = 0
    for begin in range(0, num_layers, LAYERS_PER_SHARD):
        file = f"model-{begin // LAYERS_PER_SHARD:05}.safetensors"
        tensors = dict(
            tensor
            for layer in range(begin, min(begin + LAYERS_PER_SHARD, num_layers))
            for tensor in layer_tensors(layer)
        )
        if begin == 0:
            tensors["model.embed_tokens.weight"] = ("BF16", (VOCABULARY, HIDDEN))
        total_size += write_shard(model / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "config.json").write_text(json.dumps(CONFIG))


def layer_tensors(layer: int) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Yield the FP8 weights of a layer and their per-channel scales: `name, (dtype, shape)`."""
    shapes = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN)}
    shapes["mlp.down_proj"] = (HIDDEN, INTERMEDIATE)
    for module, shape in shapes.items():
        name = f"model.layers.{layer}.{module}.weight"
        yield name, ("F8_E4M3", shape)
        yield f"{name}_scale", ("F32", (shape[0], 1))


def write_shard(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    """Write a safetensors file of random bytes and return the bytes of its tensors."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as shard:
        shard.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, end, CHUNK_BYTES):
            shard.write(os.urandom(min(CHUNK_BYTES, end - begin)))
    return end


def measure(model: Path, scratch: Path, repeats: int) -> Iterator[Run]:
    """Alternate copies and conversions, every depth of verification in turn."""
    for cache, prepare in (("warm", read_all), ("cold", evict)):
        for _ in range(repeats):
            for depth in DEPTHS:
                yield Run("cp -r; sync", cache, timed(scratch / "copy", prepare, model, None)[0])
                yield Run(f"convert --verify {depth}", cache, *timed(scratch / "out", prepare, model, depth))


def timed(target: Path, prepare: Callable[[Path], None], model: Path, depth: str | None) -> tuple[float, int | None]:
    """Return seconds and peak bytes of one copy (`depth` None) or conversion into `target`, removed afterwards."""
    prepare(model)
    began = time.perf_counter()
    peak_bytes = None
    if depth is None:
        subprocess.run(["cp", "-r", model, target], check=True)
        subprocess.run(["sync"], check=True)
    else:
        peak_bytes = run_measured(target.parent, "convert", str(model), str(target), "--verify", depth)
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    os.sync()
    return seconds, peak_bytes


def run_measured(scratch: Path, *arguments: str) -> int:
    """Run a command of fp8pad, or an interpreter that does nothing, and return its peak resident bytes."""
    peak_file = scratch / "peak"
    subprocess.run([sys.executable, "-c", MEASURED, str(peak_file), *arguments], check=True, capture_output=True)
    return int(peak_file.read_text()) * 1024


def read_all(model: Path) -> None:
    """Bring the checkpoint into the page cache."""
    for path in model.iterdir():
        with path.open("rb") as file:
            while file.read(CHUNK_BYTES):
                pass


def evict(model: Path) -> None:
    """Drop the checkpoint from the page cache."""
    os.sync()
    for path in model.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def describe_host(model: Path) -> dict[str, object]:
    """Say what was measured, and on what."""
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in cpu_lines if line.startswith("model name")), "unknown")
    file_system = subprocess.run(["stat", "-f", "-c", "%T", model], check=True, capture_output=True, text=True).stdout
    return {
        "checkpoint_bytes": sum(path.stat().st_size for path in model.iterdir()),
        "num_shards": len(list(model.glob("*.safetensors"))),
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "file_system": file_system.strip(),
        "cold": "posix_fadvise(POSIX_FADV_DONTNEED) on every file of the source",
        "python": platform.python_version(),
    }


def print_table(runs: list[Run], interpreter_bytes: int) -> None:
    """Print medians, their ratio to the copies of the same cache state, and peak memory."""
    print(f"{'':24} {'cache':5} {'seconds (min-max)':>22} {'x cp':>6} {'peak MiB above interpreter':>28}")
    for cache in ("warm", "cold"):
        copies = median(run.seconds for run in runs if run.cache == cache and run.peak_bytes is None)
        for what in dict.fromkeys(run.what for run in runs):
            same = [run for run in runs if (run.what, run.cache) == (what, cache)]
            seconds = [run.seconds for run in same]
            peaks = [run.peak_bytes - interpreter_bytes for run in same if run.peak_bytes is not None]
            spread = f"{median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
            peak = f"{max(peaks) / 2**20:.1f}" if peaks else "-"
            print(f"{what:24} {cache:5} {spread:>22} {median(seconds) / copies:>6.2f} {peak:>28}")


if __name__ == "__main__":
    main()

"""Measure `fp8pad convert` against `cp -r` and `sync`, the minimum cost of a copy of a checkpoint, and other tools.

The checkpoints have random bytes and real headers: Llama layers of hidden size 4096, with the inner size 13824, which
needs no padding (none), 13653 in every eighth layer (few), or in all layers (all: 71 % of the FP8 bytes belong to
padded weights). Every command is run in turn, with the source in the page cache (warm) and with an empty one (cold).
Given a Python with torch and compressed-tensors, `--peer-python`, loading, padding and saving with safetensors.torch is
measured too, and compressed-tensors' convert_checkpoint (see peers.py): they take longest, so only warm, and only if
something is padded.

For each run: wall time, CPU time, the peak resident memory of all its processes together, and bytes written to the
disk. report.py makes a table, a chart and the section of docs/benchmarks.md from them.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from threading import Event, Thread

from report import COPY, convert_table

HIDDEN, INTERMEDIATE, ALIGNED, VOCABULARY = 4096, 13653, 13824, 32000
LAYER_BYTES = 4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE
LAYERS_PER_SHARD = 4
CHUNK_BYTES = 1 << 24
POLL_SECONDS = 0.02
PADDED = {"none": 0, "few": 8, "all": 1}  # every n-th layer is padded
PEERS = ("safetensors", "compressed-tensors")
UNSYNCED = "import os, runpy; os.fsync = lambda _: None; runpy.run_module('fp8pad', run_name='__main__')"
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "quantization_config": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
}


@dataclass(frozen=True)
class Run:
    """A measured run; memory and disk in bytes."""

    padded: str
    cache: str
    what: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    written_bytes: int


def main() -> None:
    """Make the checkpoints, run everything, print the table and write the figures."""
    options = parse_options()
    runs: list[Run] = []
    with TemporaryDirectory(prefix="fp8pad-bench-", dir=options.scratch) as scratch:
        for padded in options.padded:
            model = Path(scratch, f"model-{padded}")
            make_checkpoint(model, max(1, round(options.gigabytes * 1e9 / LAYER_BYTES)), PADDED[padded])
            host = describe_host(model)
            for cache in options.cache:
                for _ in range(options.repeats):
                    runs += measure(model, padded, cache, ways(padded, cache, options))
            shutil.rmtree(model)
    document = {"host": host, "runs": [asdict(run) for run in runs]}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(convert_table(document))
    print(f"written to {options.output}")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.0, help="size of each checkpoint (default: 8)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--padded", nargs="+", choices=PADDED, default=list(PADDED), help="which checkpoints")
    parser.add_argument("--cache", nargs="+", choices=("warm", "cold"), default=["warm", "cold"])
    parser.add_argument("--unsynced", action="store_true", help="also measure what waits for no disk, for a profile")
    parser.add_argument("--peer-python", help="a Python with torch and compressed-tensors")
    parser.add_argument(
        "--scratch", default=gettempdir(), help="folder on the disk to measure, with room for two copies"
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench_convert.json"), help="where the figures go")
    return parser.parse_args()


def ways(padded: str, cache: str, options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the commands to measure, without the two folders that each takes."""
    peer_python = options.peer_python
    commands = {COPY: ["sh", "-c", 'cp -r "$0" "$1"; sync']}
    for depth in ("none", "padded", "full") if cache == "warm" else ("padded", "full"):
        commands[f"fp8pad --verify {depth}"] = [sys.executable, "-m", "fp8pad", "convert", "--quiet", "--verify", depth]
    if options.unsynced:
        commands["cp -r"] = ["cp", "-r"]
        commands["fp8pad, unsynced"] = [sys.executable, "-c", UNSYNCED, "convert", "--quiet"]
    for peer in PEERS if peer_python and padded != "none" and cache == "warm" else ():
        commands[peer] = [peer_python or "", str(Path(__file__).with_name("peers.py")), peer]
    return commands


def make_checkpoint(model: Path, num_layers: int, padded: int) -> None:
    """Write shards of `LAYERS_PER_SHARD` layers each, an index and a config; every `padded`-th layer needs padding."""
    model.mkdir()
    weight_map: dict[str, str] = {}
    total_size = 0
    for begin in range(0, num_layers, LAYERS_PER_SHARD):
        file = f"model-{begin // LAYERS_PER_SHARD:05}.safetensors"
        tensors = dict(
            tensor
            for layer in range(begin, min(begin + LAYERS_PER_SHARD, num_layers))
            for tensor in layer_tensors(layer, INTERMEDIATE if padded and layer % padded == 0 else ALIGNED)
        )
        if begin == 0:
            tensors["model.embed_tokens.weight"] = ("BF16", (VOCABULARY, HIDDEN))
        total_size += write_shard(model / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "config.json").write_text(json.dumps(CONFIG))


def layer_tensors(layer: int, inner: int) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Yield the FP8 weights of a layer and their per-channel scales: `name, (dtype, shape)`."""
    shapes = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, HIDDEN), "mlp.up_proj": (inner, HIDDEN), "mlp.down_proj": (HIDDEN, inner)}
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
    text = json.dumps(header, separators=(",", ":")).encode()  # as the safetensors library writes it
    text += b" " * (-len(text) % 8)
    with path.open("wb") as shard:
        shard.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, end, CHUNK_BYTES):
            shard.write(os.urandom(min(CHUNK_BYTES, end - begin)))
    return end


def measure(model: Path, padded: str, cache: str, commands: dict[str, list[str]]) -> Iterator[Run]:
    """Run each command once, into a folder that is removed afterwards."""
    out_dir = model.with_name("out")
    for what, command in commands.items():
        os.sync()
        (read_all if cache == "warm" else evict)(model)
        began = time.perf_counter()
        process = subprocess.Popen([*command, model, out_dir], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with watched(process.pid) as peaks:
            message = process.stderr.read() if process.stderr else b""
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{what}: {message.decode()}")
        peak_bytes = max(usage.ru_maxrss << 10, *peaks.values)
        cpu_seconds = usage.ru_utime + usage.ru_stime
        print(f"{padded:5}{cache:6}{what:22}{seconds:7.2f} s", file=sys.stderr, flush=True)
        yield Run(padded, cache, what, seconds, cpu_seconds, peak_bytes, usage.ru_oublock << 9)
        shutil.rmtree(out_dir)


class watched:  # noqa: N801  a context manager
    """Samples the resident memory of a process and all its descendants together; peaks of one process do not add up."""

    def __init__(self, pid: int) -> None:
        self.values, self._pid, self._end = [0], pid, Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> "watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            pids = [self._pid]
            for pid in pids:
                with suppress(OSError):
                    tasks = Path(f"/proc/{pid}/task").iterdir()
                    pids += [int(child) for task in tasks for child in (task / "children").read_text().split()]
            if len(pids) > 1:
                self.values[0] = max(self.values[0], sum(map(resident_bytes, pids)))


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory, 0 if it has ended; shared pages count for each process."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def read_all(model: Path) -> None:
    """Read the checkpoint into the page cache."""
    for path in model.iterdir():
        with path.open("rb") as file:
            while file.read(CHUNK_BYTES):
                pass


def evict(model: Path) -> None:
    """Empty the page cache, or at least drop the checkpoint from it."""
    with suppress(OSError):
        DROP_CACHES.write_text("3")
        return
    for path in model.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def describe_host(model: Path) -> dict[str, object]:
    """Return what was measured, and on which machine."""
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in cpu_lines if line.startswith("model name")), "unknown")
    file_system = subprocess.run(["stat", "-f", "-c", "%T", model], check=True, capture_output=True, text=True).stdout
    can_drop = os.access(DROP_CACHES, os.W_OK)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "checkpoint_bytes": sum(path.stat().st_size for path in model.iterdir()),
        "num_shards": len(list(model.glob("*.safetensors"))),
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "file_system": file_system.strip(),
        "cold": "drop_caches" if can_drop else "posix_fadvise(POSIX_FADV_DONTNEED) on every file of the source",
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()

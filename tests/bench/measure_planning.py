"""Measure CPU time and memory of planning 150,000 tensors in 200 sparse shards, and of converting many padded ones.

    python tests/bench/measure_planning.py [--folder FOLDER] [--no-convert] [--output FILE]

Each command is a separate process: its user and system time is counted, including interpreter and imports. Then a
checkpoint of 120,000 padded Linears is converted and verified, which writes 2 GB, and one with a single shard of 101 GB
is converted. report.py puts the figures into docs/scale.md.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench_convert import describe_host
from sparse_checkpoint import write_sparse_checkpoint

# The inner size of experts is a multiple of the block, or is not.
PLANNED = {"aligned": {"inner": 2048}, "unaligned": {"inner": 1000}}
# 120,000 Linears of 24 x 24, each padded to one block of 128 x 128, and as many scales.
PADDED = {"layers": 30_000, "experts": 0, "hidden": 24}
# One shard of 101 GB; the experts are padded.
LARGE = {"num_shards": 1, "layers": 94, "experts": 1, "hidden": 16384, "inner": 24}


def make(root: Path, **sizes: int) -> int:
    """Write a checkpoint in another process, and return its number of tensors.

    This process's memory would count as that of the commands, which begin as copies of it.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(write_sparse_checkpoint, root, **sizes).result()


def measure(checkpoint: str, *arguments: object) -> dict[str, Any]:
    """Run fp8pad, print and return its CPU time and memory."""
    command = [sys.executable, "-m", "fp8pad", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    named = " ".join(str(each) for each in arguments if not isinstance(each, Path))
    cpu_seconds, peak_bytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
    print(f"{cpu_seconds:6.1f} s CPU  {peak_bytes >> 20:4} MiB  fp8pad {named}, {checkpoint}", flush=True)
    return {"checkpoint": checkpoint, "command": named, "cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes}


def main() -> None:
    """Make the checkpoints, run the commands on them, and remove everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made (default: the system's for these)")
    parser.add_argument("--no-convert", action="store_true", help="plan only")
    parser.add_argument("--output", type=Path, default=Path("build/bench_planning.json"), help="where figures go")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with TemporaryDirectory(dir=options.folder) as folder:
        for name, sizes in PLANNED.items():
            model = Path(folder) / name
            checkpoint = f"{make(model, **sizes):,} tensors, {name}"
            commands = ["plan"], ["plan", "--absorb-experts"], ["plan", "--json"]
            runs += [measure(checkpoint, *command, model) for command in commands]
            runs.append(measure(checkpoint, "convert", "--dry-run", "--force", model, Path(folder) / "out"))
        if not options.no_convert:
            model, out = Path(folder) / "padded", Path(folder) / "out"
            checkpoint = f"{make(model, **PADDED):,} tensors, 120,000 Linears to pad"
            runs.append(measure(checkpoint, "plan", model))
            runs.append(measure(checkpoint, "convert", "--quiet", "--force", model, out))
            runs.append(measure(checkpoint, "verify", "--quiet", model, out))
            large, out = Path(folder) / "large", Path(folder) / "large-out"
            checkpoint = f"{make(large, **LARGE):,} tensors in one shard of 101 GB, of holes"
            runs.append(measure(checkpoint, "convert", "--quiet", "--force", large, out))
        document = {"host": describe_host(model), "runs": runs}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Measure CPU time and memory of planning 150,000 tensors in 200 shards of holes, and of converting many padded ones.

    python tests/bench/measure_planning.py [--folder FOLDER] [--convert]

Each command is a process of its own: user and system time of all of it, interpreter and imports included. With
`--convert`, a checkpoint of 120,000 tensors that are padded is converted and verified, which writes 2 GB.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from sparse_checkpoint import write_sparse_checkpoint

# The inner size of experts is a multiple of the block, and is not.
PLANNED = {"aligned": {"inner": 2048}, "unaligned": {"inner": 1000}}
# 120,000 Linears of 24 x 24, each padded to one block of 128 x 128, and as many scales.
PADDED = {"layers": 30_000, "experts": 0, "hidden": 24}


def measure(*arguments: object) -> None:
    """Run fp8pad and print what it took."""
    command = [sys.executable, "-m", "fp8pad", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}")
    named = " ".join(Path(each).name if isinstance(each, Path) else str(each) for each in arguments)
    print(
        f"{usage.ru_utime + usage.ru_stime:6.1f} s CPU  {usage.ru_maxrss / 1024:4.0f} MiB  fp8pad {named}", flush=True
    )


def main() -> None:
    """Make the checkpoints, run the commands on them, and remove all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made (default: the system's for these)")
    parser.add_argument("--convert", action="store_true", help="convert and verify, too")
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.folder) as folder:
        for name, sizes in PLANNED.items():
            model = Path(folder) / name
            print(write_sparse_checkpoint(model, **sizes), "tensors in", name)
            for command in (["plan"], ["plan", "--absorb-experts"], ["plan", "--json"]):
                measure(*command, model)
            measure("convert", "--dry-run", model, Path(folder) / "out")
        if options.convert:
            model, out = Path(folder) / "padded", Path(folder) / "out"
            print(write_sparse_checkpoint(model, **PADDED), "tensors in padded")
            measure("convert", "--quiet", "--force", model, out)
            measure("verify", "--quiet", model, out)


if __name__ == "__main__":
    main()

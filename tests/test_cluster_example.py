"""The SLURM scripts of examples/cluster, run with stand-ins for sbatch and fp8pad's command."""

import os
import subprocess
import sys
from pathlib import Path

from helpers import files_of, llama

from fp8pad.checkpoint.progress import Progress
from fp8pad.verification import verify

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "cluster"
# Runs an array's tasks one after another, then the job that depends on them.
SBATCH = """#!/bin/bash
script="${@: -1}"
case "$script" in
  --wrap=*) bash -euc "${script#--wrap=}" ;;
  *) for task in 0 1 2; do SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=3 bash "$script" >&2; done; echo 42 ;;
esac
"""


def test_slices_of_a_slurm_array_are_published_by_a_last_job(tmp_path: Path) -> None:
    """Seven shards in three tasks: no shard is left out, and nothing is published too early."""
    model = llama(tmp_path / "model", num_shards=7)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH)
    (tools / "fp8pad").write_text(f'#!/bin/bash\nexec "{sys.executable}" -m fp8pad "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MODEL": str(model),
        "OUT_DIR": str(tmp_path / "out"),
    }
    run = subprocess.run([EXAMPLE / "submit.sh"], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "7 of 7 shards are finished" in run.stderr
    assert verify(model, tmp_path / "out", Progress()).ok
    assert files_of(tmp_path / "out").keys() >= files_of(model).keys() | {"fp8pad.json"}

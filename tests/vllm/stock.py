"""Serve models one after another in a separate process with stock vLLM, and check that fp8pad's plugin is absent.

As a script: folders as arguments, one line of JSON per model on stdout.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving import Answer, serve

# The stand-ins only replace operators that vLLM's CPU build lacks; fp8pad's plugin is not among them.
PLUGINS = "fp8pad_standins"


def serve_stock(models: Sequence[Path], **options: Any) -> list[tuple[Answer, ...]]:
    """Return stock vLLM's answers for each of `models`; raise the process's last lines if it fails."""
    command = [sys.executable, __file__, json.dumps(options), *map(str, models)]
    env = {**os.environ, "VLLM_PLUGINS": PLUGINS, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False)
    if run.returncode:
        raise RuntimeError(run.stdout + run.stderr)
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"answers"')]
    return [tuple(_answer(answer) for answer in line["answers"]) for line in lines]


def _answer(answer: dict[str, list[Any]]) -> Answer:
    return Answer(**{field: tuple(values) for field, values in answer.items()})


if __name__ == "__main__":
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    for folder in sys.argv[2:]:
        served = serve(Path(folder), **json.loads(sys.argv[1]))
        if "fp8pad" in QUANTIZATION_METHODS:
            sys.exit("fp8pad's plugin is loaded")
        print(json.dumps({"answers": [asdict(answer) for answer in served.answers]}), flush=True)

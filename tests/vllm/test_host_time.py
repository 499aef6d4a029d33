"""The host cost of an eager call of a padded layer: never more operators than stock vLLM's call of the original."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

SCRIPT = Path(__file__).parents[1] / "bench" / "measure_host_time.py"
QUANTIZE, MULTIPLY = "dynamic_per_token_scaled_fp8_quant", "cutlass_scaled_mm"


def test_a_padded_layer_calls_no_more_operators_than_the_original() -> None:
    """CUTLASS's kernel with operators that do nothing: zeros replace a padded copy, and as many rows are cut.

    On a GPU `constant_pad_nd` is a fill and a copy, `new_zeros` only a fill.
    """
    command = [sys.executable, str(SCRIPT), "--rounds", "2"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert run.returncode == 0, run.stderr
    rows = {row["unaligned"]: row for row in map(json.loads, run.stdout.splitlines()[-4:])}
    found = {name: (row["stock"]["operators"], row["runtime"]["operators"]) for name, row in rows.items()}
    assert found == {
        "K": ([QUANTIZE, "constant_pad_nd", MULTIPLY], ["new_zeros", QUANTIZE, MULTIPLY]),
        "N": ([QUANTIZE, MULTIPLY, "clone"],) * 2,
        "K and N": ([QUANTIZE, "constant_pad_nd", MULTIPLY, "clone"], ["new_zeros", QUANTIZE, MULTIPLY, "clone"]),
        "nothing": ([QUANTIZE, MULTIPLY],) * 2,
    }

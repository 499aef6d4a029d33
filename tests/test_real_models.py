"""The table of real models in docs/absorb.md is what the example prints today."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_documentation_shows_what_the_example_prints() -> None:
    """Five models' published sizes, planned at tensor-parallel sizes 1 to 8."""
    command = [sys.executable, str(ROOT / "examples" / "real_models.py")]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(table.splitlines()) == 13
    assert table in (ROOT / "docs" / "absorb.md").read_text("utf-8")

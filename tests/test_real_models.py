"""The table of real models in docs/absorb.md is what the example prints today."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_documentation_shows_what_the_example_prints() -> None:
    """Nine models' published sizes, at tensor-parallel sizes 1 to 16."""
    command = [sys.executable, str(ROOT / "examples" / "real_models.py")]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(table.splitlines()) == 29
    assert table in (ROOT / "docs" / "absorb.md").read_text("utf-8")

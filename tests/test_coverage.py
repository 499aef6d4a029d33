"""The table of what is known of vLLM's architectures tells of families that are there."""

import re
from pathlib import Path

from fp8pad.planning.families import families

TABLE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"


def test_the_table_names_model_types_that_have_a_family() -> None:
    """Every model type in the table has a file; examples/coverage.py writes it again after files were added."""
    rows = re.findall(r"^\| (\w+) \| .* \| (described|cannot be absorbed) \| (.*) \| .* \|$", TABLE.read_text(), re.M)
    assert len(rows) > 200
    named = {model_type for _, _, cell in rows for model_type in re.findall(r"`(.+?)`", cell)}
    assert named <= set(families())

"""Outputs equal those of the previous version, byte for byte, except for its number and fields added since."""

import json
from pathlib import Path

import pytest
from helpers import case_names
from outputs import OPTIONS, RECORDED, digests_of

from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.conversion import convert
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy

POLICIES = {
    OPTIONS["default"]: Policy(),
    OPTIONS["absorb"]: Policy(absorb=True),
    OPTIONS["experts"]: Policy(tensor_parallel_size=2, absorb=True, absorb_experts=True),
    OPTIONS["alignment"]: Policy(alignment=32),
}


def convert_with(model: Path, out_dir: Path, options: tuple[str, ...]) -> None:
    """Convert as the command line does with these options."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, POLICIES[options])
    convert(PlanReport(source, plan, card=False), out_dir, WriteOptions(verify="none"), Progress())


@pytest.mark.parametrize("case", case_names("good", "variants"))
def test_outputs_are_as_recorded(case: str, tmp_path: Path) -> None:
    """Shards and index byte for byte, config.json and fp8pad.json by their contents and order."""
    recorded = json.loads(RECORDED.read_text())[case]
    found = digests_of(case, tmp_path, convert_with)
    assert found["source"] in recorded, "this case was changed: record it again, see outputs.py"
    assert found["outputs"] == recorded[found["source"]]

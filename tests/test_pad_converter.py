"""Padding as a step of compressed-tensors' own conversion: the same tensors, and an equivalent config.json."""

import json
from pathlib import Path

import pytest
from helpers import case_names, copy_case, llama, stored_header, tensor_rows

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="needs torch")
compressed_tensors = pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
if tuple(map(int, compressed_tensors.__version__.split(".")[:2])) < (0, 20):
    pytest.skip("needs compressed-tensors 0.20", allow_module_level=True)

from compressed_tensors.entrypoints.convert import convert_checkpoint  # noqa: E402
from test_verify import convert_to  # noqa: E402

from fp8pad.errors import PlanError  # noqa: E402
from fp8pad.integrations.compressed_tensors import PadConverter  # noqa: E402
from fp8pad.record import Policy  # noqa: E402

# convert_checkpoint requires every safetensors file to be in the index, including other forms in subfolders.
CASES = [name for name in case_names("good", "variants") if not name.endswith("v_repo_clutter")]
ABSORBED = Policy(tensor_parallel_size=2, absorb=True, absorb_experts=True)


@pytest.mark.parametrize("policy", [Policy(), ABSORBED], ids=["padded", "absorbed"])
@pytest.mark.parametrize("case", CASES)
def test_tensors_are_those_of_fp8pad(case: str, policy: Policy, tmp_path: Path) -> None:
    """Byte for byte, for scales per tensor, channel and block, fused layers, stacks and experts."""
    model = copy_case(case, tmp_path)
    expected = convert_to(model, tmp_path / "expected", policy)
    convert_checkpoint(model, tmp_path / "out", PadConverter(model, policy), device="cpu")
    for shard in expected.glob("*.safetensors"):
        found = tmp_path / "out" / shard.name
        names = stored_header(shard).keys() - {"__metadata__"}
        assert names == stored_header(found).keys() - {"__metadata__"}
        rows = {name: (tensor_rows(shard, name).tobytes(), tensor_rows(found, name).tobytes()) for name in names}
        assert [name for name, (one, other) in rows.items() if one != other] == []
    configs = [json.loads((root / "config.json").read_text()) for root in (expected, tmp_path / "out")]
    assert configs[0] == configs[1]


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    """A plan belongs to one checkpoint."""
    converter = PadConverter(llama(tmp_path / "model"))
    with pytest.raises(PlanError, match=r"down_proj\.weight: expected \[21, 24\], got \[5, 24\]"):
        convert_checkpoint(llama(tmp_path / "other", n=5), tmp_path / "out", converter, device="cpu")

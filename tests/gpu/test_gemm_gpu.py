"""`verify --gemm` on a CUDA device: tensor cores give both forms of a layer the same bits."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
    pytest.skip("needs a CUDA device with FP8 tensor cores", allow_module_level=True)

corruptions = pytest.importorskip("corruptions")

pytestmark = pytest.mark.gpu

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "llama-fp8"


@pytest.mark.parametrize("options", [[], ["--absorb"], ["--alignment", "128"]])
def test_tensor_cores_give_both_forms_the_same_bits(options: list[str], tmp_path: Path) -> None:
    """Every padded layer of the example; and a byte that is wrong is caught there too."""
    out_dir = tmp_path / "out"
    fp8pad = [sys.executable, "-m", "fp8pad"]
    subprocess.run([*fp8pad, "convert", EXAMPLE, out_dir, *options], check=True)
    verify = [*fp8pad, "verify", EXAMPLE, out_dir, "--gemm", "--gemm-layers", "0"]
    run = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "14 layers equal to the last bit, of 14 multiplied, 14 padded; torch._scaled_mm on " in run.stdout
    corruptions.CORRUPTIONS["one padded byte, in the tail of K"](out_dir)
    run = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "13 layers equal to the last bit" in run.stdout

"""The oracle of products on a CUDA device: tensor cores give both forms of a layer the same bits."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
    pytest.skip("needs a CUDA device with FP8 tensor cores", allow_module_level=True)

import numpy as np  # noqa: E402
from corruptions import CORRUPTIONS, SHARD  # noqa: E402
from gemm.check import products_differ  # noqa: E402
from gemm.products import best_arithmetic  # noqa: E402
from helpers import linear, write_checkpoint  # noqa: E402

from fp8pad.checkpoint.options import WriteOptions  # noqa: E402
from fp8pad.checkpoint.progress import Progress  # noqa: E402
from fp8pad.checkpoint.read import read_unconverted  # noqa: E402
from fp8pad.conversion import convert  # noqa: E402
from fp8pad.planned import PlanReport  # noqa: E402
from fp8pad.planning import plan_checkpoint  # noqa: E402
from fp8pad.record import Policy  # noqa: E402

pytestmark = pytest.mark.gpu


def converted(model: Path, out_dir: Path, policy: Policy) -> Path:
    """Convert a checkpoint and return the output folder."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, policy)
    convert(PlanReport(source, plan, card=False), out_dir, WriteOptions(), Progress())
    return out_dir


@pytest.mark.parametrize("policy", [Policy(), Policy(absorb=True), Policy(alignment=128)])
def test_tensor_cores_give_both_forms_the_same_bits(policy: Policy, example: Path, tmp_path: Path) -> None:
    """This holds for every padded layer of the example; a wrong byte is detected there too."""
    out_dir = converted(example, tmp_path / "out", policy)
    assert best_arithmetic(frozenset({"F8_E4M3"})).name == "torch._scaled_mm on cuda"
    found = products_differ(example, out_dir)
    assert (set(found.values()), len(found)) == ({None}, 14)
    CORRUPTIONS["one padded byte, in the tail of K"](out_dir)
    found = products_differ(example, out_dir)
    assert [name for name, mismatch in found.items() if mismatch] == ["model.layers.0.self_attn.q_proj.weight"]


def test_a_layer_of_real_size_is_equal_too(tmp_path: Path) -> None:
    """5120 rows of 13,653 columns (jais-13b), in several pieces, without a NaN that would make all sums NaN."""
    num_n, num_k = 5120, 13_653
    model = write_checkpoint(tmp_path / "model", {SHARD: linear("model.layers.0.mlp.c_fc2", num_n, num_k)})
    data = np.fromfile(model / SHARD, np.uint8)
    weight, scales = data[-num_n * (num_k + 4) : -num_n * 4], data[-num_n * 4 :].view("<f4")
    weight[weight & 0x7F == 0x7F] = 0
    scales[:] = np.random.default_rng(0).uniform(0.001, 0.1, num_n)
    data.tofile(model / SHARD)
    assert list(products_differ(model, converted(model, tmp_path / "out", Policy())).values()) == [None]

"""The oracle of matrix products: FP8 as numbers, exact sums, layers of every scheme compared, and what it catches."""

import json
import shutil
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from corruptions import CORRUPTIONS, with_biases
from gemm.check import products_differ
from gemm.float8 import fp8_bytes, fp8_values, scale_values
from gemm.layers import positions, seeded_activations
from gemm.products import EXACT, MAX_ACTIVATION, MAX_EXACT_K, scaled_mm
from helpers import case_names, copy_case, linear, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_checkpoint, read_unconverted
from fp8pad.conversion import convert
from fp8pad.errors import CheckpointError
from fp8pad.padded import AxisActions, PaddedTensor, Segments
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.tensors import FP8_WEIGHT_DTYPES
from fp8pad.verification import verify


def converted(model: Path, out_dir: Path, policy: Policy) -> Path:
    """Convert a checkpoint and return the output folder."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, policy)
    convert(PlanReport(source, plan, card=False), out_dir, WriteOptions(), Progress())
    return out_dir


@pytest.mark.parametrize(
    ("dtype", "literal"),
    [
        ("F8_E4M3", {0x00: 0.0, 0x01: 2.0**-9, 0x08: 2.0**-6, 0x38: 1.0, 0xB8: -1.0, 0x7E: 448.0, 0x7F: np.nan}),
        ("F8_E5M2", {0x01: 2.0**-16, 0x04: 2.0**-14, 0x3C: 1.0, 0x7B: 57344.0, 0xFC: -np.inf, 0x7D: np.nan}),
        ("F8_E4M3FNUZ", {0x01: 2.0**-10, 0x40: 1.0, 0x7F: 240.0, 0x80: np.nan, 0xFF: -240.0}),
        ("F8_E5M2FNUZ", {0x01: 2.0**-17, 0x40: 1.0, 0x7F: 57344.0, 0x80: np.nan, 0xFF: -57344.0}),
    ],
)
def test_fp8_bytes_have_the_values_of_their_formats(dtype: str, literal: Mapping[int, float]) -> None:
    """Smallest, largest, one, and NaN or infinity, as the specifications list them."""
    values = fp8_values(dtype)
    np.testing.assert_array_equal([values[byte] for byte in literal], list(literal.values()))


@pytest.mark.torch
def test_fp8_values_are_those_of_torch() -> None:
    """All 256 bytes of each format, and of E8M0 scales, equal torch's values."""
    import torch

    data = np.arange(256, dtype=np.uint8)
    names = {"F8_E4M3": "e4m3fn", "F8_E5M2": "e5m2", "F8_E4M3FNUZ": "e4m3fnuz", "F8_E5M2FNUZ": "e5m2fnuz"}
    for dtype, name in names.items():
        expected = torch.from_numpy(data).view(getattr(torch, f"float8_{name}")).double().numpy()
        np.testing.assert_array_equal(fp8_values(dtype), expected)
    expected = torch.from_numpy(data).view(torch.float8_e8m0fnu).double().numpy()
    np.testing.assert_array_equal(scale_values("F8_E8M0", data), expected)


def test_activations_survive_their_encoding() -> None:
    """E4M3 represents every activation exactly; other values are refused."""
    activations = seeded_activations(16, 100, seed=0)
    assert set(np.unique(activations)) == set(range(-MAX_ACTIVATION, MAX_ACTIVATION + 1))
    np.testing.assert_array_equal(fp8_values("F8_E4M3")[fp8_bytes("F8_E4M3", activations)], activations)
    with pytest.raises(ValueError, match="F8_E4M3"):
        fp8_bytes("F8_E4M3", np.array([17.0]))


@pytest.mark.parametrize("dtype", sorted(FP8_WEIGHT_DTYPES))
def test_the_bound_of_exact_sums_is_right(dtype: str) -> None:
    """Every weight is a multiple of 2^-17, and MAX_EXACT_K of the largest products are at most 2^53 such multiples."""
    finite = fp8_values(dtype)[np.isfinite(fp8_values(dtype))]
    assert np.array_equal(finite * 2.0**17 % 1, np.zeros(len(finite)))
    assert np.abs(finite).max() * MAX_ACTIVATION * MAX_EXACT_K * 2.0**17 <= 2.0**53


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(FP8_WEIGHT_DTYPES)), st.integers(1, 300))
@settings(deadline=None)
def test_sums_are_the_true_ones(seed: int, dtype: str, num_k: int) -> None:
    """The product equals the sum of fractions in integers, in any order that the BLAS chooses."""
    choose = np.random.default_rng(seed)
    weight = choose.integers(0, 256, (3, num_k), np.uint8)
    weight[~np.isfinite(fp8_values(dtype)[weight])] = 0
    activations = seeded_activations(2, num_k, seed)
    in_units = (fp8_values(dtype)[weight] * 2**17).astype(object)
    true = [
        [sum(int(a) * int(w) for a, w in zip(row, units, strict=True)) for units in in_units] for row in activations
    ]
    np.testing.assert_array_equal(EXACT.multiply(activations, weight, dtype), np.array(true, dtype=object) / 2**17)


def test_scales_of_every_dtype_are_decoded() -> None:
    """1.0 and 0.5 in the bytes of each dtype; another dtype is refused."""
    for dtype, data in {
        "F32": b"\0\0\x80?\0\0\0?",
        "BF16": b"\x80?\0?",
        "F16": b"\0<\0\x38",
        "F8_E8M0": b"\x7f\x7e",
    }.items():
        assert scale_values(dtype, np.frombuffer(data, np.uint8)).tolist() == [1.0, 0.5]
    with pytest.raises(CheckpointError, match="dtype I8"):
        scale_values("I8", np.zeros(1, np.uint8))


def test_positions_follow_the_segments() -> None:
    """Each of several matrices is padded at its own tail, the other axis only at its end."""
    fused = PaddedTensor((6, 5), (8, 16), 0, AxisActions("absorb", "pad"), Segments((3, 3), (4, 4)))
    assert positions(fused, 1).tolist() == [0, 1, 2, 4, 5, 6]
    assert positions(fused, 2).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("policy", [Policy(), Policy(absorb=True, absorb_experts=True), Policy(alignment=64)])
@pytest.mark.parametrize("path", case_names("good", "variants"))
def test_padded_checkpoints_of_every_tool_multiply_as_their_sources(path: str, policy: Policy, tmp_path: Path) -> None:
    """Scales per tensor, channel and block, fused layers, biases, experts: every padded FP8 layer, bitwise."""
    model = copy_case(path, tmp_path)
    out_dir = converted(model, tmp_path / "out", policy)
    assert products_differ(model, out_dir) == dict.fromkeys(padded_weights(out_dir))


def padded_weights(out_dir: Path) -> list[str]:
    """Return the padded FP8 weights of a checkpoint, read without fp8pad."""
    if not (out_dir / "fp8pad.json").exists():
        return []
    dtypes = {tensor.name: tensor.dtype for shard in read_checkpoint(out_dir).shards for tensor in shard.tensors}
    names = json.loads((out_dir / "fp8pad.json").read_text())["tensors"]
    scales = ("_scale", "_scale_inv")
    return [name for name in names if dtypes[name] in FP8_WEIGHT_DTYPES and not name.endswith(scales)]


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the example with biases, and its conversion: hidden size padded, intermediate size absorbed."""
    root = tmp_path_factory.mktemp("biased")
    example = Path(__file__).parent.parent / "examples" / "llama-fp8"
    model = with_biases(example, root / "model")
    return model, converted(model, root / "out", Policy(absorb=True))


@pytest.mark.torch
@pytest.mark.parametrize("policy", [Policy(), Policy(absorb=True, absorb_experts=True), Policy(alignment=128)])
def test_torch_multiplies_both_forms_to_the_same_bits(policy: Policy, example: Path, tmp_path: Path) -> None:
    """`_scaled_mm`, here on the CPU, may round in any way: both forms have one shape, so it rounds them equally."""
    out_dir = converted(example, tmp_path / "out", policy)
    found = products_differ(example, out_dir, scaled_mm("cpu"))
    assert (set(found.values()), len(found)) == ({None}, 14)
    CORRUPTIONS["one padded byte, in the tail of K"](out_dir)
    found = products_differ(example, out_dir, scaled_mm("cpu"))
    assert [name for name, mismatch in found.items() if mismatch] == ["model.layers.0.self_attn.q_proj.weight"]


@pytest.mark.torch
@pytest.mark.parametrize("path", ["good/qwen3_moe_dyn", "good/qwen3_moe_block", "good/phi3_dyn"])
def test_torch_multiplies_experts_and_fused_layers(path: str, tmp_path: Path) -> None:
    """An axis that is not padded on disk is padded in memory; segments stay where they are on disk."""
    model = copy_case(path, tmp_path)
    out_dir = converted(model, tmp_path / "out", Policy(absorb=True, absorb_experts=True))
    assert set(products_differ(model, out_dir, scaled_mm("cpu")).values()) == {None}


# Corruptions that products do not show, by name: the oracle reads fp8pad.json, but no config.
UNSEEN = {
    "an edited size in config.json",
    "a logical size off by one, in config.json",
    "a logical size off by one, in the shard's metadata",
}


def claims() -> dict[str, bool]:
    """Return which corruptions `verify` catches according to the table of docs/equality.md."""
    text = (Path(__file__).parent.parent / "docs" / "equality.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1].startswith("yes") for row in rows if row[0] in CORRUPTIONS}


def test_the_documentation_names_every_corruption() -> None:
    """The table is complete; its other column is tested in tests/vllm."""
    assert claims().keys() == CORRUPTIONS.keys()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_verify_catches_is_as_documented(name: str, biased: tuple[Path, Path], tmp_path: Path) -> None:
    """Each corruption is caught as docs/equality.md says; the products agree if they can show it."""
    model, out_dir = biased
    wrong = tmp_path / "wrong"
    shutil.copytree(out_dir, wrong)
    CORRUPTIONS[name](wrong)
    assert verify(model, wrong, Progress()).ok != claims()[name]
    assert any(products_differ(model, wrong).values()) == (name not in UNSEEN)


def test_mismatches_say_where(biased: tuple[Path, Path], tmp_path: Path) -> None:
    """They name the weight, the token, the row and both values; a padded row is called padded."""
    model, out_dir = biased
    wrong = tmp_path / "wrong"
    shutil.copytree(out_dir, wrong)
    CORRUPTIONS["one value of a bias"](wrong)
    CORRUPTIONS["one padded byte, in an absorbed row"](wrong)
    found = {name: mismatch for name, mismatch in products_differ(model, wrong).items() if mismatch}
    assert list(found) == ["model.layers.0.mlp.gate_proj.weight", "model.layers.0.self_attn.o_proj.weight"]
    gate, output = (mismatch or "" for mismatch in found.values())
    assert gate.startswith("token 0, padded row 223: expected 0.0, got ")
    assert output.startswith("token 0, row 9: expected ")


def test_a_checkpoint_without_padding_has_nothing_to_multiply(tmp_path: Path) -> None:
    """An equal copy passes, with no products."""
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": linear("model.layers.0.mlp.up_proj", 32, 16)})
    assert products_differ(model, converted(model, tmp_path / "out", Policy())) == {}


def test_memory_does_not_grow_with_the_layer(tmp_path: Path) -> None:
    """A weight of 16 MB, which is 128 MB when decoded, is multiplied in pieces of 4 MB."""
    tensors = linear("model.layers.0.mlp.down_proj", 8_001, 2_048)
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": tensors})
    out_dir = converted(model, tmp_path / "out", Policy())
    tracemalloc.start()
    found = products_differ(model, out_dir)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(found.values()) == {None}
    assert peak < 60 * 2**20

"""The kernel that quantizes and pads, run by Triton's interpreter: shapes, masks, scales and tails, on any machine.

The interpreter drops carries when it rounds to FP8, so the values here are exact in FP8; the kernel's rounding is
compared with vLLM's on a GPU (tests/gpu/test_kernels_gpu.py).
"""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
if "triton" not in sys.modules:
    # Triton decides when it is imported whether its functions are interpreted; other test modules are not affected.
    os.environ["TRITON_INTERPRET"] = "1"
    pytest.importorskip("triton")
    from fp8pad.runtime import kernels

    del os.environ["TRITON_INTERPRET"]
else:
    pytest.skip("Triton was imported earlier, not to be interpreted", allow_module_level=True)

# Some of these tests produce infinite reciprocals and quotients on purpose.
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]

FP8_VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
FP8_VALUES = FP8_VALUES[FP8_VALUES.isfinite()]
SMALLEST_SCALE = 1 / (448 * 512)


@pytest.fixture(autouse=True)
def _interpreted_into_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill every result with NaN before the kernel writes it, so that values that it does not write are visible."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kernels, "_empty_fp8", lambda x, k: _poisoned(x.new_empty(x.shape[0], k, dtype=torch.uint8)))


def _poisoned(x: "torch.Tensor") -> "torch.Tensor":
    return x.fill_(0xFF).view(torch.float8_e4m3fn)


def _activation(
    num_tokens: int, k: int, dtype: "torch.dtype" = torch.bfloat16, *, powers: tuple[int, int] = (-6, 6)
) -> "torch.Tensor":
    """Return FP8 values, with a -448 in each row, times a power of two per row, which is the row's scale."""
    generator = torch.Generator().manual_seed(num_tokens * 100_003 + k)
    values = FP8_VALUES[torch.randint(len(FP8_VALUES), (num_tokens, k), generator=generator)]
    values[torch.arange(num_tokens), torch.randint(k, (num_tokens,), generator=generator)] = -448.0
    row_powers = torch.randint(powers[0], powers[1] + 1, (num_tokens, 1), generator=generator)
    return (values * 2.0**row_powers).to(dtype)


def _bytes(x: "torch.Tensor") -> "torch.Tensor":
    return x.view(torch.uint8)


def _assert_padded(x_fp8: "torch.Tensor", expected: "torch.Tensor", padded_k: int) -> None:
    num_tokens, k = expected.shape
    assert x_fp8.shape == (num_tokens, padded_k)
    assert x_fp8.is_contiguous()
    assert torch.equal(_bytes(x_fp8)[:, :k], _bytes(expected.to(torch.float8_e4m3fn)))
    assert not _bytes(x_fp8)[:, k:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("num_tokens", "k", "padded_k"),
    [(1, 1, 16), (5, 213, 224), (3, 855, 864), (2, 3420, 3424), (4, 64, 64), (3, 20, 128)],
)
def test_per_token(num_tokens: int, k: int, padded_k: int, dtype: "torch.dtype") -> None:
    """Each token gets its own scale, absmax / 448, and a tail of zeros."""
    x = _activation(num_tokens, k, dtype)
    x_fp8, scale = kernels.quantize_and_pad(x, padded_k)
    assert scale.shape == (num_tokens, 1)
    assert scale.dtype == torch.float32
    assert torch.equal(scale, x.float().abs().amax(1, keepdim=True) / 448)
    _assert_padded(x_fp8, x.float() / scale, padded_k)


@pytest.mark.parametrize("k", [31, 64, 100])
def test_rows_longer_than_a_block(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row in several blocks gives the same bytes as a row in one block."""
    x = _activation(3, k)
    whole, whole_scale = kernels.quantize_and_pad(x, 112)
    monkeypatch.setattr(kernels, "LONGEST_BLOCK", 32)
    parts, parts_scale = kernels.quantize_and_pad(x, 112)
    assert torch.equal(_bytes(whole), _bytes(parts))
    assert torch.equal(whole_scale, parts_scale)
    tiles, _ = kernels.quantize_and_pad(_activation(3, k, powers=(2, 2)), 112, scale=torch.tensor([4.0]))
    _assert_padded(tiles, _activation(3, k, powers=(0, 0)).float(), 112)


def test_strided_rows() -> None:
    """Rows may be strided, as in the halves of a fused projection, and so may columns."""
    x = _activation(4, 300)
    for view in (x[:, 17:230], x[::2, :213], x[:, ::2], x[:1].expand(3, 300)):
        padded_k = -(-view.shape[1] // 16) * 16
        expected, expected_scale = kernels.quantize_and_pad(view.clone(memory_format=torch.contiguous_format), padded_k)
        x_fp8, scale = kernels.quantize_and_pad(view, padded_k)
        assert torch.equal(_bytes(x_fp8), _bytes(expected))
        assert torch.equal(scale, expected_scale)


def test_upper_bound_of_a_token() -> None:
    """`scale_ub` limits absmax, and values beyond it saturate, however large."""
    x = torch.tensor([[448.0, -3.0, 0.5], [1e38, -1e38, 8.0], [1.0, 2.0, -56.0]], dtype=torch.bfloat16)
    x_fp8, scale = kernels.quantize_and_pad(x, 16, scale_ub=torch.tensor([56.0]))
    assert scale.flatten().tolist() == [0.125, 0.125, 0.125]
    expected = torch.tensor([[448.0, -24.0, 4.0], [448.0, -448.0, 64.0], [8.0, 16.0, -448.0]])
    _assert_padded(x_fp8, expected, 16)


def test_smallest_scale_of_a_token() -> None:
    """A row of zeros, or nearly zeros, gets the smallest scale, and zeros keep their sign."""
    x = torch.tensor([[0.0, -0.0, 0.0], [SMALLEST_SCALE, 0.0, -0.0]], dtype=torch.bfloat16)
    x_fp8, scale = kernels.quantize_and_pad(x, 16)
    assert scale.flatten().tolist() == pytest.approx([SMALLEST_SCALE] * 2, rel=2**-24)
    assert _bytes(x_fp8)[:, 1:3].tolist() == [[0x80, 0], [0, 0x80]]
    assert not _bytes(x_fp8)[:, 3:].any()


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("k", [213, 3420])
def test_static(k: int, shape: tuple[int, ...]) -> None:
    """A static scale is used and returned unchanged; values beyond its range saturate."""
    x = _activation(5, k, powers=(-2, -2))
    x[:, 0] = torch.tensor([300.0, -1e4, 112.25, -3e38, 448.0])
    scale = torch.full(shape, 0.25)
    padded_k = -(-k // 16) * 16
    x_fp8, same = kernels.quantize_and_pad(x, padded_k, scale=scale)
    assert same is scale
    _assert_padded(x_fp8, (x.float() / 0.25).clamp(-448, 448), padded_k)


def test_tail_of_a_scale_that_is_zero() -> None:
    """The tail is zero even if the reciprocal of the scale is infinite."""
    x_fp8, _ = kernels.quantize_and_pad(_activation(2, 20), 32, scale=torch.zeros(1))
    assert not _bytes(x_fp8)[:, 20:].any()


@pytest.mark.parametrize("num_tokens", [1, 4, 7])
def test_per_tensor(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dynamic scale for all tokens is their common absmax, also when programs read several rows."""
    monkeypatch.setattr(kernels, "NUM_MAXIMA", 4)
    x = _activation(num_tokens, 20, powers=(3, 3))
    x[:, 5] = 8.0
    x[x == -448.0 * 8] = 64.0
    x[num_tokens // 2, 13] = -448.0 * 8
    x_fp8, scale = kernels.quantize_and_pad(x, 32, per_token=False)
    assert scale.tolist() == [8.0]
    _assert_padded(x_fp8, x.float() / 8.0, 32)


@pytest.mark.parametrize(("n", "padded_n"), [(1, 16), (213, 224), (40, 48), (100, 112)])
def test_cut_columns(n: int, padded_n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first columns are returned contiguous, also when a row takes several tiles."""
    monkeypatch.setattr(kernels, "LONGEST_BLOCK", 64)
    x = torch.randn(5, padded_n).to(torch.bfloat16)
    cut = kernels.cut_columns(x, n)
    assert cut.is_contiguous()
    assert torch.equal(cut, x[:, :n])
    assert torch.equal(kernels.cut_columns(x[:, ::2], n // 2), x[:, : 2 * (n // 2) : 2])
    assert kernels.cut_columns(x[:0], n).shape == (0, n)


def test_no_tokens() -> None:
    """An empty batch gives empty results of the right shapes."""
    x = torch.empty(0, 213, dtype=torch.bfloat16)
    static, _ = kernels.quantize_and_pad(x, 224, scale=torch.ones(1))
    per_token, token_scale = kernels.quantize_and_pad(x, 224)
    per_tensor, tensor_scale = kernels.quantize_and_pad(x, 224, per_token=False)
    assert static.shape == per_token.shape == per_tensor.shape == (0, 224)
    assert token_scale.shape == (0, 1)
    assert tensor_scale.shape == (1,)


@pytest.mark.parametrize(
    ("x", "padded_k"),
    [
        (torch.zeros(2, 20, dtype=torch.bfloat16), 16),
        (torch.zeros(2, 20, dtype=torch.bfloat16), 40),
        (torch.zeros(2, 20), 32),
        (torch.zeros(2, 2, 20, dtype=torch.bfloat16), 32),
    ],
)
def test_what_is_refused(x: "torch.Tensor", padded_k: int) -> None:
    """A padded K that is too small or not a multiple of 16, and another dtype or rank, are errors."""
    with pytest.raises(ValueError, match="expected"):
        kernels.quantize_and_pad(x, padded_k)


_TRACING = """
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.decorators import mark_unbacked
from fp8pad.runtime.kernels import quantize_and_pad

def trace(graph, _):
    kernels = [node for node in graph.graph.nodes if "triton_kernel_wrapper" in str(node.target)]
    results = [node.meta["val"] for node in graph.graph.find_nodes(op="output")[0].args[0]]
    print(len(kernels), *[result.shape[1] for result in results if result.dtype == torch.float8_e4m3fn])
    raise NotImplementedError  # nothing can run these kernels here

for scheme in ({}, {"per_token": False}, {"scale": torch.ones(1)}, {"scale_ub": torch.ones(1)}):
    x = torch.ones(5, 20, dtype=torch.bfloat16)
    mark_unbacked(x, 0)
    quantize = lambda x: quantize_and_pad(x * 2, 32, **scheme)
    try:
        torch.compile(quantize, fullgraph=True, backend=aot_autograd(fw_compiler=trace))(x)
    except Exception as error:
        assert "NotImplementedError" in f"{type(error)}{error}", error
"""


def test_compilers_see_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces into the operators, for a number of tokens of which nothing is known."""
    monkeypatch.delenv("TRITON_INTERPRET")
    run = subprocess.run([sys.executable, "-c", _TRACING], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n") == ["1 32", "2 32", "1 32", "1 32", ""]

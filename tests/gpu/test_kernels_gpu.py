# ruff: noqa: E402 (what these tests need is looked for before it is imported)
"""The kernel that quantizes and pads against vLLM's own operators, byte for byte, on a CUDA device."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("vllm", reason="vLLM's operators are the reference")

import triton
import triton.language as tl
from torch._inductor.utils import run_and_get_code
from vllm import _custom_ops as vllm_ops
from vllm.config import VllmConfig, set_current_vllm_config

from fp8pad.bench.candidates import _cutlass_kernel, vllm_operators
from fp8pad.geometry import round_up
from fp8pad.runtime import activations, kernels
from fp8pad.runtime.activations import pad_where_quantized
from fp8pad.runtime.triton_kernels import _divide

pytestmark = pytest.mark.gpu

DTYPES = (torch.bfloat16, torch.float16)
WIDTHS = (1, 15, 16, 88, 213, 855, 1025, 1368, 1710, 2049, 2152, 3420, 3424, 4097, 8193, 13653, 16385, 29568, 53248)


@pytest.fixture(autouse=True)
def _poisoned_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill every result with NaN before a kernel writes it, so that values that it does not write are visible."""

    def poisoned(x: torch.Tensor, padded_k: int) -> torch.Tensor:
        filled = torch.full((x.shape[0], padded_k), 0xFF, dtype=torch.uint8, device=x.device)
        return filled.view(torch.float8_e4m3fn)

    monkeypatch.setattr(kernels, "_empty_fp8", poisoned)


def _scheme(name: str) -> dict[str, Any]:
    """Return the arguments of `quantize_and_pad` for a scale per token, per tensor, or a static one."""
    return {"token": {}, "tensor": {"per_token": False}, "static": {"scale": torch.tensor([0.02], device="cuda")}}[name]


def _assert_as_vllm(x: torch.Tensor, **scheme: Any) -> None:
    """Compare bytes, scales and tail with the result of vLLM's operator for the same activation."""
    k = x.shape[1]
    expected, expected_scale = vllm_ops.scaled_fp8_quant(
        x,
        scheme.get("scale"),
        scale_ub=scheme.get("scale_ub"),
        use_per_token_if_dynamic=scheme.get("per_token", True),
    )
    x_fp8, scale = kernels.quantize_and_pad(x, round_up(k, 16), **scheme)
    got, wanted = x_fp8.view(torch.uint8), expected.view(torch.uint8)
    different = (got[:, :k] != wanted).nonzero()
    assert not len(different), _first_difference(x, got, wanted, scale, different)
    assert torch.equal(scale.view(torch.int32), expected_scale.view(torch.int32))
    assert not got[:, k:].any()


def _first_difference(*tensors: torch.Tensor) -> str:
    x, got, wanted, scale, different = tensors
    row, column = different[0].tolist()
    row_scale = scale.flatten()[row if scale.numel() > 1 else 0].item()
    value = x[row, column].item()
    pair = f"got {got[row, column]:#x}, expected {wanted[row, column]:#x}"
    return f"{len(different)} values differ, the first {value} / {row_scale}: {pair}"


def _schemes(dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    yield {}
    yield {"per_token": False}
    for upper in (0.0, 1e-30, 0.3, 7.0, 1e4, 3e38):
        yield {"scale_ub": torch.tensor([upper], device="cuda")}
    for scale in (1.0, 0.0123, 3.3e-5, 977.0, 1e-38, 1e-45, 2e38):
        yield {"scale": torch.tensor([scale], device="cuda")}
    yield {"scale": torch.tensor(0.37, device="cuda")}


def _all_bits(dtype: torch.dtype, k: int, *, finite: bool) -> torch.Tensor:
    """Return every value of `dtype`, shuffled into rows of `k`; the last row is completed with the first values."""
    values = torch.arange(65536, device="cuda", dtype=torch.int32).to(torch.uint16).view(dtype)
    values = values[values.isfinite()] if finite else values
    values = values[torch.randperm(len(values), device="cuda")]
    num_rows = -(-len(values) // k)
    return torch.cat([values, values[: num_rows * k - len(values)]]).view(num_rows, k)


@pytest.mark.parametrize("finite", [True, False], ids=["finite", "nan-and-inf"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value(dtype: torch.dtype, finite: bool) -> None:
    """All 65,536 bit patterns, in long rows, short rows and rows of one value, under every scheme."""
    for k, scheme in itertools.product((1, 5, 213, 4100), _schemes(dtype)):
        _assert_as_vllm(_all_bits(dtype, k, finite=finite), **scheme)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pair_of_value_and_absmax(dtype: torch.dtype) -> None:
    """Every significand with every absmax's: a row has all values of an exponent, and one larger value."""
    bits = 7 if dtype == torch.bfloat16 else 10
    one = torch.tensor(1.0, dtype=dtype).view(torch.int16).item()
    significands = torch.arange(one, one + 2**bits, device="cuda", dtype=torch.int32).to(torch.int16)
    for exponent in range(0, -20 if dtype == torch.bfloat16 else -13, -1):
        x = torch.cat(
            [significands.view(dtype).expand(2**bits, -1) * 2.0**exponent, 2 * significands.view(dtype)[:, None]], 1
        )
        _assert_as_vllm(x.contiguous())


@triton.jit
def _count_unequal_quotients(count_ptr, first_scale, NUM_VALUES: tl.constexpr, NUM_SCALES: tl.constexpr):  # noqa: N803
    bits = first_scale + tl.program_id(0) * NUM_SCALES + tl.arange(0, NUM_SCALES)
    scales = bits.to(tl.float32, bitcast=True)[:, None]
    values = (NUM_VALUES + tl.arange(0, NUM_VALUES)).to(tl.float32)[None, :] + tl.zeros_like(scales)
    unequal = _divide(values, scales, False) != tl.div_rn(values, scales + tl.zeros_like(values))
    tl.atomic_add(count_ptr, tl.sum(unequal.to(tl.int32)))


def test_division_is_exact_for_every_pair_of_significands() -> None:
    """One Newton step rounds correctly for all 2^23 significands of a scale and all 2^10 of an FP16 value."""
    count = torch.zeros(1, dtype=torch.int32, device="cuda")
    one = torch.tensor(1.0).view(torch.int32).item()
    _count_unequal_quotients[(2**23 // 4,)](count, one, 1024, 4)
    assert count.item() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", WIDTHS)
def test_widths(k: int, dtype: torch.dtype) -> None:
    """Real and awkward widths, with rows of very different sizes, rows of zeros and subnormals."""
    for num_tokens in (1, 2, 17, 300):
        x = torch.randn(num_tokens, k, device="cuda") * torch.logspace(-30, 4, num_tokens, device="cuda")[:, None]
        x[num_tokens // 2] = 0.0
        x[0, 0] = -0.0
        for scheme in _schemes(dtype):
            _assert_as_vllm(x.to(dtype), **scheme)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", WIDTHS)
def test_vllms_operator_writes_into_zeros(k: int, dtype: torch.dtype) -> None:
    """Into strided rows it writes the same bytes and scales, and leaves the gaps between them unchanged."""
    for num_tokens, scheme in itertools.product((1, 17, 300), _schemes(dtype)):
        x = torch.randn(num_tokens, k, device="cuda").to(dtype)
        options = {"scale_ub": scheme.get("scale_ub"), "use_per_token_if_dynamic": scheme.get("per_token", True)}
        expected, expected_scale = vllm_ops.scaled_fp8_quant(x, scheme.get("scale"), **options)
        x_fp8 = x.new_zeros((num_tokens, round_up(k, 16)), dtype=torch.float8_e4m3fn)
        _, scale = vllm_ops.scaled_fp8_quant(x, scheme.get("scale"), output=x_fp8[:, :k], **options)
        assert torch.equal(x_fp8.view(torch.uint8)[:, :k], expected.view(torch.uint8))
        assert torch.equal(scale.view(torch.int32), expected_scale.view(torch.int32))
        assert not x_fp8.view(torch.uint8)[:, k:].any()


def test_vllms_operator_is_taken_for_few_values() -> None:
    """While a layer is made, with the model's dtype as the default, the operator passes its trial."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert activations._operator() is vllm_ops.scaled_fp8_quant
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("num_tokens", [16384, 65536])
def test_many_tokens(num_tokens: int) -> None:
    """As many tokens as in a long prefill; offsets exceed 2^31 bytes."""
    x = torch.randn(num_tokens, 13653, device="cuda", dtype=torch.bfloat16)
    for scheme in ({}, {"per_token": False}, {"scale": torch.tensor([0.01], device="cuda")}):
        _assert_as_vllm(x, **scheme)


def test_strided_rows() -> None:
    """Strided rows at any offset, one row many times, and strided columns."""
    x = torch.randn(64, 7000, device="cuda", dtype=torch.bfloat16)
    for view in (x[:, 3420:6840], x[:, 1:1369], x[::3, :3420], x[:1, 5:860].expand(9, 855)):
        for scheme in _schemes(torch.bfloat16):
            _assert_as_vllm(view, **scheme)
    apart, _ = kernels.quantize_and_pad(x[:, ::2], 3504)
    together, _ = kernels.quantize_and_pad(x[:, ::2].contiguous(), 3504)
    assert torch.equal(apart.view(torch.uint8), together.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "padded_n"), [(6840, 6848), (27306, 27312), (3352, 3360), (1, 16), (427, 432)])
def test_cut_columns(n: int, padded_n: int, dtype: torch.dtype) -> None:
    """Cutting an output copies every bit of its first columns."""
    for num_tokens in (0, 1, 77, 5000):
        x = torch.randint(0, 65536, (num_tokens, padded_n), device="cuda").to(torch.uint16).view(dtype)
        cut = kernels.cut_columns(x, n)
        assert cut.is_contiguous()
        assert torch.equal(cut.view(torch.int16), x[:, :n].contiguous().view(torch.int16))


def test_the_output_of_one_token_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is contiguous without its padding, so a launch would gain nothing, in a CUDA graph either."""
    monkeypatch.setattr(activations, "_waits_for_device", lambda _: True)
    output = torch.ones(2, 224, device="cuda", dtype=torch.bfloat16)
    pointers = [activations.cut_output(rows, 213).data_ptr() for rows in (output[:1], output)]
    assert [pointer == output.data_ptr() for pointer in pointers] == [True, False]


@pytest.mark.parametrize("scheme", ["token", "tensor", "static"])
def test_no_tokens(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty batch is no error, compiled for some tokens or not."""
    monkeypatch.undo()
    quantize = functools.partial(kernels.quantize_and_pad, padded_k=224, **_scheme(scheme))
    compiled = torch.compile(quantize, fullgraph=True, dynamic=True)
    for num_tokens in (3, 0):
        x = torch.ones(num_tokens, 213, device="cuda", dtype=torch.bfloat16)
        assert quantize(x)[0].shape == compiled(x)[0].shape == (num_tokens, 224)
    assert kernels.cut_columns(torch.empty(0, 224, device="cuda"), 213).shape == (0, 213)
    torch.cuda.synchronize()


@pytest.mark.parametrize("scheme", [{}, {"per_token": False}, {"scale": 0.02}], ids=["token", "tensor", "static"])
def test_cuda_graph(scheme: dict[str, Any]) -> None:
    """A graph captures the kernel, and replays it on new values."""
    if "scale" in scheme:
        scheme = {"scale": torch.tensor([scheme["scale"]], device="cuda")}
    x = torch.randn(33, 3420, device="cuda", dtype=torch.bfloat16)
    kernels.quantize_and_pad(x, 3424, **scheme)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, captured_scale = kernels.quantize_and_pad(x, 3424, **scheme)
    x.copy_(torch.randn_like(x) * 3)
    graph.replay()
    expected, expected_scale = kernels.quantize_and_pad(x, 3424, **scheme)
    assert torch.equal(captured.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(captured_scale, expected_scale)


def test_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile shows one kernel for a scale per token or a given one, and two for a dynamic scale per tensor."""
    monkeypatch.undo()
    x = torch.randn(64, 3420, device="cuda", dtype=torch.bfloat16)
    scale = torch.ones(1, device="cuda")
    for scheme, expected in (({}, 1), ({"scale": scale}, 1), ({"per_token": False}, 2)):
        kernels.quantize_and_pad(x, 3424, **scheme)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            kernels.quantize_and_pad(x, 3424, **scheme)
            torch.cuda.synchronize()
        on_device = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        assert len(on_device) == expected, on_device


@pytest.mark.parametrize(("n", "k"), [(1280, 3420), (6840, 1280), (100, 213)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer(n: int, k: int, dtype: torch.dtype) -> None:
    """A layer with a weight that was padded before gives vLLM's output for the unpadded one, bit for bit."""
    with torch.inference_mode(), vllm_operators():
        weight = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn)
        scale = torch.rand(n, 1, device="cuda") / k
        stock, stock_kernel = _loaded(weight, scale, dtype)
        padded_n, padded_k = round_up(n, 16), round_up(k, 16)
        padded_weight = torch.nn.functional.pad(weight, (0, padded_k - k, 0, padded_n - n))
        padded_scale = torch.nn.functional.pad(scale, (0, 0, 0, padded_n - n), value=1.0)
        padded, padded_kernel = _loaded(padded_weight, padded_scale, dtype)
        assert pad_where_quantized(padded_kernel, padded_k)
        for num_tokens in (1, 5, 64, 1000):
            x = torch.randn(num_tokens, k, device="cuda", dtype=dtype)
            expected = stock_kernel.apply_weights(stock, x)
            assert torch.equal(padded_kernel.apply_weights(padded, x)[:, :n], expected)
            assert expected.abs().max() > 0


def test_compiled_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """When compiled, a padded layer is one graph and equals eager vLLM: our kernel rounds in the same way."""
    monkeypatch.undo()  # Triton 3.6 cannot compile a fill of FP8 values
    n, k = 1280, 3420
    weight, scale = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn), torch.rand(n, 1, device="cuda") / k
    with torch.inference_mode(), vllm_operators():
        stock, stock_kernel = _loaded(weight, scale, torch.bfloat16)
    with torch.inference_mode(), set_current_vllm_config(VllmConfig()):
        padded, padded_kernel = _loaded(torch.nn.functional.pad(weight, (0, 4)), scale, torch.bfloat16)
        assert pad_where_quantized(padded_kernel, 3424)
        forward = torch.compile(lambda x: padded_kernel.apply_weights(padded, x), fullgraph=True, dynamic=True)
        for num_tokens in (3, 500):
            x = torch.randn(num_tokens, k, device="cuda", dtype=torch.bfloat16)
            assert torch.equal(forward(x), stock_kernel.apply_weights(stock, x))


def _loaded(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.nn.Module, Any]:
    kernel = _cutlass_kernel(tuple(weight.shape), dtype)
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight.t(), requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(scale, requires_grad=False)
    kernel.process_weights_after_loading(layer)
    return layer, kernel


@pytest.mark.parametrize("scheme", ["token", "tensor", "static"])
def test_compiled_without_a_graph_break(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces into the operators, with dynamic numbers of tokens; results are equal."""
    monkeypatch.undo()
    arguments = _scheme(scheme)

    def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.quantize_and_pad(torch.nn.functional.relu(x), 3424, **arguments)

    compiled = torch.compile(quantize, fullgraph=True, dynamic=True)
    for num_tokens in (3, 700):
        x = torch.randn(num_tokens, 3420, device="cuda", dtype=torch.bfloat16)
        for got, expected in zip(compiled(x), quantize(x), strict=True):
            assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("scheme", ["static", "per_token", "scale_ub", "per_tensor"])
def test_operators_tell_the_truth_about_themselves(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas, shapes without values and traced kernels agree, so that torch.compile can rely on them."""
    monkeypatch.undo()
    x, one = torch.randn(3, 20, device="cuda", dtype=torch.bfloat16), torch.ones(1, device="cuda")
    cases = {
        "static": (torch.ops.fp8pad.quantize_static.default, (x, one, 32)),
        "per_token": (torch.ops.fp8pad.quantize_per_token.default, (x, None, 32)),
        "scale_ub": (torch.ops.fp8pad.quantize_per_token.default, (x, one, 32)),
        "per_tensor": (torch.ops.fp8pad.quantize_per_tensor.default, (x, 32)),
    }
    operator, arguments = cases[scheme]
    torch.library.opcheck(operator, arguments)


def test_compiled_code_launches_the_kernel_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor calls the Triton kernel without Python of ours in between, and copies nothing for it."""
    monkeypatch.undo()
    x = torch.randn(33, 3420, device="cuda", dtype=torch.bfloat16)
    compiled = torch.compile(lambda x: kernels.quantize_and_pad(x * 2, 3424), fullgraph=True, dynamic=True)
    _, (code,) = run_and_get_code(compiled, x)
    _, _, call = code.partition("def call(")
    assert "torch.ops.fp8pad" not in call
    assert [line.split(".run(")[0].strip() for line in call.splitlines() if ".run(" in line] == [
        "triton_poi_fused_mul_0",
        "per_token_kernel_0",
    ]

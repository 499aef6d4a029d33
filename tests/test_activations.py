"""Padding while a vLLM kernel quantizes, and cutting its output, on stand-ins for vLLM's classes and operators."""

from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fp8pad.runtime import activations  # noqa: E402
from fp8pad.runtime.activations import (  # noqa: E402
    MANY_VALUES,
    PaddedQuantization,
    _keeps_rows_apart,
    cut_output,
    pad_where_quantized,
)
from fp8pad.runtime.activations import _operator as find_operator  # noqa: E402
from fp8pad.runtime.contract import QUANTIZE, QUANTIZER, EngineSymbol  # noqa: E402

pytestmark = pytest.mark.torch

FEW = torch.ones(3, 20, dtype=torch.bfloat16)
# One value, expanded: nothing is computed with it here.
MANY = torch.ones(1, 1, dtype=torch.bfloat16).expand(MANY_VALUES // 20 + 1, 20)


@dataclass
class QuantFP8:
    """A stand-in for vLLM's class of this name: its attributes, and what it does with a static scale."""

    is_group_quant: bool = False
    num_token_padding: int | None = None
    use_per_token_if_dynamic: bool = False
    calls_operator: bool = True

    def enabled(self) -> bool:
        """Return whether vLLM quantizes with its CUDA operator."""
        return self.calls_operator

    def __call__(self, x: "torch.Tensor", scale: "torch.Tensor", _: "torch.Tensor | None") -> Any:
        return (x.float() / scale).to(torch.float8_e4m3fn), scale


@dataclass
class CutlassFP8ScaledMMLinearKernel:
    """The kernel that fp8pad recognizes by its name."""

    quant_fp8: Any


@dataclass
class MarlinFP8ScaledMMLinearKernel:
    """A kernel that fp8pad does not pad in."""

    quant_fp8: Any


@pytest.fixture(autouse=True)
def expected(monkeypatch: pytest.MonkeyPatch) -> set[EngineSymbol]:
    """Let vLLM have everything that is expected, except for what a test removes."""
    there = {*QUANTIZER, QUANTIZE}
    monkeypatch.setattr(activations, "is_as_expected", there.__contains__)
    return there


@pytest.mark.parametrize(
    "kernel",
    [
        MarlinFP8ScaledMMLinearKernel(QuantFP8()),
        CutlassFP8ScaledMMLinearKernel(QuantFP8(is_group_quant=True)),
        CutlassFP8ScaledMMLinearKernel(QuantFP8(num_token_padding=17)),
        None,
    ],
    ids=["another kernel", "scales for groups", "tokens are padded too", "no kernel"],
)
def test_what_does_not_pad_where_it_quantizes(kernel: Any) -> None:
    """Other kernels are left unchanged, and the caller is told to pad before them."""
    before = getattr(kernel, "quant_fp8", None)
    assert not pad_where_quantized(kernel, 32)
    assert getattr(kernel, "quant_fp8", None) is before


@pytest.mark.parametrize("symbol", QUANTIZER, ids=lambda symbol: symbol.name)
def test_a_changed_vllm_quantizes_by_itself(symbol: EngineSymbol, expected: set[EngineSymbol]) -> None:
    """If any symbol of the quantization is not as expected, the activation is padded before the kernel."""
    expected.remove(symbol)
    assert not pad_where_quantized(CutlassFP8ScaledMMLinearKernel(QuantFP8()), 32)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Let vLLM's operator and our launch record their calls, and quantize like the stand-in."""
    kernels = pytest.importorskip("fp8pad.runtime.kernels", reason="Triton")
    made: list[tuple[str, dict[str, Any]]] = []

    def operator(x: "torch.Tensor", scale: "torch.Tensor", *, output: "torch.Tensor", **options: Any) -> Any:
        made.append(("operator", options))
        output.copy_((x.float() / scale).to(torch.float8_e4m3fn))
        return output, scale

    def launch(x: "torch.Tensor", padded_k: int, **options: Any) -> Any:
        made.append(("launch", {"padded_k": padded_k, **options}))
        return x, options["scale"]

    monkeypatch.setattr(activations, "_operator", lambda: operator)
    monkeypatch.setattr(kernels, "quantize_and_pad", launch)
    return made


def _padded(padded_k: int = 32, **options: Any) -> PaddedQuantization:
    kernel = CutlassFP8ScaledMMLinearKernel(QuantFP8(**options))
    assert pad_where_quantized(kernel, padded_k)
    quantization: PaddedQuantization = kernel.quant_fp8
    return quantization


SCALE = torch.tensor([0.5])


def test_few_values_are_written_into_zeros_by_vllms_operator(calls: list[Any]) -> None:
    """The operator gets all that decides the scale, and rows with a stride of 32; after the 20 values are zeros."""
    upper_bound = torch.tensor([9.0])
    x_fp8, x_scale = _padded(use_per_token_if_dynamic=True)(FEW, SCALE, upper_bound)
    assert calls == [("operator", {"scale_ub": upper_bound, "use_per_token_if_dynamic": True})]
    assert x_scale is SCALE
    assert x_fp8.is_contiguous()
    assert torch.equal(x_fp8.float(), torch.nn.functional.pad(2 * FEW.float(), (0, 12)))


def test_many_values_take_one_launch(calls: list[Any]) -> None:
    """The launch gets all that decides the scale."""
    upper_bound = torch.tensor([9.0])
    _padded()(MANY, SCALE, upper_bound)
    assert calls == [("launch", {"padded_k": 32, "scale": SCALE, "scale_ub": upper_bound, "per_token": False})]


def test_a_vllm_whose_operator_takes_no_output_gets_the_launch(
    calls: list[Any], expected: set[EngineSymbol], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is correct, and only slower for a few tokens."""
    monkeypatch.setattr(activations, "_operator", find_operator)
    expected.remove(QUANTIZE)
    _padded()(FEW, SCALE)
    assert [name for name, _ in calls] == ["launch"]


def _quantized(x: "torch.Tensor", scale: Any, *, use_per_token_if_dynamic: bool, output: Any = None) -> Any:
    if scale is None:
        values = x.float().abs()
        scale = (values.amax(1, keepdim=True) if use_per_token_if_dynamic else values.amax().view(1)) / 448
    quantized = (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return (quantized if output is None else output.copy_(quantized)), scale


def _without_strides(x: "torch.Tensor", scale: Any, *, output: Any = None, **options: Any) -> Any:
    """Quantize, and write the rows contiguously, like an operator that ignores the strides of its output."""
    quantized, scale = _quantized(x, scale, **options)
    if output is None:
        return quantized, scale
    output.as_strided((x.numel(),), (1,)).copy_(quantized.flatten())
    return output, scale


def _that_refuses(x: "torch.Tensor", scale: Any, *, output: Any = None, **options: Any) -> Any:
    if output is not None:
        raise RuntimeError("expected a contiguous output")
    return _quantized(x, scale, **options)


@pytest.mark.parametrize(("operator", "keeps"), [(_quantized, True), (_without_strides, False), (_that_refuses, False)])
def test_an_operator_is_tried_before_it_is_trusted(operator: Any, keeps: bool) -> None:
    """Rows of a wider tensor must get the bits that the operator returns by itself, and zeros must stay."""
    assert _keeps_rows_apart(operator, torch.device("cpu")) is keeps


def test_an_operator_is_tried_with_scales_of_fp32() -> None:
    """vLLM's operator accepts only FP32, though the default dtype is the model's while layers are made."""

    def quantized(x: "torch.Tensor", scale: "torch.Tensor | None" = None, **options: Any) -> Any:
        if scale is not None and scale.dtype != torch.float32:
            raise RuntimeError("expected scalar type Float")
        return _quantized(x, scale, **options)

    torch.set_default_dtype(torch.bfloat16)
    try:
        assert _keeps_rows_apart(quantized, torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("x", "calls_operator", "expected"),
    [(FEW, True, []), (FEW, False, []), (MANY, True, ["launch"]), (MANY, False, [])],
    ids=["few", "few, natively", "many", "many, natively"],
)
def test_an_activation_that_has_its_padding(
    x: "torch.Tensor", calls_operator: bool, expected: list[str], calls: list[Any]
) -> None:
    """vLLM quantizes it, with its own arithmetic, unless our launch gives the same bits and is faster."""
    x_fp8, _ = _padded(20, calls_operator=calls_operator)(x, SCALE)
    assert [name for name, _ in calls] == expected
    assert x_fp8.shape == x.shape


def test_what_vllm_quantizes_natively_takes_one_launch(calls: list[Any]) -> None:
    """In compiled layers our kernel is launched for any number of values."""
    _padded(calls_operator=False)(FEW, SCALE)
    assert [name for name, _ in calls] == ["launch"]


@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 32), (0, 32)])
def test_cut_output(shape: tuple[int, ...]) -> None:
    """An output of any rank is cut along its last axis and is contiguous."""
    output = torch.randn(shape)
    cut = cut_output(output, 20)
    assert cut.is_contiguous()
    assert torch.equal(cut, output[..., :20])


@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 32), (0, 32)])
def test_cut_output_as_a_view(shape: tuple[int, ...]) -> None:
    """Nothing is copied, and an output of any rank can still be viewed as tokens."""
    output = torch.randn(shape)
    cut = cut_output(output, 20, strided=True)
    assert (cut.data_ptr(), cut.stride()) == (output.data_ptr(), output.stride())
    assert torch.equal(cut.view(-1, 20), output.view(-1, 32)[:, :20])


def test_a_compiled_cut_is_contiguous() -> None:
    """When compiled, a copy is made for any consumer, and Inductor can fuse it."""
    compiled = torch.compile(cut_output, backend="eager", fullgraph=True)
    assert compiled(torch.randn(5, 32), 20, strided=True).is_contiguous()

"""Padding in the place where a vLLM kernel quantizes, on stand-ins for vLLM's classes."""

from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fp8pad.runtime.output import cut_output  # noqa: E402
from fp8pad.runtime.quantizer import PaddedQuantization, pad_where_quantized  # noqa: E402

pytestmark = pytest.mark.torch


@dataclass
class QuantFP8:
    """What vLLM's class of this name tells of itself, and what it does with a static scale."""

    is_group_quant: bool = False
    num_token_padding: int | None = None
    use_per_token_if_dynamic: bool = True

    def __call__(
        self, x: "torch.Tensor", scale: "torch.Tensor", _: "torch.Tensor | None"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        return (x.float() / scale).to(torch.float8_e4m3fn), scale


@dataclass
class CutlassFP8ScaledMMLinearKernel:
    """The kernel that is padded for, by its name."""

    quant_fp8: QuantFP8


@dataclass
class MarlinFP8ScaledMMLinearKernel:
    """A kernel that is not."""

    quant_fp8: QuantFP8


def test_only_cutlass_pads_where_it_quantizes() -> None:
    """Another kernel is left as it is, and its caller is told to pad."""
    marlin = MarlinFP8ScaledMMLinearKernel(QuantFP8())
    assert not pad_where_quantized(marlin, 32)
    assert isinstance(marlin.quant_fp8, QuantFP8)


def test_a_quantization_that_no_launch_replaces() -> None:
    """Where vLLM also pads the number of tokens, its own step quantizes, and zeros follow in FP8."""
    kernel = CutlassFP8ScaledMMLinearKernel(QuantFP8(num_token_padding=17))
    assert pad_where_quantized(kernel, 32)
    x, scale = torch.randn(3, 20), torch.tensor([0.5])
    x_fp8, x_scale = kernel.quant_fp8(x, scale, None)
    expected, _ = QuantFP8()(x, scale, None)
    assert x_scale is scale
    assert torch.equal(x_fp8.view(torch.uint8)[:, :20], expected.view(torch.uint8))
    assert x_fp8.shape == (3, 32)
    assert not x_fp8.view(torch.uint8)[:, 20:].any()


def test_a_quantization_that_one_launch_replaces() -> None:
    """Otherwise the launch gets all that decides the scale."""
    pytest.importorskip("triton")
    quantization = PaddedQuantization(QuantFP8(use_per_token_if_dynamic=False), 32)
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def launch(*arguments: Any, **options: Any) -> tuple[Any, None]:
        asked.append((arguments, options))
        return arguments[0], None

    quantization.launch = launch
    x, scale, upper_bound = torch.randn(3, 20), torch.tensor([0.5]), torch.tensor([9.0])
    quantization(x, scale, upper_bound)
    (((got, padded_k), options),) = asked
    assert (got is x, padded_k) == (True, 32)
    assert options == {"scale": scale, "scale_ub": upper_bound, "per_token": False}


@pytest.mark.parametrize(("num_tokens", "is_launched"), [(3, False), (1 << 19, True)])
def test_an_activation_that_has_its_padding_is_quantized_where_that_is_quicker(
    num_tokens: int, is_launched: bool
) -> None:
    """By vLLM's own operator, unless there is so much of it that the device is what a layer waits for."""
    pytest.importorskip("triton")
    quantization = PaddedQuantization(QuantFP8(), 32)
    launched = []

    def launch(x: "torch.Tensor", *_: object, **__: object) -> "tuple[torch.Tensor, None]":
        launched.append(x)
        return x, None

    quantization.launch = launch
    x_fp8, _ = quantization(torch.zeros(num_tokens, 32, dtype=torch.bfloat16), torch.tensor([0.5]))
    assert bool(launched) == is_launched
    assert x_fp8.shape == (num_tokens, 32)


def test_group_scales_are_not_ours() -> None:
    """A scale for each group of 128 values is vLLM's to find."""
    assert PaddedQuantization(QuantFP8(is_group_quant=True), 128).launch is None


@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 32), (0, 32)])
def test_cut_output(shape: tuple[int, ...]) -> None:
    """An output of any rank is cut along its last axis, and is contiguous."""
    output = torch.randn(shape)
    cut = cut_output(output, 20)
    assert cut.is_contiguous()
    assert torch.equal(cut, output[..., :20])


@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 32), (0, 32)])
def test_cut_output_as_a_view(shape: tuple[int, ...]) -> None:
    """Nothing is copied, and rows of any rank can still be counted as tokens."""
    output = torch.randn(shape)
    cut = cut_output(output, 20, strided=True)
    assert (cut.data_ptr(), cut.stride()) == (output.data_ptr(), output.stride())
    assert torch.equal(cut.view(-1, 20), output.view(-1, 32)[:, :20])


def test_a_compiled_cut_is_contiguous() -> None:
    """Compiled, a copy is Inductor's to fuse, whoever takes the output."""
    compiled = torch.compile(cut_output, backend="eager", fullgraph=True)
    assert compiled(torch.randn(5, 32), 20, strided=True).is_contiguous()

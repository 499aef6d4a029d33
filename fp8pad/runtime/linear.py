"""The linear method: the base's own, given aligned sizes, so that nothing in it has to pad weights."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from fp8pad.errors import UnsupportedLayerError
from fp8pad.runtime.inner import InnerTails
from fp8pad.runtime.loading import hide_view, show_view, view_of
from fp8pad.runtime.output import cut_output, takes_strided_rows
from fp8pad.runtime.parts import WEIGHT, LayerParts, leading_sizes
from fp8pad.runtime.quantizer import pad_where_quantized
from fp8pad.runtime.sizes import Rank, RankSizes
from fp8pad.scales import Granularity, PerBlock, PerChannel

# What the base's create_weights may write on a layer; its kernels want the padded sizes, everybody else the logical.
_SIZES = ("input_size_per_partition", "output_size_per_partition", "logical_widths")
_PADDED_BIAS = "fp8pad_bias"

# Kernels that take N and K from the layer in every forward, not from the weight.
_KERNELS_THAT_READ_SIZES = ("Marlin", "XPU")


def padded_linear_method(method: Any, record: LayerParts, inner_tails: InnerTails | None = None) -> Any:
    """Return a vLLM linear method, just made for one layer, as one that pads as `record` says.

    `inner_tails` knows the other layers of its model.

    Its class is a subclass of the method's own and has that class's name: vLLM chooses loaders by the name
    (WEIGHT_LOADER_V2_SUPPORTED in layers/linear.py) and decides by class elsewhere.
    """
    padded: Any = object.__new__(_padded_class(type(method)))  # type: ignore[arg-type]
    vars(padded).update(vars(method), record=record, inner_tails=inner_tails or InnerTails())
    return padded


@functools.cache
def _padded_class(method_class: Any) -> type:
    return type(method_class.__name__, (PaddedLinearMethod, method_class), {})


if TYPE_CHECKING:
    from vllm.model_executor.layers.linear import LinearMethodBase
else:
    LinearMethodBase = object


class PaddedLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """Stands before a vLLM linear method: weights of padded sizes, activations padded along K, outputs cut to N."""

    record: LayerParts
    inner_tails: InnerTails
    sizes: RankSizes
    keeps_tails: bool = False  # of N: what follows takes them
    takes_tails: bool = False  # of K: what stands before leaves them
    pads_where_quantized: bool
    reads_layer_sizes: bool
    leaves_rows_strided: bool

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Ask the base for parameters of padded sizes, which show only their logical part to loaders."""
        self.sizes = sizes = self._rank_sizes(layer, output_partition_sizes, input_size_per_partition)
        super().create_weights(layer, sizes.padded_k, list(sizes.padded_partitions), *args, **kwargs)
        _write_sizes(layer, sizes.k, sizes.partitions)
        if sizes.is_padded or self.record.is_padded:
            for parameter in layer.parameters(recurse=False):
                _show_view(parameter, self.record, sizes, layer)
        self.inner_tails.add(self, layer)
        kernel = kernel_of(self, layer)
        self.leaves_rows_strided = takes_strided_rows(self.record.prefix)
        self.reads_layer_sizes = kernel is None or type(kernel).__name__.startswith(_KERNELS_THAT_READ_SIZES)
        self.pads_where_quantized = sizes.padded_k > sizes.k and pad_where_quantized(kernel, sizes.padded_k)

    def _rank_sizes(self, layer: torch.nn.Module, partitions: list[int], k: int) -> RankSizes:
        block = _block(self, layer) or (1, 1)
        return RankSizes.of(partitions, k, self.record, block, _rank(layer))

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let the base bring the padded weights into its kernel's layout; pad the bias, once."""
        sizes = self.sizes
        if sizes.is_padded and getattr(layer, "is_bmm", False):  # DeepSeek-V4's wo_a, once the model is made
            raise UnsupportedLayerError(f"{self.record.prefix}: vLLM multiplies its weight by itself, unpadded")
        with _padded_sizes(layer, sizes):
            super().process_weights_after_loading(layer)
        for parameter in layer.parameters(recurse=False):
            hide_view(parameter)
        bias = getattr(layer, "bias", None)
        if bias is not None and sizes.padded_n > sizes.n:
            # Persistent, because a reload copies new values into such a buffer in place (reload/layerwise.py).
            layer.register_buffer(_PADDED_BIAS, _spread(bias.detach(), sizes), persistent=True)

    def apply(self, layer: torch.nn.Module, x: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return `[..., N]` for `x` of `[..., K]`: pad along K, run the base's kernel, cut to N.

        Inside an MLP both may have their padding: an output is left as it is for a layer that takes it so.
        """
        sizes = self.sizes
        if bias is not None and sizes.padded_n > sizes.n:
            bias = _padded_bias(layer, bias, sizes)
        shown: Any = _PaddedLayer(layer, sizes) if self.reads_layer_sizes else layer
        output: torch.Tensor = super().apply(shown, self._padded_activation(x), bias)
        if self.keeps_tails or sizes.padded_n == sizes.n:
            return output
        if sizes.slices == (slice(0, sizes.n),):
            return cut_output(output, sizes.n, strided=self.leaves_rows_strided)
        return torch.cat([output[..., rows] for rows in sizes.slices], dim=-1)

    def _padded_activation(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor):  # quantized by an earlier kernel, with its scale
            return dataclasses.replace(x, data=self._padded(x.data))
        return x if self.pads_where_quantized else self._padded(x)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` with zeros around its last axis, or itself if it has them."""
        columns = self.sizes.columns
        missing = columns.padded_size - x.shape[-1]
        return torch.nn.functional.pad(x, (columns.head, missing - columns.head)) if missing else x


class _PaddedLayer:
    """A layer as its kernel must see it: everything as it is, but with padded sizes."""

    def __init__(self, layer: torch.nn.Module, sizes: RankSizes) -> None:
        self._layer = layer
        self.output_size_per_partition, self.input_size_per_partition = sizes.padded_shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def kernel_of(method: Any, layer: torch.nn.Module) -> Any:
    """Return the vLLM kernel of a layer: the method has it, or the scheme that the method gave the layer."""
    for owner in (method, getattr(layer, "scheme", None)):
        for name in ("fp8_linear", "linear_kernel", "kernel"):
            if (kernel := getattr(owner, name, None)) is not None:
                return kernel
    return None


def _write_sizes(layer: torch.nn.Module, k: int, partitions: Sequence[int]) -> None:
    values = dict(zip(_SIZES, (k, sum(partitions), list(partitions)), strict=True))
    for name, value in values.items():
        if hasattr(layer, name):
            setattr(layer, name, value)


@contextmanager
def _padded_sizes(layer: torch.nn.Module, sizes: RankSizes) -> Iterator[None]:
    _write_sizes(layer, sizes.padded_k, sizes.padded_partitions)
    try:
        yield
    finally:
        _write_sizes(layer, sizes.k, sizes.partitions)


def _block(method: Any, layer: torch.nn.Module) -> tuple[int, int] | None:
    """Return the `(block_n, block_k)` that a scale belongs to, or None if it belongs to a channel or to all."""
    for owner in (method, getattr(layer, "scheme", None)):
        if (block := getattr(owner, "weight_block_size", None)) is not None:
            return int(block[0]), int(block[1])
    return None


def _rank(layer: torch.nn.Module) -> Rank:
    return Rank(getattr(layer, "tp_rank", 0), getattr(layer, "tp_size", 1))


def show_logical(layer: Any, record: LayerParts) -> None:
    """Let a layer that is not padded load the padded tensors of `record` without their padding."""
    n, k = layer.weight.shape
    for parameter in layer.parameters(recurse=False):
        _show_view(parameter, record, RankSizes.unpadded(n, k), layer)


def _show_view(parameter: torch.nn.Parameter, record: LayerParts, sizes: RankSizes, layer: Any) -> None:
    granularity = _granularity(parameter, _block(layer.quant_method, layer))
    if granularity is None:
        return
    expected = leading_sizes(granularity, sizes.padded_shape)
    if tuple(parameter.shape[: len(expected)]) != expected:
        got = list(parameter.shape)
        raise UnsupportedLayerError(f"{record.prefix}: vLLM made a parameter of shape {got}, expected {list(expected)}")
    fill = 0 if granularity == WEIGHT else 1
    show_view(parameter, view_of(record, granularity, sizes, _rank(layer).num_ranks, fill))


def _granularity(parameter: torch.nn.Parameter, block: tuple[int, int] | None) -> Granularity | None:
    """Return what `parameter` is, by the axes that vLLM gives it: a scale per tensor, with none, is never padded."""
    if not hasattr(parameter, "output_dim"):
        return None
    if not hasattr(parameter, "input_dim"):
        return PerChannel()
    return PerBlock(*block) if block and parameter.dtype != torch.float8_e4m3fn else WEIGHT


def _padded_bias(layer: torch.nn.Module, bias: torch.Tensor, sizes: RankSizes) -> torch.Tensor:
    # Another bias than the layer's own could not be padded at load.
    padded: torch.Tensor = getattr(layer, _PADDED_BIAS) if bias is layer.bias else _spread(bias, sizes)
    return padded


def _spread(bias: torch.Tensor, sizes: RankSizes) -> torch.Tensor:
    """Return `bias`, `[N]`, with zeros around each span of rows."""
    padded = bias.new_zeros(sizes.padded_n)
    for rows, part in zip(sizes.slices, bias.split([span.size for span in sizes.rows]), strict=True):
        padded[rows] = part
    return padded

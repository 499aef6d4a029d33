"""The linear method: the base's own with aligned sizes, so that it never has to pad weights."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fp8pad.errors import UnsupportedLayerError
from fp8pad.runtime.activations import cut_output, has_lora, pad_where_quantized, takes_strided_rows
from fp8pad.runtime.layer import block_of, kernel_of, rank_of
from fp8pad.runtime.loading import hide_view, show_views
from fp8pad.runtime.parts import LayerParts
from fp8pad.runtime.sizes import RankSizes, Span

if TYPE_CHECKING:
    from vllm.model_executor.layers.linear import LinearMethodBase
else:
    LinearMethodBase = object

# What the base's create_weights may set on a layer; its kernels need the padded sizes, everything else the logical.
_SIZES = ("input_size_per_partition", "output_size_per_partition", "logical_widths")
_PADDED_BIAS = "fp8pad_bias"

# Kernels that take N and K from the layer in every forward, not from the weight.
_KERNELS_THAT_READ_SIZES = ("Marlin", "XPU")


def padded_linear_method(method: Any, record: LayerParts, inner_tails: "InnerTails | None" = None) -> Any:
    """Return a copy of a vLLM linear method, just made for one layer, that pads as `record` says.

    All layers of a model share `inner_tails`.

    The class is a subclass of the method's own and has that class's name: vLLM chooses loaders by the name
    (WEIGHT_LOADER_V2_SUPPORTED in layers/linear.py) and decides by class elsewhere.
    """
    padded: Any = object.__new__(_padded_class(type(method)))  # type: ignore[arg-type]
    vars(padded).update(vars(method), record=record, inner_tails=inner_tails or InnerTails())
    return padded


@functools.cache
def _padded_class(method_class: Any) -> type:
    return type(method_class.__name__, (PaddedLinearMethod, method_class), {})


class PaddedLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """Extends a vLLM linear method: weights of padded sizes, activations padded along K, outputs cut to N.

    What a forward does is decided when the layer is made, so its host time is that of the base's own.
    """

    record: LayerParts
    inner_tails: "InnerTails"
    sizes: RankSizes
    takes_tails: bool = False  # of K: the layer before keeps them
    keeps_tails: bool = False  # of N: the next layer takes them
    pads_where_quantized: bool
    reads_layer_sizes: bool
    leaves_rows_strided: bool
    has_padded_rows: bool
    has_padded_columns: bool
    slices: tuple[slice, ...]  # of the output, without padding
    num_leading: int | None  # the size of the slice, if there is only one and it begins at 0

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Let the base create parameters of padded sizes, which show only their logical part to loaders."""
        block = block_of(self, layer)
        sizes = RankSizes.of(output_partition_sizes, input_size_per_partition, self.record, block, rank_of(layer))
        (n, k), (padded_n, padded_k) = sizes.logical_shape, sizes.padded_shape
        super().create_weights(layer, padded_k, list(sizes.padded_partitions), *args, **kwargs)
        _write_sizes(layer, k, sizes.partitions)
        if sizes.is_padded or self.record.is_padded:
            show_views(layer, self.record, sizes, block)
        self.sizes, self.slices = sizes, sizes.slices
        self.has_padded_rows, self.has_padded_columns = padded_n > n, padded_k > k
        self.num_leading = n if self.slices == (slice(0, n),) else None
        self.inner_tails.add(self, layer)
        kernel = kernel_of(self, layer)
        self.leaves_rows_strided = takes_strided_rows(self.record.prefix)
        self.reads_layer_sizes = kernel is None or type(kernel).__name__.startswith(_KERNELS_THAT_READ_SIZES)
        self.pads_where_quantized = self.has_padded_columns and pad_where_quantized(kernel, padded_k)
        if not sizes.is_padded:
            self.apply = super().apply  # type: ignore[method-assign]  # a forward has nothing to add

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Let the base convert the padded weights to its kernel's layout; pad the bias, once."""
        sizes = self.sizes
        if sizes.is_padded and getattr(layer, "is_bmm", False):  # DeepSeek-V4's wo_a, once the model is made
            raise UnsupportedLayerError(
                f"{self.record.prefix}: vLLM multiplies by its weight directly, without the plugin"
            )
        _write_sizes(layer, sizes.columns.padded_size, sizes.padded_partitions)
        try:
            super().process_weights_after_loading(layer)
        finally:
            _write_sizes(layer, sizes.columns.size, sizes.partitions)
        for parameter in layer.parameters(recurse=False):
            hide_view(parameter)
        bias = getattr(layer, "bias", None)
        if bias is not None and self.has_padded_rows:
            # Persistent, because a reload copies new values into such a buffer in place (reload/layerwise.py).
            layer.register_buffer(_PADDED_BIAS, _spread(bias.detach(), sizes), persistent=True)

    def apply(self, layer: torch.nn.Module, x: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return `[..., N]` for `x` of `[..., K]`: pad along K, run the base's kernel, cut to N.

        Inside an MLP both may keep their padding: the output is not cut if the next layer takes it padded.
        """
        if bias is not None and self.has_padded_rows:
            # A bias other than the layer's own could not be padded at load.
            bias = getattr(layer, _PADDED_BIAS) if bias is layer.bias else _spread(bias, self.sizes)
        if self.has_padded_columns:
            if not isinstance(x, torch.Tensor):  # quantized by an earlier kernel, with its scale
                x = dataclasses.replace(x, data=self._padded(x.data))
            elif not self.pads_where_quantized:
                x = self._padded(x)
        shown: Any = _PaddedLayer(layer, self.sizes) if self.reads_layer_sizes else layer
        output: torch.Tensor = super().apply(shown, x, bias)
        if self.keeps_tails or not self.has_padded_rows:
            return output
        if self.num_leading is not None:
            return cut_output(output, self.num_leading, strided=self.leaves_rows_strided)
        return torch.cat([output[..., rows] for rows in self.slices], dim=-1)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` with zeros around its last axis, or `x` itself if it is padded already."""
        columns = self.sizes.columns
        missing = columns.padded_size - x.shape[-1]
        return torch.nn.functional.pad(x, (columns.head, missing - columns.head)) if missing else x


class InnerTails:
    """Layers of a model's MLPs that wait for the layer that takes their output, by the name of the MLP.

    Inside an MLP nothing needs to be cut or padded. Zero rows of gate and up give zeros, an activation function maps
    zeros to zeros, and down multiplies them by zeros. So if all layers of an MLP are padded at the same places, with
    only an activation function between them, the output of one is passed to the next with its padding. Which layers
    these are is recorded (`ModuleRecord.inner`); whether they agree on this rank is checked here, as vLLM makes them:
    gate and up, then down.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[PaddedLinearMethod, Span | None]]] = {}

    def add(self, method: PaddedLinearMethod, layer: Any) -> None:
        """Add a layer that was just made; let its MLP keep its padding if it is the last layer and all agree."""
        name, _, _ = method.record.prefix.rpartition(".")
        if method.record.inner == "n":
            self._waiting.setdefault(name, []).append((method, _left_by(method, layer)))
        elif method.record.inner == "k":
            span = _taken_by(method, layer)
            waiting = self._waiting.pop(name, [])
            if waiting and span and all(left == span for _, left in waiting):
                method.takes_tails = True
                for before, _ in waiting:
                    before.keeps_tails = True


def _left_by(method: PaddedLinearMethod, layer: Any) -> Span | None:
    """Return the span of inner rows that a layer's output has for each of its matrices, if it may stay uncut."""
    stays = getattr(layer, "tp_size", 1) == 1 or not getattr(layer, "gather_output", True)
    adds_its_bias = not getattr(layer, "skip_bias_add", False)
    spans = set(method.sizes.rows)
    may_be_left = method.sizes.is_placed and len(spans) == 1 and stays and adds_its_bias and not has_lora()
    return spans.pop() if may_be_left else None


def _taken_by(method: PaddedLinearMethod, layer: Any) -> Span | None:
    """Return the span of inner columns that a layer takes, if its input may keep its padding."""
    is_own_share = getattr(layer, "tp_size", 1) == 1 or getattr(layer, "input_is_parallel", False)
    return method.sizes.columns if method.sizes.is_placed and is_own_share and not has_lora() else None


class _PaddedLayer:
    """A layer as its kernel must see it: the same attributes, except for padded sizes."""

    def __init__(self, layer: torch.nn.Module, sizes: RankSizes) -> None:
        self._layer = layer
        self.output_size_per_partition, self.input_size_per_partition = sizes.padded_shape

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _write_sizes(layer: torch.nn.Module, k: int, partitions: Sequence[int]) -> None:
    values = dict(zip(_SIZES, (k, sum(partitions), list(partitions)), strict=True))
    for name, value in values.items():
        if hasattr(layer, name):
            setattr(layer, name, value)


def _spread(bias: torch.Tensor, sizes: RankSizes) -> torch.Tensor:
    """Return `bias`, `[N]`, with zeros around each span of rows."""
    padded = bias.new_zeros(sizes.padded_shape[0])
    for rows, part in zip(sizes.slices, bias.split([span.size for span in sizes.rows]), strict=True):
        padded[rows] = part
    return padded

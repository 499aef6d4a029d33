"""Fill padded parameters with loaders that know nothing about padding.

During a load the parameter shows only a view of its logical sizes, its first N rows and K columns, and the tensor from
disk is cut to its logical shape. Inside that view vLLM's own loaders (column, row, merged, QKV with replicated heads,
Mamba's, any rank of tensor parallelism) work as always. If each matrix of a layer has a place of its own, with padding
around it, fp8pad loads the rank's share itself.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from fp8pad.errors import UnsupportedLayerError
from fp8pad.runtime.layer import block_of, rank_of
from fp8pad.runtime.parts import WEIGHT, LayerParts, ShardId, leading_sizes
from fp8pad.runtime.sizes import RankSizes, Span
from fp8pad.scales import Granularity, PerBlock, PerChannel

Loader = Callable[..., Any]

# The attribute that holds a parameter's view, and the mark on a loader that already works inside one.
VIEW = "fp8pad_view"
_INSIDE = "inside_fp8pad_view"


@dataclass(frozen=True)
class LogicalView:
    """The logical part of one parameter on this rank; `logical_shape` holds its leading sizes without padding.

    It does not refer to the layer: vLLM keeps copies of a parameter's attributes for reloading, maybe for longer.
    """

    record: LayerParts
    granularity: Granularity
    logical_shape: tuple[int, ...]
    fill: int

    def load(self, loader: Loader, parameter: torch.Tensor, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Let `loader` fill the view from `tensor`, which comes from the checkpoint, without its padding."""
        sizes = self.record.logical_shape(tensor.shape, self.granularity, _shard_id(args, kwargs))
        self.fill_tails(parameter)
        whole = parameter.data
        parameter.data = _leading(whole, self.logical_shape)  # a view: writes go to the whole parameter
        try:
            return loader(parameter, _leading(tensor, sizes), *args, **kwargs)
        finally:
            parameter.data = whole

    def fill_tails(self, parameter: torch.Tensor) -> None:
        """Fill everything outside the view: with zeros in a weight, ones in a scale."""
        for axis, size in enumerate(self.logical_shape):
            tail = parameter.data.narrow(axis, size, parameter.shape[axis] - size)
            tail.fill_(self.fill)

    def num_elements(self, parameter: torch.Tensor) -> int:
        """Return the number of elements that loaders fill."""
        return int(_leading(parameter.data, self.logical_shape).numel())


@dataclass(frozen=True)
class PlacedMatrices:
    """Each matrix of a layer, or the rank's share of it, at its place in one parameter.

    vLLM's loaders put the matrices one right after the other, and round scale rows per rank; both split scale blocks.
    Like a `LogicalView`, it does not refer to the layer.
    """

    record: LayerParts
    granularity: Granularity
    sizes: RankSizes
    num_ranks: int
    fill: int

    def load(self, loader: Loader, parameter: torch.Tensor, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Copy this rank's share of a tensor from the checkpoint to its place; `loader` is not used.

        Heads and tails are set too: a reload begins with uninitialized memory (reload/meta.py).
        """
        block_n, _ = self.granularity.block
        for position, first_row in self._matrices(tensor, _shard_id(args, kwargs)):
            room, (source, target) = self.sizes.rooms[position], self._places(position)
            parameter.data[room.start // block_n : room.stop // block_n].fill_(self.fill)
            parameter.data[target].copy_(tensor[first_row // block_n :][source])

    def fill_tails(self, parameter: torch.Tensor) -> None:
        """Set every element: those of the matrices are loaded later."""
        parameter.data.fill_(self.fill)

    def num_elements(self, parameter: torch.Tensor) -> int:
        """Return the number of elements that loads fill."""
        targets = (self._places(position)[1] for position in range(len(self.sizes.rows)))
        return sum(int(parameter.data[target].numel()) for target in targets)

    def _matrices(self, tensor: torch.Tensor, shard_id: ShardId) -> Iterator[tuple[int, int]]:
        """Yield the position of each matrix that a tensor holds, and the row at which it begins in the tensor."""
        position = self.record.position(tensor.shape, self.granularity, shard_id)
        if len(self.record.parts) == len(self.sizes.rows):
            yield position, 0
            return
        wholes = [span.size * self.num_ranks for span in self.sizes.rows]  # fused on disk
        yield from enumerate(accumulate(wholes[:-1], initial=0))

    def _places(self, position: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the slices of a matrix's share in the matrix, and in the parameter, axis by axis."""
        block_n, block_k = self.granularity.block
        begins = self.sizes.slices[position].start // block_n, self.sizes.columns.head // block_k
        source = self.sizes.rows[position].source(block_n), self.sizes.columns.source(block_k)
        target = tuple(slice(at, at + part.stop - part.start) for at, part in zip(begins, source, strict=True))
        num_axes = 1 if isinstance(self.granularity, PerChannel) else 2
        return source[:num_axes], target[:num_axes]


View = LogicalView | PlacedMatrices


def show_logical(layer: Any, record: LayerParts) -> None:
    """Let a layer that is not padded load the padded tensors of `record` without their padding."""
    n, k = layer.weight.shape
    sizes = RankSizes((n,), (Span(0, n, n),), Span(0, k, k))
    show_views(layer, record, sizes, block_of(layer.quant_method, layer))


def show_views(layer: Any, record: LayerParts, sizes: RankSizes, block: tuple[int, int]) -> None:
    """Make all loaders of a layer's parameters, including those that are set later, work inside the logical part.

    Raises `UnsupportedLayerError` if a parameter does not have the requested padded sizes.
    """
    for parameter in layer.parameters(recurse=False):
        granularity = _granularity(parameter, block)
        if granularity is None:
            continue
        expected = leading_sizes(granularity, sizes.padded_shape)
        if tuple(parameter.shape[: len(expected)]) != expected:
            got = f"a parameter of shape {list(parameter.shape)}"
            raise UnsupportedLayerError(f"{record.prefix}: vLLM made {got}, expected {list(expected)}")
        fill = 0 if granularity == WEIGHT else 1
        view: View = LogicalView(record, granularity, leading_sizes(granularity, sizes.logical_shape), fill)
        if sizes.is_placed:
            view = PlacedMatrices(record, granularity, sizes, rank_of(layer).num_ranks, fill)
        view.fill_tails(parameter)
        setattr(parameter, VIEW, view)
        # vLLM >= 0.32 counts these elements to know when a reloaded layer is complete (reload/utils.py).
        parameter.weight_loader_numel = view.num_elements(parameter)
        parameter.__class__ = _viewed_class(type(parameter))  # type: ignore[arg-type]


def _granularity(parameter: torch.nn.Parameter, block: tuple[int, int]) -> Granularity | None:
    """Return what `parameter` is, by its axes in vLLM; None for a scale per tensor, which has none and no padding."""
    if not hasattr(parameter, "output_dim"):
        return None
    if not hasattr(parameter, "input_dim"):
        return PerChannel()
    return WEIGHT if parameter.dtype == torch.float8_e4m3fn else PerBlock(*block)


def hide_view(parameter: torch.nn.Parameter) -> None:
    """Restore the class of `parameter` once it is in the kernel's layout and no longer has a view."""
    if hasattr(parameter, VIEW):
        delattr(parameter, VIEW)
        parameter.__class__ = type(parameter).__base__


@functools.cache
def _viewed_class(parameter_class: Any) -> type:
    """Return a subclass of a vLLM parameter class whose `weight_loader` works inside the parameter's view.

    It is a property because models replace loaders after the layer is made (mamba_mixer2), and because vLLM's reload
    recognizes the loaders that it must keep apart from a layer by their being bound methods (reload/sanitize.py).
    """
    engine: Any = parameter_class.weight_loader
    inside = property(lambda parameter: _inside_view(engine.fget(parameter)), engine.fset, engine.fdel)
    return type(parameter_class.__name__, (parameter_class,), {"weight_loader": inside})


def _inside_view(loader: Loader) -> Loader:
    if getattr(loader, _INSIDE, False):
        return loader

    # `wraps` keeps the name and the signature, which vLLM's reload reads, and lets its own wrapper inherit the mark.
    @functools.wraps(loader)
    def load(param: torch.Tensor, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        view: View | None = getattr(param, VIEW, None)
        if view is None:  # in the kernel's layout by now
            return loader(param, loaded_weight, *args, **kwargs)
        return view.load(loader, param, loaded_weight, *args, **kwargs)

    setattr(load, _INSIDE, True)
    return load


def _shard_id(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("loaded_shard_id")


def _leading(tensor: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    for axis, size in enumerate(sizes):
        tensor = tensor.narrow(axis, 0, size)
    return tensor

"""How a padded parameter is filled by loaders that know nothing of padding.

For the time of a load the parameter shows only its logical corner, its first N rows and K columns, and the tensor from
disk is cut to its logical shape. Inside that view vLLM's own loaders (column, row, merged, QKV with replicated heads,
Mamba's, any rank of tensor parallelism) do what they always do.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fp8pad.runtime.sizes import LayerParts, Tile

Loader = Callable[..., Any]

# Where a parameter keeps its `Corner`, and the mark on a loader that works inside one already.
CORNER = "fp8pad_corner"
_INSIDE = "inside_fp8pad_corner"


@dataclass(frozen=True)
class Corner:
    """The logical corner of one parameter on this rank; `logical_shape` are its leading sizes without padding.

    It refers to no layer: vLLM keeps copies of a parameter's attributes for reloading, longer than the layer may live.
    """

    record: LayerParts
    tile: Tile
    logical_shape: tuple[int, ...]
    fill: int

    def load(self, loader: Loader, parameter: torch.Tensor, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Let `loader` fill the corner from `tensor`, as it lies in the checkpoint, without its padding."""
        sizes = self.record.logical_shape(tensor.shape, self.tile, _shard_id(args, kwargs))
        self.fill_tails(parameter)
        with self._shown(parameter):
            return loader(parameter, _leading(tensor, sizes), *args, **kwargs)

    def fill_tails(self, parameter: torch.Tensor) -> None:
        """Set what lies outside the corner: zeros in a weight, ones in a scale."""
        for axis, size in enumerate(self.logical_shape):
            tail = parameter.data.narrow(axis, size, parameter.shape[axis] - size)
            tail.fill_(self.fill)

    def num_elements(self, parameter: torch.Tensor) -> int:
        """Return how many elements loaders fill."""
        return int(_leading(parameter.data, self.logical_shape).numel())

    @contextmanager
    def _shown(self, parameter: torch.Tensor) -> Iterator[None]:
        """Let `parameter` be its logical corner; what is written there is written into the whole."""
        whole = parameter.data
        parameter.data = _leading(whole, self.logical_shape)
        try:
            yield
        finally:
            parameter.data = whole


@dataclass(frozen=True)
class Segments:
    """Where each whole matrix of a layer lies in one parameter: `slices` of rows, and the first `num_columns`.

    For scales per block. vLLM's loaders put one matrix right behind the other, which tears blocks apart; here each has
    its place, with a tail of its own. Like a corner, it refers to no layer.
    """

    record: LayerParts
    tile: Tile
    slices: tuple[slice, ...]
    num_columns: int
    fill: int

    def load(self, loader: Loader, parameter: torch.Tensor, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Put a whole matrix, or its scales, into its place, without its padding; `loader` has nothing to do.

        Its tails are set too: a reload begins with memory that nothing was written to (reload/meta.py).
        """
        shard_id = _shard_id(args, kwargs)
        position = self.record.position(tensor.shape, self.tile, shard_id)
        sizes = self.record.logical_shape(tensor.shape, self.tile, shard_id)
        starts = [rows.start for rows in self.slices] + [parameter.shape[0]]
        parameter.data[starts[position] : starts[position + 1]].fill_(self.fill)
        parameter.data[self.slices[position], : self.num_columns].copy_(_leading(tensor, sizes))

    def fill_tails(self, parameter: torch.Tensor) -> None:
        """Set every element: those of the segments are loaded later."""
        parameter.data.fill_(self.fill)

    def num_elements(self, parameter: torch.Tensor) -> int:  # noqa: ARG002
        """Return how many elements loads fill."""
        return sum(int(rows.stop - rows.start) for rows in self.slices) * self.num_columns


def show_corner(parameter: torch.nn.Parameter, corner: Corner | Segments) -> None:
    """Make every loader of `parameter`, whichever is set later, work inside `corner`."""
    corner.fill_tails(parameter)
    setattr(parameter, CORNER, corner)
    # vLLM >= 0.32 counts these elements to know when a reloaded layer is complete (reload/utils.py).
    parameter.weight_loader_numel = corner.num_elements(parameter)
    parameter.__class__ = _cornered_class(type(parameter))  # type: ignore[arg-type]


def hide_corner(parameter: torch.nn.Parameter) -> None:
    """Give `parameter` its own class back, once it is in the kernel's layout and has no corner any more."""
    if hasattr(parameter, CORNER):
        delattr(parameter, CORNER)
        parameter.__class__ = type(parameter).__base__


@functools.cache
def _cornered_class(parameter_class: Any) -> type:
    """Return a subclass of a vLLM parameter class whose `weight_loader` works inside the parameter's corner.

    A property, because models replace loaders after the layer is made (mamba_mixer2), and because vLLM's reload knows
    the loaders that it must keep apart from a layer by their being bound methods (reload/sanitize.py).
    """
    engine: Any = parameter_class.weight_loader
    inside = property(lambda parameter: _inside_corner(engine.fget(parameter)), engine.fset, engine.fdel)
    return type(parameter_class.__name__, (parameter_class,), {"weight_loader": inside})


def _inside_corner(loader: Loader) -> Loader:
    if getattr(loader, _INSIDE, False):
        return loader

    # `wraps` keeps the name and the signature, which vLLM's reload reads, and lets its own wrapper inherit the mark.
    @functools.wraps(loader)
    def load(param: torch.Tensor, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        corner: Corner | Segments | None = getattr(param, CORNER, None)
        if corner is None:  # in the kernel's layout by now
            return loader(param, loaded_weight, *args, **kwargs)
        return corner.load(loader, param, loaded_weight, *args, **kwargs)

    setattr(load, _INSIDE, True)
    return load


def _shard_id(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("loaded_shard_id")


def _leading(tensor: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    for axis, size in enumerate(sizes):
        tensor = tensor.narrow(axis, 0, size)
    return tensor

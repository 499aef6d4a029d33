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

from fp8pad.runtime.sizes import LayerRecord, ShardId, Tile

Loader = Callable[..., Any]

# Where a parameter keeps its `Corner`, and the mark on a loader that works inside one already.
CORNER = "fp8pad_corner"
_INSIDE = "inside_fp8pad_corner"


@dataclass(frozen=True)
class Corner:
    """The logical corner of one parameter on this rank; `logical_shape` are its leading sizes without padding.

    It refers to no layer: vLLM keeps copies of a parameter's attributes for reloading, longer than the layer may live.
    """

    record: LayerRecord
    tile: Tile
    logical_shape: tuple[int, ...]
    fill: int

    def cut(self, tensor: torch.Tensor, shard_id: ShardId) -> torch.Tensor:
        """Return `tensor`, as it lies in the checkpoint, without its padding."""
        return _leading(tensor, self.record.logical_shape(tensor.shape, self.tile, shard_id))

    def fill_tails(self, parameter: torch.Tensor) -> None:
        """Set what lies outside the corner: zeros in a weight, ones in a scale."""
        for axis, size in enumerate(self.logical_shape):
            tail = parameter.data.narrow(axis, size, parameter.shape[axis] - size)
            tail.fill_(self.fill)

    @contextmanager
    def shown(self, parameter: torch.Tensor) -> Iterator[None]:
        """Let `parameter` be its logical corner; what is written there is written into the whole."""
        whole = parameter.data
        parameter.data = _leading(whole, self.logical_shape)
        try:
            yield
        finally:
            parameter.data = whole


def show_corner(parameter: torch.nn.Parameter, corner: Corner) -> None:
    """Make every loader of `parameter`, whichever is set later, work inside `corner`."""
    corner.fill_tails(parameter)
    setattr(parameter, CORNER, corner)
    # vLLM >= 0.32 counts these elements to know when a reloaded layer is complete (reload/utils.py).
    parameter.weight_loader_numel = _leading(parameter.data, corner.logical_shape).numel()
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
    host: Any = parameter_class.weight_loader
    inside = property(lambda parameter: _inside_corner(host.fget(parameter)), host.fset, host.fdel)
    return type(parameter_class.__name__, (parameter_class,), {"weight_loader": inside})


def _inside_corner(loader: Loader) -> Loader:
    if getattr(loader, _INSIDE, False):
        return loader

    # `wraps` keeps the name and the signature, which vLLM's reload reads, and lets its own wrapper inherit the mark.
    @functools.wraps(loader)
    def load(param: torch.Tensor, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        corner: Corner | None = getattr(param, CORNER, None)
        if corner is None:  # in the kernel's layout by now
            return loader(param, loaded_weight, *args, **kwargs)
        logical_weight = corner.cut(loaded_weight, _shard_id(args, kwargs))
        corner.fill_tails(param)
        with corner.shown(param):
            return loader(param, logical_weight, *args, **kwargs)

    setattr(load, _INSIDE, True)
    return load


def _shard_id(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("loaded_shard_id")


def _leading(tensor: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    for axis, size in enumerate(sizes):
        tensor = tensor.narrow(axis, 0, size)
    return tensor

"""The record of one layer of the engine, which is one module or several that the engine fuses; and how to find it.

There are no tensors here, and no vLLM. N is out_features, K is in_features.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Literal

from fp8pad.errors import UnsupportedLayerError
from fp8pad.quantization_config import ModuleRecord
from fp8pad.scales import Granularity, PerBlock, PerChannel

ShardId = str | int | tuple[int, ...] | None

# Every model that fuses these modules does it like this. Some tell their config too late (qwen3_moe: gate_up_proj).
FUSED_MODULES = {"gate_up_proj": ("gate_proj", "up_proj"), "qkv_proj": ("q_proj", "k_proj", "v_proj")}

# vLLM names the matrices of a fused QKV by letter and those of other fused layers by position.
_QKV_POSITIONS = {"q": 0, "k": 1, "v": 2}

# A pattern in a layer's name in vLLM 0.26 to 0.33, and what its weights have instead, with vLLM's model files.
_RENAMES = (
    (r"^language\.", "language_model."),  # deepseek_vl2, lfm2_vl
    (r"^language_model\.layers\.", "language_model.model.layers."),  # step3_text in step3_vl
    (r"^language_model\.model\.", "language_model."),  # aria
    (r"^model\.", "language_model.model."),  # phi3v
    (r"^model\.model\.", "language_model.model."),  # kanana_v
    (r"^model\.h\.", "transformer.h."),  # exaone
    (r"\.attn\.qkv_proj$", ".attn.qkv"),  # glm4_1v, glm_ocr
    (r"(\.\d+)\.(qkv_proj|o_proj)$", r"\1.self_attn.\2"),  # falcon_h1
)

# vLLM's `mixer` is `mamba` on disk, some under another layer number (granitemoehybrid, bamba, falcon_h1, zamba2).
_MIXER, _MAMBA = ".mixer.", ".mamba."

# The granularity of a weight itself: each element is a block of its own.
WEIGHT = PerBlock(1, 1)


def leading_sizes(granularity: Granularity, weight_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of a tensor that belongs to a weight of `weight_shape`, `[N, K]`, axis by axis.

    `granularity` is that of a scale, or `WEIGHT`. A scale per channel has no K axis: it may be `[N]` or `[N, 1]`.
    """
    sizes = granularity.scale_shape(weight_shape)
    return sizes[:1] if isinstance(granularity, PerChannel) else sizes


@dataclass(frozen=True, slots=True)
class LayerParts:
    """The record of one layer of the engine: one module, or several that the engine fuses into one.

    `parts` are in the engine's order; a module without a record is None.
    """

    prefix: str
    parts: tuple[ModuleRecord | None, ...]

    @property
    def known(self) -> tuple[ModuleRecord, ...]:
        """The parts that have a record."""
        return tuple(part for part in self.parts if part is not None)

    @property
    def is_padded(self) -> bool:
        """Whether any part is larger on disk than the config asks for."""
        return any(part.is_padded for part in self.known)

    @property
    def alignment(self) -> tuple[int, int]:
        """The smallest multiples `(n, k)` that fit every part."""
        multiples_n, multiples_k = zip(*(part.alignment for part in self.known), strict=True)
        return lcm(*multiples_n), lcm(*multiples_k)

    @property
    def inner(self) -> Literal["n", "k"] | None:
        """The axis that is the inner size of an MLP, if all parts are known and agree on it."""
        axes = {part.inner if part else None for part in self.parts}
        return axes.pop() if len(axes) == 1 else None

    def logical_shape(self, shape: Sequence[int], granularity: Granularity, shard_id: ShardId) -> tuple[int, ...]:
        """Return the leading sizes that a tensor from the checkpoint has without its padding.

        A tensor that is not padded, as a trainer sends it, keeps its sizes. Raises `UnsupportedLayerError` if no part
        fits, or several whose logical sizes differ.
        """
        sizes = set(self._fitting(shape, granularity, shard_id).values())
        if len(sizes) == 1:
            return sizes.pop()
        if None in self.parts:
            return tuple(shape[: len(leading_sizes(granularity, (0, 0)))])
        raise self._no_part(shape, shard_id)

    def position(self, shape: Sequence[int], granularity: Granularity, shard_id: ShardId) -> int:
        """Return which part a tensor from the checkpoint is; raises `UnsupportedLayerError` if none or several fit."""
        fitting = self._fitting(shape, granularity, shard_id)
        if len(fitting) > 1:
            fitting = {at: sizes for at, sizes in fitting.items() if at == _position(shard_id)}
        if not fitting:
            raise self._no_part(shape, shard_id)
        return fitting.popitem()[0]

    def _fitting(self, shape: Sequence[int], granularity: Granularity, shard_id: ShardId) -> dict[int, tuple[int, ...]]:
        """Return the positions of the parts that a tensor may be, with the leading sizes it has without padding.

        A loader gets a shard id but no name, and the meaning of shard ids depends on the model. So the shape decides,
        and the shard id only between parts whose shapes are equal on disk but differ without padding.
        """
        fitting = {
            at: leading_sizes(granularity, part.logical_shape)
            for at, part in enumerate(self.parts)
            if part is not None and _fits(part, shape, granularity)
        }
        if len(set(fitting.values())) > 1:
            return {at: sizes for at, sizes in fitting.items() if at == _position(shard_id)}
        return fitting

    def _no_part(self, shape: Sequence[int], shard_id: ShardId) -> UnsupportedLayerError:
        known = [list(part.padded_shape) for part in self.known]
        return UnsupportedLayerError(
            f"{self.prefix}: a tensor of shape {list(shape)}, shard {shard_id}, has no logical size in "
            f"fp8pad's record, which knows weights of {known}"
        )


def _position(shard_id: ShardId) -> int | None:
    if isinstance(shard_id, str):
        return _QKV_POSITIONS.get(shard_id)
    return shard_id if isinstance(shard_id, int) else None


def _fits(part: ModuleRecord, shape: Sequence[int], granularity: Granularity) -> bool:
    candidates = (leading_sizes(granularity, shape_) for shape_ in (part.padded_shape, part.logical_shape))
    return any(tuple(shape[: len(sizes)]) == sizes for sizes in candidates)


def find_layer(
    modules: Mapping[str, ModuleRecord], prefix: str, fused_modules: Mapping[str, Sequence[str]]
) -> LayerParts | None:
    """Return the record of the engine's layer `prefix`, or None if none of its modules has one.

    `modules` are the records by the engine's names; `fused_modules` lists the modules of each layer that it fuses.
    """
    if prefix in modules:
        return LayerParts(prefix, (modules[prefix],))
    parent, dot, name = prefix.rpartition(".")
    fused = fused_modules.get(name) or FUSED_MODULES.get(name, ())
    parts = tuple(modules.get(f"{parent}{dot}{part}") for part in fused)
    return LayerParts(prefix, parts) if any(parts) else None


def find_renamed(
    modules: Mapping[str, ModuleRecord], prefix: str, fused_modules: Mapping[str, Sequence[str]], num_k: int
) -> LayerParts | None:
    """Return the record of the layer `prefix`, which has `num_k` input features, by the name that its weights have.

    None if there is none, or several that differ: a module's record is its sizes and nothing else, so modules of equal
    sizes are interchangeable.
    """
    layers = [find_layer(modules, name, fused_modules) for name in _other_names(modules, prefix)]
    found = {layer.parts for layer in layers if layer and all(part.logical_shape[1] == num_k for part in layer.known)}
    return LayerParts(prefix, found.pop()) if len(found) == 1 else None


def _other_names(modules: Mapping[str, ModuleRecord], prefix: str) -> Iterator[str]:
    for pattern, recorded in _RENAMES:
        name, num_found = re.subn(pattern, recorded, prefix)
        if num_found:
            yield name
    _, mixer, name = f".{prefix}".rpartition(_MIXER)
    if mixer:
        yield from (module for module in modules if module.endswith(f"{_MAMBA}{name}"))

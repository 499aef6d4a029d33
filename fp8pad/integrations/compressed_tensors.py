"""Padding as a step of compressed-tensors' `convert_checkpoint`, alone or in a list of converters.

Written for the `Converter` protocol of compressed-tensors 0.20, `update_model_config` included:

    convert_checkpoint(MODEL, OUT_DIR, PadConverter(MODEL))

Tensors are byte for byte those that `fp8pad convert` writes, and config.json says the same, so that fp8pad's runtime
can serve the checkpoint. `convert_checkpoint` writes shards without metadata, and there is no fp8pad.json, so the
result cannot be verified or unpadded.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from fp8pad import __version__
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.errors import PlanError
from fp8pad.geometry import as_matrices
from fp8pad.hub import opened
from fp8pad.padded import PaddedTensor
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.config import edited_config
from fp8pad.quantization_config import QuantizationRecord
from fp8pad.record import CONFIG_FILE, BaseSource, Policy

QUANTIZATION_CONFIG = "quantization_config"
Tensors = dict[str, torch.Tensor]


class PadConverter:
    """Pads the tensors of one checkpoint according to its plan.

    `model` is the folder or hub id that is passed to `convert_checkpoint`; the plan is made from its headers and
    config.json, by `policy`. Converters before this one in a list must not change shapes or scales.
    """

    def __init__(self, model: str | PathLike[str], policy: Policy | None = None) -> None:
        """Plan the checkpoint; raises what `fp8pad plan` raises."""
        with opened(model, read_unconverted) as source:
            self._plan = plan_checkpoint(source.shards, source.configs, policy or Policy())

    def process(self, tensors: Tensors) -> Tensors:
        """Return all tensors, padded where the plan says so; `PlanError` if one does not match the plan."""
        planned = self._plan.tensors
        return {name: _padded(name, t, planned[name]) if name in planned else t for name, t in tensors.items()}

    def validate(self, tensors: Tensors) -> Tensors:
        """Do the same on tensors without data."""
        return self.process(tensors)

    def get_dependencies(self, weight_name: str) -> set[str]:  # noqa: ARG002  the protocol's
        """Return no names: every tensor is padded independently."""
        return set()

    def update_config(self, config: Any) -> Any:
        """Leave the quantization config to `update_model_config`, which nests the original."""
        return config

    def update_model_config(self, model_config: Mapping[str, Any]) -> dict[str, Any]:
        """Return config.json with the absorbed sizes, and with the record that the runtime needs."""
        plan = self._plan
        if plan.base is not None and plan.base_source == BaseSource(CONFIG_FILE, QUANTIZATION_CONFIG):
            # `convert_checkpoint` has rewritten or removed it by now.
            model_config = {**model_config, QUANTIZATION_CONFIG: plan.base}
        quantization = QuantizationRecord(plan.modules, plan.base or {}, __version__) if plan.needs_runtime else None
        return edited_config(model_config, plan.config_edits, quantization, plan.base_source)


def _padded(name: str, tensor: torch.Tensor, planned: PaddedTensor) -> torch.Tensor:
    """Return a tensor of `padded_shape`: the logical one, or each of its segments, followed by `fill`."""
    if tuple(tensor.shape) != planned.logical_shape:
        raise PlanError(f"{name}: expected {list(planned.logical_shape)}, got {list(tensor.shape)}")
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    if planned.fill:
        padded = torch.ones(planned.padded_shape, dtype=tensor.dtype, device=tensor.device)
    else:  # not every device can fill and copy FP8; integers work
        padded = torch.zeros(planned.padded_shape, dtype=bits, device=tensor.device).view(tensor.dtype)
    source = tensor.reshape(as_matrices(planned.logical_shape)).view(bits)  # [num_matrices, N, K]
    target = padded.view(as_matrices(planned.padded_shape)).view(bits)
    axis = planned.segments.matrix_axis if planned.segments else 1
    rest = source.shape[3 - axis]
    for begin, into, size in planned.segments.runs if planned.segments else [(0, 0, source.shape[1])]:
        target.narrow(axis, into, size).narrow(3 - axis, 0, rest).copy_(source.narrow(axis, begin, size))
    return padded

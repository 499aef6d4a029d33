"""A model opened and planned: the first steps of `plan` and of `convert`; nothing is written here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from fp8pad.adapters import adapter_notes, other_weight_notes
from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.errors import CheckpointError, NotServedError, PlanError
from fp8pad.hub import opened
from fp8pad.planning import check_understood, plan_checkpoint
from fp8pad.planning.comparison import AtSize, check_worth_converting, compare_sizes
from fp8pad.planning.engines import Engine, find_engine
from fp8pad.planning.linear import LayerPlan
from fp8pad.planning.plan import CheckpointPlan, UntouchedTensor
from fp8pad.planning.verdict import Judge
from fp8pad.record import REPORT_VERSION, Policy
from fp8pad.summary import OutputFiles, flops_added_share, output_files


@dataclass(frozen=True)
class PlanReport:
    """What converting `source` would do, with or without the model card, and the engine that it is meant for."""

    source: Checkpoint
    plan: CheckpointPlan
    engine: Engine = field(default_factory=find_engine)
    card: bool = True

    @cached_property
    def judge(self) -> Judge:
        """What the engine does with the checkpoint in each form."""
        return Judge(self.plan, self.engine)

    @cached_property
    def sizes(self) -> tuple[AtSize, ...]:
        """What the engine does at each tensor-parallel size."""
        return tuple(compare_sizes(self.judge))

    @property
    def files(self) -> OutputFiles:
        """What happens to each file; the model card counts as rewritten without being fetched."""
        return output_files(self.source, self.plan, self.card)

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad plan --json` prints."""
        plan, files = self.plan, self.files
        return {
            "format_version": REPORT_VERSION,
            "model": str(self.source),
            "policy": plan.policy.to_json(),
            "layers": [_layer_document(name, layer) for name, layer in plan.layers],
            "untouched": [_tensor_document(tensor) for tensor in plan.untouched],
            "not_understood": [{"name": name, "reason": reason} for name, reason in plan.not_understood],
            "config_edits": [asdict(edit) for edit in plan.config_edits],
            "bytes_before": plan.bytes_before,
            "bytes_after": plan.bytes_after,
            "flops_added_share": flops_added_share(plan.layers),
            "files_rewritten": list(files.rewritten),
            "files_kept": list(files.kept),
            "files_left_out": list(files.excluded),
            "needs_runtime": plan.needs_runtime,
            "refused": list(self.judge.converted.refused),
            "engine": {"name": self.engine.title, "tensor_parallel": [at.to_json() for at in self.sizes]},
            "notes": list(plan.notes),
        }


def _layer_document(name: str, layer: LayerPlan) -> dict[str, Any]:
    return {
        "name": name,
        "scheme": layer.granularity.name if layer.granularity else None,
        "logical_shape": list(layer.logical_shape),
        "padded_shape": list(layer.padded_shape),
        "alignment": list(layer.alignment),
        "disposition": asdict(layer.axes),
        "reason": layer.reason,
    }


def _tensor_document(tensor: UntouchedTensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "reason": tensor.reason}


@contextmanager
def planned(
    model: str | os.PathLike[str],
    policy: Policy,
    *,
    strict: bool,
    follow_links: bool,
    card: bool,
    engine: str | None,
    force: bool = True,
    downloads: Path | None = None,
    cache: bool = False,
    progress: Progress | None = None,
) -> Iterator[PlanReport]:
    """Open a model and plan.

    If `strict`, raise `PlanError` if an FP8 layer is not understood; without `force`, `NotServedError` if the engine
    refuses the result, but serves the original or what another option makes. Both errors have the report.
    """
    described = find_engine(engine)
    with opened(model, partial(read_unconverted, follow_links=follow_links), downloads, cache, progress) as source:
        try:
            plan = plan_checkpoint(source.shards, source.configs, policy)
        except CheckpointError as error:
            raise type(error)(f"{source}: {error}") from error
        notes = *plan.notes, *other_weight_notes(source, plan), *adapter_notes(source, plan)
        report = PlanReport(source, replace(plan, notes=notes), described, card)
        try:
            if strict:
                check_understood(plan)
            if not force:
                check_worth_converting(report.judge)
        except (PlanError, NotServedError) as error:
            error.report = report
            if isinstance(error, NotServedError):
                error.add_note("nothing was written; use --force to convert anyway")
            raise
        yield report

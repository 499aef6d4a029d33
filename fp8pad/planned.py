"""A model opened and planned: the first steps of `plan` and of `convert`; nothing is written here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fp8pad.adapters import adapter_notes, other_weight_notes
from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.errors import CheckpointError, NotServedError
from fp8pad.hub import opened
from fp8pad.planning import check_understood, plan_checkpoint
from fp8pad.planning.comparison import check_worth_converting
from fp8pad.planning.engines import find_engine
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.record import Policy
from fp8pad.summary import plan_document


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What converting `source` would do, with or without the model card, and the engine that it is meant for."""

    source: Checkpoint
    plan: CheckpointPlan
    engine: str | None = None
    card: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad plan --json` prints."""
        return plan_document(self.source, self.plan, find_engine(self.engine), self.card)


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
    work_dir: Path | None = None,
    cache: bool = False,
    progress: Progress | None = None,
) -> Iterator[PlanReport]:
    """Open a model and plan.

    Without `force`, raise `NotServedError` if the engine refuses the result, but serves the original or what another
    option makes.
    """
    described = find_engine(engine)
    with opened(model, partial(read_unconverted, follow_links=follow_links), work_dir, cache, progress) as source:
        try:
            plan = plan_checkpoint(source.shards, source.configs, policy)
        except CheckpointError as error:
            raise type(error)(f"{source}: {error}") from error
        if strict:
            check_understood(plan)
        notes = *plan.notes, *other_weight_notes(source, plan), *adapter_notes(source, plan)
        report = PlanReport(source, replace(plan, notes=notes), engine, card)
        try:
            if not force:
                check_worth_converting(report.plan, described)
        except NotServedError as error:
            error.report = report
            error.add_note("nothing was written; use --force to convert anyway")
            raise
        yield report

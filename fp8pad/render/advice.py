"""What to do after a plan: the one rule, for the screen, the HTML page and the summary of a conversion."""

from collections.abc import Iterator
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.planning.comparison import better_absorbed, compare_sizes, nearest_served_policy
from fp8pad.planning.engines import Engine
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import converted_verdict
from fp8pad.render.console import command, convert_command


def advice(
    source: Checkpoint,
    plan: CheckpointPlan,
    engine: Engine,
    out_dir: Path | str,
    *options: str,
    is_written: bool = False,
) -> Iterator[tuple[str, str]]:
    """Yield what to do next: a sentence and a command, one of which may be empty. `options` are for a conversion.

    Where the engine refuses what the plan makes, that is the nearest policy of which it does not. Otherwise it is the
    plan's own conversion, if that changes anything and is not written yet; and absorbing, if the engine then does
    better than with what the plan makes. If it is neither, another size at which converting helps is named.
    """
    made, ranks = converted_verdict(plan, engine), plan.policy.tensor_parallel_size
    if made.refused:
        policy = nearest_served_policy(plan, engine)
        if policy is None:
            yield f"no option makes it work in {engine.title}, nor do fewer ranks", ""
        else:
            works = f"TP {policy.tensor_parallel_size} works with:"
            yield works, convert_command(source, out_dir, policy, *options)
        return
    if not (plan.changes_nothing or is_written):
        yield "", convert_command(source, out_dir, plan.policy, *options)
    better = better_absorbed(plan, engine, made.outcome) if made.findings else None
    same = f"nothing to convert for TP {ranks}: the checkpoint would stay as it is" if plan.changes_nothing else ""
    if better:
        outcome, policy = better
        takes = f"'{outcome}' instead of '{made.outcome}' takes:"
        yield f"{same}; {takes}" if same else takes, convert_command(source, out_dir, policy, *options)
    elif same:
        sizes = compare_sizes(plan, engine) if plan.layers else ()
        helped = next((at.num_ranks for at in sizes if at.is_helped), None)
        elsewhere = command("plan", source, "--tensor-parallel-size", helped) if helped else ""
        yield f"{same}; for TP {helped}:" if helped else same, elsewhere

"""What to do after a plan: the one rule, for the screen, the HTML page and the summary of a conversion."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.planning.comparison import AtSize, better_absorbed, compare_sizes, nearest_served_policy
from fp8pad.planning.engines import Engine, Outcome
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import Judge, Verdict, converted_verdict
from fp8pad.render.console import command, convert_command


def advice(
    source: Checkpoint,
    plan: CheckpointPlan,
    engine: Engine,
    out_dir: Path | str,
    *options: str,
    is_written: bool = False,
    sizes: Sequence[AtSize] = (),
) -> Iterator[tuple[str, str]]:
    """Yield what to do next: a sentence and a command, one of which may be empty. `options` are for a conversion.

    Where the engine refuses what the plan makes, that is to keep the original, or to absorb if the engine then does
    better; if it refuses the original too, it is the nearest policy whose checkpoint it does not refuse. Otherwise it
    is the plan's own conversion, if that changes anything and is not written yet; and absorbing, if the engine then
    does better than with what the plan makes. If it is neither, another size at which converting helps is named.
    `sizes` is what `compare_sizes` found, if that is known already.
    """
    made, ranks = converted_verdict(plan, engine), plan.policy.tensor_parallel_size
    original = Judge(plan, engine).original(ranks) if made.refused else Verdict()
    if made.refused and not original.refused:
        better = better_absorbed(plan, engine, original.outcome, sizes)
        how = "like this for" if better else "for"
        yield f"{engine.title} {_does(original.outcome)}: do not convert it {how} this engine", ""
        if better:
            yield _takes(better[0], original.outcome), convert_command(source, out_dir, better[1], *options)
        return
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
    better = better_absorbed(plan, engine, made.outcome, sizes) if made.findings else None
    same = f"nothing to convert for TP {ranks}: the checkpoint would stay as it is" if plan.changes_nothing else ""
    if better:
        outcome, policy = better
        takes = _takes(outcome, made.outcome)
        yield f"{same}; {takes}" if same else takes, convert_command(source, out_dir, policy, *options)
    elif same:
        known = sizes or (compare_sizes(plan, engine) if plan.layers else ())
        helped = next((at.num_ranks for at in known if at.is_helped), None)
        elsewhere = command("plan", source, "--tensor-parallel-size", helped) if helped else ""
        yield f"{same}; for TP {helped}:" if helped else same, elsewhere


def _does(outcome: Outcome) -> str:
    """What an engine does with an original that it does not refuse."""
    if outcome == "serves":
        return "serves the original as it is"
    if outcome == "not known":
        return "is not known to refuse the original"
    return f"serves the original ('{outcome}')"


def _takes(better: Outcome, than: Outcome) -> str:
    return f"'{better}' instead of '{than}' takes:"

"""The recommended next steps after a plan: one rule for the screen, the HTML page and the summary of a conversion."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fp8pad.planned import PlanReport
from fp8pad.planning.comparison import better_absorbed, compare_sizes, converted_by, nearest_served_policy
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import Judge
from fp8pad.record import Policy
from fp8pad.render.console import added, command, convert_command

Step = tuple[str, str]


def advice(report: PlanReport, out_dir: Path | str, *options: str, is_written: bool = False) -> Iterator[Step]:
    """Yield next steps: a sentence and a command, one of which may be empty. `options` are added to a conversion.

    If the engine refuses both the plan's result and the original, suggest the nearest policy whose result it does not
    refuse. Otherwise suggest to keep the original, if only that is served or nothing is gained, or the plan's own
    conversion, if that is not written yet; and to absorb, if the engine then does better. If absorbing costs the same
    as the plan, suggest only that, even if it saves nothing but the plugin. If nothing is gained, suggest another size
    at which converting helps.
    """
    source, plan, engine, sizes = report.source, report.plan, report.engine, report.sizes

    def converting(policy: Policy) -> str:
        return convert_command(source, out_dir, _needed(policy, plan), *options)

    made, ranks = report.judge.converted, plan.policy.tensor_parallel_size
    at = next(at for at in sizes if at.num_ranks == ranks)
    if made.refused and at.original.refused:
        said, nearest = _nearest(report.judge)
        yield said, converting(nearest) if nearest else ""
        return
    outcome = (at.original if made.refused else made).outcome
    no_gain = plan.changes_nothing or (at.original.outcome == "serves" and plan.policy.alignment == "auto")
    absorbed, policy = better_absorbed(plan, at, outcome) or (None, plan.policy)
    if made.refused:
        how = " this way" if absorbed else ""
        yield f"{engine.title} does better with the original ('{outcome}'): do not convert it{how} for this engine", ""
    elif plan.changes_nothing:
        same = f"nothing to convert for TP {ranks}: the checkpoint would stay as it is"
        said = f"padding changes nothing for TP {ranks}" if absorbed else same
        yield from () if is_written else ((said, ""),)
    elif no_gain:
        yield f"nothing to gain at TP {ranks}: {engine.title} serves the original as it is", ""
    elif not is_written and not (absorbed and absorbed.costs_the_same(plan)):
        yield "", converting(plan.policy)
    if absorbed and absorbed.verdict.outcome != outcome:
        costs = added(absorbed.added_bytes, plan.bytes_before)
        yield f"for '{absorbed.verdict.outcome}' instead of '{outcome}', at {costs}:", converting(policy)
    elif absorbed and not is_written and not no_gain:
        said = f"absorbed for TP {ranks}, it needs no plugin, and adds at most 0.1 % more than padding:"
        yield said, converting(policy)
    elif no_gain and (helped := next((at.num_ranks for at in sizes if at.is_helped), None)):
        yield f"converting helps at TP {helped}:", command("plan", source, "--tensor-parallel-size", helped)


def _needed(policy: Policy, plan: CheckpointPlan) -> Policy:
    """Return a policy without `absorb` if there is nothing to absorb."""
    is_idle = not (plan.config_edits if policy == plan.policy else plan.absorbable)
    return replace(policy, absorb=False, absorb_experts=False) if is_idle else policy


def _nearest(judge: Judge) -> tuple[str, Policy | None]:
    """Return what works though the plan does not, and the policy, if something has to be converted for it."""
    policy, title = nearest_served_policy(judge), judge.engine.title
    if policy is None:
        return f"no option of fp8pad makes it work in {title}, nor does a smaller TP size", None
    (at,) = compare_sizes(judge, (policy.tensor_parallel_size,))
    if not at.original.findings:
        return f"TP {at.num_ranks}: {title} serves the FP8 layers of the original as they are", None
    verdict, is_changed = converted_by(policy, judge)
    outcome = verdict.outcome
    if not is_changed:
        return f"TP {at.num_ranks}: the original works ('{outcome}'), and there is nothing to convert", None
    absorbed = better_absorbed(judge.plan, at, outcome)
    if absorbed and absorbed[0].costs_the_same(judge.plan):
        policy, outcome = absorbed[1], absorbed[0].verdict.outcome
    served = f"TP {at.num_ranks}: its FP8 layers are served with:"
    return served if outcome == "serves" else f"for '{outcome}' at TP {at.num_ranks}:", policy

"""What an engine does with a checkpoint, in words."""

from collections.abc import Iterator
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.planning.advice import way_out
from fp8pad.planning.engines import DEFAULT_ENGINE, engines
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import converted_verdict
from fp8pad.record import Policy
from fp8pad.render.console import Fact, command
from fp8pad.render.folding import name_patterns
from fp8pad.text import printable


def refusal_facts(source: Checkpoint, plan: CheckpointPlan, out_dir: Path | str) -> Iterator[Fact]:
    """Tell for which layers vLLM refuses the converted checkpoint at the plan's tensor-parallel size; what helps."""
    engine = engines()[DEFAULT_ENGINE]
    walls = converted_verdict(plan, engine).walls
    for wall in walls:
        layers = ", ".join(map(printable, name_patterns(wall.layers)))
        yield f"at TP {plan.policy.tensor_parallel_size}", f"{engine.title} {wall.outcome}: {wall.why}: {layers}"
    if not walls:
        return
    if policy := way_out(source.shards, source.configs, plan, engine):
        yield "instead", command("convert", source.root, out_dir, *policy_options(policy))
    else:
        yield "", "neither --absorb nor fewer ranks help"


def policy_options(policy: Policy) -> list[str]:
    """Return the options that ask for a policy, defaults left out."""
    options = ["--absorb"] if policy.absorb else []
    if policy.absorb_experts:
        options.append("--absorb-experts")
    if policy.tensor_parallel_size != 1:
        options += ["--tensor-parallel-size", str(policy.tensor_parallel_size)]
    if policy.alignment != "auto":
        options += ["--alignment", str(policy.alignment)]
    for pattern in policy.skip:
        options += ["--skip", pattern]
    return options

"""What `plan` says about published FP8 checkpoints equals a reading of vLLM's code, for 1 to 16 ranks."""

import pytest
from published_models import Published, published

from fp8pad.planning import plan_checkpoint
from fp8pad.planning.engines import OUTCOMES, find_engine
from fp8pad.planning.verdict import Judge
from fp8pad.record import Policy


@pytest.mark.parametrize("model", [*published()], ids=lambda model: model.name)
def test_the_plan_of_a_published_checkpoint(model: Published) -> None:
    """One layer of each kind, in the layout of the checkpoint."""
    judge = Judge(plan_checkpoint([model.header()], {"config.json": model.config}, Policy()), find_engine("vllm-0.33"))
    letters = {outcome[0].upper(): outcome for outcome in OUTCOMES}
    assert [judge.original(ranks).outcome for ranks in (1, 2, 4, 8, 16)] == [letters[key] for key in model.outcomes]

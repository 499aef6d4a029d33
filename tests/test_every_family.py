"""Every described family in one or two of the layouts that tools write: its plan, and its conversion."""

import json
from pathlib import Path

import pytest
from helpers import files_of, write_checkpoint
from tiny_families import LAYOUTS, MODEL_TYPES, TinyModel, tiny_model

from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_checkpoint, read_unconverted
from fp8pad.conversion import convert
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.comparison import absorbed_at, compare_sizes
from fp8pad.planning.engines import find_engine
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import Judge
from fp8pad.record import Policy
from fp8pad.tensors import ShardHeader, TensorHeader
from fp8pad.unpadding import unpad
from fp8pad.verification import verify

FILE = "model.safetensors"
VLLM = find_engine()


def made(model_type: str, number: int) -> TinyModel:
    """Return a model of a family, in the layout with this number."""
    return tiny_model(model_type, list(LAYOUTS.values())[number % len(LAYOUTS)], ("nk", "kn")[number // 2 % 2])


def header_of(model: TinyModel) -> ShardHeader:
    """Return the header of one file with all tensors."""
    tensors: list[TensorHeader] = []
    for name, (dtype, shape) in model.tensors.items():
        begin = tensors[-1].end if tensors else 0
        tensors.append(TensorHeader(name, dtype, shape, begin))
    return ShardHeader(FILE, tensors[-1].end, 0, tuple(tensors))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_table_of_sizes_says_what_plans_for_them_do(model_type: str) -> None:
    """A plan for one rank predicts, for other ranks, the same verdicts as plans for those ranks."""
    number = MODEL_TYPES.index(model_type)
    ranks, model = (2, 8, 4, 16, 1)[number % 5], made(model_type, number + 4)
    if any(mlp.interleaved for _, mlp in model.mlps):  # N is twice the size, in one matrix, which only blocks reveal
        model = tiny_model(model_type, LAYOUTS["fp8, block"])
    header = header_of(model)

    def planned(**policy: int) -> CheckpointPlan:
        return plan_checkpoint([header], model.configs, Policy(**policy))  # type: ignore[arg-type]

    plan = planned()
    assert not plan.not_understood
    (at_size,) = compare_sizes(Judge(plan, VLLM), (ranks,))
    assert at_size.padded == Judge(planned(tensor_parallel_size=ranks), VLLM).converted
    for experts in (False, True):
        absorbed = planned(tensor_parallel_size=ranks, absorb=True, absorb_experts=experts)
        claimed = absorbed_at(Judge(plan, VLLM), ranks, experts)
        assert claimed.verdict == Judge(absorbed, VLLM).converted
        assert claimed.needs_runtime == absorbed.needs_runtime
        assert claimed.added_bytes == absorbed.bytes_after - absorbed.bytes_before
        described = {mlp.size_key for _, mlp in model.mlps if experts or not mlp.experts}
        assert {edit.key.rpartition(".")[2] for edit in absorbed.config_edits} <= described


@pytest.mark.parametrize("model_type", MODEL_TYPES[::3])
def test_a_family_is_absorbed_padded_verified_and_restored(model_type: str, tmp_path: Path) -> None:
    """One layout of every third family, from start to end; after absorbing, nothing is left to absorb."""
    number = MODEL_TYPES.index(model_type) // 3
    tiny = made(model_type, number)
    model = write_checkpoint(tmp_path / "model", {FILE: tiny.tensors}, tiny.configs["config.json"])
    for file in tiny.configs.keys() - {"config.json"}:
        (model / file).write_text(json.dumps(tiny.configs[file]))
    source = read_unconverted(model)
    policy = Policy(tensor_parallel_size=2, absorb=True, absorb_experts=True)
    plan = plan_checkpoint(source.shards, source.configs, policy)
    out_dir = tmp_path / "out"
    convert(PlanReport(source, plan, card=False), out_dir, WriteOptions(jobs=1), Progress())
    assert verify(model, out_dir, Progress()).ok
    if plan.changes_nothing:
        assert files_of(out_dir) == files_of(model)
        return
    unpad(out_dir, tmp_path / "restored", WriteOptions(jobs=1), Progress())
    assert files_of(tmp_path / "restored") == files_of(model)
    if plan.config_edits and not plan.needs_runtime:
        absorbed = read_checkpoint(out_dir)
        assert plan_checkpoint(absorbed.shards, absorbed.configs, policy).changes_nothing

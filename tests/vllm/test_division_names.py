"""How a module's name says that it is divided, against the Linears in every model file of the installed vLLM."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from fp8pad.planning.tensor_parallel import shardings

pytestmark = pytest.mark.vllm

KINDS = {
    "ColumnParallelLinear": "column",
    "MergedColumnParallelLinear": "column",
    "QKVParallelLinear": "column",
    "RowParallelLinear": "row",
    "ReplicatedLinear": "replicated",
}
VARIABLES = {"prefix", "maybe_prefix", "merged_name", "shared_gate_name"}
# Kimi's vision MLP counts from 0, numbers say little, and the others belong to one model without FP8 checkpoints.
OTHERWISE = {"1", "2", "3", "fc1", "fc", "out_head", "in_head", "token_proj", "anchor_out_head", "pass_hidden_proj"}


def linears() -> Iterator[tuple[str, str]]:
    """Yield the last part of the prefix of each Linear that a model makes, and its kind."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    for folder in ("model_executor/models", "models"):
        for file in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    name = keywords.get("prefix", "").rstrip("\"')").rpartition(".")[2].rpartition('"')[2]
                    kind = "replicated" if keywords.get("disable_tp") == "True" else KINDS[node.func.id]
                    if name.isidentifier() and name not in {
                        "prefix",
                        "maybe_prefix",
                        "merged_name",
                        "shared_gate_name",
                    }:
                        yield name, kind


def test_a_name_that_vllms_models_use_for_one_thing_is_taken_for_it() -> None:
    """Names with different kinds in two models are left to family files."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for name, kind in linears():
        kinds[name].add(kind)
    clear = {name: next(iter(found)) for name, found in kinds.items() if len(found) == 1 and name not in OTHERWISE}
    assert len(clear) > 100
    said = shardings({f"x.{name}": (256, 256) for name in clear}, ())
    assert {name: said[f"x.{name}"].axis for name in clear} == clear

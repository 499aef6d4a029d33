"""What fp8pad did to a checkpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fp8pad.inspect import Inspection
from fp8pad.record import CheckpointRecord, PaddedTensor, tensor_to_json
from fp8pad.render.console import Fact, edit_facts, fact_table, growth, print_json, print_parts, stdout_console
from fp8pad.render.folding import name_patterns
from fp8pad.render.plan import how
from fp8pad.text import printable


def show_inspection(inspection: Inspection, as_json: bool = False) -> None:
    """Print what the records say was done, and where they disagree."""
    if as_json:
        print_json(_document(inspection))
        return
    record = inspection.record
    verdict = f"padded by fp8pad {printable(record.fp8pad_version)}" if record else "has records of fp8pad"
    parts: list[RenderableType] = [Text(f"{printable(str(inspection.path))}: {verdict}", style="bold")]
    if record and record.tensors:
        parts.append(_tensor_table(record.tensors))
    facts = [*(_record_facts(record) if record else ()), ("serving", _serving(inspection))]
    facts += [("disagrees", printable(sentence)) for sentence in inspection.disagreements]
    print_parts(stdout_console(), *parts, fact_table(facts))


def _tensor_table(tensors: Mapping[str, PaddedTensor]) -> Table:
    alike: dict[PaddedTensor, list[str]] = {}
    for name, tensor in tensors.items():
        alike.setdefault(tensor, []).append(name)
    table = Table(box=None, pad_edge=False)
    table.add_column("tensors", overflow="fold")
    for header in ("logical", "padded", "with", "how"):
        table.add_column(header, no_wrap=True)
    for tensor, names in alike.items():
        shapes = str(list(tensor.logical_shape)), str(list(tensor.padded_shape))
        for pattern in name_patterns(names):
            table.add_row(printable(pattern), *shapes, f"{tensor.fill}", how(tensor.axes))
    return table


def _record_facts(record: CheckpointRecord) -> Iterator[Fact]:
    policy = record.policy
    absorbed = ("experts too" if policy.absorb_experts else "yes") if policy.absorb else "no"
    yield "policy", f"alignment {policy.alignment}, TP {policy.tensor_parallel_size}, absorb: {absorbed}"
    yield from edit_facts(record.config_edits)
    sizes = record.files.values()
    yield "files", growth(sum(file.source_size for file in sizes), sum(file.size for file in sizes))


def _serving(inspection: Inspection) -> str:
    if inspection.quantization is None:
        return "any engine that serves the original"
    return f"vLLM with fp8pad installed beside it: {len(inspection.quantization.modules)} layers need its runtime"


def _document(inspection: Inspection) -> dict[str, Any]:
    record = inspection.record
    document: dict[str, Any] = {
        "path": str(inspection.path),
        "ok": not inspection.disagreements,
        "disagreements": list(inspection.disagreements),
        "needs_runtime": inspection.quantization is not None,
    }
    if record:
        document |= {
            "fp8pad_version": record.fp8pad_version,
            "policy": record.policy.to_json(),
            "tensors": {name: tensor_to_json(tensor) for name, tensor in record.tensors.items()},
            "config_edits": [asdict(edit) for edit in record.config_edits],
        }
    return document

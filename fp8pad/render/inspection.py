"""What fp8pad did to a checkpoint."""

from collections.abc import Iterator, Mapping

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from fp8pad.inspect import Inspection
from fp8pad.record import CheckpointRecord, PaddedTensor, Policy
from fp8pad.render.console import Fact, edit_facts, fact_table, growth, print_json, print_parts, stdout_console
from fp8pad.render.folding import name_patterns
from fp8pad.render.plan import how
from fp8pad.text import printable


def show_inspection(inspection: Inspection, as_json: bool = False) -> None:
    """Print what the records say was done, and where they disagree."""
    if as_json:
        print_json(inspection.to_json())
        return
    record = inspection.record
    verdict = f"padded by fp8pad {printable(record.fp8pad_version)}" if record else "has records of fp8pad"
    parts: list[RenderableType] = [Text(f"{printable(str(inspection.path))}: {verdict}", style="bold")]
    if record and record.tensors:
        parts.append(_tensor_table(record.tensors))
    facts = [*(_record_facts(record, inspection) if record else ()), ("serving", _serving(inspection))]
    facts += [("disagrees", printable(sentence)) for sentence in inspection.disagreements]
    facts += [("note", printable(sentence)) for sentence in inspection.notes]
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


def _record_facts(record: CheckpointRecord, inspection: Inspection) -> Iterator[Fact]:
    policy = record.policy
    asked = [f"alignment {policy.alignment}", f"TP {policy.tensor_parallel_size}", f"absorb: {_absorbed(policy)}"]
    if policy.skip:
        asked.append(f"skip {' '.join(policy.skip)}")
    yield "policy", printable(", ".join(asked))
    yield from edit_facts(record.config_edits)
    yield "files", growth(inspection.source_bytes, inspection.size_bytes)


def _absorbed(policy: Policy) -> str:
    if policy.absorb_experts:
        return "MLPs and routed experts" if policy.absorb else "routed experts"
    return "MLPs" if policy.absorb else "no"


def _serving(inspection: Inspection) -> str:
    if inspection.quantization is None:
        return "any engine that serves the original"
    return f"vLLM with fp8pad installed beside it: {len(inspection.quantization.modules)} layers need its runtime"

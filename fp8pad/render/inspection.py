"""How the terminal shows what fp8pad did to a checkpoint."""

from collections.abc import Iterator, Mapping

from rich.text import Text

from fp8pad.inspection import Inspection
from fp8pad.padded import PaddedTensor
from fp8pad.record import CheckpointRecord, Policy
from fp8pad.render.console import Fact, edit_facts, growth
from fp8pad.render.folding import name_patterns
from fp8pad.render.plan import how
from fp8pad.render.screen import Paragraph, Row, Rows, Screen, Section
from fp8pad.text import counted, printable


def inspection_screen(inspection: Inspection) -> Screen:
    """Lay out what the records say was done, and where they disagree."""
    record = inspection.record
    verdict = f"padded by fp8pad {printable(record.fp8pad_version)}" if record else "has records of fp8pad"
    yield Paragraph(Text(f"{printable(str(inspection.path))}: {verdict}", style="bold"))
    yield Section("How it is served")
    yield Paragraph(_serving(inspection), 2)
    if inspection.disagreements:
        yield Section("Inconsistent records")
        yield Rows([(Text("disagrees", style="bold red"), printable(said)) for said in inspection.disagreements])
        yield Paragraph("Undo these changes, get the files again, or convert the original again.", 2)
    if record and record.tensors:
        yield Section("What was changed")
        yield Rows([*_tensor_rows(record.tensors)], ("tensors", "[N, K]", "padded", "fill", "how"))
    facts = [*(_record_facts(record, inspection) if record else ())]
    facts += [("note", printable(sentence)) for sentence in inspection.notes]
    if facts:
        yield Section("From the record")
        yield Rows(facts)


def _tensor_rows(tensors: Mapping[str, PaddedTensor]) -> Iterator[Row]:
    alike: dict[PaddedTensor, list[str]] = {}
    for name, tensor in tensors.items():
        alike.setdefault(tensor, []).append(name)
    for tensor, names in alike.items():
        shapes = str(list(tensor.logical_shape)), str(list(tensor.padded_shape))
        for pattern in name_patterns(names):
            yield printable(pattern), *shapes, f"{tensor.fill}", how(tensor.axes)


def _record_facts(record: CheckpointRecord, inspection: Inspection) -> Iterator[Fact]:
    policy = record.policy
    asked = [f"alignment {policy.alignment}", f"TP {policy.tensor_parallel_size}", f"absorb: {_absorbed(policy)}"]
    if policy.skip:
        asked.append(f"skip {' '.join(policy.skip)}")
    yield "policy", printable(", ".join(asked))
    yield from edit_facts(record.config_edits)
    if inspection.quantization:
        tensors = sum(tensor.axes.is_padded for tensor in record.tensors.values())
        more = f"{counted(tensors, 'tensor')}, scales included" if tensors else "as they are loaded"
        yield "padded", f"{counted(len(inspection.quantization.modules), 'layer')} ({more})"
    yield "files", growth(inspection.source_bytes, inspection.size_bytes)


def _absorbed(policy: Policy) -> str:
    if policy.absorb_experts:
        return "MLPs and routed experts" if policy.absorb else "routed experts"
    return "MLPs" if policy.absorb else "no"


def _serving(inspection: Inspection) -> str:
    if not inspection.is_legible:
        return "not known, since a record cannot be read"
    if inspection.quantization is None:
        return "any engine that runs the original"
    return "vLLM with fp8pad installed next to it"

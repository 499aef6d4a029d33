"""The files of a converted checkpoint, derived from source and plan: `convert` writes them, `verify` compares."""

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace

from fp8pad import __version__
from fp8pad.card import read_card, with_section
from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.contents import Contents, Text, contents_of
from fp8pad.checkpoint.files import text_sha256
from fp8pad.checkpoint.folder import INDEX_FILE, max_text_bytes
from fp8pad.checkpoint.headers import framed
from fp8pad.checkpoint.json_text import dumps_like, index_text, parse_object, states_total
from fp8pad.checkpoint.layout import ShardLayout, logical_shard, shard_layout
from fp8pad.checkpoint.moving import Hashes
from fp8pad.errors import CheckpointError, PlanError
from fp8pad.parsing import check_density
from fp8pad.planning.config import edited_config
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.quantization_config import QuantizationRecord
from fp8pad.record import CARD_FILE, CONFIG_FILE, RECORD_FILE, CheckpointRecord


def converted_files(source: Checkpoint, plan: CheckpointPlan, with_card: bool = False) -> Contents:
    """Derive the checkpoint that `plan` makes of `source`.

    `with_card` adds what was changed to the model card. If nothing is changed, the card stays as it is and there is no
    record. Raises `PlanError` if the plan does not fit the source.
    """
    if plan.edits_config:
        source = source.with_edited_config()
    layouts = tuple(shard_layout(shard, plan.tensors) for shard in source.shards)
    _check_complete(source, plan, layouts)
    texts = {CONFIG_FILE: Text.of(_config(source, plan))}
    if source.has_index:
        texts = {INDEX_FILE: Text.of(_index(source, plan, layouts)), **texts}
    if plan.changes_nothing:
        return contents_of(source, layouts, texts)
    originals = {
        CONFIG_FILE: source.text(CONFIG_FILE),
        **_unusual_index(source),
        **dict(_unusual_headers(source, layouts)),
    }
    if with_card and (card := read_card(source)) is not None:
        originals[CARD_FILE] = card
        texts = {CARD_FILE: Text.of(with_section(card, source, plan)), **texts}
        source = replace(source, other_files=tuple(file for file in source.other_files if file != CARD_FILE))
    check_folders(source, {RECORD_FILE, *texts})
    contents = contents_of(source, layouts, texts)
    record = CheckpointRecord(
        fp8pad_version=__version__,
        policy=plan.policy,
        tensors=plan.tensors,
        config_edits=plan.config_edits,
        base_source=plan.base_source,
        originals=originals,
        files=contents.files,
    )
    _check_readable(record, texts)
    return replace(contents, record=record)


def record_with(contents: Contents, hashes: Mapping[str, Hashes]) -> CheckpointRecord | None:
    """Return the record, with the hashes of all files if `hashes` has any; those of text files are computed here."""
    record = contents.record
    if record is None or not hashes:
        return record
    known = dict(hashes)
    for file, text in contents.texts.items():
        before = record.originals[file] if file in record.originals else contents.source.text(file)
        known[file] = Hashes(text.sha256, text_sha256(before))
    files = {
        file: replace(sizes, sha256=known[file].sha256, source_sha256=known[file].source_sha256)
        for file, sizes in record.files.items()
    }
    return replace(record, files=files)


def check_folders(source: Checkpoint, written: Container[str]) -> None:
    """Raise `CheckpointError` if a folder of the source has the name of a file that is to be written."""
    for file in source.other_files:
        if (folder := file.partition("/")[0]) in written:
            raise CheckpointError(f"{source}: {folder} is a folder, where fp8pad has to write a file")


def _check_readable(record: CheckpointRecord, texts: Iterable[str]) -> None:
    """Raise `PlanError` for a text that could not be read again: too long with all hashes, or too many lists in it."""
    sizes = {file: record.files[file].size for file in texts}
    sizes[RECORD_FILE] = len(record.files) * len(f',\n   "sha256": "{"0" * 64}",\n   "source_sha256": "{"0" * 64}"')

    def counted_parts() -> Iterator[str]:
        for part in record.text_parts():
            sizes[RECORD_FILE] += len(part.encode())
            yield part

    try:
        check_density(counted_parts())  # originals have brackets of their own
    except ValueError as error:
        raise PlanError(f"{RECORD_FILE}: could not be read back: {error}") from error
    for file, size in sizes.items():
        if size > (limit := max_text_bytes(file)):
            raise PlanError(f"{file}: would have {size} bytes, more than the {limit} that fp8pad reads")


def _check_complete(source: Checkpoint, plan: CheckpointPlan, layouts: Iterable[ShardLayout]) -> None:
    if sum(len(layout.tensors) for layout in layouts) < len(plan.tensors):
        names = {tensor.name for tensor in source.tensors}
        raise PlanError(f"{min(plan.tensors.keys() - names)}: is in the plan, but in no shard of {source}")


def _index(source: Checkpoint, plan: CheckpointPlan, layouts: Iterable[ShardLayout]) -> str:
    before = source.text(INDEX_FILE)
    return index_text(before, sum(layout.data_bytes() for layout in layouts)) if plan.tensors else before


def _unusual_index(source: Checkpoint) -> dict[str, str]:
    """Return the index of the source if unpadding could not reconstruct it."""
    before = source.text(INDEX_FILE) if source.has_index else None
    return {} if before is None or states_total(before, source.tensor_bytes) else {INDEX_FILE: before}


def _config(source: Checkpoint, plan: CheckpointPlan) -> str:
    before = source.text(CONFIG_FILE)
    if not plan.edits_config:
        return before
    quantization = QuantizationRecord(plan.modules, plan.base or {}, __version__) if plan.needs_runtime else None
    edited = edited_config(source.configs[CONFIG_FILE], plan.config_edits, quantization, plan.base_source)
    if quantization:  # nested inside `base`, the original config may be too deep to be read
        nested = edited_config(source.configs[CONFIG_FILE], (), replace(quantization, modules={}), plan.base_source)
        parse_object(f"{CONFIG_FILE}, as it would be written", json.dumps(nested))
    return dumps_like(before, edited, CONFIG_FILE)


def _unusual_headers(source: Checkpoint, layouts: Iterable[ShardLayout]) -> Iterator[tuple[str, str]]:
    """Yield the headers of shards that unpadding would not reproduce byte for byte."""
    for layout in layouts:
        if not layout.is_untouched:
            shapes = {tensor.name: tensor.shape for tensor in layout.header.tensors}
            text = source.header_text(layout.file)
            if logical_shard(layout.other()[0], shapes)[1] != framed(text):
                yield layout.file, text.decode()

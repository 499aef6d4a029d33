"""Records: what is written is read back unchanged, and anything else is refused."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8pad.errors import RecordError
from fp8pad.padded import AxisActions, PaddedTensor, Segments
from fp8pad.record import (
    BaseSource,
    CheckpointRecord,
    ConfigEdit,
    FileRecord,
    Policy,
    _ShardRecord,
    _ShardTensor,
    parse_record,
    parse_shard_metadata,
    shard_metadata,
)

RECORD = CheckpointRecord(
    fp8pad_version="0.1.0",
    policy=Policy(128, 8, absorb=True, absorb_experts=True),
    tensors={
        "a.weight": PaddedTensor(
            (426, 136), (448, 144), 0, AxisActions("absorb", "pad"), Segments((213, 213), (224, 224))
        ),
        "b.weight": PaddedTensor(
            (4, 8, 426), (4, 8, 448), 0, AxisActions("aligned", "absorb"), Segments((426,), (448,), -1)
        ),
        "a.weight_scale": PaddedTensor((426, 1), (448, 1), 1, AxisActions("absorb", "aligned")),
    },
    config_edits=(ConfigEdit("config.json", "vision_config.intermediate_size", 3420, 3424),),
    base_source=BaseSource("hf_quant_config.json", None),
    originals={"config.json": '{"é": 1}\n'},
    files={"a.safetensors": FileRecord(10, 20, "ab" * 32, "cd" * 32), "README.md": FileRecord(1, 1)},
)


def test_the_record_is_written_as_it_is_specified() -> None:
    """Field by field, as literal JSON; empty optional fields are omitted."""
    document = json.loads("".join(RECORD.text_parts()))
    assert list(document) == [
        "format_version",
        "fp8pad_version",
        "policy",
        "tensors",
        "config_edits",
        "base_source",
        "originals",
        "files",
    ]
    assert document["policy"] == {
        "alignment": 128,
        "tensor_parallel_size": 8,
        "absorb": True,
        "absorb_experts": True,
    }
    assert document["tensors"]["a.weight"] == {
        "logical_shape": [426, 136],
        "padded_shape": [448, 144],
        "fill": 0,
        "axes": {"n": "absorb", "k": "pad"},
        "segments": {"logical": [213, 213], "padded": [224, 224]},
    }
    assert document["tensors"]["a.weight_scale"]["fill"] == 1
    assert document["base_source"] == {"file": "hf_quant_config.json", "key": None}
    assert document["files"] == {
        "a.safetensors": {"source_size": 10, "size": 20, "sha256": "ab" * 32, "source_sha256": "cd" * 32},
        "README.md": {"source_size": 1, "size": 1},
    }
    assert "é" in "".join(RECORD.text_parts())


def test_records_are_read_back_the_same() -> None:
    """That of a checkpoint, and that of a shard."""
    assert parse_record("".join(RECORD.text_parts())) == RECORD
    assert parse_shard_metadata(shard_metadata({"a": (2, 3), "b": ()}), "x") == {"a": (2, 3), "b": ()}


def test_a_record_may_be_of_little() -> None:
    """If only the config changed, there are no tensors."""
    record = CheckpointRecord("0.1.0", Policy(), {}, (), None, {}, {})
    assert parse_record("".join(record.text_parts())) == record


def test_optional_fields_are_left_out_where_they_say_nothing() -> None:
    """An older reader can read new records, and a newer one old records."""
    assert "skip" not in Policy().to_json()
    policy = Policy(skip=("lm_head", "*.router"))
    document = json.loads("".join(replace(RECORD, policy=policy).text_parts()))
    assert document["policy"]["skip"] == ["lm_head", "*.router"]
    assert parse_record(json.dumps(document)).policy == policy


def test_every_field_is_written() -> None:
    """One that has a default and is left out of what is written would be read back as its default."""
    record = replace(RECORD, policy=replace(RECORD.policy, skip=("*.a",)))
    document = json.loads("".join(record.text_parts()))
    written: list[tuple[type, dict[str, Any]]] = [
        (CheckpointRecord, document),
        (Policy, document["policy"]),
        (PaddedTensor, document["tensors"]["b.weight"]),
        (AxisActions, document["tensors"]["b.weight"]["axes"]),
        (Segments, document["tensors"]["b.weight"]["segments"]),
        (ConfigEdit, document["config_edits"][0]),
        (BaseSource, document["base_source"]),
        (FileRecord, document["files"]["a.safetensors"]),
        (_ShardRecord, shard := json.loads(shard_metadata({"a": (1, 2)}))),
        (_ShardTensor, shard["tensors"]["a"]),
    ]
    for kind, entries in written:
        assert entries.keys() - {"format_version"} == {field.name for field in fields(kind)}


A = "a.weight"


def nested(levels: int) -> Any:
    """Return nested lists."""
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (lambda d: d.pop("format_version"), "format_version: expected 1, got null"),
        (lambda d: d.update(format_version=2), "format_version: expected 1, got 2"),
        (lambda d: d.update(format_version=True), "format_version: expected 1, got true"),
        (lambda d: d.update(format_version=1.0), "format_version: expected 1, got 1.0"),
        (lambda d: d.pop("fp8pad_version"), "fp8pad_version: expected str"),
        (lambda d: d.pop("policy"), "policy: expected an object"),
        (lambda d: d["policy"].update(alignment=17), "alignment: expected one of"),
        (lambda d: d["policy"].update(alignment=True), "alignment: expected one of"),
        (lambda d: d["policy"].update(absorb=1), "absorb: expected bool"),
        (lambda d: d["policy"].update(skip="a"), "skip: expected a list"),
        (lambda d: d["policy"].update(skip=[1]), "skip[0]: expected str"),
        (lambda d: d["policy"].update(tensor_parallel_size=-1), "tensor_parallel_size: expected 1 to 1024, got -1"),
        (lambda d: d["policy"].update(tensor_parallel_size=0), "tensor_parallel_size: expected 1 to 1024, got 0"),
        (lambda d: d["policy"].update(tensor_parallel_size=1025), "tensor_parallel_size: expected 1 to 1024, got 1025"),
        (lambda d: d["originals"].update({"config.json": "\ud800"}), "surrogates not allowed"),
        (lambda d: d.update(config_edits=nested(99)), "config_edits"),
        (lambda d: d.update(extra=nested(100)), "expected at most 100 levels"),
        (lambda d: d["policy"].update(tensor_parallel_size=True), "tensor_parallel_size: expected int"),
        (lambda d: d.update(tensors=[]), "tensors"),
        (lambda d: d["tensors"].update({A: 1}), f"{A}: expected an object"),
        (
            lambda d: d["tensors"][A].update(logical_shape=[426, -1]),
            "[1]: expected a positive size, got -1",
        ),
        (lambda d: d["tensors"][A].update(logical_shape=[426, 1.0]), "logical_shape[1]: expected int, got 1.0"),
        (lambda d: d["tensors"][A].update(logical_shape=[426]), "does not fit into its padded"),
        (lambda d: d["tensors"][A].update(padded_shape=[400, 144]), "does not fit into its padded"),
        (lambda d: d["tensors"][A].update(fill=2), "fill: expected one of"),
        (lambda d: d["tensors"][A].update(fill=False), "fill: expected one of"),
        (lambda d: d["tensors"][A].update(fill=0.0), "fill: expected one of"),
        (lambda d: d["tensors"][A]["axes"].update(n="padded"), "n: expected one of"),
        (lambda d: d["tensors"][A].update(segments=3), "segments: expected an object"),
        (lambda d: d["tensors"][A]["segments"].update(logical=[213]), "does not fit"),
        (lambda d: d["tensors"][A]["segments"].update(logical=[213, 212]), "do not add up"),
        (lambda d: d["tensors"][A]["segments"].update(axis=-1), "do not add up"),
        (lambda d: d["tensors"][A]["segments"].update(axis=0), "do not add up"),
        (lambda d: d["tensors"][A]["segments"].update(axis=7), "do not add up"),
        (lambda d: d["tensors"][A].update(logical_shape=[426, 0]), "logical_shape[1]: expected a positive size, got 0"),
        (lambda d: d["tensors"][A].update(padded_shape=[2**50 + 1, 0]), "padded_shape[1]: expected a positive size"),
        (lambda d: d["tensors"][A].update(padded_shape=[10**400, 1]), "padded_shape[0]: expected a positive size"),
        (lambda d: d["tensors"][A]["segments"].update(logical=[426, 0]), "segments: logical[1]: expected a positive"),
        (
            lambda d: d["tensors"][A].update(segments={"logical": [1] * 5000, "padded": [1] * 5000}),
            "segments: expected at most 4096, got 5000",
        ),
        (lambda d: d.update(config_edits={}), "config_edits"),
        (lambda d: d["config_edits"][0].pop("key"), "key: expected str"),
        (lambda d: d.update(base_source="config.json"), "base_source: expected an object"),
        (lambda d: d.update(originals={"config.json": {}}), "originals"),
        (lambda d: d["files"]["README.md"].pop("size"), "size: expected int"),
        (lambda d: d["files"]["README.md"].update(sha256=1), "sha256: expected str"),
        (lambda d: d["files"]["README.md"].update(sha256="AB" * 32), 'expected a SHA-256, got "ABAB'),
    ],
)
def test_what_is_not_as_specified_is_refused(damage: Callable[[Any], None], place: str) -> None:
    """The error names the place, what is expected there and what was found."""
    document = json.loads("".join(RECORD.text_parts()))
    damage(document)
    with pytest.raises(RecordError) as caught:
        parse_record(json.dumps(document))
    assert str(caught.value).startswith("fp8pad.json")
    assert place in str(caught.value)


def test_segments_of_what_is_no_stack_of_matrices_are_refused() -> None:
    """A shape that cannot be divided into segments is an error of the record too."""
    document = json.loads("".join(RECORD.text_parts()))
    document["tensors"][A].update(logical_shape=[1, 2, 3, 4], padded_shape=[1, 2, 3, 4])
    with pytest.raises(RecordError):
        parse_record(json.dumps(document))


@pytest.mark.parametrize(
    "text", ["", "garbage", "[]", '{"a":' * 100_000, '{"format_version": 1}', '{"format_version": 9}']
)
def test_shard_metadata_that_is_not_as_specified_is_refused(text: str) -> None:
    """The error names the shard."""
    with pytest.raises(RecordError, match=r"^x\.safetensors: __metadata__\.fp8pad"):
        parse_shard_metadata(text, "x.safetensors")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=9), x, max_size=4),
        max_leaves=12,
    )
)
def test_no_json_raises_anything_but_a_record_error(value: Any) -> None:
    """At any place in a record."""
    honest = json.loads("".join(RECORD.text_parts()))
    for key in honest:
        with suppress(RecordError):
            parse_record(json.dumps(honest | {key: value}))

"""The quantization config of a padded checkpoint: written, read back unchanged, and refused if it is anything else."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from fp8pad.errors import RecordError
from fp8pad.quantization_config import (
    ModuleRecord,
    QuantizationRecord,
    parse_quantization_config,
    plugin_config,
    quantization_method,
)

QUANTIZATION = QuantizationRecord(
    {"a": ModuleRecord((213, 136), (224, 144), (16, 16))}, {"quant_method": "fp8"}, "0.1.0"
)


def test_it_is_read_back_the_same() -> None:
    """With what older readers of the format require."""
    written = json.loads(json.dumps(QUANTIZATION.to_json()))
    assert written == {
        "quant_method": "fp8pad",
        "format_version": 1,
        "fp8pad_version": "0.1.0",
        "modules": {"a": {"logical_shape": [213, 136], "padded_shape": [224, 144], "alignment": [16, 16]}},
        "base": {"quant_method": "fp8"},
    }
    assert parse_quantization_config(written) == QUANTIZATION


def test_the_inner_axis_is_left_out_where_there_is_none() -> None:
    """An older reader can read new configs, and a newer one old configs."""
    modules = {"a": ModuleRecord((213, 136), (224, 144), (16, 16), "n"), "b": ModuleRecord((1, 1), (1, 1), (1, 1))}
    written = replace(QUANTIZATION, modules=modules).to_json()
    assert written["modules"]["a"]["inner"] == "n"
    assert "inner" not in written["modules"]["b"]
    assert parse_quantization_config(json.loads(json.dumps(written))).modules == modules
    assert [module.is_padded for module in modules.values()] == [True, False]
    for kind, entries in ((QuantizationRecord, written), (ModuleRecord, written["modules"]["a"])):
        assert entries.keys() - {"quant_method", "format_version"} == {field.name for field in fields(kind)}


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (lambda d: d.pop("modules"), "modules"),
        (lambda d: d.update(base=None), "base: expected an object, got null"),
        (lambda d: d["modules"]["a"].update(alignment=[0, 16]), "alignment[0]: expected a positive size, got 0"),
        (lambda d: d["modules"]["a"].update(padded_shape=[2**50, 0]), "padded_shape[1]: expected a positive size"),
        (lambda d: d["modules"]["a"].update(inner="m"), "inner: expected one of ['n', 'k'], got \"m\""),
        (lambda d: d["modules"]["a"].update(logical_shape=[1, 2, 3]), "logical_shape: expected a list of 2, got [1"),
        (lambda d: d["modules"]["a"].update(padded_shape=[1, 1]), "does not fit into its padded"),
        (lambda d: d.update(format_version=0), "format_version: expected 1, got 0"),
    ],
)
def test_a_quantization_config_that_is_not_as_specified_is_refused(damage: Callable[[Any], None], place: str) -> None:
    """The runtime must not guess."""
    document = json.loads(json.dumps(QUANTIZATION.to_json()))
    damage(document)
    with pytest.raises(RecordError, match=r"config\.json: quantization_config") as caught:
        parse_quantization_config(document)
    assert place in str(caught.value)


@pytest.mark.parametrize("document", [None, [], "fp8pad", 7])
def test_a_quantization_config_that_is_no_object_is_refused(document: object) -> None:
    """Any other type is refused."""
    with pytest.raises(RecordError, match="expected an object"):
        parse_quantization_config(document)


def test_the_plugins_part_is_found_wherever_it_is() -> None:
    """At the top, or inside the config of the text model; other methods are not the plugin's."""
    ours = {"quant_method": "fp8pad", "modules": {}}
    assert plugin_config(ours) is ours
    assert plugin_config({"a": 1, "text_config": {"b": [], "quantization_config": ours}}) is ours
    assert plugin_config({"quantization_config": {"quant_method": "fp8"}, "x": [ours]}) is None


@pytest.mark.parametrize(
    ("document", "method"),
    [
        ({"quant_method": "FP8"}, "fp8"),
        ({"quant_method": "compressed_tensors", "config_groups": {}}, "compressed-tensors"),
        ({"quant_method": 8, "quant_algo": "FP8"}, "modelopt"),
        ({"quantization": {}}, "modelopt"),
        ({"config_groups": {}}, "compressed-tensors"),
        ({"bits": 8}, None),
    ],
)
def test_the_method_is_named_as_vllm_names_it(document: dict[str, object], method: str | None) -> None:
    """ModelOpt's own files and early compressed-tensors configs do not name it."""
    assert quantization_method(document) == method

"""Reading quantization configs: where they are, and what they say about the weights."""

import warnings
from time import process_time

import pytest

from fp8pad.errors import ConfigError
from fp8pad.planning.quantization import Quantization, find_quantization, is_weight_only, record_key
from fp8pad.planning.weight_formats import OTHER_FP8
from fp8pad.record import BaseSource, Json
from fp8pad.scales import Granularity, PerBlock, PerChannel, PerTensor

FP8_CHANNEL = {"type": "float", "num_bits": 8, "strategy": "channel"}
FP8_BLOCK = {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 64]}
INT8 = {"type": "int", "num_bits": 8, "strategy": "channel"}
MX = {"type": "float", "num_bits": 8, "strategy": "group", "group_size": 32}


def compressed(*weights: Json) -> dict[str, object]:
    """Return a compressed-tensors config with one group for each entry."""
    groups = {f"group_{index}": {"targets": ["Linear"], "weights": weight} for index, weight in enumerate(weights)}
    return {"quant_method": "compressed-tensors", "config_groups": groups}


def found(document: Json) -> Quantization:
    """Return the quantization of a config.json that contains `document`."""
    quantization = find_quantization({"config.json": {"quantization_config": document}})
    assert quantization is not None
    return quantization


QUARK_CHANNEL = {"dtype": "fp8_e4m3", "qscheme": "per_channel"}
QUARK_BLOCK = {"dtype": "fp8_e4m3", "qscheme": "per_block", "block_size": [64, 128]}
MIXED = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
LAYERS = {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "NVFP4", "group_size": 16}}


@pytest.mark.parametrize(
    ("document", "granularities", "has_other_fp8", "others"),
    [
        (compressed(FP8_CHANNEL), {PerChannel()}, False, []),
        (compressed(FP8_CHANNEL, FP8_BLOCK), {PerChannel(), PerBlock(128, 64)}, False, []),
        (compressed(FP8_CHANNEL, INT8), {PerChannel()}, False, ["8-bit int"]),
        (compressed(MX), set(), True, []),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, {PerBlock(128, 128)}, False, []),
        ({"quant_method": "fp8", "activation_scheme": "static"}, {PerTensor(), PerChannel()}, False, []),
        ({"quant_method": "fbgemm_fp8"}, {PerChannel()}, False, []),
        ({"quant_method": "FP8"}, {PerTensor(), PerChannel()}, False, []),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, {PerTensor()}, False, []),
        ({"producer": {}, "quantization": {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}}, {PerChannel()}, False, []),
        ({"quant_method": "modelopt", "quant_algo": "fp8_pb_wo"}, {PerBlock(128, 128)}, False, []),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, set(), False, ["NVFP4"]),
        ({"quant_method": "modelopt_mxfp8", "quant_algo": "MXFP8"}, set(), True, []),
        (MIXED, {PerTensor(), PerChannel(), PerBlock(128, 128)}, True, []),
        (MIXED | {"quantized_layers": LAYERS}, {PerTensor()}, True, ["NVFP4"]),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {**QUARK_CHANNEL, "ch_axis": 0}},
            },
            {PerChannel()},
            False,
            [],
        ),
        (
            {"quant_method": "quark", "global_quant_config": {"weight": {**QUARK_CHANNEL, "ch_axis": 1}}},
            set(),
            True,
            [],
        ),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {"dtype": "fp4", "qscheme": "per_group"}},
                "layer_quant_config": {"*self_attn*": {"weight": QUARK_BLOCK}},
            },
            {PerBlock(64, 128)},
            False,
            ["fp4"],
        ),
        (
            {"quant_method": "auto-round", "data_type": "fp", "bits": 8, "group_size": [128, 128]},
            {PerBlock(128, 128)},
            False,
            [],
        ),
        ({"quant_method": "auto-round", "data_type": "fp8", "bits": 8, "group_size": -1}, {PerChannel()}, False, []),
        ({"quant_method": "auto-round", "data_type": "fp", "bits": 8, "group_size": 0}, {PerTensor()}, False, []),
        ({"quant_method": "auto-round", "data_type": "fp", "bits": 8, "group_size": 32}, set(), True, []),
        ({"quant_method": "auto-round", "data_type": "int", "bits": 4, "group_size": 128}, set(), False, ["4-bit int"]),
        ({"quant_method": "gptq", "bits": 4}, set(), False, ["4-bit gptq"]),
        ({"quant_method": "torchao"}, set(), True, []),
    ],
)
def test_formats_of_each_method(
    document: Json, granularities: set[Granularity], has_other_fp8: bool, others: list[str]
) -> None:
    """Each tool's config is read as the granularities and other formats that it allows."""
    quantization = found(document)
    assert (set(quantization.granularities), OTHER_FP8 in quantization.formats) == (granularities, has_other_fp8)
    assert list(quantization.others) == others


FBGEMM = {"quant_method": "fbgemm_fp8"}
MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
MODELOPT_MIXED = {"producer": {"name": "modelopt"}, "quantization": {**MIXED, "quantized_layers": LAYERS}}


@pytest.mark.parametrize(
    ("configs", "source"),
    [
        (
            {"config.json": {"quantization_config": {"quant_method": "fbgemm_fp8"}}},
            ("config.json", "quantization_config"),
        ),
        (
            {"config.json": {"text_config": {"quantization_config": {"quant_method": "fbgemm_fp8"}}}},
            ("config.json", "text_config.quantization_config"),
        ),
        ({"config.json": {"compression_config": compressed(FP8_CHANNEL)}}, ("config.json", "compression_config")),
        (
            {"config.json": {"text_config": {"compression_config": compressed(FP8_CHANNEL)}}},
            ("config.json", "text_config.compression_config"),
        ),
        # Two at once: vLLM's choice counts.
        (
            {"config.json": {"text_config": {"quantization_config": MIXED}, "quantization_config": FBGEMM}},
            ("config.json", "quantization_config"),
        ),
        (
            {"config.json": {"text_config": {"quantization_config": FBGEMM}, "compression_config": compressed()}},
            ("config.json", "text_config.quantization_config"),
        ),
        (
            {"config.json": {"quantization_config": FBGEMM}, "hf_quant_config.json": MODELOPT},
            ("config.json", "quantization_config"),
        ),
        (
            {"config.json": {"text_config": {"quantization_config": FBGEMM}}, "hf_quant_config.json": MODELOPT},
            ("hf_quant_config.json", None),
        ),
        (
            {"config.json": {"quantization_config": None}, "hf_quant_config.json": MODELOPT},
            ("hf_quant_config.json", None),
        ),
        (
            {"config.json": {"quantization_config": MIXED}, "hf_quant_config.json": MODELOPT_MIXED},
            ("hf_quant_config.json", None),
        ),
        (
            {
                "config.json": {"quantization_config": MIXED | {"quantized_layers": LAYERS}},
                "hf_quant_config.json": MODELOPT_MIXED,
            },
            ("config.json", "quantization_config"),
        ),
        (
            {"config.json": {}, "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}}},
            ("hf_quant_config.json", None),
        ),
    ],
)
def test_it_is_found_wherever_tools_put_it(configs: dict[str, Json], source: tuple[str, str | None]) -> None:
    """The place where the config was is part of the result."""
    quantization = find_quantization(configs)
    assert quantization is not None
    assert quantization.source == BaseSource(*source)


@pytest.mark.parametrize(
    ("config", "source", "key"),
    [
        ({"quantization_config": FBGEMM}, ("config.json", "quantization_config"), "quantization_config"),
        ({"compression_config": FBGEMM}, ("config.json", "compression_config"), "compression_config"),
        ({}, ("hf_quant_config.json", None), "quantization_config"),
        ({"text_config": {"quantization_config": FBGEMM}}, ("hf_quant_config.json", None), "quantization_config"),
        (
            {"text_config": {"quantization_config": FBGEMM}, "compression_config": FBGEMM},
            ("config.json", "text_config.quantization_config"),
            "quantization_config",
        ),
    ],
)
def test_the_record_goes_where_an_engine_looks_first(config: Json, source: tuple[str, str | None], key: str) -> None:
    """It replaces the original, unless engines would read another place first."""
    assert record_key(config, BaseSource(*source)) == key


@pytest.mark.parametrize(
    ("document", "notes"),
    [
        ({"quant_method": "fbgemm_fp8", "ignore": ["re:.*gate$", "lm_head", 7]}, []),
        (compressed(FP8_CHANNEL) | {"ignore": ["re:.*(gate"]}, ["re:.*(gate"]),
        (compressed(FP8_CHANNEL) | {"ignore": ["re:a{9999999999}", "re:" + "(" * 1500]}, ["re:a{9", "re:(((("]),
        (compressed(FP8_CHANNEL) | {"ignore": "re:("}, []),
        ({"quant_method": "quark", "exclude": ["re:*"]}, ["re:*"]),
        (
            {"config_groups": {"g": {"targets": ["re:["], "weights": FP8_CHANNEL}}},
            ["is read as compressed-tensors", "re:["],
        ),
        (MODELOPT, ["is read as modelopt"]),
        ({"quant_method": "fp8", "config_groups": {"a": "x", "b": None, "c": {"targets": ["re:["]}}}, ["re:["]),
    ],
)
def test_what_is_strange_is_noted(document: Json, notes: list[str]) -> None:
    """An unnamed method, and patterns that do not compile: engines differ in how they treat them."""
    given = found(document).notes
    assert len(given) == len(notes)
    assert all(expected in note for expected, note in zip(notes, given, strict=True))


def test_no_pattern_takes_long() -> None:
    """Patterns that take forever to match, or to compile, are only inspected."""
    slow = ["(a|a)*$", "(x+x+)+y", "(?i)" + "[\0-\U0010ffff]" * 60, "(a{0,99}){0,99}" * 50, "[\u0100-\uffff]"]
    patterns = [f"re:{pattern}" for pattern in slow * 2000]
    started = process_time()
    assert found(compressed(FP8_CHANNEL) | {"ignore": patterns}).notes == ()
    assert process_time() - started < 10


def test_a_pattern_that_python_warns_of_prints_nothing() -> None:
    """The warning would name a line of our code."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(compressed(FP8_CHANNEL) | {"ignore": ["re:[[a]b||x]"]}).notes == ()


def test_no_quantization_config_is_none() -> None:
    """A checkpoint that is not quantized has no quantization."""
    assert find_quantization({"config.json": {"model_type": "llama"}}) is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"quant_method": "foo"}, "quant_method: expected one of .* got 'foo'"),
        ({"bits": 8}, "quant_method: expected a method's name, got null"),
        ({"quant_method": 8}, "quant_method: expected a method's name, got 8"),
        ({"quant_method": None, "quant_algo": "FP8"}, "quant_method: expected a method's name, got null"),
        ([], "quantization_config: expected an object, got list"),
        ({"quant_method": "fp8", "weight_block_size": [128.0, 128]}, r"two block sizes, got \[128.0, 128\]"),
        ({"quant_method": "fp8", "weight_block_size": [128, True]}, r"two block sizes, got \[128, true\]"),
        ({"quant_method": "fp8", "weight_block_size": "128x"}, "two block sizes, got"),
        ({"quant_method": "auto-round", "data_type": "fp", "group_size": [128]}, r"two block sizes, got \[128\]"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, r"block sizes from 1 to 65536, got \[0, 128\]"),
        ({"quant_method": "fp8", "weight_block_size": [2**70, 128]}, r"block sizes from 1 to 65536, got \[1180"),
        ({"quant_method": "fp8", "weight_block_size": f"{'9' * 5000}x128"}, r"two block sizes, got \"999"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"two block sizes, got \[128\]"),
        ({"quant_method": "fp8", "weight_block_size": ["a", "b"]}, "two block sizes"),
        ({"quant_method": "fp8", "weight_block_size": [float("inf"), 128]}, "two block sizes"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "config_groups: expected an object, got list"),
    ],
)
def test_malformed_configs_are_refused(document: Json, message: str) -> None:
    """A config that cannot be read gives one clear error that names the key."""
    with pytest.raises(ConfigError, match=message):
        found(document)


@pytest.mark.parametrize(
    ("locations", "rotates"),
    [
        (["weight_output", "weight_input"], False),  # SpinQuant's R1 and R2, part of the weights
        (["q_attn", "k_cache"], False),  # R3, inside attention
        (["input", "weight_input"], True),  # R4
        (["weight_output", "output"], True),  # QuIP's u
    ],
)
def test_only_transforms_of_a_layers_activations_rotate_while_the_model_runs(
    locations: list[str], rotates: bool
) -> None:
    """compressed-tensors names the place of each transform; those of weights are done when the checkpoint is made."""
    steps = [{"location": location, "targets": ["Linear"]} for location in locations]
    transforms = {"config_groups": {"R": {"type": "hadamard", "apply": steps}}}
    assert found(compressed(FP8_CHANNEL) | {"transform_config": transforms}).rotates == rotates


@pytest.mark.parametrize(
    ("transforms", "rotates"),
    [
        (None, False),
        ([], False),
        ({"config_groups": {}}, False),
        ({"config_groups": [1]}, True),
        ({"config_groups": {"R": 1}}, True),
        ({"config_groups": {"R": {"apply": ["input"]}}}, True),
        ({"config_groups": {"R": {"apply": [{"location": "elsewhere"}]}}}, True),
    ],
)
def test_transforms_that_cannot_be_read_count_as_rotations(transforms: object, rotates: bool) -> None:
    """Padding what rotates would give wrong answers; without transforms nothing rotates."""
    assert found(compressed(FP8_CHANNEL) | {"transform_config": transforms}).rotates == rotates


@pytest.mark.parametrize(
    ("document", "weight_only"),
    [
        (compressed(FP8_CHANNEL), True),
        ({"quant_method": "quark", "global_quant_config": {"weight": QUARK_CHANNEL, "input_tensors": None}}, True),
        ({"quant_method": "quark", "global_quant_config": {"weight": QUARK_CHANNEL, "input_tensors": {}}}, True),
        (
            {"quant_method": "quark", "global_quant_config": {"weight": QUARK_CHANNEL, "input_tensors": QUARK_CHANNEL}},
            False,
        ),
        (
            {
                "quant_method": "quark",
                "layer_quant_config": {"*": {"weight": QUARK_CHANNEL, "input_tensors": {"a": 1}}},
            },
            False,
        ),
        ({"quant_method": "quark", "layer_type_quant_config": {"Linear": {"weight": QUARK_CHANNEL}}}, True),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {"dtype": "int4"}},
                "layer_quant_config": {"*": {"weight": [QUARK_CHANNEL], "input_tensors": QUARK_CHANNEL}},
            },
            False,
        ),
        ({"quant_method": "quark"}, False),
        ({"quant_method": "fp8"}, False),
    ],
)
def test_a_config_without_settings_for_inputs_is_weight_only(document: Json, weight_only: bool) -> None:
    """compressed-tensors and Quark say how activations are quantized, if they are; other methods say it otherwise."""
    assert is_weight_only(document) == weight_only

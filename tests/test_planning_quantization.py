"""Reading quantization configs: where they stand, and which schemes they allow."""

import pytest

from fp8pad.errors import ConfigError
from fp8pad.planning.quantization import Quantization, find_quantization
from fp8pad.record import BaseSource, Json
from fp8pad.scales import Granularity, PerBlock, PerChannel, PerTensor

FP8_CHANNEL = {"type": "float", "num_bits": 8, "strategy": "channel"}
FP8_BLOCK = {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 64]}
INT8 = {"type": "int", "num_bits": 8, "strategy": "channel"}
MX = {"type": "float", "num_bits": 8, "strategy": "group", "group_size": 32}


def compressed(*weights: Json) -> dict[str, object]:
    """A compressed-tensors config with one group for each entry."""
    groups = {f"group_{index}": {"targets": ["Linear"], "weights": weight} for index, weight in enumerate(weights)}
    return {"quant_method": "compressed-tensors", "config_groups": groups}


def found(document: Json) -> Quantization:
    """The quantization of a config.json that carries `document`."""
    quantization = find_quantization({"config.json": {"quantization_config": document}})
    assert quantization is not None
    return quantization


@pytest.mark.parametrize(
    ("document", "granularities", "foreign"),
    [
        (compressed(FP8_CHANNEL), {PerChannel()}, False),
        (compressed(FP8_CHANNEL, FP8_BLOCK), {PerChannel(), PerBlock(128, 64)}, False),
        (compressed(FP8_CHANNEL, INT8), {PerChannel()}, True),
        (compressed(MX), set(), True),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, {PerBlock(128, 128)}, False),
        ({"quant_method": "fp8", "activation_scheme": "static"}, {PerTensor(), PerChannel()}, False),
        ({"quant_method": "fbgemm_fp8"}, {PerChannel()}, False),
        ({"quant_method": "FP8"}, {PerTensor(), PerChannel()}, False),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, {PerTensor()}, False),
        ({"producer": {}, "quantization": {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}}, {PerChannel()}, False),
        ({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, {PerBlock(128, 128)}, False),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, set(), True),
        (
            {
                "quant_method": "quark",
                "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_channel"}},
            },
            {PerChannel()},
            False,
        ),
        ({"quant_method": "gptq", "bits": 4}, set(), True),
    ],
)
def test_granularities_of_each_method(document: Json, granularities: set[Granularity], foreign: bool) -> None:
    """Each tool's config is read as the granularities and foreign layouts that it allows."""
    quantization = found(document)
    assert (set(quantization.granularities), quantization.foreign_layouts) == (granularities, foreign)


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
            {"config.json": {}, "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}}},
            ("hf_quant_config.json", None),
        ),
    ],
)
def test_it_is_found_wherever_tools_put_it(configs: dict[str, Json], source: tuple[str, str | None]) -> None:
    """The place where the config stood is part of what is found."""
    quantization = find_quantization(configs)
    assert quantization is not None
    assert quantization.source == BaseSource(*source)


def test_no_quantization_config_is_none() -> None:
    """A checkpoint that is not quantized has no quantization."""
    assert find_quantization({"config.json": {"model_type": "llama"}}) is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"quant_method": "foo"}, "quant_method: expected one of .* got 'foo'"),
        ({"bits": 8}, "quant_method: expected a method's name, got null"),
        ([], "quantization_config: expected an object, got list"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, r"two positive block sizes, got \[0, 128\]"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"two block sizes, got \[128\]"),
        ({"quant_method": "fp8", "weight_block_size": ["a", "b"]}, "two block sizes"),
        ({"quant_method": "fp8", "weight_block_size": [float("inf"), 128]}, "two block sizes"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "config_groups: expected an object, got list"),
    ],
)
def test_malformed_configs_are_refused(document: Json, message: str) -> None:
    """A config that cannot be read is one clear error that names the key."""
    with pytest.raises(ConfigError, match=message):
        found(document)

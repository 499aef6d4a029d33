"""The family files: what they cover, how they are read, and which malformed ones are refused with which message."""

import re
from importlib.resources import files

import pytest

from fp8pad.errors import PlanError
from fp8pad.planning.families import families, index_families, sections_of

MLP = """
model_types = ["toy"]
prefixes = ["model."]
[[mlp]]
size_key = "intermediate_size"
gate = "layers.{layer}.mlp.gate_proj"
up = "layers.{layer}.mlp.up_proj"
down = "layers.{layer}.mlp.down_proj"
activation = "silu"
"""


@pytest.mark.parametrize(
    "model_type",
    [
        "llama", "mistral", "qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "gemma2",
        "gemma3_text", "gemma3", "phi3", "opt", "gpt_bigcode", "starcoder2", "granite", "glm4", "glm4_moe",
        "deepseek_v2", "deepseek_v3", "qwen2_moe", "qwen3_moe", "qwen3_next", "mixtral", "nemotron", "nemotron_h",
        "falcon_h1", "bamba", "siglip_vision_model", "clip_vision_model", "whisper",
    ],
)  # fmt: skip
def test_the_family_is_known(model_type: str) -> None:
    """Every family that fp8pad promises has a file."""
    assert model_type in families()


def test_every_file_names_what_it_was_read_from() -> None:
    """A family file begins with a comment that names its source in transformers or vLLM."""
    for entry in files("fp8pad.planning.families").iterdir():
        if entry.name.endswith(".toml"):
            comment = re.match(r"(#.*\n)+", entry.read_text("utf-8"))
            assert comment, entry.name
            assert re.search(r"# (transformers|vLLM): \w", comment.group()), entry.name


def test_like_names_a_family_that_exists() -> None:
    """A section that borrows another family's description names one that has a file."""
    known = families()
    rules = [rule for family in known.values() for rule in family.section]
    nested = [rule for outer in rules for rule in outer.section]
    assert {rule.like for rule in rules + nested if rule.like} <= set(known)


def test_sections_have_their_own_config_and_prefixes() -> None:
    """Qwen2.5-VL's text and vision parts are found under their keys."""
    config = {"model_type": "qwen2_5_vl", "text_config": {"hidden_size": 8}, "vision_config": {"depth": 2}}
    whole, text, vision = sections_of(config)
    assert (whole.path, text.path, vision.path) == ("", "text_config", "vision_config")
    assert text.model_type == "qwen2_5_vl_text"
    assert "model.visual." in vision.prefixes
    assert vision.dotted("intermediate_size") == "vision_config.intermediate_size"
    assert text.mirrors == (("", config),)


def test_older_configs_keep_the_text_sizes_at_the_top() -> None:
    """Without text_config the whole config belongs to the text part, and there is no mirror."""
    config = {"model_type": "qwen2_5_vl", "intermediate_size": 18944}
    _, text = sections_of(config)
    assert (text.path, text.config, text.mirrors) == ("", config, ())
    assert text.dotted("intermediate_size") == "intermediate_size"


def test_sections_nest() -> None:
    """The thinker's text model is two sections deep, and so are its prefixes."""
    config = {
        "model_type": "qwen2_5_omni",
        "thinker_config": {"text_config": {}, "vision_config": {}, "audio_config": {}},
        "talker_config": {},
    }
    sections = {section.path: section for section in sections_of(config)}
    assert sections["thinker_config.text_config"].prefixes == ("thinker.model.",)
    assert sections["thinker_config.audio_config"].prefixes == ("thinker.audio_tower.",)
    assert sections["talker_config"].prefixes == ("talker.model.",)


def test_a_part_may_be_of_any_family() -> None:
    """LLaVA's parts are of the families that their own configs name; an unknown one has none."""
    config = {"model_type": "llava", "text_config": {"model_type": "qwen2"}, "vision_config": {"model_type": "blob"}}
    _, text, vision = sections_of(config)
    assert text.family is families()["qwen2"]
    assert (vision.model_type, vision.family) == ("blob", None)


def test_an_unknown_model_type_has_no_family() -> None:
    """A model type without a file gives one section without a family."""
    (section,) = sections_of({"model_type": "blob"})
    assert (section.model_type, section.family) == ("blob", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[[mlp]]", "[[mlp"), "toy.toml: not TOML: "),
        (("model_types", "model_type"), "toy.toml: unknown entries: model_type"),
        (('model_types = ["toy"]', ""), "toy.toml: model_types: expected a list, got null"),
        (('["toy"]', '"toy"'), 'toy.toml: model_types: expected a list, got "toy"'),
        (('size_key = "intermediate_size"', ""), "toy.toml: mlp[0]: expected either size_key or unabsorbable"),
        (('size_key = "intermediate_size"', "size_key = 3"), "toy.toml: mlp[0]: size_key: expected str, got 3"),
        (("down =", "donw ="), "toy.toml: mlp[0]: unknown entries: donw"),
        (("up =", "gate_up ="), "toy.toml: mlp[0]: expected gate and up, or gate_up, or up alone"),
        (('up = "layers.{layer}', 'up = "layers'), "toy.toml: mlp[0]: expected the same {number}s in all modules"),
        (("mlp.up_proj", "mlp.gate_proj"), "toy.toml: mlp[0]: expected different modules, got one named twice"),
        (("mlp.up_proj", "mlp.*_proj"), "toy.toml: mlp[0]: up: expected a dotted module name with {number}s, got"),
        (
            ('"silu"', '"expcos"'),
            "toy.toml: mlp[0]: activation: expected an activation that is known to be finite at 0",
        ),
        (('activation = "silu"', ""), "toy.toml: mlp[0]: expected activation_key, activation or both"),
        (('"silu"', '"silu"\nexpert = true'), "toy.toml: mlp[0]: unknown entries: expert"),
        (('"silu"', '"silu"\nexperts = 1'), "toy.toml: mlp[0]: experts: expected bool, got 1"),
        (('"silu"', '"silu"\n[[unabsorbable]]\nmodules = ["a"]'), "toy.toml: unabsorbable[0]: reason: expected str"),
        (
            (
                '"silu"',
                '"silu"\n[[section]]\nkeys = ["a"]\nprefixes = ["b"]\nlike = "c"\nsection = [{keys=[], prefixes=[]}]',
            ),
            "toy.toml: section[0]: expected either like or a description of its own",
        ),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(change: tuple[str, str], message: str) -> None:
    """Each mistake is one line that names the file, the table and the entry."""
    with pytest.raises(PlanError, match=f"^{re.escape(message)}") as error:
        index_families({"toy.toml": MLP.replace(*change)})
    assert "\n" not in str(error.value)


def test_the_whole_config_cannot_be_a_part_with_parts() -> None:
    """A section that refers to the whole model again would recurse forever."""
    known = index_families({"a.toml": 'model_types = ["a"]\n[[section]]\nkeys = [""]\nprefixes = [""]\nlike = "a"'})
    with pytest.raises(PlanError, match=r"^a: a section of the whole config cannot have sections of its own$"):
        sections_of({"model_type": "a"}, known)


def test_a_file_without_any_description_is_refused() -> None:
    """A model type alone describes nothing."""
    with pytest.raises(PlanError, match="at least one"):
        index_families({"toy.toml": 'model_types = ["toy"]'})


def test_two_files_cannot_claim_one_model_type() -> None:
    """The second of two files with one model type is refused."""
    with pytest.raises(PlanError, match=r"^b\.toml: model_types: toy is in another file too$"):
        index_families({"a.toml": MLP, "b.toml": MLP})

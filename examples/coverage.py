"""Write docs/coverage.md: which models are covered, and how sure that is, for every class in vLLM's registry.

    python examples/coverage.py path/to/site-packages/vllm

Needs transformers in the version that vLLM requires, which has the model types of most architectures. vLLM is not
imported: its registry is read as text.
"""

import argparse
import ast
import re
import runpy
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from fp8pad.planning.families import Description, families

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "coverage.md"
# Served in other tests or on GPUs: docs/support.md.
SERVED_ELSEWHERE = {
    "deepseek_v2", "gpt_bigcode", "llama", "opt", "qwen2_5_vl", "qwen2_moe", "qwen3_5", "qwen3_5_moe", "step3p5",
    "zamba2",
}  # fmt: skip
HEAD = """# Is my model covered, and how sure is that?

Any FP8 layer can be padded, whatever the model. A *covered* model has a family file, which says which config keys size
its MLPs, and which of its parts are divided among ranks in unusual ways. `--absorb` needs that, padding can then stay
inside MLPs, and `plan` knows more about tensor parallelism.

Look for the `model_type` in your config.json; for a multimodal model, for the one in its `text_config` too. A type that
is not on this page is padded, nothing of it is absorbed, and `plan` knows its layers by name alone.

| type | how sure | types |
|---|---|---|
| **bold** | **served**: vLLM served a checkpoint of this type before and after converting, as `plan` had said, and \
the answers were compared ([in which layouts](support.md#tiny-models-of-many-families)) | {served} |
| *italic* | **planned**: for the sizes of a published FP8 checkpoint, `plan` says the same as a separate reading of \
vLLM's code (`tests/published_models.py`, `examples/real_models.py`) | {planned} |
| plain | **read**: the family file was written from the code of vLLM {version} and of transformers. The test suite \
converts a generated checkpoint, verifies it, restores it byte for byte, and proves absorbing in exact arithmetic; \
types that transformers has are compared with models that it saves | {read} |

This page is made by `examples/coverage.py`, and names every class in vLLM's registry.

## Covered

| model types | classes in vLLM |
|---|---|"""
CANNOT = """
## Padded, but not absorbed

| model types | classes in vLLM | why |
|---|---|---|"""
REST = """
## The other classes in vLLM's registry
"""
OTHERS = {
    "nothing": "Nothing to absorb",
    "backend": "Any model that transformers has, covered if its model type is on this page",
    "draft": "Drafts for speculative decoding, covered in their model's checkpoint, or if their model type is here",
    "unknown": "Not known",
}

# Architectures inside checkpoints of other models (layers for multi-token prediction), or separate draft models.
DRAFT = re.compile(r"MTP|Eagle|EAGLE|DFlash|DSpark|XPress|LiLiCorr|ParseAux|AssistantModel|Peagle")
# Models without an MLP that has an inner size of its own.
NOTHING = {
    "MambaForCausalLM": "Mamba mixers alone",
    "Mamba2ForCausalLM": "Mamba mixers alone",
    "FalconMambaForCausalLM": "Mamba mixers alone",
    "ExtractHiddenStatesModel": "no weights of its own",
    "Terratorch": "models of other frameworks",
}
# Model types of architectures that are not in transformers, from published configs or vLLM's config classes.
MODEL_TYPES: Mapping[str, Sequence[str]] = {
    "AliceAIForCausalLM": ["alice_ai"], "BailingMoeForCausalLM": ["bailing_moe"],
    "BailingMoeV2ForCausalLM": ["bailing_moe_v2"], "BailingMoeV2_5ForCausalLM": ["bailing_moe_linear"],
    "BailingMoeV3ForCausalLM": ["bailing_hybrid"], "BailingMoeV3VLForConditionalGeneration": ["bailing_moe_v3_vl"],
    "BeamForCausalLM": ["beam"], "BeeForConditionalGeneration": ["bee"], "ChatGLMModel": ["chatglm"],
    "ChatGLMForConditionalGeneration": ["chatglm"], "ColQwen3": ["colqwen3"], "OpsColQwen3Model": ["ops_colqwen3"],
    "ColBERTModernBertModel": ["modernbert"], "DeciLMForCausalLM": ["nemotron-nas"],
    "DeepseekForCausalLM": ["deepseek"], "DeepseekOCR2ForCausalLM": ["deepseek_ocr2"],
    "DeepseekOCRForCausalLM": ["deepseek_ocr"], "DeepseekV41ForCausalLM": ["deepseek_v41"],
    "DeepseekVLV2ForCausalLM": ["deepseek_vl_v2"], "DomynEdgeForCausalLM": ["domyn_edge"],
    "DoryForCausalLM": ["dory"], "Dots3NoteForCausalLM": ["dots3_note"], "DotsOCRForCausalLM": ["dots_ocr"],
    "Eagle2_5_VLForConditionalGeneration": ["eagle_2_5_vl"], "ExaoneForCausalLM": ["exaone"],
    "ExaoneMoEForCausalLM": ["exaone_moe"], "FlintForCausalLM": ["flint"],
    "FunAudioChatForConditionalGeneration": ["funaudiochat"], "Glm5NextForCausalLM": ["glm5_next_text"],
    "H2OVLChatModel": ["h2ovl_chat"], "HF_ColBERT": ["bert"], "BertSpladeSparseEmbeddingModel": ["bert"],
    "BgeM3EmbeddingModel": ["xlm-roberta"], "InklingForCausalLM": ["inkling_model"],
    "InternLM2ForCausalLM": ["internlm2"], "InternLM2ForRewardModel": ["internlm2"],
    "InternLM3ForCausalLM": ["internlm3"], "InternS1ForConditionalGeneration": ["interns1"],
    "InternVLChatModel": ["internvl_chat"], "IQuestCoderForCausalLM": ["iquestcoder"],
    "IQuestLoopCoderForCausalLM": ["iquestloopcoder"], "IsaacForConditionalGeneration": ["isaac"],
    "K2HorizonForCausalLM": ["k2_horizon"], "KananaVForConditionalGeneration": ["kanana-1.5-v"],
    "KeyeForConditionalGeneration": ["Keye"], "KeyeVL1_5ForConditionalGeneration": ["KeyeVL1_5"],
    "KimiK25ForConditionalGeneration": ["kimi_k25"], "KimiK3ForConditionalGeneration": ["kimi_k3"],
    "KimiVLForConditionalGeneration": ["kimi_vl"], "LightOnOCRForConditionalGeneration": ["lighton_ocr"],
    "LLaMAForCausalLM": ["llama"], "LlamaBidirectionalModel": ["llama"],
    "LlamaBidirectionalForSequenceClassification": ["llama"], "Llama_Nemotron_Nano_VL": ["Llama_Nemotron_Nano_VL"],
    "LlavaOnevision2ForConditionalGeneration": ["llava_onevision2"],
    "LongcatFlashNgramForCausalLM": ["longcat_flash_ngram"], "MiDashengLMModel": ["midashenglm"],
    "MiMoForCausalLM": ["mimo"], "MiMoV2ForCausalLM": ["mimo_v2"], "MiniCPMForCausalLM": ["minicpm"],
    "MiniCPMO": ["minicpmo"], "MiniCPMV": ["minicpmv"], "MiniMaxM3SparseForCausalLM": ["minimax_m3_text"],
    "MistralLarge3ForCausalLM": ["deepseek_v3"], "MoonshotKimiaForCausalLM": ["kimi_audio"],
    "MossAudioModel": ["moss_audio"], "MossTranscribeDiarizeForConditionalGeneration": ["moss_transcribe_diarize"],
    "MuseGlimmerForCausalLM": ["muse_glimmer"], "MuseSparkForConditionalGeneration": ["muse_spark_text"],
    "NanbeigeForCausalLM": ["nanbeige"], "NemotronHPuzzleForCausalLM": ["nemotron_h"],
    "NemotronH_Nano_VL_V2": ["NemotronH_Nano_VL_V2"], "NVLM_D": ["NVLM_D"],
    "NemotronH_Nano_Omni_Reasoning_V3": ["nemotron_h_omni"],
    "OpenCUAForConditionalGeneration": ["opencua"],
    "OpenVLAForActionPrediction": ["openvla"], "OrionForCausalLM": ["orion"], "Ovis": ["ovis"],
    "Ovis2_5": ["ovis2_5"], "Ovis2_6ForCausalLM": ["ovis2_6"], "Ovis2_6_MoeForCausalLM": ["ovis2_6_moe"],
    "PanguEmbeddedForCausalLM": ["PanguEmbedded"], "PanguProMoEV2ForCausalLM": ["PanguProMoE"],
    "PanguUltraMoEForCausalLM": ["pangu_ultra_moe"], "Param2MoEForCausalLM": ["param2moe"],
    "Phi3VForCausalLM": ["phi3_v"], "Phi4ForCausalLMV": ["phi4-siglip"], "PhiMoEForCausalLM": ["phimoe"],
    "PixtralForConditionalGeneration": ["llava"], "Plamo3ForCausalLM": ["plamo3"],
    "Qwen2ForProcessRewardModel": ["qwen2"], "Qwen2ForRewardModel": ["qwen2"], "Qwen2_5OmniModel": ["qwen2_5_omni"],
    "Qwen3ASRRealtimeGeneration": ["qwen3_asr"], "Qwen3ASRForcedAlignerForTokenClassification": ["qwen3_asr"],
    "Qwen3VLNemotronEmbedModel": ["qwen3_vl_nemotron_embed"], "RForConditionalGeneration": ["rvl"],
    "Rnj1ForCausalLM": ["rnj1"], "SarvamMLAForCausalLM": ["sarvam_mla"], "SarvamMoEForCausalLM": ["sarvam_moe"],
    "SkyworkR1VChatModel": ["skywork_chat"], "SolarForCausalLM": ["solar"], "Step1ForCausalLM": ["step1"],
    "Step3TextForCausalLM": ["step3_text"], "Step3VLForConditionalGeneration": ["step3_vl"],
    "Step3p5ForCausalLM": ["step3p5"], "Step5ForCausalLM": ["step5"], "Step5ForConditionalGeneration": ["step5_vl"],
    "StepVLForConditionalGeneration": ["step_vl"], "TeleChat2ForCausalLM": ["telechat"],
    "TeleChat3ForCausalLM": ["telechat3"], "TeleFLMForCausalLM": ["teleflm"], "UltravoxModel": ["ultravox"],
    "UnlimitedOCRForCausalLM": ["unlimited-ocr"], "VoyageQwen3BidirectionalEmbedModel": ["qwen3"],
    "DeepseekV3BidirectionalModel": ["deepseek_v3"], "Lfm2BidirectionalModel": ["lfm2"],
    "DeepseekV4ForConditionalGeneration": ["deepseek_v4"], "ColBERTLfm2Model": ["lfm2"],
    "VoxtralRealtimeGeneration": ["voxtral_realtime"], "NemotronH_Super_Omni_Reasoning_V3": ["nemotron_h_omni"],
    "JinaEmbeddingsV5Model": ["qwen3"], "ColModernVBertForRetrieval": ["modernvbert"], "GteNewModel": ["new"],
    "GteNewForSequenceClassification": ["new"], "Phi4MMForCausalLM": ["phi4mm"], "JinaForRanking": ["qwen3"],
    "ColQwen3_5": ["qwen3_5"], "JinaVLForRanking": ["qwen2_vl"], "GLM4VForCausalLM": ["chatglm"],
    "ColBERTJinaRobertaModel": ["xlm-roberta"],
    "Ernie4_5_VLMoeForConditionalGeneration": ["ernie4_5_moe_vl"], "ColPaliForRetrieval": ["colpali"],
    "LlamaNemotronVLModel": ["llama_nemotron_vl"], "OpenPanguVLForConditionalGeneration": ["openpangu_vl"],
    "InternS2PreviewForConditionalGeneration": ["intern_s2_preview"],
    "LlamaNemotronVLForSequenceClassification": ["llama_nemotron_vl"], "Alpamayo2Super": ["alpamayo2_super"],
    "BagelForConditionalGeneration": ["bagel"], "ClefFlashForJointSchema": ["qwen3_5"],
    "ClefOmniForJointSchema": ["qwen3_omni_moe"], "D3ForSequenceClassification": ["qwen3_5"],
    "CohereAsrForConditionalGeneration": ["cohere_asr"], "ColUltraVBertForRetrieval": ["ultravbert"],
    "CohereCompassForConditionalGeneration": ["cohere_compass"], "HfMoondream": ["moondream1"],
    "Cosmos3ForConditionalGeneration": ["cosmos3_omni"],
    "Cosmos3EdgeForConditionalGeneration": ["cosmos3_edge"], "EmbeddingGemma2Model": ["embedding_gemma2"],
    "DiffusionGemmaForBlockDiffusion": ["diffusion_gemma"], "FireRedASR2ForConditionalGeneration": ["fireredasr2"],
    "FunASRForConditionalGeneration": ["funasr"], "HCXVisionV2ForCausalLM": ["hyperclovax_vision_v2"],
    "InklingForConditionalGeneration": ["inkling_mm_model"], "InternS1ProForConditionalGeneration": ["interns1_pro"],
    "InternS2MobiusForConditionalGeneration": ["interns2_mobius"], "Kolibri1ForCausalLM": ["kolibri1"],
    "MiMoV2OmniForCausalLM": ["mimo_v2_omni"], "MiniCPMOcrForConditionalGeneration": ["minicpm_ocr"],
    "Molmo2ForConditionalGeneration": ["molmo2"], "MolmoForCausalLM": ["molmo"],
    "Moondream3ForCausalLM": ["moondream3"], "NemotronParseForConditionalGeneration": ["nemotron_parse"],
    "RadioMBartPrefixForCausalLM": ["nemotron_parse"],
}  # fmt: skip


def registry(vllm: Path) -> Iterator[tuple[str, str, str]]:
    """Yield every architecture of vLLM's registry with its group and the module that holds it."""
    tree = ast.parse((vllm / "model_executor" / "models" / "registry.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and isinstance(node.targets[0], ast.Name):
            group = node.targets[0].id
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if group.endswith("_MODELS") and key is not None and isinstance(value, ast.Tuple):
                    yield ast.literal_eval(key), group, ast.literal_eval(value)[0]


def model_types_by_architecture() -> dict[str, set[str]]:
    """Return the model types of the architectures in transformers."""
    from transformers.models.auto import modeling_auto

    found: dict[str, set[str]] = {}
    for name in dir(modeling_auto):
        if name.endswith("_MAPPING_NAMES"):
            for model_type, classes in getattr(modeling_auto, name).items():
                for architecture in [classes] if isinstance(classes, str) else classes:
                    found.setdefault(architecture, set()).add(model_type)
    return found


@cache
def family_files() -> dict[str, str]:
    """Return the family file of every model type."""
    found = {}
    for entry in files("fp8pad.planning.families").iterdir():
        if entry.name.endswith(".toml"):
            found.update(dict.fromkeys(tomllib.loads(entry.read_text())["model_types"], entry.name))
    return found


def why_not(description: Description) -> str | None:
    """Return why nothing of a family can be absorbed; None if some of it can, or a part that is described elsewhere."""
    if any(mlp.size_key for mlp in description.mlp) or any(not part.is_described for part in description.section):
        return None
    reasons = [rule.reason for rule in description.unabsorbable]
    reasons += [mlp.unabsorbable for mlp in description.mlp if mlp.unabsorbable]
    parts = [why_not(part) for part in description.section]
    return None if None in parts else [*reasons, *filter(None, parts)][0]


def described_types(architecture: str, types: Mapping[str, set[str]]) -> list[str]:
    """Return the model types of an architecture that family files describe."""
    return sorted({*MODEL_TYPES.get(architecture, ()), *types.get(architecture, ())} & families().keys())


def evidence() -> tuple[set[str], set[str]]:
    """Return the model types that were served before and after converting, and those whose published sizes are planned.

    They are read from the tests and examples that do it.
    """
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "vllm")]
    from published_models import published
    from served_models import MODELS as SERVED

    real_models = runpy.run_path(str(ROOT / "examples" / "real_models.py"))["MODELS"]
    configs = [model.config for model in (*published(), *real_models)]
    planned = {
        kind for config in configs for kind in (config["model_type"], config.get("text_config", {}).get("model_type"))
    }
    return SERVED_ELSEWHERE | {model_type for model_type, _ in SERVED}, planned - {None}


def coverage(vllm: Path, version: str) -> str:
    """Return the text of docs/coverage.md."""
    types, (served, planned), by_file = model_types_by_architecture(), evidence(), family_files()
    classes: dict[str, list[str]] = {file: [] for file in by_file.values()}
    others: dict[str, list[str]] = {}
    for name, group, _ in registry(vllm):
        if name in NOTHING:
            others.setdefault("nothing", []).append(f"`{name}` ({NOTHING[name]})")
        elif found := described_types(name, types):
            classes[by_file[found[0]]].append(f"`{name}`")
        else:
            kind = "backend" if "TRANSFORMERS_BACKEND" in group else "draft" if DRAFT.search(name) else "unknown"
            others.setdefault(kind, []).append(f"`{name}`")

    def marked(model_type: str) -> str:
        mark = "**" if model_type in served else "*" if model_type in planned else ""
        return f"{mark}`{model_type}`{mark}"

    rows: dict[bool, list[str]] = {True: [], False: []}
    in_files = {file: sorted((kind for kind in by_file if by_file[kind] == file), key=str.lower) for file in classes}
    for file, kinds in sorted(in_files.items(), key=lambda item: item[1][0].lower()):
        reason = next((why for kind in kinds if (why := why_not(families()[kind]))), None)
        cells = [", ".join(map(marked, kinds)), ", ".join(sorted({*classes[file]}, key=str.lower))]
        rows[reason is None].append(f"| {' | '.join([*cells, *([reason] if reason else [])])} |")
    known = families().keys()
    counts = {"served": served & known, "planned": (planned - served) & known, "read": known - served - planned}
    head = HEAD.format(version=version, **{grade: len(kinds) for grade, kinds in counts.items()})
    rest = [f"- **{OTHERS[kind]}**: {', '.join(sorted({*names}))}" for kind, names in sorted(others.items())]
    return "\n".join([head, *rows[True], CANNOT, *rows[False], REST, *rest]) + "\n"


def main() -> None:
    """Write the table for the vLLM in the given folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm", type=Path, help="vLLM's folder in site-packages")
    vllm = parser.parse_args().vllm
    version = next(vllm.parent.glob("vllm-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    DOCS.write_text(coverage(vllm, version))


if __name__ == "__main__":
    main()

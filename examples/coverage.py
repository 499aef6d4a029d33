"""Write docs/coverage.md: what fp8pad knows about every architecture in vLLM's registry.

    python examples/coverage.py path/to/site-packages/vllm

Needs transformers in the version that vLLM requires, which has the model types of most architectures. vLLM is not
imported: its registry is read as text.
"""

import argparse
import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from fp8pad.planning.families import Description, families

DOCS = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"

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


def has_absorbable(description: Description) -> bool:
    """Return whether any MLP of a family can be absorbed; a part that is described elsewhere counts."""
    return any(mlp.size_key for mlp in description.mlp) or any(
        has_absorbable(part) or not part.is_described for part in description.section
    )


def row(architecture: str, group: str, types: Mapping[str, set[str]]) -> tuple[str, str, str]:
    """Return the state of an architecture, its known model types, and the files that describe them."""
    known, by_file = families(), family_files()
    candidates = {*MODEL_TYPES.get(architecture, ()), *types.get(architecture, ())}
    described = sorted(model_type for model_type in candidates if model_type in known)
    names = ", ".join(f"`{name}`" for name in described)
    where = ", ".join(sorted({by_file[name] for name in described}))
    if architecture in NOTHING:
        return "nothing to absorb", "", NOTHING[architecture]
    if described:
        state = "described" if any(has_absorbable(known[name]) for name in described) else "cannot be absorbed"
        return state, names, where
    if "TRANSFORMERS_BACKEND" in group:
        return "by its model type", "", "any model that transformers has"
    if DRAFT.search(architecture):
        return "a draft", "", "described where its checkpoint is one with its model's, or has a known model type"
    return "unknown", "", ""


def table(vllm: Path, version: str) -> str:
    """Return the text of docs/coverage.md."""
    types = model_types_by_architecture()
    rows = {name: (module, *row(name, group, types)) for name, group, module in registry(vllm)}
    counts = Counter(state for _, state, _, _ in rows.values())
    lines = [
        "# What is known of each architecture",
        "",
        f"Every architecture in the registry of vLLM {version}, and whether a file in `fp8pad/planning/families` says",
        "which config key sizes its MLPs. *Described*: `--absorb` can grow it. *Cannot be absorbed*: a file says why.",
        "*Unknown*: its layers are padded, and nothing is absorbed. Made by `examples/coverage.py`.",
        "",
        "; ".join(f"{state}: {count}" for state, count in counts.most_common()) + ".",
        "",
        "| architecture | module of vLLM | state | model types | file, or reason |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {' | '.join(rows[name])} |" for name in sorted(rows, key=str.lower)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table for the vLLM in the given folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm", type=Path, help="vLLM's folder in site-packages")
    vllm = parser.parse_args().vllm
    version = next(vllm.parent.glob("vllm-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    DOCS.write_text(table(vllm, version))
    print(DOCS.read_text().split("\n")[6])


if __name__ == "__main__":
    main()

"""What vLLM does with nine real models at tensor-parallel sizes 1 to 16, according to `fp8pad plan`, from sizes alone.

Prints the table of docs/absorb.md. No weights are needed: the headers of the safetensors files are generated from the
sizes in the published configs, whose sources are listed below. To look at one of the models with `fp8pad plan`:

    python examples/real_models.py --write Qwen2.5-72B Qwen2.5-72B-FP8

writes a folder with its headers and config.json; the file has a hole instead of weights, which nothing reads.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fp8pad.checkpoint.headers import header_bytes
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.comparison import AtSize, compare_sizes
from fp8pad.planning.engines import find_engine
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import Judge, Verdict
from fp8pad.record import Policy
from fp8pad.render.folding import name_patterns
from fp8pad.tensors import ShardHeader, TensorHeader

Scheme = Literal["tensor", "channel", "block"]
Shape = tuple[int, int]
Linears = Iterator[tuple[str, Shape]]

EXPERTS = 2  # per layer, to represent all of them: the table does not depend on their number
EXPERT_COUNTS = ("num_experts", "n_routed_experts", "moe_num_experts", "num_local_experts")
CHANNEL = {
    "weights": {"type": "float", "num_bits": 8, "strategy": "channel"},
    "input_activations": {"type": "float", "num_bits": 8, "strategy": "token", "dynamic": True},
}
QUANTIZATION: Mapping[Scheme, Mapping[str, Any]] = {
    "tensor": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "channel": {"quant_method": "compressed-tensors", "config_groups": {"group_0": CHANNEL}},
    "block": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}


@dataclass(frozen=True)
class Mlp:
    """An MLP in every layer from `first` up to but excluding `last`; `{expert}` in its name stands for each expert.

    Its inner size is the config's `key`, multiplied by `times`.
    """

    name: str
    key: str
    parts: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    first: int = 0
    last: int = 1000
    times: int = 1


@dataclass(frozen=True)
class Model:
    """A model with its published sizes, and the scales of its FP8 checkpoints."""

    name: str
    scheme: Scheme
    config: Mapping[str, Any]
    mlps: tuple[Mlp, ...] = (Mlp("mlp", "intermediate_size"),)
    layers: str = "model.layers"


def experts(key: str = "moe_intermediate_size", folder: str = "mlp.experts", **more: Any) -> Mlp:
    """Return the MLP of each routed expert."""
    return Mlp(f"{folder}.{{expert}}", key, **more)


# Sources of the sizes: copies of the models' config.json in the code, tests and documentation of public repositories,
# not the hub itself; for Qwen3.6-35B-A3B that of 3.5, which has the same text model, and for MiniMax-M2.7 those of M2
# and M2.5, which are equal; for Step 3.5 its config class, and a test with the published values.
MODELS = (
    Model(
        "Qwen2.5-VL-7B",
        "channel",
        {
            "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "head_dim": 128,
            "vision_config": {
                "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584,
            },
        },
    ),
    Model(
        "Qwen2.5-72B",
        "block",
        {
            "model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 152064,
        },
    ),
    Model(
        "DeepSeek-Coder-V2-Lite",
        "channel",
        {
            "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
            "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
            "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        },
        (
            Mlp("mlp", "intermediate_size", last=1), experts(first=1),
            Mlp("mlp.shared_experts", "moe_intermediate_size", first=1, times=2),
        ),
    ),
    Model(
        "Nemotron-3-Nano-30B-A3B",
        "tensor",
        {
            "model_type": "nemotron_h", "hidden_size": 2688, "intermediate_size": 1856, "moe_intermediate_size": 1856,
            "moe_shared_expert_intermediate_size": 3712, "n_routed_experts": 128, "n_shared_experts": 1,
            "num_experts_per_tok": 6, "mlp_hidden_act": "relu2", "num_attention_heads": 32, "num_key_value_heads": 2,
            "head_dim": 128, "num_hidden_layers": 52, "mamba_num_heads": 64, "mamba_head_dim": 64,
            "ssm_state_size": 128, "n_groups": 8,
            "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
        },
        (
            Mlp("mixer.shared_experts", "moe_shared_expert_intermediate_size", ("up_proj", "down_proj")),
            experts(folder="mixer.experts", parts=("up_proj", "down_proj")),
        ),
        "backbone.layers",
    ),
    Model(
        "Qwen3-30B-A3B",
        "block",
        {
            "model_type": "qwen3_moe", "hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128,
            "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
            "head_dim": 128,
        },
        (experts(),),
    ),
    Model(
        "Qwen3.6-35B-A3B",
        "block",
        {
            "model_type": "qwen3_5_moe",
            "text_config": {
                "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "moe_intermediate_size": 512,
                "shared_expert_intermediate_size": 512, "num_experts": 256, "num_experts_per_tok": 8,
                "num_hidden_layers": 40, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
                "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_head_dim": 128,
                "hidden_act": "silu",
            },
        },
        (Mlp("mlp.shared_expert", "shared_expert_intermediate_size"), experts()),
        "model.language_model.layers",
    ),
    Model(
        "Step-3.5-Flash",
        "block",
        {
            "model_type": "step3p5", "hidden_size": 4096, "intermediate_size": 11264, "moe_intermediate_size": 1280,
            "share_expert_dim": 1280, "moe_num_experts": 288, "moe_top_k": 8, "num_hidden_layers": 45,
            "num_attention_heads": 64, "num_attention_groups": 8, "head_dim": 128,
            "attention_other_setting": {"num_attention_heads": 96, "num_attention_groups": 8, "head_dim": 128},
        },
        (
            Mlp("mlp", "intermediate_size", last=3), Mlp("share_expert", "share_expert_dim", first=3),
            experts(folder="moe.experts", first=3),
        ),
    ),
    Model(
        "Gemma-4-26B-A4B",
        "channel",
        {
            "model_type": "gemma4_text", "hidden_size": 2816, "intermediate_size": 2112, "moe_intermediate_size": 704,
            "num_experts": 128, "top_k_experts": 8, "num_hidden_layers": 30, "hidden_activation": "gelu_pytorch_tanh",
            "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2, "head_dim": 256,
            "global_head_dim": 512, "attention_k_eq_v": True,
        },
        (Mlp("mlp", "intermediate_size"), experts(folder="experts")),
    ),
    Model(
        "MiniMax-M2.7",
        "block",
        {
            "model_type": "minimax_m2", "hidden_size": 3072, "intermediate_size": 1536, "num_local_experts": 256,
            "num_experts_per_tok": 8, "num_hidden_layers": 62, "num_attention_heads": 48, "num_key_value_heads": 8,
            "head_dim": 128, "hidden_act": "silu",
        },
        (experts("intermediate_size", "block_sparse_moe.experts", parts=("w1", "w3", "w2")),),
    ),
)  # fmt: skip


def main() -> None:
    """Print the table, or write one model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [model.name for model in MODELS]
    about = f"write a model's headers and config to a new folder; MODEL: {', '.join(names)}"
    parser.add_argument("--write", nargs=2, metavar=("MODEL", "FOLDER"), help=about)
    if written := parser.parse_args().write:
        name, folder = written
        if name not in names:
            parser.error(f"{name}: expected one of {', '.join(names)}")
        if Path(folder).exists():
            parser.error(f"{folder}: exists already")
        write(name, Path(folder))
    else:
        print_table()


def write(name: str, folder: Path) -> None:
    """Write a checkpoint without weights: what `fp8pad plan` reads, and a hole instead of the rest."""
    (model,) = (model for model in MODELS if model.name == name)
    config = text_config(model)
    header = header_of(model, next((config[key] for key in EXPERT_COUNTS if key in config), 0))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of(model), indent=2))
    with (folder / header.file).open("wb") as file:
        size = file.write(header_bytes(header.tensors, header.metadata)) + header.tensors[-1].end
        file.truncate(size)


def print_table() -> None:
    """Print a row for each group of tensor-parallel sizes with the same verdicts."""
    print(f"| model, scales | TP | {find_engine().title} as it is | padded | absorbed |")
    print("|---|---|---|---|---|")
    for model in MODELS:
        rows: dict[tuple[str, ...], list[str]] = {}
        for at in compare_sizes(Judge(planned(model), find_engine())):
            row = cells(at.original), at.padded.outcome, absorbed(at)
            rows.setdefault(row, []).append(str(at.num_ranks))
        for row, sizes in rows.items():
            print(f"| {model.name}, per {model.scheme} | {', '.join(sizes)} | {' | '.join(row)} |")


def cells(verdict: Verdict) -> str:
    """Return the outcomes of a verdict, each with its layers."""
    names: dict[str, list[str]] = {}
    for finding in verdict.findings:
        names.setdefault(finding.outcome, []).extend(finding.layers)
    lines = []
    for outcome, layers in names.items():
        patterns = [re.sub(r"\{[\d,-]{12,}\}|(?<=experts\.)\{0-1\}", "{…}", name) for name in name_patterns(layers)]
        lines.append(f"{outcome}: {', '.join(f'`{pattern}`' for pattern in patterns)}")
    return "<br>".join(lines) or "serves"


def absorbed(at: AtSize) -> str:
    """Return the absorbed form's outcome and the growth of sizes; or why there is none, in the words of `plan`."""
    form = at.absorbed
    if form is None:
        nothing = "not absorbed" if at.original.findings else "no need"
        return at.refused.outcome if at.refused else nothing
    sizes = [f"{size.key} {size.old} -> {size.new} ({size.new / size.old - 1:+.1%})" for size in form.growths]
    return "<br>".join([f"{form.verdict.outcome}{', with the plugin' if form.needs_runtime else ''}", *sizes])


def planned(model: Model) -> CheckpointPlan:
    """Plan a model from generated headers."""
    return plan_checkpoint([header_of(model, EXPERTS)], {"config.json": config_of(model)}, Policy())


def config_of(model: Model) -> Mapping[str, Any]:
    """Return the known part of a model's config.json."""
    return {**model.config, "quantization_config": QUANTIZATION[model.scheme]}


def text_config(model: Model) -> Mapping[str, Any]:
    """Return the config of a model's text part."""
    config: Mapping[str, Any] = model.config.get("text_config", model.config)
    return config


def header_of(model: Model, num_experts: int) -> ShardHeader:
    """Return the header of one file with every FP8 Linear of a model, its scale, and the embeddings if known."""
    tensors: list[TensorHeader] = []

    def add(name: str, dtype: str, *shape: int) -> None:
        begin = tensors[-1].end if tensors else 0
        tensors.append(TensorHeader(name, dtype, shape, begin))

    for name, (num_n, num_k) in linears(model, num_experts):
        scale = {"tensor": (), "channel": (num_n, 1), "block": (-(-num_n // 128), -(-num_k // 128))}[model.scheme]
        add(name, "F8_E4M3", num_n, num_k)
        add(f"{name}_scale{'_inv' if model.scheme == 'block' else ''}", "F32", *scale)
    if "vocab_size" in model.config:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            add(name, "BF16", model.config["vocab_size"], model.config["hidden_size"])
    return ShardHeader("model.safetensors", tensors[-1].end, 0, tuple(tensors))


def linears(model: Model, num_experts: int) -> Linears:
    """Yield every Linear of a model, `[N, K]`, by its name in checkpoints, with `num_experts` experts per layer."""
    config = text_config(model)
    for layer in range(config["num_hidden_layers"]):
        block = f"{model.layers}.{layer}"
        yield from MIXERS.get(config["model_type"], attention)(config, block, layer)
        for mlp in model.mlps:
            if mlp.first <= layer < mlp.last and is_mlp(config, layer):
                yield from linears_of(mlp, block, config, num_experts)
    if "vision_config" in config:
        yield from vision(config["vision_config"])


def is_mlp(config: Mapping[str, Any], layer: int) -> bool:
    """Return whether a layer has an MLP; in Nemotron-H, only layers of kind E do."""
    return config.get("hybrid_override_pattern", "E" * (layer + 1))[layer] == "E"


def linears_of(mlp: Mlp, block: str, config: Mapping[str, Any], num_experts: int = 0) -> Linears:
    """Yield the Linears of an MLP, or of each of its experts: all but the last are `[inner, hidden]`."""
    inner_size, hidden_size = config[mlp.key] * mlp.times, config["hidden_size"]
    for expert in range(num_experts if "{expert}" in mlp.name else 1):
        prefix = f"{block}.{mlp.name.format(expert=expert)}"
        for part in mlp.parts[:-1]:
            yield f"{prefix}.{part}.weight", (inner_size, hidden_size)
        yield f"{prefix}.{mlp.parts[-1]}.weight", (hidden_size, inner_size)


def attention(config: Mapping[str, Any], block: str, layer: int, num_gates: int = 0) -> Linears:  # noqa: ARG001
    """Yield grouped-query attention; gates are part of the query projection."""
    hidden_size, head_dim, prefix = config["hidden_size"], config["head_dim"], f"{block}.self_attn"
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    yield f"{prefix}.q_proj.weight", (queries * (1 + num_gates), hidden_size)
    yield f"{prefix}.k_proj.weight", (keys, hidden_size)
    yield f"{prefix}.v_proj.weight", (keys, hidden_size)
    yield f"{prefix}.o_proj.weight", (hidden_size, queries)


def latent_attention(config: Mapping[str, Any], block: str, layer: int) -> Linears:  # noqa: ARG001
    """Yield DeepSeek's latent attention, whose query projection is not low-rank here."""
    heads, hidden_size, rank = config["num_attention_heads"], config["hidden_size"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    yield f"{block}.self_attn.q_proj.weight", (heads * (nope + rope), hidden_size)
    yield f"{block}.self_attn.kv_a_proj_with_mqa.weight", (rank + rope, hidden_size)
    yield f"{block}.self_attn.kv_b_proj.weight", (heads * (nope + value), rank)
    yield f"{block}.self_attn.o_proj.weight", (hidden_size, heads * value)


def nemotron(config: Mapping[str, Any], block: str, layer: int) -> Linears:
    """Yield a mixer of Nemotron-H: M is Mamba, * is attention, and E has only experts."""
    kind, hidden_size = config["hybrid_override_pattern"][layer], config["hidden_size"]
    if kind == "M":
        inner = config["mamba_num_heads"] * config["mamba_head_dim"]
        groups = 2 * config["n_groups"] * config["ssm_state_size"]
        yield f"{block}.mixer.in_proj.weight", (2 * inner + groups + config["mamba_num_heads"], hidden_size)
        yield f"{block}.mixer.out_proj.weight", (hidden_size, inner)
    elif kind == "*":
        for name, shape in attention(config, block, layer):
            yield name.replace("self_attn", "mixer"), shape


def qwen3_5(config: Mapping[str, Any], block: str, layer: int) -> Linears:
    """Yield attention of Qwen3.5: three layers of linear attention, then one of gated attention."""
    hidden_size, head_dim = config["hidden_size"], config["linear_head_dim"]
    keys, values = config["linear_num_key_heads"] * head_dim, config["linear_num_value_heads"] * head_dim
    if layer % 4 == 3:
        yield from attention(config, block, layer, num_gates=1)
    else:
        yield f"{block}.linear_attn.in_proj_qkv.weight", (2 * keys + values, hidden_size)
        yield f"{block}.linear_attn.in_proj_z.weight", (values, hidden_size)
        yield f"{block}.linear_attn.out_proj.weight", (hidden_size, values)


def gemma4(config: Mapping[str, Any], block: str, layer: int) -> Linears:
    """Yield attention of Gemma 4: five sliding-window layers, then one with larger heads and keys used as values."""
    if layer % 6 < 5:
        yield from attention(config, block, layer)
        return
    hidden_size, head_dim = config["hidden_size"], config["global_head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_global_key_value_heads"] * head_dim
    yield f"{block}.self_attn.q_proj.weight", (queries, hidden_size)
    yield f"{block}.self_attn.k_proj.weight", (keys, hidden_size)
    yield f"{block}.self_attn.o_proj.weight", (hidden_size, queries)


def step(config: Mapping[str, Any], block: str, layer: int) -> Linears:
    """Yield attention of Step 3.5: three of four layers have a sliding window and more heads. Gates are not FP8."""
    sizes = config if layer % 4 == 0 else config["attention_other_setting"]
    groups = {"num_key_value_heads": config["num_attention_groups"]}
    yield from attention({**config, **sizes, **groups}, block, layer)


def vision(config: Mapping[str, Any]) -> Linears:
    """Yield Qwen2.5-VL's vision tower and its merger of two by two patches."""
    hidden_size = config["hidden_size"]
    for block in range(config["depth"]):
        yield f"visual.blocks.{block}.attn.qkv.weight", (3 * hidden_size, hidden_size)
        yield f"visual.blocks.{block}.attn.proj.weight", (hidden_size, hidden_size)
        yield from linears_of(Mlp("mlp", "intermediate_size"), f"visual.blocks.{block}", config)
    yield "visual.merger.mlp.0.weight", (4 * hidden_size, 4 * hidden_size)
    yield "visual.merger.mlp.2.weight", (config["out_hidden_size"], 4 * hidden_size)


MIXERS: Mapping[str, Callable[..., Linears]] = {
    "deepseek_v2": latent_attention,
    "gemma4_text": gemma4,
    "nemotron_h": nemotron,
    "qwen3_5_moe_text": qwen3_5,
    "step3p5": step,
}

if __name__ == "__main__":
    main()

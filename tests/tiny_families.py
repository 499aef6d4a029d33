"""Tiny checkpoints of every described family, in the layouts that tools write: names, shapes and configs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fp8pad.planning.families import Description, Mlp, Section, families, sections_of

Tensors = dict[str, tuple[str, tuple[int, ...]]]
Shape = tuple[int, ...]

# The first model type of each family.
MODEL_TYPES = sorted({family.model_types[0] for family in families().values()})

HIDDEN = 256
NUM_EXPERTS = 2
# Inner sizes, a different one for each key: whole blocks on four ranks, on one, and on none; odd multiples of 8 too.
SIZES = (384, 320, 200, 512, 264, 640, 336, 768, 144, 448, 240, 576)


def _compressed(strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"type": "float", "num_bits": 8, "strategy": strategy, "dynamic": False, "symmetric": True, **more}
    dynamic = strategy != "tensor"
    inputs = {"type": "float", "num_bits": 8, "strategy": "token" if dynamic else "tensor", "dynamic": dynamic}
    group = {"weights": weights, "input_activations": inputs, "targets": ["Linear"]}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}


def _quark(scheme: str, **more: Any) -> dict[str, Any]:
    weight = {"dtype": "fp8_e4m3", "qscheme": scheme, **more}
    return {"quant_method": "quark", "global_quant_config": {"weight": weight, "input_tensors": weight}}


def blocks(shape: Shape) -> Shape:
    """Return the shape of the scales for blocks of 128 x 128, after the number of experts if there is one."""
    return (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))


def channels(shape: Shape) -> Shape:
    """Return the shape of a scale for each row."""
    return (*shape[:-1], 1)


def one(shape: Shape) -> Shape:
    """Return the shape of one scale, or of one per expert."""
    return shape[:-2]


@dataclass(frozen=True)
class Layout:
    """How a tool stores FP8 weights: its config, the name of the scale in the module, dtype and shape."""

    config: Mapping[str, Any]
    scale: str
    dtype: str
    shape: Callable[[Shape], Shape]
    input_scale: bool = False
    file: str = "config.json"


BLOCK = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MODELOPT = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}, "producer": {"name": "modelopt"}}
LAYOUTS = {
    "compressed-tensors, channel": Layout(_compressed("channel"), "weight_scale", "BF16", channels),
    "compressed-tensors, block": Layout(
        _compressed("block", block_structure=[128, 128]), "weight_scale", "BF16", blocks
    ),
    "compressed-tensors, static": Layout(_compressed("tensor"), "weight_scale", "BF16", one, input_scale=True),
    "fp8, block": Layout(BLOCK, "weight_scale_inv", "F32", blocks),
    "fp8, exponents": Layout({**BLOCK, "scale_fmt": "ue8m0"}, "weight_scale_inv", "F8_E8M0", blocks),
    "modelopt": Layout(MODELOPT, "weight_scale", "F32", one, input_scale=True, file="hf_quant_config.json"),
    "quark, channel": Layout(_quark("per_channel", ch_axis=0), "weight_scale", "F32", channels),
    "quark, tensor": Layout(_quark("per_tensor"), "weight_scale", "F32", one, input_scale=True),
    "fbgemm": Layout({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "weight_scale", "F32", channels),
}


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint's configs by file, and its tensors; `mlps` are those that the family files describe."""

    configs: dict[str, dict[str, Any]]
    tensors: Tensors
    mlps: list[tuple[Section, Mlp]]


def tiny_model(model_type: str, layout: Layout, order: str = "nk") -> TinyModel:
    """Make a model of a family with all that its file describes, attention, and unquantized tensors."""
    config = _config(families()[model_type], model_type, iter(SIZES * 3))
    sections = sections_of(config)
    mlps = [(section, mlp) for section in sections for mlp in (section.family.mlp if section.family else ())]
    tensors: Tensors = {"lm_head.weight": ("BF16", (1000, HIDDEN)), "model.norm.weight": ("BF16", (HIDDEN,))}
    for section, mlp in mlps:
        tensors |= _mlp(section, mlp, layout, order)
    prefix = sections[0].prefixes[0]
    for name, num_n, num_k in (("q", 256, HIDDEN), ("k", 128, HIDDEN), ("v", 128, HIDDEN), ("o", HIDDEN, 256)):
        tensors |= _linear(f"{prefix}model.layers.0.self_attn.{name}_proj", (num_n, num_k), layout)
    config |= {"num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": False}
    if layout.file == "config.json":
        return TinyModel({"config.json": config | {"quantization_config": dict(layout.config)}}, tensors, mlps)
    return TinyModel({"config.json": config, layout.file: dict(layout.config)}, tensors, mlps)


def _config(family: Description, model_type: str, sizes: Iterator[int]) -> dict[str, Any]:
    """Return a config with every section and every key that a family describes, each with a size of its own."""
    config: dict[str, Any] = {"model_type": model_type}
    for mlp in family.mlp:
        config |= {mlp.size_key: next(sizes)} if mlp.size_key and mlp.size_key not in config else {}
        config |= {mlp.multiplier_key: 2} if mlp.multiplier_key else {}
    for rule in family.section:
        part = rule.like or "llama"
        inner = _config(rule if rule.is_described else families()[part], part, sizes)
        key = rule.keys[0]
        config = config | {key: inner | config.get(key, {})} if key else inner | config
    return config


def _mlp(section: Section, mlp: Mlp, layout: Layout, order: str) -> Tensors:
    inner = (section.config[mlp.size_key] if mlp.size_key else 208) * (2 if mlp.multiplier_key else 1)
    tensors: Tensors = {}
    for number in range(2 if "{" in mlp.down else 1):
        for role, pattern in mlp.parts.items():
            name = section.prefixes[0] + pattern
            while "{" in name:
                name = name[: name.index("{")] + str(number) + name[name.index("}") + 1 :]
            shape: Shape = (HIDDEN, inner) if role == "down" else (inner * (2 if role == "gate_up" else 1), HIDDEN)
            if mlp.stacked:
                tensors |= _stack(name, shape, layout, order)
            else:
                tensors |= _linear(name, shape, layout)
    return tensors


def _linear(name: str, shape: Shape, layout: Layout) -> Tensors:
    tensors: Tensors = {
        f"{name}.weight": ("F8_E4M3", shape),
        f"{name}.{layout.scale}": (layout.dtype, layout.shape(shape)),
    }
    return tensors | ({f"{name}.input_scale": ("F32", ())} if layout.input_scale else {})


def _stack(name: str, shape: Shape, layout: Layout, order: str) -> Tensors:
    """Return experts in one parameter, and the scale that is named after it."""
    weight, scale = (NUM_EXPERTS, *shape), layout.shape((NUM_EXPERTS, *shape))
    if order == "kn":
        weight, scale = (NUM_EXPERTS, *shape[::-1]), (scale if len(scale) < 3 else (scale[0], scale[2], scale[1]))
    suffix = layout.scale.removeprefix("weight_")
    return {name: ("F8_E4M3", weight), f"{name}_{suffix}": (layout.dtype, scale)}

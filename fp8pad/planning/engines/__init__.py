"""What inference engines do with layers that are not aligned: a data file per engine and version, and the reader."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from math import gcd
from typing import Literal, get_args

from fp8pad.errors import PlanError, UsageError
from fp8pad.geometry import is_aligned
from fp8pad.planning.linear import LayerPlan
from fp8pad.planning.sharding import Fit, FusedScales, RankPart, Shape
from fp8pad.reading import PositiveSize, Reader
from fp8pad.scales import GranularityName
from fp8pad.text import matches

Outcome = Literal["serves", "pads in every forward", "Triton only", "not known", "answers wrongly", "refuses"]

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)  # from best to worst


@dataclass(frozen=True, slots=True, order=True)
class Said:
    """What an engine does, and why: with some layers, with any checkpoint of its method, or with a whole model."""

    outcome: Outcome
    why: str
    about: Literal["layers", "method", "model"] = "layers"

    @property
    def of_whole_model(self) -> bool:
        """Whether it is about a whole model, and not about layers."""
        return self.about != "layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unloaded:
    """Modules that the engine does not load in models of these classes: nothing else is said about them."""

    architectures: tuple[str, ...]
    modules: tuple[str, ...]
    why: str
    source: str
    known: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the engine does in one case; `source` is the place in its code.

    `known` says whether that was only read, or on what device and when it was seen.
    """

    outcome: Outcome
    why: str
    source: str
    known: str

    @property
    def said(self) -> Said:
        """The outcome, and why."""
        return Said(self.outcome, self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRule(Judgement):
    """What the engine does with every checkpoint of these quantization methods, unless fp8pad's plugin serves it."""

    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Judgement):
    """What an engine does with layers for which all of these conditions hold; an empty condition always holds.

    In `architectures` and `modules`, `*` matches anything. `weight_only` is whether activations are not quantized. A
    block of at least `finest_block` must divide scale blocks and sizes on a rank. Scale blocks that match one of
    `unless_blocks`, such as "128x*", and sizes that are multiples of a pair in `unless_multiples` are excluded.
    `fused_scales` selects fused layers whose scales can be loaded in whole blocks, and are then the right ones or
    others' (`Sharding.fused_scales`). `left_to_model` layers are handled by the engine's own code for the model, with
    no room for fp8pad's plugin.
    """

    fits: tuple[Fit, ...]
    experts: bool | None = None
    scales: tuple[GranularityName, ...] = ()
    methods: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    finest_block: PositiveSize | None = None
    unless_blocks: tuple[str, ...] = ()
    fused_scales: FusedScales | None = None
    unless_multiples: tuple[tuple[PositiveSize, PositiveSize], ...] = ()
    weight_only: bool | None = None
    left_to_model: bool = False

    def is_about(self, method: str | None, architectures: Iterable[str]) -> bool:
        """Return whether it applies to a quantization method, in a model of one of these classes."""
        return (not self.methods or method in self.methods) and (
            not self.architectures or matches(architectures, self.architectures)
        )

    def is_about_layer(self, name: str, block: tuple[int, int]) -> bool:
        """Return whether it applies to a layer of this name with scale blocks `(n, k)`."""
        block_n, block_k = block
        is_named = not self.modules or matches((name,), self.modules)
        return is_named and not matches((f"{block_n}x{block_k}",), self.unless_blocks)

    def holds(self, layer: LayerPlan, shape: Shape, part: RankPart, kernel: Shape, fit: Fit) -> bool:
        """Return whether it holds for a layer `(N, K)` of which a rank has `part`, and the kernel the sizes `kernel`.

        Its name and block are not asked again. For `fused_scales`, the columns on a rank must be whole blocks too, or
        the layer cannot run.
        """
        granularity = layer.granularity.name if layer.granularity else None
        (block_n, block_k), num_k, fused_scales = layer.block, part.num_k or 0, layer.sharding.fused_scales
        return (
            fit in self.fits
            and self.experts in (None, layer.is_expert)
            and granularity in (self.scales or (granularity,))
            and gcd(block_n, block_k, *(part.rows or (part.num_n or 0,)), num_k) >= (self.finest_block or 0)
            and not any(is_aligned(kernel, multiples) for multiples in self.unless_multiples)
            and (not self.fused_scales or num_k % block_k == 0)
            and (not self.fused_scales or self.fused_scales == fused_scales(shape[0], block_n, part.num_ranks))
        )


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine and version; N and K must be multiples of `multiple` for its kernels, unless scales are per block.

    `has_runtime` says whether fp8pad has a plugin for it, so that it serves padded checkpoints. If not, it loads none
    in which a tensor is larger. It does `unknown_method` with quantization methods that are not among `methods`, such
    as fp8pad's, and what `indivisible` says with sizes that ranks cannot share and no rule is about.
    """

    name: str
    version: str
    multiple: PositiveSize
    has_runtime: bool
    methods: tuple[str, ...] = field(repr=False)
    rule: tuple[Rule, ...] = field(repr=False)
    indivisible: Judgement | None = field(repr=False, default=None)
    method: tuple[MethodRule, ...] = field(repr=False, default=())
    unloaded: tuple[Unloaded, ...] = field(repr=False, default=())
    unknown_method: Outcome = "refuses"

    @property
    def title(self) -> str:
        """Name and version, as people write them."""
        return f"{self.name} {self.version}"


@cache
def engines() -> Mapping[str, Engine]:
    """Return every described engine by the name of its file, without .toml; `PlanError` if one is malformed."""
    entries = sorted(files(__package__).iterdir(), key=lambda entry: entry.name)
    reader = Reader(PlanError, is_by_hand=True)
    return {
        entry.name.removesuffix(".toml"): reader.read(Engine, tomllib.loads(entry.read_text("utf-8")), entry.name)
        for entry in entries
        if entry.name.endswith(".toml")
    }


def find_engine(name: str | None = None) -> Engine:
    """Return the engine of this name; without a version its newest one, without a name the newest vLLM.

    Raises `UsageError` if no file describes it.
    """
    if engine := engines().get(str(name)):
        return engine
    kind = "vllm" if name is None else str(name).lower()
    if versions := [engine for engine in engines().values() if engine.name.lower() == kind]:
        return max(versions, key=lambda engine: [int(number) for number in re.findall(r"\d+", engine.version)])
    close = difflib.get_close_matches(str(name), engines(), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    if described := [engine.version for engine in engines().values() if engine.name.lower() == kind.rpartition("-")[0]]:
        hint = f"; of its versions only {', '.join(described)} is described"
    raise UsageError(f"engine {name}: expected one of {', '.join(engines())}{hint}")

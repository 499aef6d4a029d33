"""What inference engines do with layers that are not aligned: one data file an engine and version, and its reader."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
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

Kind = Literal["dense", "expert"]
Outcome = Literal["serves", "pads in every forward", "Triton only", "not known", "answers wrongly", "refuses"]
Said = tuple[Outcome, str]  # what an engine does, and why

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)  # from best to worst


@dataclass(frozen=True, slots=True)
class Rule:
    """What an engine does with layers of a kind, scaled so, whose parts on a rank fit so; what is not said is any.

    In `architectures` and `modules`, `*` stands for anything. `weight_only` asks for activations that are quantized, or
    that are not. `finest_block` is the smallest block that must divide scale blocks and sizes. Scale blocks like one of
    `unless_blocks`, as "128x*", are not meant. `fused_scales` asks for layers of several matrices whose scales can be
    loaded by whole blocks, and are then the right ones or others' (`Sharding.fused_scales`). `source` is where the rule
    is read in the engine, and `known` says whether it was only read, or seen on what device and when. What is
    `left_to_model` is in the hands of the engine's own code of the model, with no room for fp8pad's plugin; what is
    `unloaded` the engine does not load, and nothing else is said of it.
    """

    outcome: Outcome
    why: str
    source: str
    known: str
    fits: tuple[Fit, ...]
    kinds: tuple[Kind, ...] = ()
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
    unloaded: bool = False

    @property
    def said(self) -> Said:
        """What it comes to."""
        return self.outcome, self.why

    def is_about(self, method: str | None, architectures: Iterable[str]) -> bool:
        """Return whether it holds for a quantization method, in a model of one of these classes."""
        return (not self.methods or method in self.methods) and (
            not self.architectures or matches(architectures, self.architectures)
        )

    def is_about_layer(self, name: str, block: tuple[int, int]) -> bool:
        """Return whether it holds for a layer of this name with scale blocks `(n, k)`."""
        block_n, block_k = block
        is_named = not self.modules or matches((name,), self.modules)
        return is_named and not matches((f"{block_n}x{block_k}",), self.unless_blocks)

    def holds(self, layer: LayerPlan, shape: Shape, part: RankPart, kernel: Shape, fit: Fit) -> bool:
        """Return whether it holds for a layer `(N, K)` of which a rank holds `part`, and its kernel gets `kernel`.

        The columns of a layer whose scales are loaded by whole blocks must be whole blocks to run with.
        """
        granularity = layer.granularity.name if layer.granularity else None
        (block_n, block_k), num_k, fused_scales = layer.block, part.num_k or 0, layer.sharding.fused_scales
        return (
            fit in self.fits
            and ("expert" if layer.is_expert else "dense") in (self.kinds or ("dense", "expert"))
            and granularity in (self.scales or (granularity,))
            and self.is_about_layer(layer.name, layer.block)
            and gcd(block_n, block_k, *(part.rows or (part.num_n or 0,)), num_k) >= (self.finest_block or 0)
            and not any(is_aligned(kernel, multiples) for multiples in self.unless_multiples)
            and (not self.fused_scales or num_k % block_k == 0)
            and (not self.fused_scales or self.fused_scales == fused_scales(shape[0], block_n, part.num_ranks))
        )


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine and version; `multiple` is what its kernels want of N and K where scales are not per block.

    `has_runtime` says whether fp8pad has a plugin for it, so that it serves padded checkpoints.
    """

    name: str
    version: str
    multiple: PositiveSize
    has_runtime: bool
    rule: tuple[Rule, ...]

    @property
    def title(self) -> str:
        """Name and version, as people write them."""
        return f"{self.name} {self.version}"


def matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Return whether any of the names is like any of the patterns, in which `*` stands for anything."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


@cache
def engines() -> Mapping[str, Engine]:
    """Return every engine that is described, by the name of its file; `PlanError` for a malformed one."""
    entries = sorted(files(__package__).iterdir(), key=lambda entry: entry.name)
    reader = Reader(PlanError, is_by_hand=True)
    return {
        entry.name.removesuffix(".toml"): reader.read(Engine, tomllib.loads(entry.read_text("utf-8")), entry.name)
        for entry in entries
        if entry.name.endswith(".toml")
    }


def find_engine(name: str | None = None) -> Engine:
    """Return the engine of this name, the newest of its kind without a version, vLLM's newest without a name.

    Raises `UsageError` where none is described.
    """
    if engine := engines().get(str(name)):
        return engine
    kind = "vllm" if name is None else str(name).lower()
    if versions := [engine for engine in engines().values() if engine.name.lower() == kind]:
        return max(versions, key=lambda engine: [int(number) for number in re.findall(r"\d+", engine.version)])
    close = difflib.get_close_matches(str(name), engines(), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(f"engine {name}: expected one of {', '.join(engines())}{hint}")

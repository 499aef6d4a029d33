"""Results of a benchmark, the machine they belong to, and their summary relative to the aligned layer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median, quantiles
from typing import Any

from fp8pad.bench.shapes import LayerShape


@dataclass(frozen=True, slots=True)
class Machine:
    """The device and the versions that were measured."""

    device: str
    date: str
    versions: Mapping[str, str]

    @classmethod
    def here(cls) -> "Machine":
        """Return this machine, with today's date."""
        import torch
        import triton
        import vllm

        from fp8pad import __version__

        versions = {
            "fp8pad": __version__,
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda or "none",
        }
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
        return cls(device, datetime.now(UTC).strftime("%Y-%m-%d"), versions)


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds per call: the median over replays, and the first and third quartile around it."""

    median_us: float
    lower_us: float
    upper_us: float
    num_replays: int

    @classmethod
    def of(cls, samples_us: Sequence[float]) -> "Timing":
        """Summarize at least two samples."""
        lower, _, upper = quantiles(samples_us, n=4, method="inclusive")
        return cls(round(median(samples_us), 3), round(lower, 3), round(upper, 3), len(samples_us))


@dataclass(frozen=True, slots=True)
class Case:
    """One layer at one number of tokens: the timing of each candidate (see candidates.py)."""

    shape: LayerShape
    num_tokens: int
    timings: Mapping[str, Timing]

    def ratio(self, candidate: str) -> float:
        """Return the candidate's median time divided by that of the aligned layer."""
        return self.timings[candidate].median_us / self.timings["aligned"].median_us

    def to_json(self) -> dict[str, Any]:
        """Return the case as a JSON object, ratios included."""
        return {
            "layer": self.shape.name,
            "logical_shape": list(self.shape.logical_shape),
            "padded_shape": list(self.shape.padded_shape),
            "num_matrices": self.shape.num_matrices,
            "num_tokens": self.num_tokens,
            "timings": {name: asdict(timing) for name, timing in self.timings.items()},
            "ratio_to_aligned": {name: round(self.ratio(name), 4) for name in self.timings if name != "aligned"},
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """Ratios to the aligned layer over several cases."""

    num_cases: int
    median: Mapping[str, float]
    worst: Mapping[str, float]

    @classmethod
    def of(cls, cases: Sequence[Case]) -> "Summary":
        """Summarize at least one case."""
        ratios = {name: [case.ratio(name) for case in cases] for name in cases[0].timings if name != "aligned"}
        medians = {name: round(median(values), 4) for name, values in ratios.items()}
        return cls(len(cases), medians, {name: round(max(values), 4) for name, values in ratios.items()})


@dataclass(frozen=True, slots=True)
class Report:
    """A whole benchmark."""

    machine: Machine
    dtype: str
    cases: tuple[Case, ...]

    def groups(self) -> dict[str, list[Case]]:
        """Separate layers whose K is unaligned from those where only N is: their costs differ in kind."""
        groups: dict[str, list[Case]] = {"K": [], "N": []}
        for case in self.cases:
            groups["N" if case.shape.k == case.shape.padded_shape[1] else "K"].append(case)
        return {name: cases for name, cases in groups.items() if cases}

    def summaries(self) -> dict[str, Summary]:
        """Summarize each group."""
        return {name: Summary.of(cases) for name, cases in self.groups().items()}

    def to_json(self) -> dict[str, Any]:
        """Return the document that `fp8pad bench --json` prints."""
        return {
            "format_version": 1,
            "machine": asdict(self.machine),
            "dtype": self.dtype,
            "scheme": "per-channel weights, dynamic per-token activations",
            "cases": [case.to_json() for case in self.cases],
            "summaries": {name: asdict(summary) for name, summary in self.summaries().items()},
        }

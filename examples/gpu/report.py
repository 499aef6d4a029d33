"""Draw the charts of docs/benchmarks and fill the tables of the pages in docs from the results in that folder.

    python examples/gpu/report.py

Needs matplotlib, no GPU. Text between `<!-- NAME -->` and `<!-- end -->` in a page is replaced by the table of the
results in `docs/benchmarks/NAME.json`; everything else is written by hand.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from chart import COLORS, draw_layers, draw_range, new_figure, read_report, save

from fp8pad.bench.report import Machine

DOCS = Path(__file__).parents[2] / "docs"
SHOWN_TOKENS = (1, 64, 1024, 16384)
FORMS = ("stock", "runtime", "absorbed")
ALONE = ("stock, one rank", "runtime, one rank")
CANDIDATES = ("aligned", "vllm", "runtime", "kept", "absorbed")
# Ways to quantize an activation that is unaligned, and one that is padded already ("kept").
LAUNCH_PATHS = {
    "vllm": "vLLM",
    "fp8pad": "fp8pad",
    "vllm_into_zeros": "vLLM, into zeros",
    "vllm_kept": "vLLM, padding kept",
    "fp8pad_kept": "fp8pad, padding kept",
}
# What kernels do, by the first pattern that matches their names.
KERNEL_GROUPS = (
    ("fused by Inductor", "^triton_"),
    ("between ranks", "(?i)nccl|all_reduce"),
    ("attention", "(?i)flash|reshape_and_cache"),
    ("matrix products", "(?i)cutlass|gemm|nvjet"),
    ("quantization", "quant|per_token_kernel|per_tensor_kernel"),
    ("activation", "act_and_mul"),
    ("norms, rotary embedding", "rms_norm|rotary"),
    ("copies and fills: padding, cutting", "cut_kernel|FillFunctor|elementwise|(?i:memcpy|memset)"),
    ("the rest", ""),
)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine_line(document: dict[str, Any]) -> str:
    """Return the device, the versions and the date as one line."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['device']}; {versions}; {machine['date']}."


def layers(document: dict[str, Any], chart: Path) -> str:
    """Return a table of each layer at a few numbers of tokens, after a summary of all; draw the chart."""
    report = read_report(document)
    draw_layers(report, chart)
    kinds = [kind for kind in CANDIDATES[1:] if kind in report.cases[0].timings]
    summary = table(
        ("unaligned", "cases", *(f"{kind}, {part}" for kind in kinds for part in ("median", "worst"))),
        [
            (
                name,
                group.num_cases,
                *(f"{part[kind]:.3f}" for kind in kinds for part in (group.median, group.worst)),
            )
            for name, group in report.summaries().items()
        ],
    )
    columns = [f"{tokens}: aligned, vLLM, runtime" for tokens in SHOWN_TOKENS]
    rows: dict[str, list[str]] = {}
    for case in report.cases:
        shape = f"{case.shape.name}, {case.shape.k} -> {case.shape.n}"
        if case.num_tokens in SHOWN_TOKENS:
            aligned = case.timings["aligned"].median_us
            rows.setdefault(shape, []).append(
                f"{aligned:.1f} us, {case.ratio('vllm'):.2f}, {case.ratio('runtime'):.2f}"
            )
    return f"{summary}\n\n{table(('layer, K -> N', *columns), ([name, *cells] for name, cells in rows.items()))}"


def launches(document: dict[str, Any], _: Path) -> str:
    """Return a table of the kernels, time and bandwidth of quantizing and padding."""
    rows = []
    for row in document["rows"]:
        cells: list[object] = [row["num_tokens"], f"{row['k']} -> {row['padded_k']}"]
        for path in LAUNCH_PATHS:
            if path not in row:
                continue
            kernels = row[path]["kernels"]
            total = sum(kernel["us"] for kernel in kernels)
            bandwidth = f"{row[path]['gb_per_s']} ({row[path]['share_of_copy']:.2f})"
            cells += [len(kernels), f"{total:.1f}", bandwidth, row[path]["host_us"]]
        rows.append(cells)
    figures = ("kernels", "us", "GB/s (of a copy)", "host, us")
    paths = [label for path, label in LAUNCH_PATHS.items() if path in document["rows"][0]]
    header = ("tokens", "K", *(f"{path}: {figure}" for path in paths for figure in figures))
    return f"A large copy on this device: {document['copy_gb_per_s']} GB/s, read and written.\n\n{table(header, rows)}"


def compiled_forms(document: dict[str, Any], chart: Path) -> str:
    """Return a table of the compiled tail of an MLP in its three forms; draw the chart."""
    rows = []
    for case in document["cases"]:
        aligned, native, operator = (case["timings"][name]["median_us"] for name in ("aligned", "native", "operator"))
        times = (
            f"{aligned:.1f}",
            f"{native:.1f} ({native / aligned:.2f})",
            f"{operator:.1f} ({operator / aligned:.2f})",
        )
        rows.append((case["layer"], case["scheme"], case["num_tokens"], *times))
    _draw_forms(document, chart)
    return table(("layer", "scale", "tokens", "aligned, us", "native padding (= vLLM)", "one launch (= runtime)"), rows)


def _draw_forms(document: dict[str, Any], chart: Path) -> None:
    schemes = sorted({case["scheme"] for case in document["cases"]}, reverse=True)
    figure, panels = new_figure(len(schemes))
    for panel, scheme in zip(panels, schemes, strict=True):
        panel.set_title({"token": "a scale for each token", "static": "a static scale"}[scheme], fontsize=10)
        for name, label, kind in (
            ("native", "native padding (vLLM)", "vllm"),
            ("operator", "one launch (runtime)", "runtime"),
        ):
            ratios: dict[int, list[float]] = {}
            for case in document["cases"]:
                if case["scheme"] == scheme:
                    timings = case["timings"]
                    ratio = timings[name]["median_us"] / timings["aligned"]["median_us"]
                    ratios.setdefault(case["num_tokens"], []).append(ratio)
            draw_range(panel, ratios, COLORS[kind], label)
        panel.axhline(1.0, color="#555", linewidth=0.8, linestyle="--")
        panel.set_xlabel("tokens")
    panels[0].set_ylabel("time / time of an aligned layer")
    panels[0].legend(frameon=False, fontsize=9)
    save(figure, Machine(**document["machine"]), chart)


def schemes(document: dict[str, Any], _: Path) -> str:
    """Return a table of how far the answers of each checkpoint's forms equal the original's, or that it is refused."""
    rows = []
    for row in document["models"]:
        scales = ", ".join([f"per {scheme}" for scheme in row["scales"]] + ["static"] * row["static"])
        kernels = Counter(row["forms"]["runtime"].get("layers", {}).get("kernels", {}))
        kernel = ", ".join(name.removesuffix("LinearKernel") for name in kernels)
        forms = [_form(row["forms"][kind]) for kind in FORMS]
        if any("runtime, one rank" in other["forms"] for other in document["models"]):
            forms += [_form(row["forms"][kind]) if kind in row["forms"] else "" for kind in ALONE]
        rows.append((row["model"], row["architecture"], row["quant_method"], scales, *forms, kernel))
    alone = ("original, one rank", "padded, one rank") if len(rows[0]) > len(FORMS) + 5 else ()
    header = ("checkpoint", "class", "method", "scales", "original", "padded", "absorbed", *alone, "kernel")
    return table(header, rows)


def _form(form: dict[str, Any]) -> str:
    if "refused" in form:
        return "refused"
    padded, kept = form["layers"]["padded_layers"], form["layers"].get("kept_inside_mlps", 0)
    kept_part = f", {kept} of them kept" if kept else ""
    layers = f"; {padded} layers padded{kept_part}" if padded else ""
    if "agreement" not in form:
        return f"served{layers}"
    one = form["agreement"]
    difference = f", by {one['largest_difference']:.2g} at most" if one["largest_difference"] else ""
    other = "" if one["compared_with"] == "stock" else f" ({one['compared_with']})"
    return f"{one['num_identical']} of {one['num_answers']} equal{other}{difference}{layers}"


def whole_models(document: dict[str, Any], _: Path) -> str:
    """Return tables of how far answers agree, then of how long they take."""
    agreement = [
        (
            run["model"],
            _mode(run),
            kind if one["compared_with"] == "stock" else f"{kind} ({one['compared_with']})",
            f"{one['num_identical']} of {one['num_answers']}",
            one["num_tokens"],
            f"{one['largest_difference']:.3g}",
        )
        for run in document["runs"]
        for kind, one in run["agreement"].items()
    ]
    header = (
        "model",
        "mode",
        "compared with stock",
        "answers equal to the last bit",
        "tokens",
        "largest difference of a logprob",
    )
    figures = [
        (
            run["model"],
            _mode(run),
            _figure_name(row),
            *(_timed(row["timings"], kind) for kind in FORMS),
        )
        for run in document["runs"]
        for row in run["figures"]
    ]
    kinds = [f"{kind}, ms" for kind in FORMS]
    parts = [table(header, agreement)]
    if figures:
        parts.append(table(("model", "mode", "figure", *kinds), figures))
    if profiles := [row for run in document["runs"] if "kernel_us" in run for row in _profile(run)]:
        parts.append(table(("model", "mode", "kernels of a prompt of 8,000 tokens", *kinds), profiles))
    return "\n\n".join(parts)


def _mode(run: dict[str, Any]) -> str:
    sizes = (("TP", run["tensor_parallel_size"]), ("PP", run["pipeline_parallel_size"]))
    return ", ".join([run["mode"], *(f"{name} {size}" for name, size in sizes if size > 1)])


def _profile(run: dict[str, Any]) -> Iterable[Sequence[object]]:
    """Yield the GPU time of a long prompt by groups of kernels."""
    times = {kind: _grouped(kernels) for kind, kernels in run["kernel_us"].items()}
    for group, _ in (*KERNEL_GROUPS, ("all", "")):
        if any(times[kind][group] for kind in times):
            cells = (f"{times[kind][group] / 1000:.2f}" if kind in times else "-" for kind in FORMS)
            yield run["model"], _mode(run), group, *cells


def _grouped(kernel_us: dict[str, float]) -> Counter[str]:
    totals: Counter[str] = Counter()
    for name, us in kernel_us.items():
        totals[next(group for group, pattern in KERNEL_GROUPS if re.search(pattern, name))] += us
        totals["all"] += us
    return totals


def _figure_name(row: dict[str, Any]) -> str:
    match row["figure"]:
        case "ttft_ms":
            return f"first token, {row['num_tokens']}"
        case "tpot_ms":
            return f"each token after, batch {row['batch']}"
        case _:
            return f"vision tower, {row['num_images']} x {row['pixels']} px"


def _timed(timings: dict[str, Any], kind: str) -> str:
    """Return a median with its quartiles, and the change from stock's if their quartile ranges do not overlap."""
    if kind not in timings:
        return "-"
    this = timings[kind]
    stock = timings.get("stock", this)
    are_apart = this["lower"] > stock["upper"] or this["upper"] < stock["lower"]
    change = f", {100 * (this['median'] / stock['median'] - 1):+.1f} %" if are_apart else ""
    return f"{this['median']:.1f} ({this['lower']:.1f} to {this['upper']:.1f}){change}"


TABLES: dict[str, Callable[[dict[str, Any], Path], str]] = {
    "layers": layers,
    "launches": launches,
    "compiled-forms": compiled_forms,
    "whole-models": whole_models,
    "schemes": schemes,
}


def main() -> None:
    """Replace every marked part of each page for which there are results."""

    def filled(match: re.Match[str]) -> str:
        results = DOCS / "benchmarks" / f"{match[1]}.json"
        kind = next((kind for kind in TABLES if match[1].startswith(kind)), None)
        if kind is None or not results.exists():  # None: the tables of tests/bench/report.py
            return match[0]
        document = json.loads(results.read_text())
        content = TABLES[kind](document, results.with_suffix(".svg"))
        return f"<!-- {match[1]} -->\n{machine_line(document)}\n\n{content}\n<!-- end -->"

    for page in DOCS.glob("*.md"):
        page.write_text(re.sub(r"<!-- ([a-z0-9-]+) -->\n.*?<!-- end -->", filled, page.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()

"""List the kernels that quantize and pad one activation, with their times and shares of the bandwidth.

    python examples/gpu/profile_launches.py -o docs/benchmarks/launches-h100.json

The PyTorch profiler lists the kernels of vLLM's own path and of fp8pad's, for one unaligned activation and for one that
is padded already, as inside an MLP. The limit is each value read once and each result written once, at the speed of a
large copy on this device. The host time of an eager call is what counts when the device waits for work.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from needed import torch
from torch.nn.functional import pad
from vllm import _custom_ops as vllm_ops

from fp8pad.bench.report import Machine
from fp8pad.bench.timing import time_in_turn
from fp8pad.geometry import round_up
from fp8pad.runtime.kernels import quantize_and_pad

SHAPES = ((16384, 3420), (16384, 1368), (16384, 13653), (1024, 3420), (1, 3420))
COPY_BYTES = 1 << 30
REPEATS = 5
HOST_REPEATS = 101
CALLS_IN_A_ROW = 20


def kernels_of(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """Return the kernels of one call of `run`, in order, each with its shortest time in `REPEATS` calls."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(REPEATS):
            run()
        torch.cuda.synchronize()
    events = sorted(
        (event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA),
        key=lambda event: event.time_range.start,
    )
    per_call = len(events) // REPEATS
    return [
        {
            "kernel": events[index].name[:80],
            "us": round(min(event.device_time for event in events[index::per_call]), 3),
        }
        for index in range(per_call)
    ]


def host_us(run: Callable[[], Any]) -> float:
    """Return the host time of one eager call: the median over `HOST_REPEATS` of the mean of a few calls in a row."""
    samples = []
    for _ in range(HOST_REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS_IN_A_ROW):
            run()
        samples.append((time.perf_counter() - start) / CALLS_IN_A_ROW * 1e6)
        torch.cuda.synchronize()
    return round(median(samples), 1)


def copy_gb_per_s() -> float:
    """Return the speed of a device-to-device copy, bytes read plus bytes written."""
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    timing = time_in_turn({"copy": [lambda: target.copy_(source)]}, 11)["copy"]
    return 2 * COPY_BYTES / timing.median_us / 1000


def profile_shape(num_tokens: int, k: int, limit_gb_per_s: float) -> dict[str, Any]:
    """Profile all paths for an activation `[num_tokens, k]` of BF16."""
    x = torch.randn(num_tokens, k, device="cuda", dtype=torch.bfloat16)
    padded_k = round_up(k, 16)
    kept = pad(x, (0, padded_k - k))
    paths = {
        "vllm": lambda: pad(vllm_ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True)[0], (0, padded_k - k)),
        "fp8pad": lambda: quantize_and_pad(x, padded_k),
        "vllm_into_zeros": lambda: into_zeros(x, padded_k),
        "vllm_kept": lambda: vllm_ops.scaled_fp8_quant(kept, use_per_token_if_dynamic=True),
        "fp8pad_kept": lambda: quantize_and_pad(kept, padded_k),
    }
    num_bytes = num_tokens * (2 * k + padded_k + 4)
    row: dict[str, Any] = {"num_tokens": num_tokens, "k": k, "padded_k": padded_k, "bytes": num_bytes}
    for name, run in paths.items():
        kernels = kernels_of(run)
        gb_per_s = num_bytes / sum(kernel["us"] for kernel in kernels) / 1000
        share = round(gb_per_s / limit_gb_per_s, 3)
        row[name] = {"kernels": kernels, "gb_per_s": round(gb_per_s), "share_of_copy": share, "host_us": host_us(run)}
        print(num_tokens, k, name, len(kernels), "kernels", row[name]["gb_per_s"], "GB/s", share, flush=True)
    return row


def into_zeros(x: torch.Tensor, padded_k: int) -> torch.Tensor:
    """Quantize as the runtime does for few values: with vLLM's operator, into a tensor of zeros."""
    x_fp8 = x.new_zeros((x.shape[0], padded_k), dtype=torch.float8_e4m3fn)
    vllm_ops.scaled_fp8_quant(x, use_per_token_if_dynamic=True, output=x_fp8[:, : x.shape[1]])
    return x_fp8


def main() -> None:
    """Profile all shapes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    with torch.inference_mode():
        limit = copy_gb_per_s()
        rows = [profile_shape(num_tokens, k, limit) for num_tokens, k in SHAPES]
    document = {"format_version": 1, "machine": asdict(Machine.here()), "copy_gb_per_s": round(limit), "rows": rows}
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

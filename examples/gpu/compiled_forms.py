"""Under torch.compile: pad with native operations, which Inductor may fuse, or with the operator, which it cannot?

    python examples/gpu/compiled_forms.py -o docs/benchmarks/compiled-forms-h100.json

Times SiLU, multiplication, quantization and GEMM, in the order of an MLP, compiled as one function for any number of
tokens. vLLM's compiled mode quantizes with native operations: `native` is its own path for an unaligned layer, and
`aligned` the same with nothing to pad.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from needed import torch

from fp8pad.bench.report import Machine
from fp8pad.bench.shapes import REAL_SHAPES, LayerShape
from fp8pad.bench.timing import rotation, time_in_turn
from fp8pad.runtime.kernels import quantize_and_pad

Quantize = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
TOKEN_COUNTS = (1, 16, 256, 1024, 4096, 16384)


def native_quantize(static_scale: torch.Tensor | None) -> Quantize:
    """Return vLLM's own quantization with native operations: with a scale per token, or with a static one."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
    from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape

    static = static_scale is not None
    group_shape = GroupShape.PER_TENSOR if static else GroupShape.PER_TOKEN
    with set_current_vllm_config(VllmConfig()):
        quantize = QuantFP8(static=static, group_shape=group_shape).forward_native
    return lambda x: quantize(x, static_scale)


def compiled_mlp(quantize: Quantize, n: int) -> Callable[..., torch.Tensor]:
    """Return the compiled tail of an MLP: `gate_up` `[M, 2K]` to `[M, N]`, with `quantize` before the GEMM."""

    def tail(gate_up: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        x_fp8, x_scale = quantize(torch.nn.functional.silu(gate) * up)
        out = torch.empty((gate_up.shape[0], n), dtype=gate_up.dtype, device=gate_up.device)
        torch.ops._C.cutlass_scaled_mm(out, x_fp8, weight, x_scale, weight_scale, None)
        return out

    return torch.compile(tail, fullgraph=True, dynamic=True)


def time_shape(shape: LayerShape, token_counts: tuple[int, ...], scheme: str) -> list[dict[str, object]]:
    """Time the three forms of one down projection at each number of tokens; `scheme` is "token" or "static"."""
    padded_n, padded_k = shape.padded_shape
    static_scale = torch.full((1,), 0.02, device="cuda") if scheme == "static" else None
    native = native_quantize(static_scale)
    torch._dynamo.reset()

    def native_padded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_fp8, x_scale = native(x)
        return torch.nn.functional.pad(x_fp8, (0, padded_k - shape.k)), x_scale

    forms = {
        "aligned": (compiled_mlp(native, padded_n), padded_k),
        "native": (compiled_mlp(native_padded, padded_n), shape.k),
        "operator": (compiled_mlp(partial(quantize_and_pad, padded_k=padded_k, scale=static_scale), padded_n), shape.k),
    }
    weight = torch.randn(padded_n, padded_k, device="cuda").to(torch.float8_e4m3fn).t()
    weight_scale = torch.rand(padded_n, 1, device="cuda") / padded_k
    rows = []
    for num_tokens in token_counts:
        sets = rotation(6 * num_tokens * shape.k, torch.cuda.get_device_properties(0).L2_cache_size, 32)
        calls = {
            name: [partial(form, _gate_up(num_tokens, k), weight, weight_scale) for _ in range(sets)]
            for name, (form, k) in forms.items()
        }
        timings = {name: asdict(timing) for name, timing in time_in_turn(calls, 21).items()}
        layer = {"layer": shape.name, "n": shape.n, "k": shape.k, "scheme": scheme}
        rows.append({**layer, "num_tokens": num_tokens, "timings": timings})
        print(
            shape.name, scheme, num_tokens, {name: timing["median_us"] for name, timing in timings.items()}, flush=True
        )
    return rows


def _gate_up(num_tokens: int, k: int) -> torch.Tensor:
    return torch.randn(num_tokens, 2 * k, device="cuda", dtype=torch.bfloat16)


def main() -> None:
    """Time all layers and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--layers", nargs="+", default=["Qwen2.5-VL vision down", "jais-13b fc2"])
    parser.add_argument("--num-tokens", nargs="+", type=int, default=TOKEN_COUNTS)
    parser.add_argument("--schemes", nargs="+", choices=("token", "static"), default=("token", "static"))
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        for shape in REAL_SHAPES:
            for scheme in arguments.schemes if shape.name in arguments.layers else ():
                rows += time_shape(shape, tuple(arguments.num_tokens), scheme)
                document = {"format_version": 1, "machine": asdict(Machine.here()), "cases": rows}
                arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

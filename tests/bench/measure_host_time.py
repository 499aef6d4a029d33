"""Measure the host time of an eager call of a padded layer, against stock vLLM's call of the unpadded layer.

    python tests/bench/measure_host_time.py

Both go through vLLM's own linear layer, compressed-tensors' method and CUTLASS's kernel class, unchanged on a CUDA
device. With vLLM's CPU build its CUDA operators are replaced by ones that do nothing, so that all that Python and torch
do around them counts, but not the GPU driver's time for each; the operators are printed too. It is the thread's CPU
time, so that other processes matter little: the median of many rounds, in turn.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fp8pad.geometry import padded_shape
from fp8pad.quantization_config import ModuleRecord
from fp8pad.runtime.config import padded_config

# N and K in a decoder layer of `llama-hidden-4104` (examples/gpu/synthetic.py), by what is unaligned.
LAYERS = {"K": (6144, 4104), "N": (4104, 4096), "K and N": (4104, 4104), "nothing": (4096, 4096)}
CALLS, NUM_TOKENS = 200, 4
# These only make views of a tensor: on a GPU they launch nothing.
VIEWS = (
    "view",
    "_unsafe_view",
    "slice",
    "narrow",
    "t",
    "transpose",
    "detach",
    "alias",
    "empty",
    "as_strided",
    "new_empty",
)

_library = torch.library.Library("_C", "FRAGMENT")


def use_device() -> None:
    """Make tensors on the CUDA device if there is one; on a CPU make vLLM's classes for CUDA work nevertheless."""
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
    else:
        register_operators()


def synchronize() -> None:
    """Wait for the device, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def register_operators() -> None:
    """Define CUTLASS's operators, which do nothing, and let vLLM choose its classes for CUDA on a CPU."""
    import vllm._custom_ops  # noqa: F401  defines the existing operators
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.kernels.linear.scaled_mm import cutlass
    from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
    from vllm.platforms import PlatformEnum

    operators = {
        "cutlass_scaled_mm": "Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? bias",
        "dynamic_per_token_scaled_fp8_quant": "Tensor! result, Tensor input, Tensor! scale, Tensor? scale_ub",
    }
    for name, arguments in operators.items():
        # An overload: vLLM's CPU build has nameless ones without arguments.
        _library.define(f"{name}.nothing({arguments}) -> ()")
        _library.impl(f"{name}.nothing", lambda *_: None, "CPU")
    kernel = cutlass.CutlassFP8ScaledMMLinearKernel
    linear._POSSIBLE_FP8_KERNELS[PlatformEnum.CPU] = [kernel]
    kernel.is_supported = classmethod(lambda *_: (True, None))
    # vLLM 0.32 asserts that an unaligned weight has no loader yet, but it has one.
    cutlass.set_weight_attrs = _set_attributes
    QuantFP8.forward_cpu = QuantFP8.forward_cuda


def _set_attributes(weight: torch.Tensor, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(weight, name, value)


@contextmanager
def one_eager_rank() -> Iterator[None]:
    """Let vLLM's layers be made as on a single rank, eager."""
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
    from vllm.model_executor import parameter
    from vllm.model_executor.layers import linear

    for module in (parameter, linear):
        module.get_tensor_model_parallel_world_size = lambda: 1
        module.get_tensor_model_parallel_rank = lambda: 0
    config = VllmConfig(compilation_config=CompilationConfig(mode=0, custom_ops=["all"]))
    config.model_config = SimpleNamespace(dtype=torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    with torch.inference_mode(), set_current_vllm_config(config):
        yield


def calls(n: int, k: int) -> dict[str, Callable[[], Any]]:
    """Return the call of a layer `[n, k]` for a few tokens, by stock vLLM and by the runtime."""
    shape = n, k
    padded_n, padded_k = padded_shape(shape, (16, 16))
    record = ModuleRecord(shape, (padded_n, padded_k), (16, 16))
    return {
        "stock": _call(_quant_config(), n, k),
        "runtime": _call(padded_config(_quant_config(), {"layer": record}), n, k),
    }


def _quant_config() -> Any:
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

    common = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**common, "strategy": "channel", "dynamic": False},
        "input_activations": {**common, "strategy": "token", "dynamic": True},
    }
    return CompressedTensorsConfig.from_config(
        {"format": "float-quantized", "ignore": [], "config_groups": {"group_0": group}}
    )


def _call(quant_config: Any, n: int, k: int) -> Callable[[], Any]:
    from vllm.model_executor.layers.linear import ReplicatedLinear

    layer = ReplicatedLinear(k, n, bias=False, quant_config=quant_config, prefix="layer", return_bias=False)
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.zeros(NUM_TOKENS, k)
    return lambda: layer(x)


class _Operators(TorchDispatchMode):  # type: ignore[misc]
    """Records which operators run, except for those that launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._can_decompose():  # into others, as `pad` is made of `fill_` and `copy_`
            with self:
                return function.decompose(*args, **(kwargs or {}))
        if (name := function.overloadpacket.__name__) not in VIEWS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def operators_of(call: Callable[[], Any]) -> list[str]:
    """Return the operators of one call that launch something on a GPU, in order."""
    seen = _Operators()
    with seen:
        call()
    return seen.names


def main() -> None:
    """Measure each layer, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41, help="how often each way is timed, at least 2")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    use_device()
    with one_eager_rank():
        for unaligned, shape in LAYERS.items():
            ways = calls(*shape)
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, call in ways.items():
                    start = time.thread_time()
                    for _ in range(CALLS):
                        call()
                    taken[way].append((time.thread_time() - start) / CALLS * 1e6)
                    synchronize()
            device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
            row: dict[str, Any] = {"device": device, "unaligned": unaligned, "N, K": shape}
            for way, values in taken.items():
                lower, _, upper = quantiles(values, n=4)
                row[way] = {
                    "us": round(median(values), 1),
                    "quartiles": [round(lower, 1), round(upper, 1)],
                    "operators": operators_of(ways[way]),
                }
            print(json.dumps(row))


if __name__ == "__main__":
    main()

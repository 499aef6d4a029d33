"""A vLLM plugin only for tests: torch stand-ins for operators that vLLM's CPU build lacks.

With them static, per-tensor and block-scaled checkpoints and experts serve on the CPU, through vLLM's own layers,
loaders and requantization, both the original and the converted one.
"""

# ruff: noqa: N803

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

_AMX_KERNEL = "CPUFp8PerTensorScaledMMLinearKernel"
_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu2": lambda x: functional.relu(x).square(),
}
_libraries: list[torch.library.Library] = []


def register() -> None:
    """Define the operators, once per process, if vLLM is its CPU build."""
    if _libraries or torch.version.cuda:
        return
    import vllm._custom_ops  # noqa: F401  defines the existing operators

    library = torch.library.Library("_C", "FRAGMENT")
    # vLLM's CPU build has a nameless, empty overload of the first.
    library.define("static_scaled_fp8_quant.torch(Tensor! out, Tensor input, Tensor scale, int[]? group_shape) -> ()")
    library.define("silu_and_mul_quant(Tensor! out, Tensor input, Tensor scale) -> ()")
    library.impl("static_scaled_fp8_quant.torch", _static_scaled_fp8_quant, "CPU")
    library.impl("silu_and_mul_quant", _silu_and_mul_quant, "CPU")
    _libraries.append(library)
    _add_block_kernel()
    _add_experts()


def _static_scaled_fp8_quant(
    out: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, group_shape: list[int] | None
) -> None:
    if scale.numel() != 1 or group_shape not in (None, [-1, -1]):
        raise NotImplementedError(f"a stand-in for scales per tensor only, got {list(scale.shape)} for {group_shape}")
    # Dynamic quantization may leave more rows in `out` than there are tokens.
    out[: x.shape[0]].copy_(_quantized(x.float(), scale))


def _silu_and_mul_quant(out: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> None:
    gate, up = x.float().chunk(2, dim=-1)
    out.copy_(_quantized(torch.nn.functional.silu(gate) * up, scale))


def _quantized(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x * scale.float().reciprocal()).clamp(-448, 448).to(torch.float8_e4m3fn)


def _add_block_kernel() -> None:
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    linear._POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU] = [_block_kernel()]
    # On CPUs with AMX another kernel comes first, which fails if K is not a multiple of 32.
    kernels = linear._POSSIBLE_FP8_KERNELS
    kernels[PlatformEnum.CPU] = [kernel for kernel in kernels[PlatformEnum.CPU] if kernel.__name__ != _AMX_KERNEL]


def _block_kernel() -> type:
    """Return a kernel for block scales, for CPUs without AMX: it multiplies as vLLM's Triton kernel does.

    The sums of a block's products are exact in float64, so their rounding does not depend on sizes; they are scaled and
    added up in float32, block by block.
    """
    from vllm.model_executor.kernels.linear import Fp8BlockScaledMMLinearKernel

    class TorchFp8BlockScaledMMKernel(Fp8BlockScaledMMLinearKernel):
        @classmethod
        def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:  # noqa: ARG003
            return True, None

        def apply_block_scaled_mm(
            self,
            A: torch.Tensor,
            B: torch.Tensor,
            As: torch.Tensor,
            Bs: torch.Tensor,
        ) -> torch.Tensor:
            # vLLM's attention uses AMX, for which a process must ask; other kernels do that themselves.
            if torch.cpu._is_amx_tile_supported():
                torch.cpu._init_amx()
            rows = torch.arange(B.shape[0]) // self.weight_group_shape.row
            width = self.weight_group_shape.col
            total = torch.zeros(A.shape[0], B.shape[0])
            for block, (a, b) in enumerate(zip(A.double().split(width, 1), B.double().split(width, 1), strict=True)):
                total += (a @ b.T).float() * As[:, block, None] * Bs[rows, block].float()
            return total.to(self.config.out_dtype)

    return TorchFp8BlockScaledMMKernel


def _add_experts() -> None:
    """Let a stand-in take the place of Triton's experts, and one that takes no refined blocks of HPC's."""
    from vllm.model_executor.layers.fused_moe.oracle import fp8 as oracle

    experts = _experts()

    class TorchExpertsOfPublishedBlocks(experts):  # type: ignore[valid-type]
        @staticmethod
        def _supports_quant_scheme(weight_key: Any, activation_key: Any) -> bool:  # noqa: ARG004
            return tuple(weight_key.scale.group_shape) in ((128, 128), (32, 32))  # of models in the tests

    kernels = {
        oracle.Fp8MoeBackend.TRITON: [experts],
        oracle.Fp8MoeBackend.HPC: [TorchExpertsOfPublishedBlocks],
        oracle.Fp8MoeBackend.CPU: [],  # for CPUs with AMX
    }
    others = oracle.backend_to_kernel_cls
    oracle.backend_to_kernel_cls = lambda backend: kernels[backend] if backend in kernels else others(backend)


def _experts() -> type:
    """Return experts that multiply activations of any precision with dequantized weights, with sums in float64."""
    from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts

    class TorchExperts(TritonExperts):
        expects_unquantized_inputs = True

        @staticmethod
        def _supports_current_device() -> bool:
            return True

        @staticmethod
        def _supports_activation(activation: Any) -> bool:
            return activation.value.removesuffix("_no_mul") in _ACTIVATIONS

        @staticmethod
        def _supports_quant_scheme(weight_key: Any, activation_key: Any) -> bool:  # noqa: ARG004
            return weight_key is not None

        def workspace_shapes(self, M: int, N: int, K: int, *others: Any) -> tuple[tuple[int, ...], ...]:  # noqa: ARG002
            return (1,), (1,), (M, K)

        def apply(
            self,
            output: torch.Tensor,
            hidden_states: torch.Tensor,
            *,
            w1: torch.Tensor,
            w2: torch.Tensor,
            topk_weights: torch.Tensor,
            topk_ids: torch.Tensor,
            activation: Any,
            apply_router_weight_on_input: bool,
            **others: Any,  # noqa: ARG002
        ) -> None:
            total = torch.zeros(output.shape, dtype=torch.float64)
            for expert in topk_ids.unique().tolist():
                first, second = (
                    _dequantized(weight[expert], scale[expert], self.quant_config.block_shape)
                    for weight, scale in ((w1, self.w1_scale), (w2, self.w2_scale))
                )
                tokens, places = (topk_ids == expert).nonzero(as_tuple=True)
                inner = (hidden_states[tokens].double() @ first.T).bfloat16()
                inner = _activated(activation.value, inner.float()).bfloat16()
                weights = 1.0 if apply_router_weight_on_input else topk_weights[tokens, places, None].double()
                total.index_add_(0, tokens, (inner.double() @ second.T).bfloat16().double() * weights)
            output.copy_(total)

    return TorchExperts


def _dequantized(weight: torch.Tensor, scale: torch.Tensor, block: list[int] | None) -> torch.Tensor:
    if block:
        scale = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        scale = scale[: weight.shape[0], : weight.shape[1]]
    else:
        scale = scale.reshape(-1, 1)
    return (weight.float() * scale.float()).double()


def _activated(name: str, x: torch.Tensor) -> torch.Tensor:
    function = _ACTIVATIONS[name.removesuffix("_no_mul")]
    if name.endswith("_no_mul"):
        return function(x)
    gate, up = x.chunk(2, dim=-1)
    return function(gate) * up

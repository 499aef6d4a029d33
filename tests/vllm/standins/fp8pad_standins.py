"""A vLLM plugin only for tests: torch stand-ins for operators that vLLM's CPU build lacks.

With them static, per-tensor and block-scaled checkpoints serve on the CPU, through vLLM's own layers, loaders and
requantization, both the original and the converted one.
"""

# ruff: noqa: N803

import torch

_AMX_KERNEL = "CPUFp8PerTensorScaledMMLinearKernel"
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
            rows = torch.arange(B.shape[0]) // self.weight_group_shape.row
            width = self.weight_group_shape.col
            total = torch.zeros(A.shape[0], B.shape[0])
            for block, (a, b) in enumerate(zip(A.double().split(width, 1), B.double().split(width, 1), strict=True)):
                total += (a @ b.T).float() * As[:, block, None] * Bs[rows, block].float()
            return total.to(self.config.out_dtype)

    return TorchFp8BlockScaledMMKernel

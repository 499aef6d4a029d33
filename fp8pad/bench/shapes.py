"""Layers to time: sizes of published models that CUTLASS does not accept as they are."""

from dataclasses import dataclass

from fp8pad.geometry import is_aligned, padded_shape

# CUTLASS needs both sizes of an FP8 weight to be multiples of 16 (vLLM, csrc, cutlass_scaled_mm).
CUTLASS_ALIGNMENT = (16, 16)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One linear layer as one rank holds it, `[N, K]` = `[out_features, in_features]`.

    `name` ends with the module's name if that decides what the runtime does (`takes_strided_rows`).
    `num_matrices` of equal size are stacked along N; inside an MLP each has a tail of its own.
    """

    name: str
    n: int
    k: int
    num_matrices: int = 1

    @property
    def logical_shape(self) -> tuple[int, int]:
        """`(N, K)` as the model has it."""
        return self.n, self.k

    @property
    def padded_shape(self) -> tuple[int, int]:
        """`(N, K)` as CUTLASS needs it."""
        padded_n, padded_k = padded_shape(self.logical_shape, CUTLASS_ALIGNMENT)
        return padded_n, padded_k

    @property
    def kept_shape(self) -> tuple[int, int]:
        """`(N, K)` as the kernel gets it inside an MLP."""
        n, k = padded_shape((self.n // self.num_matrices, self.k), CUTLASS_ALIGNMENT)
        return n * self.num_matrices, k

    @property
    def is_aligned(self) -> bool:
        """Whether there is nothing to pad, and therefore nothing to compare."""
        return is_aligned(self.logical_shape, CUTLASS_ALIGNMENT)


REAL_SHAPES = (
    LayerShape("Qwen2.5-VL vision down", 1280, 3420),
    LayerShape("Qwen2.5-VL vision down, TP 2", 1280, 1710),
    LayerShape("Qwen2.5-VL vision down, TP 4", 1280, 855),
    LayerShape("DeepSeek-Coder-V2-Lite down, TP 8", 2048, 1368),
    LayerShape("GLM-4.5-Air down, TP 8", 4096, 1368),
    LayerShape("Qwen3-VL vision fc2, TP 2", 1152, 2152),
    LayerShape("Qwen2.5-72B down, TP 16", 8192, 1848),
    LayerShape("jais-13b fc2", 5120, 13653),
    LayerShape("Qwen2.5-VL vision gate_up", 6840, 1280, 2),
    LayerShape("jais-13b fc1, gated", 27306, 5120, 2),
    LayerShape("Mamba2-130m layers.*.mixer.in_proj", 3352, 768),
)

TOKEN_COUNTS = (1, 16, 64, 256, 1024, 4096, 16384)

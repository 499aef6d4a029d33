"""Inside an MLP nothing need be cut or padded: the output of gate and up keeps its padding, and down takes it so.

Zero rows of gate and up give zeros, an activation makes zeros of zeros, and down multiplies them by zeros. So wherever
all layers of an MLP have their padding at the same places, and nothing but an activation stands between them, what the
one leaves the other takes. Which layers these are is recorded (`ModuleRecord.inner`); whether they agree, on this rank,
is seen here, as vLLM makes them: gate and up, then down.
"""

from typing import TYPE_CHECKING, Any

from fp8pad.runtime.sizes import Span

if TYPE_CHECKING:
    from fp8pad.runtime.linear import PaddedLinearMethod


class InnerTails:
    """The layers of a model's MLPs that wait for the one that takes their output, by the name of the MLP."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[PaddedLinearMethod, Span | None]]] = {}

    def add(self, method: "PaddedLinearMethod", layer: Any) -> None:
        """Add a layer, just made; let its MLP keep its padding if it is the last layer and all agree."""
        name, _, _ = method.record.prefix.rpartition(".")
        if method.record.inner == "n":
            self._waiting.setdefault(name, []).append((method, _left_by(method, layer)))
        elif method.record.inner == "k":
            span = _taken_by(method, layer)
            waiting = self._waiting.pop(name, [])
            if waiting and span and all(left == span for _, left in waiting):
                method.takes_tails = True
                for before, _ in waiting:
                    before.keeps_tails = True


def _left_by(method: "PaddedLinearMethod", layer: Any) -> Span | None:
    """Return the span of inner rows that a layer's output has for each of its matrices, if it may be left uncut."""
    stays = getattr(layer, "tp_size", 1) == 1 or not getattr(layer, "gather_output", True)
    adds_its_bias = not getattr(layer, "skip_bias_add", False)
    spans = set(method.sizes.rows)
    return (
        spans.pop() if method.sizes.is_placed and len(spans) == 1 and stays and adds_its_bias and not _lora() else None
    )


def _taken_by(method: "PaddedLinearMethod", layer: Any) -> Span | None:
    """Return the span of inner columns that a layer takes, if its input may come with its padding."""
    is_own_share = getattr(layer, "tp_size", 1) == 1 or getattr(layer, "input_is_parallel", False)
    return method.sizes.columns if method.sizes.is_placed and is_own_share and not _lora() else None


def _lora() -> bool:
    """Return whether adapters may be added to layers: they take inputs and give outputs of logical sizes."""
    from vllm.config import get_current_vllm_config

    return get_current_vllm_config().lora_config is not None

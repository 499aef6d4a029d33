"""Inside an MLP tails are kept, and a rank's share may begin inside a scale block: vLLM's layers, bit for bit.

Each rank's MLP is compared with whole stock layers on one rank, with zeros instead of the other ranks' activations: the
same products, and zeros. The stand-in kernel's sums are exact within a block, so nothing depends on their grouping.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from absorb_models import block_scaled
from test_block_layers import _grown as grown_to_blocks
from test_block_layers import _pretend_rank

from fp8pad.geometry import round_up
from fp8pad.quantization_config import ModuleRecord
from fp8pad.runtime.config import padded_config
from fp8pad.runtime.linear import PaddedLinearMethod
from fp8pad.runtime.patches import startup_line

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("standin_config")]

BLOCK = 32
HIDDEN = 72
NAME = "model.layers.0.mlp"


Matrix = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Mlp:
    """The weights of an MLP as in a checkpoint, before it is padded."""

    inner: int
    is_gated: bool = True
    is_fused: bool = False
    above: list[Matrix] = field(default_factory=list)
    biases: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.inner)
        for _ in range(2 if self.is_gated else 1):
            self.above.append(_matrix(generator, self.inner, HIDDEN))
            self.biases.append(torch.randn(self.inner, generator=generator, dtype=torch.float32).bfloat16())
        self.down = _matrix(generator, HIDDEN, self.inner)
        self.down_bias = torch.randn(HIDDEN, generator=generator, dtype=torch.float32).bfloat16()

    def on_disk(self) -> list[Matrix]:
        """Return gate and up, padded as `convert` pads them, in one piece if they are fused on disk."""
        above = self.above
        if self.is_fused:
            above = [(torch.cat([weight for weight, _ in above]), torch.cat([scale for _, scale in above]))]
        return [(grown_to_blocks(weight), scale) for weight, scale in above]

    def record(self) -> dict[str, ModuleRecord]:
        """Return the record of its modules in config.json."""
        names = ["gate_up_proj"] if self.is_fused else ["gate_proj", "up_proj"] if self.is_gated else ["up_proj"]
        rows = self.inner * (2 if self.is_fused else 1)
        return {
            **{f"{NAME}.{name}": _module(rows, HIDDEN, "n") for name in names},
            f"{NAME}.down_proj": _module(HIDDEN, self.inner, "k"),
        }


def _module(n: int, k: int, inner: Any) -> ModuleRecord:
    return ModuleRecord((n, k), (round_up(n, BLOCK), round_up(k, BLOCK)), (BLOCK, BLOCK), inner)


def _matrix(generator: torch.Generator, n: int, k: int) -> Matrix:
    """Return an FP8 weight with its scales; rows and columns grow, so that no two blocks have one scale."""
    weight = torch.randn(n, k, generator=generator, dtype=torch.float32)
    return block_scaled(weight * (1 + torch.arange(n)[:, None] / 10) * (1 + torch.arange(k) / 10), BLOCK)


def _base_config() -> Any:
    from vllm.model_executor.layers.quantization.fp8 import Fp8Config

    return Fp8Config(True, "dynamic", weight_block_size=[BLOCK, BLOCK])


def _padded_layers(mlp: Mlp) -> tuple[Any, Any]:
    """Return gate and up, and down, of the current rank, as a model makes and loads them."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear

    config = padded_config(_base_config(), mlp.record())
    if mlp.is_gated:
        name, sizes = f"{NAME}.gate_up_proj", [mlp.inner, mlp.inner]
        above: Any = MergedColumnParallelLinear(HIDDEN, sizes, quant_config=config, prefix=name)
    else:
        above = ColumnParallelLinear(HIDDEN, mlp.inner, quant_config=config, prefix=f"{NAME}.up_proj")
    down = RowParallelLinear(
        mlp.inner, HIDDEN, bias=True, skip_bias_add=True, reduce_results=False, quant_config=config,
        prefix=f"{NAME}.down_proj",
    )  # fmt: skip
    for layer in (above, down):
        for parameter in (layer.weight, layer.weight_scale_inv):
            parameter.data.view(torch.uint8).fill_(0xFF)  # NaN, like uninitialized memory when a reload begins
    matrices = mlp.on_disk()
    for index, (weight, scale) in enumerate(matrices):
        _load(above, weight, scale, () if len(matrices) == 1 else (index,))
    for index, bias in enumerate(mlp.biases):
        above.bias.weight_loader(above.bias, bias, *([index] if mlp.is_gated else []))
    _load(down, grown_to_blocks(mlp.down[0]), mlp.down[1], ())
    down.bias.data.copy_(mlp.down_bias)
    for layer in (above, down):
        layer.quant_method.process_weights_after_loading(layer)
    return above, down


def _load(layer: Any, weight: torch.Tensor, scale: torch.Tensor, shard_id: tuple[int, ...]) -> None:
    for parameter, tensor in ((layer.weight, weight), (layer.weight_scale_inv, scale)):
        parameter.weight_loader(parameter, tensor, *shard_id)


def _activated(halves: Sequence[torch.Tensor]) -> torch.Tensor:
    gate, *up = halves
    return torch.nn.functional.silu(gate) * up[0] if up else torch.nn.functional.silu(gate)


def _stock(matrix: Matrix) -> Any:
    """Return a stock layer of one rank."""
    from vllm.model_executor.layers.linear import ReplicatedLinear

    weight, scale = matrix
    layer = ReplicatedLinear(weight.shape[1], weight.shape[0], bias=False, quant_config=_base_config())
    layer.weight.weight_loader(layer.weight, weight)
    layer.weight_scale_inv.weight_loader(layer.weight_scale_inv, scale)
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def _reference(mlp: Mlp, x: torch.Tensor, number: int, num_ranks: int) -> torch.Tensor:
    """Return a rank's part of the sum: whole stock layers, with the other ranks' activations set to zero."""
    halves = [
        _stock(matrix).quant_method.apply(_stock(matrix), x, bias)
        for matrix, bias in zip(mlp.above, mlp.biases, strict=True)
    ]
    inner = _activated(halves)
    share = mlp.inner // num_ranks
    masked = torch.zeros_like(inner)
    masked[:, number * share : (number + 1) * share] = inner[:, number * share : (number + 1) * share]
    down = _stock(mlp.down)
    output: torch.Tensor = down.quant_method.apply(down, masked)
    return output


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize(
    "mlp",
    [
        Mlp(100),
        Mlp(172),
        Mlp(128),
        Mlp(64 * 4),
        Mlp(100, is_gated=False),
        Mlp(128, is_fused=True),
    ],
    ids=lambda mlp: f"{mlp.inner}{'' if mlp.is_gated else ', no gate'}{', fused' if mlp.is_fused else ''}",
)
def test_every_rank_adds_what_its_share_gives(mlp: Mlp, num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of 25 and 43 rows in blocks of 32, of whole blocks, and of none; biases, gated or not, fused on disk."""
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float32).bfloat16()
    for number in range(num_ranks):
        _pretend_rank(monkeypatch, 1, 0)
        expected = _reference(mlp, x, number, num_ranks)
        _pretend_rank(monkeypatch, num_ranks, number)
        above, down = _padded_layers(mlp)
        output, _ = above(x)
        needs_padding = mlp.inner // num_ranks % BLOCK != 0
        assert above.quant_method.keeps_tails == down.quant_method.takes_tails == needs_padding
        assert output.shape[-1] % BLOCK == 0 or not needs_padding
        got, _ = down(_activated(output.chunk(len(mlp.above), dim=-1)))
        assert torch.equal(got, expected)


def test_with_lora_outputs_are_cut_and_inputs_padded(monkeypatch: pytest.MonkeyPatch, standin_config: Any) -> None:
    """An adapter adds to an output of logical size; shares that begin inside a block are still served."""
    from vllm.config import LoRAConfig

    monkeypatch.setattr(standin_config, "lora_config", LoRAConfig(max_lora_rank=8))
    mlp, x = Mlp(100), torch.randn(5, HIDDEN, dtype=torch.float32).bfloat16()
    for number in range(4):
        _pretend_rank(monkeypatch, 1, 0)
        expected = _reference(mlp, x, number, 4)
        _pretend_rank(monkeypatch, 4, number)
        above, down = _padded_layers(mlp)
        output, _ = above(x)
        assert output.shape == (5, 50)
        assert not above.quant_method.keeps_tails
        assert torch.equal(down(_activated(output.chunk(2, dim=-1)))[0], expected)


@pytest.mark.parametrize("unknown", [["down_proj"], ["gate_proj", "up_proj"]])
def test_an_mlp_of_which_a_layer_is_not_known_keeps_nothing(
    unknown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding is kept only if gate, up and down are all padded."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear

    _pretend_rank(monkeypatch, 1, 0)
    record = {name: module for name, module in Mlp(100).record().items() if name.rpartition(".")[2] not in unknown}
    config = padded_config(_base_config(), record)
    above = MergedColumnParallelLinear(HIDDEN, [100, 100], quant_config=config, prefix=f"{NAME}.gate_up_proj")
    down = RowParallelLinear(100, HIDDEN, quant_config=config, prefix=f"{NAME}.down_proj")
    for layer in (above, down):
        method = layer.quant_method
        assert not (isinstance(method, PaddedLinearMethod) and (method.keeps_tails or method.takes_tails))


@pytest.mark.parametrize("option", ["gather_output", "skip_bias_add", "input_is_parallel"])
def test_what_passes_through_other_hands_is_cut(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that ranks gather, or to which the model adds the bias, and an input that a layer divides."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear

    _pretend_rank(monkeypatch, 2, 1)
    config = padded_config(_base_config(), Mlp(100, is_gated=False).record())
    above_options: dict[str, Any] = {option: True} if option != "input_is_parallel" else {}
    down_options: dict[str, Any] = {option: False} if option == "input_is_parallel" else {}
    above = ColumnParallelLinear(HIDDEN, 100, quant_config=config, prefix=f"{NAME}.up_proj", **above_options)
    down = RowParallelLinear(100, HIDDEN, quant_config=config, prefix=f"{NAME}.down_proj", **down_options)
    assert not above.quant_method.keeps_tails
    assert not down.quant_method.takes_tails


@pytest.mark.parametrize("attribute", ["gather_output", "input_is_parallel"])
def test_a_vllm_whose_layers_say_less_keeps_nothing(attribute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the attribute that says whether a share stays on its rank, outputs are cut; nothing else changes."""
    from vllm.model_executor.layers import linear

    above_class, down_class = (
        type(name, (getattr(linear, name),), {attribute: property(_missing, lambda *_: None)})
        for name in ("ColumnParallelLinear", "RowParallelLinear")
    )
    _pretend_rank(monkeypatch, 2, 1)
    config = padded_config(_base_config(), Mlp(100, is_gated=False).record())
    above = above_class(HIDDEN, 100, quant_config=config, prefix=f"{NAME}.up_proj")
    down = down_class(100, HIDDEN, quant_config=config, prefix=f"{NAME}.down_proj")
    assert above.quant_method.sizes.is_padded
    assert not above.quant_method.keeps_tails
    assert not down.quant_method.takes_tails


def _missing(_: Any) -> None:
    raise AttributeError


def test_a_config_travels_without_the_layers_that_it_made() -> None:
    """vLLM sends its config to worker processes, and copies it."""
    import copy
    import pickle

    config = padded_config(_base_config(), Mlp(100).record())
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):  # noqa: S301 (our own)
        assert other.inner_tails is not config.inner_tails
        assert other.fp8pad_modules == config.fp8pad_modules


def test_the_line_at_startup_says_what_is_done_to_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of an MLP keep their padding; one outside is padded before its kernel."""
    from vllm.model_executor.layers.linear import RowParallelLinear

    _pretend_rank(monkeypatch, 1, 0)
    mlp = Mlp(100)
    above, down = _padded_layers(mlp)
    name = "model.layers.0.self_attn.o_proj"
    config = padded_config(_base_config(), {name: _module(64, 40, None)})
    other = RowParallelLinear(40, 64, quant_config=config, prefix=name)
    assert startup_line(torch.nn.ModuleList([above, down, other])) == (
        "fp8pad: 3 layers padded (2 inside MLPs, kept; 1 padded before the kernel), kernel TorchFp8BlockScaledMMKernel"
    )
    assert startup_line(torch.nn.ModuleList([torch.nn.Linear(2, 2)])) is None

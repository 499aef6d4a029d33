"""Multiply every padded layer of a checkpoint in both forms."""

from pathlib import Path

from fp8pad.checkpoint.read import read_checkpoint, read_unconverted
from fp8pad.planning.layers import recognise
from fp8pad.planning.quantization import find_quantization
from fp8pad.record import CONFIG_FILE
from gemm.layers import Form, LayerPair
from gemm.products import MAX_EXACT_K, Arithmetic, best_arithmetic

NUM_TOKENS = 4


def products_differ(model: Path, out_dir: Path, arithmetic: Arithmetic | None = None) -> dict[str, str | None]:
    """Return, for each padded FP8 weight of `out_dir`, the first difference to its source's product, or None.

    `arithmetic` None means the best on this machine. Layers are read one at a time, in pieces, so memory does not grow
    with the checkpoint.
    """
    source, converted = read_unconverted(model), read_checkpoint(out_dir)
    record = converted.read_record()
    padded = record.tensors if record else {}
    tensors = {tensor.name: tensor for shard in source.shards for tensor in shard.tensors}
    recognised, _ = recognise(tensors, find_quantization(source.configs), source.configs[CONFIG_FILE])
    linears = [linear for linear in recognised if linear.weight.name in padded]
    assert all(linear.weight.shape[-1] <= MAX_EXACT_K for linear in linears), "sums would not be exact"
    arithmetic = arithmetic or best_arithmetic(frozenset(linear.weight.dtype for linear in linears))
    before, after = Form.of(source), Form.of(converted)
    return {
        linear.weight.name: LayerPair(linear, before, after, padded).first_mismatch(arithmetic, NUM_TOKENS, seed=0)
        for linear in linears
    }

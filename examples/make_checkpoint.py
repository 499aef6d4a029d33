"""Make examples/llama-fp8: a tiny Llama with unaligned sizes, quantized to FP8 by llm-compressor.

The weights are random, from a fixed seed: the model's outputs are nonsense, but the same everywhere, and the files have
exactly the layout that llm-compressor gives a real model. It was made with torch 2.13.0, transformers 5.17.0,
llm-compressor 0.14.0.1 and compressed-tensors 0.19.0, in an environment of its own:

    python -m venv .venv-llmcompressor
    .venv-llmcompressor/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1
    .venv-llmcompressor/bin/python examples/make_checkpoint.py examples/llama-fp8
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

try:
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
except ImportError as error:
    raise SystemExit(f"{__file__}: {error}; it needs llm-compressor, as its first lines say") from error

BEGIN, END = "<s>", "</s>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 258 tokens: two special ones and each byte, so that every text can be encoded."""
    tokens = [BEGIN, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END)


def tiny_llama(vocab_size: int) -> LlamaForCausalLM:
    """Return a Llama whose hidden size (136) and intermediate size (213) are not multiples of 16."""
    torch.manual_seed(20240213)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=136,
        intermediate_size=213,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.1,  # with the usual 0.02, every token is equally likely in a model this small
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def main() -> None:
    """Quantize every Linear except the head to FP8: a scale per output channel, dynamic per-token activations."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out_dir", type=Path)
    out_dir = parser.parse_args().out_dir

    tokenizer = byte_tokenizer()
    with TemporaryDirectory() as dense_dir:
        tiny_llama(len(tokenizer)).save_pretrained(dense_dir)
        tokenizer.save_pretrained(dense_dir)
        recipe = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"])
        oneshot(model=dense_dir, recipe=recipe, output_dir=str(out_dir))


if __name__ == "__main__":
    main()

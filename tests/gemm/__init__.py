"""An oracle: padded FP8 layers are multiplied in their original and in their padded form, with its own arithmetic.

`fp8pad verify` compares bytes; here products are compared, which wrong bytes cannot produce in any arrangement.
"""

"""An oracle: padded FP8 layers multiplied as they were and as they are on disk, in arithmetic of its own.

What `fp8pad verify` compares as bytes is compared as products here, which no arrangement of wrong bytes can give.
"""

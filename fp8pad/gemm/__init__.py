"""`verify --gemm`: multiply the same activations with a layer as it was and as it is padded, and compare every bit.

It shows what a comparison of bytes does not: that the padded layer, used as its record says, computes the same.
"""

"""Absorbing: which config keys can be rounded up permanently, and how every tensor that they size grows."""

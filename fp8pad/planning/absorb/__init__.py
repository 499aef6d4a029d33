"""Absorbing: which config keys can grow for good, and what that does to every tensor that they size."""

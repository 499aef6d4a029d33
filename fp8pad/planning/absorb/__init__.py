"""Absorbing: which config keys can grow for good, what that does to every tensor that they size, and what it costs."""

"""fp8pad pads FP8 checkpoints ahead of time, so that inference engines never have to."""

__version__ = "0.1.0"

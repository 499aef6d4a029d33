"""Times one FP8 linear layer on this GPU: aligned, through vLLM's own path, through the runtime, and absorbed."""

"""Time FP8 linear layers on this GPU: aligned, through vLLM's own path, through the runtime, and absorbed."""

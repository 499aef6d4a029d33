"""torch, for the scripts here; without it, they say so in one line."""

import sys

try:
    import torch  # noqa: F401
except ImportError as error:
    raise SystemExit(f"{sys.argv[0]}: {error}; it needs an environment with torch, vLLM and fp8pad") from error

"""Check that torch is installed, which the scripts here need; if not, exit with one line that says so."""

import sys

try:
    import torch  # noqa: F401
except ImportError as error:
    raise SystemExit(f"{sys.argv[0]}: {error}; it needs an environment with torch, vLLM and fp8pad") from error

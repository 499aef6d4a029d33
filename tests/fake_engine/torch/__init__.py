"""As much of torch as describing a CPU takes."""

from types import SimpleNamespace

__version__ = "0.0.1"
backends = SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: "NONE"))

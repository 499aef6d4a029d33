"""The part of torch that is needed to describe a CPU."""

from types import SimpleNamespace

__version__ = "0.0.1"
backends = SimpleNamespace(cpu=SimpleNamespace(get_cpu_capability=lambda: "NONE"))

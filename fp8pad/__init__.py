"""fp8pad pads FP8 checkpoints ahead of time, so that inference engines never have to.

`fp8pad.plan`, `convert`, `verify`, `unpad`, `inspect` and `push` are the commands of the command line, and
`convert_shards` is `convert --shards`; see `fp8pad.library`. What goes wrong is an `Fp8padError`; the other errors say
what kind. All are loaded when they are first used, since a vLLM process imports this.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fp8pad.conversion import ConvertReport, SliceReport
    from fp8pad.errors import (
        AlreadyPaddedError,
        AlteredPaddingError,
        CheckpointError,
        ClusterError,
        ConfigError,
        Fp8padError,
        HeaderError,
        HubError,
        NotServedError,
        OutputError,
        PlanError,
        RecordError,
        UsageError,
        VerifyError,
    )
    from fp8pad.inspection import Inspection
    from fp8pad.library import PlanReport, convert, convert_shards, inspect, plan, push, unpad, verify
    from fp8pad.unpadding import UnpadReport
    from fp8pad.upload import PushReport
    from fp8pad.verification import VerifyReport

__version__ = "0.1.0"

__all__ = [
    "AlreadyPaddedError",
    "AlteredPaddingError",
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "ConvertReport",
    "Fp8padError",
    "HeaderError",
    "HubError",
    "Inspection",
    "NotServedError",
    "OutputError",
    "PlanError",
    "PlanReport",
    "PushReport",
    "RecordError",
    "SliceReport",
    "UnpadReport",
    "UsageError",
    "VerifyError",
    "VerifyReport",
    "__version__",
    "convert",
    "convert_shards",
    "inspect",
    "plan",
    "push",
    "unpad",
    "verify",
]


_MODULES = {
    "ConvertReport": "conversion",
    "Inspection": "inspection",
    "PushReport": "upload",
    "SliceReport": "conversion",
    "UnpadReport": "unpadding",
    "VerifyReport": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES.get(name, "errors" if name.endswith("Error") else "library")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return __all__

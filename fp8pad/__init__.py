"""fp8pad pads FP8 checkpoints ahead of time, so that inference engines never have to.

One function for each command; see `help(fp8pad.convert)`. They print nothing, and return the report after the arrow.

    plan            -> PlanReport     what converting would change, and the cost
    convert         -> ConvertReport  pad a checkpoint, and verify the result
    convert_shards  -> SliceReport    write some of its shards, as `convert --shards` does
    verify          -> VerifyReport   compare a converted checkpoint with its records and its source
    unpad           -> UnpadReport    restore the original, byte for byte
    inspect         -> Inspection     what was done to a checkpoint, according to its records
    push            -> PushReport     upload a converted checkpoint to the hub

Every error is an `Fp8padError`, of one of these kinds; indented ones are subclasses of the one above.

    UsageError               an invalid argument or option
    CheckpointError          files are missing, damaged, or disagree with each other
        HeaderError          a safetensors file with an invalid header
        ConfigError          a config file that is missing, not JSON, or contradicts the tensors
        PlanError            tensors whose shapes contradict each other; with `strict`, FP8 that is not understood
        RecordError          one of fp8pad's records is missing, malformed, or of an unknown version
        AlreadyPaddedError   the checkpoint to convert was made by fp8pad
        HubError             a model on the hub that cannot be read
    VerifyError              what was read back does not match the plan
        AlteredPaddingError  padding that holds data, which unpadding would lose
    NotServedError           the engine would refuse the result at this tensor-parallel size
    OutputError              the output folder cannot be used, or writing to it failed
    ClusterError             a Ray cluster that cannot be reached, or was lost

Functions and reports are imported on first use, since vLLM processes import this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fp8pad.errors import AlreadyPaddedError as AlreadyPaddedError
from fp8pad.errors import AlteredPaddingError as AlteredPaddingError
from fp8pad.errors import CheckpointError as CheckpointError
from fp8pad.errors import ClusterError as ClusterError
from fp8pad.errors import ConfigError as ConfigError
from fp8pad.errors import Fp8padError as Fp8padError
from fp8pad.errors import HeaderError as HeaderError
from fp8pad.errors import HubError as HubError
from fp8pad.errors import NotServedError as NotServedError
from fp8pad.errors import OutputError as OutputError
from fp8pad.errors import PlanError as PlanError
from fp8pad.errors import RecordError as RecordError
from fp8pad.errors import UsageError as UsageError
from fp8pad.errors import VerifyError as VerifyError

if TYPE_CHECKING:  # `as` marks re-exports for type checkers
    from fp8pad.conversion import ConvertReport as ConvertReport
    from fp8pad.conversion import SliceReport as SliceReport
    from fp8pad.inspection import Inspection as Inspection
    from fp8pad.library import convert as convert
    from fp8pad.library import convert_shards as convert_shards
    from fp8pad.library import inspect as inspect
    from fp8pad.library import plan as plan
    from fp8pad.library import push as push
    from fp8pad.library import unpad as unpad
    from fp8pad.library import verify as verify
    from fp8pad.planned import PlanReport as PlanReport
    from fp8pad.unpadding import UnpadReport as UnpadReport
    from fp8pad.upload import PushReport as PushReport
    from fp8pad.verification import VerifyReport as VerifyReport

__version__ = "0.1.0"

# Not `__all__`, since `help(fp8pad)` would print the full help of everything in it.
_OFFERED = {
    "conversion": ("ConvertReport", "SliceReport"),
    "inspection": ("Inspection",),
    "library": ("convert", "convert_shards", "inspect", "plan", "push", "unpad", "verify"),
    "planned": ("PlanReport",),
    "unpadding": ("UnpadReport",),
    "upload": ("PushReport",),
    "verification": ("VerifyReport",),
}
_MODULES = {name: module for module, names in _OFFERED.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*_MODULES, *(name for name in globals() if name.endswith("Error")), "__version__"]

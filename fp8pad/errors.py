"""Every error that fp8pad raises on purpose: one root, one class per cause.

A message is one line and says which tensor or key, in which file, what was expected and what was found.
"""

import json
from itertools import islice
from typing import Any, ClassVar

MAX_SHOWN = 60  # characters


def shown(value: object) -> str:
    """Return a value of a JSON document for a message: as JSON, on one line, cut to `MAX_SHOWN` characters.

    Only the part that is shown is encoded, however long or deep the value is.
    """
    encoder = json.JSONEncoder(ensure_ascii=False, default=repr, skipkeys=True)
    text = "".join(islice(encoder.iterencode(value), MAX_SHOWN + 1))
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


class Fp8padError(Exception):
    """The root of all errors with a message for the user; the command line ends with `exit_status`."""

    exit_status: ClassVar[int] = 1


class UsageError(Fp8padError):
    """An invalid argument or option."""

    exit_status = 2


class CheckpointError(Fp8padError):
    """A checkpoint's files are missing, damaged, or disagree with each other."""


class HeaderError(CheckpointError):
    """A safetensors file with an invalid header."""


class ConfigError(CheckpointError):
    """A config file that is missing, not JSON, or contradicts the tensors."""


class PlanError(CheckpointError):
    """Tensors whose shapes contradict each other, or, if that was asked for, FP8 layers that are not understood.

    In the second case, `report` is the `planned.PlanReport`.
    """

    report: Any = None


class RecordError(CheckpointError):
    """One of fp8pad's own records is missing, malformed, or of an unknown version."""


class AlreadyPaddedError(CheckpointError):
    """The checkpoint to convert was made by fp8pad already."""


class HubError(CheckpointError):
    """A model on the hub that cannot be read: it does not exist, access is denied, or the hub does not answer."""


class VerifyError(Fp8padError):
    """What was read back does not match the plan."""


class AlteredPaddingError(VerifyError):
    """Padding that holds data, which unpadding would lose."""


class NotServedError(Fp8padError):
    """The engine would refuse the converted checkpoint at the tensor-parallel size that it is planned for.

    `report` is the `planned.PlanReport` of the conversion, which was not started.
    """

    report: Any = None


class OutputError(Fp8padError):
    """The output folder cannot be used, or writing to it failed."""


class ClusterError(Fp8padError):
    """A Ray cluster that cannot be reached, was lost, or whose nodes cannot do the work."""


class GoldenError(Fp8padError):
    """A golden file that cannot be used, or an engine that did not answer."""


class EngineError(Fp8padError):
    """The installed vLLM breaks a contract that the runtime relies on."""


class UnsupportedLayerError(Fp8padError):
    """A layer that the runtime refuses to serve, because it cannot serve it correctly."""

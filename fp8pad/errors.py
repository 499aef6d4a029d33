"""Every error that fp8pad raises on purpose: one root, one class per cause.

A message is one line and says which tensor or key, in which file, what was expected and what was found.
"""

import json
from itertools import islice
from typing import Any

MAX_SHOWN = 60  # characters


def shown(value: object) -> str:
    """Return a value of a JSON document as a message shows it: as JSON, on one line, cut where it is long.

    No more of it is looked at than is shown, however long or deep it is.
    """
    encoder = json.JSONEncoder(ensure_ascii=False, default=repr, skipkeys=True)
    text = "".join(islice(encoder.iterencode(value), MAX_SHOWN + 1))
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


class Fp8padError(Exception):
    """The root of all errors with a message for the user; the command line turns it into exit status 1."""


class UsageError(Fp8padError):
    """An argument or option that fp8pad does not take; the command line ends with exit status 2."""


class CheckpointError(Fp8padError):
    """A checkpoint's files are missing, damaged, or disagree with each other."""


class HeaderError(CheckpointError):
    """A safetensors file whose header is not what the format asks for."""


class ConfigError(CheckpointError):
    """A config file that is missing, not JSON, or says what the tensors do not."""


class PlanError(CheckpointError):
    """Tensors whose shapes cannot belong together, so that no plan can be made."""


class RecordError(CheckpointError):
    """One of fp8pad's own records is missing, malformed, or of a version that is not known."""


class AlreadyPaddedError(CheckpointError):
    """The checkpoint to convert was made by fp8pad already."""


class HubError(CheckpointError):
    """A model of the hub that cannot be read: there is none, it is not open to us, or the hub does not answer."""


class VerifyError(Fp8padError):
    """What was read back is not what the plan says."""


class AlteredPaddingError(VerifyError):
    """Padding holds something, which unpadding would lose."""


class NotServedError(Fp8padError):
    """The converted checkpoint is one that the engine refuses at the tensor-parallel size that it is meant for.

    `report` is the `library.PlanReport` on a conversion that was not begun for that reason.
    """

    report: Any = None


class OutputError(Fp8padError):
    """The output folder cannot be used, or writing to it failed."""


class ClusterError(Fp8padError):
    """A Ray cluster that is not there, that went away, or whose nodes cannot do the work."""


class GoldenError(Fp8padError):
    """A golden file that cannot be used, or an engine that did not answer."""


class EngineError(Fp8padError):
    """The installed vLLM does not hold a contract that the runtime relies on."""


class UnsupportedLayerError(Fp8padError):
    """A layer that the runtime cannot serve right, so that it refuses to serve it at all."""

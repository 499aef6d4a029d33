"""How a checkpoint is written: the options of `convert` and `unpad`."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fp8pad.errors import UsageError
from fp8pad.reading import PositiveSize, check_fields

Link: TypeAlias = Literal["auto", "copy", "hardlink", "reflink"]
VerifyDepth: TypeAlias = Literal["padded", "full", "none"]

Executor: TypeAlias = Literal["local", "ray"]

DEFAULT_JOBS = 2


@dataclass(frozen=True, slots=True)
class Workers:
    """Where shards are processed: threads of this process, or a Ray cluster; `jobs` shards at a time on each node."""

    jobs: PositiveSize = DEFAULT_JOBS
    executor: Executor = "local"
    ray_address: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self, UsageError)
        if self.executor == "local" and self.ray_address != "auto":
            raise UsageError(f"ray_address: expected auto, unless the executor is ray, got {self.ray_address}")


@dataclass(frozen=True, slots=True)
class WriteOptions(Workers):
    """How a checkpoint is written; fields are named like the command-line options.

    If it `finishes`, all shards must be written already. Raises `UsageError` for an invalid value.
    """

    link: Link = "auto"
    overwrite: bool = False
    resume: bool = True
    verify: VerifyDepth = "padded"
    hash: bool = False
    finishes: bool = False

    def __post_init__(self) -> None:
        Workers.__post_init__(self)
        if self.finishes and not self.resume:
            raise UsageError("--finish cannot be combined with --no-resume, which would remove the shards to publish")

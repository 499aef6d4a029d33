"""How a checkpoint is written: what `convert` and `unpad` can be asked for."""

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
    """Who works on shards: threads of this process, or a Ray cluster; `jobs` shards at a time, on each node."""

    jobs: PositiveSize = DEFAULT_JOBS
    executor: Executor = "local"
    ray_address: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self, UsageError)


@dataclass(frozen=True, slots=True)
class WriteOptions(Workers):
    """How a checkpoint is written, named as the options of the command line.

    `shards` are positions in the sorted names of the shards, where only some are to be written; where it `finishes`,
    all have to be written already. Raises `UsageError` for what is none of these.
    """

    link: Link = "auto"
    overwrite: bool = False
    resume: bool = True
    verify: VerifyDepth = "padded"
    card: bool = False
    hash: bool = False
    finishes: bool = False
    shards: range | None = None

    def __post_init__(self) -> None:
        check_fields(self, UsageError)
        if self.finishes and not self.resume:
            raise UsageError("finish: publishes the shards that no-resume would remove")

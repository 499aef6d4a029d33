"""How a checkpoint is written: what `convert` and `unpad` can be asked for."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Link: TypeAlias = Literal["auto", "copy", "hardlink", "reflink"]
VerifyDepth: TypeAlias = Literal["padded", "full", "none"]

DEFAULT_JOBS = 2


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How a checkpoint is written: `jobs` shards in parallel; the other fields are options of the command line."""

    jobs: int = DEFAULT_JOBS
    link: Link = "auto"
    overwrite: bool = False
    resume: bool = True
    verify: VerifyDepth = "padded"
    card: bool = False
    hash: bool = False

"""Measure the CPU time of checksums and hashes, a mebibyte at a time, as in a conversion.

python tests/bench/measure_digests.py
"""

import hashlib
import os
import time
import zlib
from collections.abc import Callable

from fp8pad.checkpoint.moving import checksum

DATA = memoryview(os.urandom(1 << 20))
DIGESTS: dict[str, Callable[[memoryview], object]] = {
    "checksum": checksum,
    "CRC-32": zlib.crc32,
    "SHA-256": hashlib.sha256,
    "BLAKE2b": hashlib.blake2b,
}
REPEATS = 500


def seconds_per_gigabyte(digest: Callable[[memoryview], object]) -> float:
    """Return the CPU time of a digest of a gigabyte."""
    digest(DATA)
    began = time.process_time()
    for _ in range(REPEATS):
        digest(DATA)
    return (time.process_time() - began) / (REPEATS * len(DATA)) * 1e9


if __name__ == "__main__":
    for name, function in DIGESTS.items():
        print(f"{name:10}{seconds_per_gigabyte(function):6.3f} s of CPU for a gigabyte")

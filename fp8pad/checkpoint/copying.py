"""Copy between open files: in the kernel if it can, or by sharing the data (reflink)."""

import errno
import fcntl
import os

from fp8pad.checkpoint.files import BUFFER_BYTES, KERNEL_COPY_BYTES, Advance, OpenFile
from fp8pad.errors import OutputError

FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
# Errors of a file system, or a pair of them, that cannot copy in the kernel; EIO does not say which side failed.
NO_KERNEL_COPY = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EIO, errno.EINTR}
)


def copy_range(
    source: OpenFile, target: OpenFile, offsets: tuple[int, int], num_bytes: int, advance: Advance | None = None
) -> None:
    """Copy bytes from file to file, in the kernel if it can, else through a buffer; `offsets` are (source, target)."""
    done = 0
    while done < num_bytes:
        here = offsets[0] + done, offsets[1] + done
        count = _kernel_copy(source, target, here, min(num_bytes - done, KERNEL_COPY_BYTES))
        if count == 0:  # not supported, or the source ends: the read below tells which
            count = min(num_bytes - done, BUFFER_BYTES)
            target.write(here[1], source.read(here[0], count))
        done += count
        if advance:
            advance(count)


def clone(source: OpenFile, target: OpenFile) -> bool:
    """Make the empty `target` share all data of `source`; return False if the file system cannot."""
    try:
        fcntl.ioctl(target.descriptor, FICLONE, source.descriptor)
    except OSError:
        return False
    return True


def _kernel_copy(source: OpenFile, target: OpenFile, offsets: tuple[int, int], num_bytes: int) -> int:
    try:
        return os.copy_file_range(source.descriptor, target.descriptor, num_bytes, *offsets)
    except OSError as error:
        if error.errno in NO_KERNEL_COPY:
            return 0
        raise OutputError(f"{target.file}: cannot be written: {error.strerror}") from error

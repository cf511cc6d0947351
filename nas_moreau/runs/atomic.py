"""Atomic writes: a file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_CHUNK = 1 << 24
"""Bytes of one write: small enough that a full disk is noticed early and the missing bytes are exact."""
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class DiskFull(OSError):
    """A file could not be written for lack of space; the file that was there is unchanged.

    Attributes:
        missing_bytes: Number of bytes that could not be written.
    """

    def __init__(self, path: Path, missing_bytes: int):
        super().__init__(
            f"No space left for {path}: {missing_bytes:,} bytes were missing; the file that was there is kept. "
            "Free that much space and resume."
        )
        self.errno = errno.ENOSPC
        self.missing_bytes = missing_bytes


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` by a file holding `data`; at any moment the path names the old file or the whole new one.

    Raises:
        DiskFull: No space is left; the old file is intact and the temporary file is gone.
        OSError: The system refuses for another reason.
    """
    temporary = path.with_name(path.name + ".tmp")
    write_durable(temporary, data, path)
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_durable(temporary: Path, data: bytes, meant_for: Path) -> None:
    """Writes `data` to the file `temporary` and waits for the disk; `meant_for` is the path named in messages."""
    view = memoryview(data)
    written = 0
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            while written < len(view):
                written += os.write(handle, view[written : written + _CHUNK])
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        temporary.unlink(missing_ok=True)  # gives the space back
        if error.errno in _FULL:
            # a file system that allocates late accepts every write and fails at fsync: then nothing is safe
            raise DiskFull(meant_for, len(view) - written or len(view)) from error
        raise


def sync_folder(folder: Path) -> None:
    """Waits until the names in `folder` are on the disk (systems that cannot open folders have no such call)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

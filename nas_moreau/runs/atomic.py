"""Files of a run folder: whole whatever happens while they are written; links are never followed out of it.

A temporary file is always new (O_EXCL), and nothing is opened through a link (O_NOFOLLOW): what somebody has put in
its place is refused or replaced, never written to.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from nas_moreau.errors import InputError

_CHUNK = 1 << 24
"""Bytes of one write: small enough that a full disk is noticed early and the missing bytes are exact."""
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # EFBIG: the limit of ulimit -f
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class DiskFull(OSError):
    """A file could not be written for lack of space; the file that was there is unchanged.

    Attributes:
        missing_bytes: Number of bytes that could not be written, None if that is not known.
    """

    def __init__(self, path: Path, missing_bytes: int | None = None):
        missing = "" if missing_bytes is None else f": {missing_bytes:,} bytes were missing"
        space = "some" if missing_bytes is None else "that much"
        super().__init__(f"No space left for {path}{missing}; what was there is kept. Free {space} space and resume.")
        self.errno = errno.ENOSPC
        self.missing_bytes = missing_bytes


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces `path` by a file holding `data`; at any moment the path names the old file or the whole new one.

    A link at `path` is replaced, not followed.

    Raises:
        DiskFull: No space is left; the old file is intact and the temporary file is gone.
        OSError: The system refuses for another reason.
    """
    temporary = temporary_of(path)
    write_durable(temporary, data, path)
    os.replace(temporary, path)
    sync_folder(path.parent)


def temporary_of(path: Path) -> Path:
    """Returns the temporary file that becomes `path`."""
    return path.with_name(path.name + ".tmp")


def write_durable(temporary: Path, data: bytes, meant_for: Path) -> None:
    """Writes `data` to the new file `temporary` and waits for the disk; one left by a kill is removed before.

    Args:
        temporary: The file.
        data: Its bytes.
        meant_for: The path named in messages.
    """
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o666)
    try:
        try:
            _write(handle, data, meant_for)
        finally:
            os.close(handle)
    except OSError:
        temporary.unlink(missing_ok=True)  # gives the space back
        raise


def append_durable(path: Path, data: bytes) -> None:
    """Appends `data` to a file, made if it is missing, and waits for the disk.

    Raises:
        DiskFull: No space is left; the file has its former length.
        OSError: The path is a link, or the system refuses for another reason.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _SAFE, 0o666)
    try:
        before = os.fstat(handle).st_size
        try:
            _write(handle, data, path)
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


def _write(handle: int, data: bytes, meant_for: Path) -> None:
    view, written = memoryview(data), 0
    try:
        while written < len(view):
            written += os.write(handle, view[written : written + _CHUNK])
        os.fsync(handle)
    except OSError as error:
        if is_full(error):
            # a file system that allocates late accepts every write and fails at fsync: then nothing is safe
            raise DiskFull(meant_for, len(view) - written or len(view)) from error
        raise


def is_full(error: OSError) -> bool:
    """Returns whether an error is for lack of space."""
    return error.errno in _FULL


def read_plain(path: Path, limit: int) -> bytes | None:
    """Returns the bytes of a plain file, None if there is none.

    The file is opened first and judged by its handle: what is read is what was judged. A pipe does not block.

    Raises:
        InputError: It is not a plain file, has more than `limit` bytes, or cannot be read.
    """
    cure = "Restore it, or start again in another folder."
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", cure) from None
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        raise InputError(f"{path} is not a plain file.", cure)
    with open(handle, "rb") as file:
        if about.st_size > limit:
            raise InputError(f"{path} has {about.st_size:,} bytes; {limit:,} are the most that are read.", cure)
        try:
            return file.read(about.st_size)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}.", cure) from None


def refuse_links(folder: Path) -> None:
    """Refuses a run folder in which something is a link: nothing is ever written through one.

    Raises:
        InputError: A file or folder in it, or in one of the folders that a run writes to, is a link.
    """
    places = [folder, *(folder / name for name in ("checkpoints", "tensorboard"))]
    for place in places:
        if place != folder and not place.is_dir():
            continue
        with os.scandir(place) as entries:
            found = sorted(entry.name for entry in entries if entry.is_symlink())
        if found:
            raise InputError(
                f"{place / found[0]} is a link; files of a run are not written through links.",
                "Put there what the link points to, or remove the link.",
            )


def sync_folder(folder: Path) -> None:
    """Waits until the names in `folder` are on the disk (systems that cannot open folders have no such call)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

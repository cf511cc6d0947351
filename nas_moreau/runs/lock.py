"""The lock of a run folder: one process at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nas_moreau.errors import InputError

LOCK_NAME = ".lock"


class Lock:
    """A held lock on a folder: a file with the holder's process id, locked by the operating system.

    The system releases it when the process ends, for whatever reason, so that a file left behind never blocks anyone.
    On systems and file systems without such locks the folder is not protected.
    """

    def __init__(self, handle: int):
        self._handle: int | None = handle

    @classmethod
    def take(cls, folder: Path) -> Lock:
        """Takes the lock of `folder`.

        Raises:
            InputError: Another run holds it.
            OSError: The folder cannot be written to.
        """
        handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
        except BlockingIOError as error:
            holder = os.read(handle, 32).decode("ascii", "replace").strip()
            os.close(handle)
            raise InputError(
                f"The folder {folder} is in use by process {holder or 'unknown'}.",
                "Wait for it, stop it, or choose another folder with --output.",
            ) from error
        except OSError:
            os.close(handle)
            raise
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode("ascii"))
        return cls(handle)

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None


def _lock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # some network file systems have no locks: a run without protection is better than none
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise

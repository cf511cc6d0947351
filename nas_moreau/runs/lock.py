"""The lock of a run folder: one process at a time."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

from nas_moreau.errors import InputError

LOCK_NAME = ".lock"
"""A file with the process id of the holder, empty when nobody holds the lock."""
_TRIES, _PAUSE = 5, 0.02
"""Another process may hold the lock for a moment to look (`is_held`) or to finish a write."""
_UNSUPPORTED = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EISDIR)


class Lock:
    """A held lock on a folder.

    The folder itself is locked by the operating system, so that no file can be deleted to get around it, and the
    system releases it when the process ends, for whatever reason. File systems that cannot lock folders lock the file
    `.lock` instead; on those without any locks the folder is not protected.
    """

    def __init__(self, handles: list[int]):
        self._handles = handles

    @classmethod
    def take(cls, folder: Path) -> Lock:
        """Takes the lock of `folder`.

        Raises:
            InputError: Another run holds it.
            OSError: The folder cannot be written to, or its file `.lock` is a link.
        """
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        handles = [os.open(folder / LOCK_NAME, flags, 0o666)]
        try:
            if os.name != "nt":
                handles.append(os.open(folder, os.O_RDONLY))
            for left in reversed(range(_TRIES)):
                try:
                    _lock(handles)
                    break
                except BlockingIOError:
                    if not left:
                        raise
                    time.sleep(_PAUSE)
            os.ftruncate(handles[0], 0)
            with suppress(OSError):  # a full disk: the lock is held without its holder's name
                os.write(handles[0], f"{os.getpid()}\n".encode("ascii"))
        except BlockingIOError as error:
            holder = os.read(handles[0], 32).decode("ascii", "replace").strip()
            _close(handles)
            raise InputError(
                f"The folder {folder} is in use by process {holder or 'unknown'}.",
                "Wait for it, stop it, or choose another folder with --output.",
            ) from error
        except BaseException:
            _close(handles)
            raise
        return cls(handles)

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._handles:
            os.ftruncate(self._handles[0], 0)
            _close(self._handles)


def is_held(folder: Path) -> bool | None:
    """Returns whether a process holds the lock of a folder, None where that cannot be found out."""
    handles: list[int] = []
    try:
        with suppress(FileNotFoundError):
            handles.append(os.open(folder / LOCK_NAME, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
        handles.append(os.open(folder, os.O_RDONLY))
        _lock(handles, shared=True)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        _close(handles)
    return False


def _close(handles: list[int]) -> None:
    while handles:
        os.close(handles.pop())


def _lock(handles: list[int], shared: bool = False) -> None:
    """Locks the folder (the last handle), or the file if folders cannot be locked; BlockingIOError if it is held."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    for handle in reversed(handles):
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except OSError as error:
            # some network file systems have no locks: a run without protection is better than none
            if error.errno not in _UNSUPPORTED:
                raise

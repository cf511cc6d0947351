"""files.json: the digests of a run folder's files; and the one way in which these files are written and read.

Files that belong together are written as one: first each as a temporary file, then files.json with their digests (the
commit point), then each gets its name. After a kill the folder holds all the old files, or all the new ones, some
under their temporary names; the next reader gives them their names. A file that has another digest was changed by
somebody else, or by the disk, and is refused; so is a missing one. A table that grows is recorded by the digest of the
rows that are safe: an unfinished row behind them does not count as damage.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nas_moreau.errors import InputError
from nas_moreau.runs.atomic import read_plain, sync_folder, temporary_of, write_durable
from nas_moreau.runs.lock import Lock, is_held

MANIFEST = "files.json"
MAX_BYTES = 64 << 20
"""Of a file that is read: 600 epochs of the largest search space take a tenth of that."""
_TEXT = (".json", ".yaml", ".csv")
_TRIES, _PAUSE = 5, 0.05
"""A file that is being replaced while it is read fits at the next try."""


@dataclass(frozen=True)
class Manifest:
    """The recorded files of a folder.

    Attributes:
        files: Name -> SHA-256 of the file.
        tables: Name -> number of bytes that are safe, and their SHA-256.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Manifest | None:
        """Returns the manifest of a folder, None if it has none.

        Raises:
            InputError: It is damaged.
        """
        path = folder / MANIFEST
        data = read_plain(path, MAX_BYTES)
        if data is None:
            return None
        try:
            found = json.loads(data)
            tables = {name: (count, text) for name, (count, text) in found["tables"].items()}
            manifest = cls(dict(found["files"]), tables)
            if found["sha256"] != manifest._digest() or data != manifest._bytes():
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{path} is damaged.", f"Restore it. {_ACCEPT.format(path=path)}") from None
        return manifest

    def __contains__(self, name: str) -> bool:
        return name in self.files or name in self.tables

    def fits(self, name: str, data: bytes | None) -> bool:
        """Returns whether a file is what was recorded."""
        if data is None:
            return False
        if name in self.files:
            return sha256(data) == self.files[name]
        count, digest = self.tables[name]
        return sha256(data[:count]) == digest

    def with_files(self, digests: Mapping[str, str]) -> Manifest:
        """Returns the manifest with other digests of some files."""
        return Manifest({**self.files, **digests}, self.tables)

    def _plain(self) -> dict[str, Any]:
        return {"files": dict(self.files), "tables": {name: list(entry) for name, entry in self.tables.items()}}

    def _digest(self) -> str:
        return sha256(json.dumps(self._plain(), sort_keys=True).encode())

    def _bytes(self) -> bytes:
        return (json.dumps({**self._plain(), "sha256": self._digest()}, indent=1, sort_keys=True) + "\n").encode()

    def write(self, folder: Path) -> None:
        """Writes files.json; DiskFull leaves the former one."""
        path = folder / MANIFEST
        write_durable(temporary_of(path), self._bytes(), path)
        os.replace(temporary_of(path), path)
        sync_folder(folder)


_ACCEPT = "To use the files as they are now, delete {path}."


def sha256(data: bytes) -> str:
    """Returns the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_recorded(folder: Path, files: Mapping[str, bytes], lock: Lock | None = None) -> None:
    """Writes files of a folder as one: after a kill all of them are the old ones, or all become the new ones.

    Args:
        folder: The folder.
        files: Name, which may lead into a folder of it -> bytes.
        lock: Its lock, if the caller holds it; otherwise it is taken.

    Raises:
        ValueError: A name leads out of the folder.
        InputError: A folder on the way is a link, files.json is damaged, or another process holds the lock.
        DiskFull: No space is left; nothing has changed.
    """
    targets = {name: _inside(folder, name) for name in files}
    with _held(folder, lock):
        manifest = Manifest.of(folder) or Manifest()
        written: list[Path] = []
        try:
            for name, target in targets.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                written.append(temporary_of(target))
                write_durable(written[-1], files[name], target)
            manifest.with_files({name: sha256(data) for name, data in files.items()}).write(folder)
        except OSError:
            for temporary in written:
                temporary.unlink(missing_ok=True)
            raise
        for target in targets.values():
            os.replace(temporary_of(target), target)
        for parent in {target.parent for target in targets.values()}:
            sync_folder(parent)


def record_files(folder: Path, names: Iterable[str]) -> None:
    """Records files of a folder that only the caller knows of, as they are."""
    Manifest({name: sha256((folder / name).read_bytes()) for name in names}).write(folder)


def remove_recorded(folder: Path, name: str) -> None:
    """Removes a file of a folder whose lock the caller holds; nothing happens if there is none."""
    manifest = Manifest.of(folder)
    if manifest is not None and name in manifest.files:
        Manifest({key: value for key, value in manifest.files.items() if key != name}, manifest.tables).write(folder)
    (folder / name).unlink(missing_ok=True)


def record_table(path: Path, count: int, digest: str) -> None:
    """Records how many bytes of a table are safe, and their digest; the caller holds the folder's lock.

    Call it after rows were appended, and before rows are cut off: what is recorded is always there.
    """
    manifest = Manifest.of(path.parent) or Manifest()
    Manifest(manifest.files, {**manifest.tables, path.name: (count, digest)}).write(path.parent)


def read_recorded(path: Path, limit: int = MAX_BYTES) -> bytes | None:
    """Returns the bytes of a file of a run folder, None if there is none and none was recorded.

    Raises:
        InputError: The file is not what was recorded, or cannot be read.
    """
    for attempt in range(_TRIES):
        if attempt > 1:
            if is_held(path.parent) is not True:
                break  # nobody writes: it will not change
            time.sleep(_PAUSE)
        manifest = Manifest.of(path.parent)
        data = read_plain(path, limit)
        if manifest is None or path.name not in manifest or manifest.fits(path.name, data):
            return data
        pending = read_plain(temporary_of(path), limit)
        if pending is not None and path.name in manifest.files and manifest.fits(path.name, pending):
            finish_writes(path.parent)
            return pending
    state = "is missing" if data is None else "is not what the run wrote"
    raise InputError(
        f"{path} {state}: its digest in {MANIFEST} is another one.",
        f"Restore it. {_ACCEPT.format(path=path.parent / MANIFEST)}",
    )


def check_recorded(folder: Path) -> None:
    """Compares the text files and tables of a folder with what was recorded.

    Raises:
        InputError: One of them was changed or is missing.
    """
    manifest = Manifest.of(folder) or Manifest()
    for name in (*manifest.files, *manifest.tables):
        if name.endswith(_TEXT):
            read_recorded(_inside(folder, name))


def finish_writes(folder: Path, lock: Lock | None = None) -> None:
    """Completes what was committed before a kill and removes what was not; a running process does it itself.

    Args:
        folder: The folder.
        lock: Its lock, if the caller holds it.
    """
    try:
        with _held(folder, lock):
            manifest = Manifest.of(folder) or Manifest()
            for name in manifest.files:
                target = _inside(folder, name)
                pending = read_plain(temporary_of(target), MAX_BYTES)
                if pending is not None and manifest.fits(name, pending):
                    os.replace(temporary_of(target), target)
                else:
                    temporary_of(target).unlink(missing_ok=True)
            sync_folder(folder)
    except (OSError, InputError, ValueError):
        if lock is not None:
            raise
        # in use, or only readable: the reader has the bytes


@contextmanager
def _held(folder: Path, lock: Lock | None) -> Iterator[None]:
    """Holds the lock of a folder, which the caller may hold already."""
    try:
        own = Lock.take(folder) if lock is None else None
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{folder} cannot be written to ({reason}).", "Check its permissions and links.") from None
    try:
        yield
    finally:
        if own is not None:
            own.release()


def _inside(folder: Path, name: str) -> Path:
    """Returns the path of a name; ValueError if it leads out of the folder, InputError through a link."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or name in (MANIFEST, "."):
        raise ValueError(f"{name!r} leads out of the run folder; use a plain file name.")
    place = folder
    for part in parts[:-1]:
        place = place / part
        if place.is_symlink():
            raise InputError(f"{place} is a link; files of a run are not written through links.", "Remove the link.")
    return place / parts[-1]

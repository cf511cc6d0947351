"""Archives that people give instead of what is in them."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path

_ARCHIVES = {".zip": "unzip {} -d {}", ".7z": "7z x {} -o{}", ".rar": "unrar x {} {}/"}
_TAR = "mkdir -p {1} && tar -xf {0} -C {1}"


def unpacking(file: Path) -> str | None:
    """Returns what to do with an archive of images, None for a file that is none (arrays are a zip file, too)."""
    stem, endings = file.name, file.suffixes[-2:]
    if file.suffix.lower() in (".tgz", ".tar", ".tbz2", ".txz") or ".tar" in map(str.lower, endings[:1]):
        command = _TAR
    else:
        command = _ARCHIVES.get(file.suffix.lower(), "")
    if not command:
        return None
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if all(name.endswith(".npy") for name in archive.namelist()):
                return f"Its arrays can be read: write npz:{file}."
    for ending in reversed(endings):
        stem = stem.removesuffix(ending)
    folder = file.with_name(stem)
    line = command.format(shlex.quote(str(file)), shlex.quote(str(folder)))
    return f"Unpack it, {line}, and write folder:{folder}."

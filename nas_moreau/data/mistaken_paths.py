"""What people give instead of a data specification, and the line that is meant."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path

from nas_moreau.errors import nearest
from nas_moreau.text import path_of, specification

_ARCHIVES = {".zip": "unzip {} -d {}", ".7z": "7z x {} -o{}", ".rar": "unrar x {} {}/"}
_TAR = "mkdir -p {1} && tar -xf {0} -C {1}"
_PICTURES = frozenset((".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".heic"))
_QUOTES = "'\"`"
MAKE_NPZ = "Write the file by numpy.savez_compressed(FILE, x_train=..., y_train=..., x_test=..., y_test=...)."
BEGINNINGS = {
    b"\x93NUMPY": "one array, not an npz file of several",
    b"\x89HDF": "an HDF5 file",
    b"MATLAB": "a MATLAB file",
    b"PAR1": "a Parquet file",
    b"\x80": "a pickle, which could run code",
    b"\x1f\x8b": "a gzip file",
    b"SQLite": "a database",
}
"""First bytes of other files -> what they are."""


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
                return f"Its arrays can be read: write {specification('npz', file)}."
    for ending in reversed(endings):
        stem = stem.removesuffix(ending)
    folder = file.with_name(stem)
    line = command.format(shlex.quote(str(file)), shlex.quote(str(folder)))
    return f"Unpack it, {line}, and write {specification('folder', folder)}."


def line_for(path: Path) -> str:
    """Returns what to write, or to do, to use a folder or a file that exists."""
    if path.is_dir():
        return f"Write {specification('folder', path)}."
    if path.suffix.lower() in _PICTURES:
        return "Give a folder with a folder of images for each class: DIR/CLASS/*."
    if unpack := unpacking(path):
        return unpack
    return f"Write {specification('npz', path)}." if path.suffix.lower() == ".npz" else f"Convert it. {MAKE_NPZ}"


def line_for_other(text: str) -> str | None:
    """Returns what to write instead of an unknown specification, None if that cannot be known."""
    if text.startswith(("http://", "https://", "ftp://", "s3://", "gs://", "hf://")):
        return f"Images are read from files: download it first (wget {shlex.quote(text)}), then write folder:DIR."
    plain = text.strip().strip(_QUOTES).removeprefix("file://")
    behind = [plain.partition(mark)[2].strip(_QUOTES).removeprefix("//") for mark in ":="]
    for place in [plain, *filter(None, behind)]:
        try:
            if place and path_of(place).exists():
                return line_for(path_of(place))
        except (OSError, ValueError):
            continue
    if "/" in plain or "\\" in plain:
        return check_path("folder", path_of(plain)).replace("after folder:", "and write folder:DIR or npz:FILE")
    return None


def check_path(kind: str, missing: Path) -> str:
    """Returns what to do about a path that does not exist: the right or the nearest name, if there is one."""
    text = str(missing)
    if text.startswith(("http:", "https:")):
        return "Images are read from files: download it first."
    plain = Path(text.strip().strip(_QUOTES).removeprefix("file:"))
    try:
        if plain != missing and plain.exists():
            return f"Write {specification(kind, plain)}."
        beside = {path.name: path for path in missing.absolute().parent.iterdir() if not path.name.startswith(".")}
    except (OSError, ValueError):
        beside = {}
    near = nearest(missing.name, beside)
    if near is None:
        return f"Check the path after {kind}:."
    return f"Did you mean {specification(kind, missing.parent / near)}?"

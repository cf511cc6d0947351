"""Reads `npz:FILE`: arrays of images and labels under usual names, checked before any memory is allocated."""

from __future__ import annotations

import io
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from nas_moreau.data.arrays import loaded_arrays
from nas_moreau.data.images import MAX_BYTES, Loaded, too_dense
from nas_moreau.data.mistaken_paths import BEGINNINGS, MAKE_NPZ, unpacking
from nas_moreau.data.parts import PART_OF, tokens
from nas_moreau.data.pixel_ranges import Named
from nas_moreau.errors import InputError
from nas_moreau.text import specification

KINDS = {
    "x": ("x", "image", "images", "img", "imgs", "pixels", "data", "input", "inputs", "features", "photos", "pictures"),
    "y": ("y", "label", "labels", "lbl", "lbls", "target", "targets", "class", "classes", "output", "outputs"),
}
"""What an array holds -> its names, in lower case; beside it stands the part: x_train, train_images, testY."""
CLASS_NAMES = frozenset(("classnames", "labelnames", "targetnames", "names", "categories"))
_KIND_OF = {spelling: kind for kind, spellings in KINDS.items() for spelling in spellings}
_FILLERS = ("set", "split", "array", "arr")
_LONGEST_HEADER = 1 << 14
_AGAIN = "Copy or write the file again."


def read_npz(path: Path) -> Loaded:
    """Returns the images of the file, by the rules of `arrays`.

    Args:
        path: A file with images and labels (`KINDS`) of a training part, and of a validation and a test part if it has
            them (`parts.SPELLINGS`); arrays that name no part are the training part. An array of text named class_names
            gives the classes their names.

    Raises:
        InputError: Arrays are missing, damaged, or can be read in more than one way.
    """
    if path.is_dir():
        inside = sorted(path.glob("*.npz"))
        raise InputError(
            f"{path} is a folder.",
            f"Write {specification('npz', inside[0]) if inside else specification('folder', path)}.",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            arrays, names, notes = _arrays(archive, path)
    except MemoryError:
        raise InputError(f"There is not enough memory for {path}.", "Use fewer or smaller images.") from None
    except Exception as error:  # zipfile and its decompressors have no list of what they raise
        if isinstance(error, (InputError, PermissionError)):
            raise
        raise _no_archive(path, error) from error
    x = {part: array for (kind, part), array in arrays.items() if kind == "x"}
    y = {part: array for (kind, part), array in arrays.items() if kind == "y"}
    return loaded_arrays(x, y, names, notes, str(path))


def _no_archive(path: Path, error: Exception) -> InputError:
    with path.open("rb") as file:
        first = file.read(6)
    for beginning, kind in BEGINNINGS.items():
        if first.startswith(beginning):
            return InputError(f"{path} is {kind}.", unpacking(path) or MAKE_NPZ)
    if first and not first.startswith(b"PK"):
        return InputError(f"{path} is not an npz file.", unpacking(path) or MAKE_NPZ)
    return InputError(f"{path} cannot be read as an npz file ({error}).", "Copy or write it again.")


def _role(name: str) -> tuple[str, str | None] | None:
    """Returns what an array of this name holds, and of which part; None if it is none of ours."""
    kinds, parts = set[str](), set[str]()
    for token in tokens(name):
        pieces = [token] if token in _KIND_OF or token in PART_OF else _split(token)
        if pieces is None:
            return None
        for piece in pieces:
            if piece in PART_OF:
                parts.add(PART_OF[piece])
            elif piece in _KIND_OF:
                kinds.add(_KIND_OF[piece])
    return (kinds.pop(), next(iter(parts), None)) if len(kinds) == 1 and len(parts) <= 1 else None


def _split(token: str) -> list[str] | None:
    """Returns the two known names that a token is made of (xtrain -> x, train), [] for a filler, else None."""
    if token in _FILLERS:
        return []
    for i in range(1, len(token)):
        first, second = token[:i], token[i:]
        if (first in PART_OF and second in _KIND_OF) or (first in _KIND_OF and second in PART_OF):
            return [first, second]
    return None


def _arrays(
    archive: zipfile.ZipFile, path: Path
) -> tuple[dict[tuple[str, str], Named], tuple[str, ...] | None, list[str]]:
    """Returns the arrays by kind and part, the class names, and a note on what is not read."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in members:
            raise InputError(f"{path} holds two arrays named {name}.", "Write the file with one of them.")
        members[name] = info
    chosen: dict[tuple[str, str], str] = {}
    named = [name for name in members if name.lower().replace("_", "").replace("-", "") in CLASS_NAMES]
    if (
        not named
        and "classes" in members
        and any((_role(name) or "")[:1] == ("y",) for name in members if name != "classes")
    ):
        named = ["classes"]  # beside labels of another name: the names of the classes
    for name in members:
        role = _role(name)
        if role is None or name in named:
            continue
        key = (role[0], role[1] or "train")
        if key in chosen:
            raise InputError(
                f"{path} holds two arrays for the same: {chosen[key]} and {name}.", "Write the file with one of them."
            )
        chosen[key] = name
    present = {part for _, part in chosen} | {"train"}
    missing = [f"{kind}_{part}" for part in sorted(present) for kind in ("x", "y") if (kind, part) not in chosen]
    if missing:
        found = ", ".join(sorted(members)[:10]) or "nothing"
        raise InputError(f"{path} lacks {', '.join(missing)} (it holds {found}).", _naming(path, members) or MAKE_NPZ)
    size = sum(members[name].file_size for name in (*chosen.values(), *named))
    if size > MAX_BYTES:
        raise InputError(
            f"{path} unpacks to {size / 2**30:.1f} GiB; the limit is {MAX_BYTES >> 30} GiB.",
            "Use fewer or smaller images.",
        )
    arrays = {key: Named(name, _array(archive, members[name], name, path)) for key, name in chosen.items()}
    names = _class_names(_array(archive, members[named[0]], named[0], path), named[0], path) if named else None
    unread = sorted(set(members) - set(chosen.values()) - set(named[:1]))
    more = ", ..." if len(unread) > 10 else ""
    notes = [f"{len(unread)} other arrays were not read: {', '.join(unread[:10])}{more}."] if unread else []
    return arrays, names, notes


def _naming(path: Path, members: Mapping[str, object]) -> str | None:
    """Returns the line that names arrays that were saved without names, in the usual order."""
    usual = ("x_train", "y_train", "x_test", "y_test")
    if set(members) not in ({"arr_0", "arr_1"}, {"arr_0", "arr_1", "arr_2", "arr_3"}):
        return None
    pairs = ", ".join(f"{name}=a['arr_{i}']" for i, name in zip(range(len(members)), usual))
    return f"If they are in this order: a = numpy.load({str(path)!r}); numpy.savez('named.npz', {pairs})."


def _class_names(array: np.ndarray, name: str, path: Path) -> tuple[str, ...]:
    flat = array.reshape(-1)
    if array.dtype.kind == "S":
        flat = np.char.decode(flat, "utf-8", "backslashreplace")
    names = tuple(map(str, flat.tolist()))
    if array.dtype.kind not in "SU" or len(set(names)) < len(names) or not all(names):
        raise InputError(
            f"{path}: {name} holds no list of different names.", f"Store text: {name}=numpy.array(['cat', 'dog'])."
        )
    return names


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str, path: Path) -> np.ndarray:
    """Returns one member, its header, length and compression checked before its bytes are read."""
    with archive.open(info) as stream:
        header = io.BytesIO(stream.read(_LONGEST_HEADER))
    try:
        version = npy.read_magic(header)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = reader(header)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:
        raise InputError(f"{path}: {key} has a damaged header.", _AGAIN) from error
    if dtype.hasobject or dtype.names or dtype.itemsize == 0:
        raise InputError(
            f"{path}: {key} is {dtype}, not plain numbers or text: it would have to be unpickled.",
            f"Store numbers (uint8 pixels, int64 labels) or text: {key} = numpy.array({key}.tolist()).",
        )
    if not shape or min(shape) <= 0:
        raise InputError(f"{path}: {key} is empty (shape {shape}).", "Store at least one image of each class.")
    count = 1
    for length in shape:
        count *= length  # Python integers: no overflow on a forged header
    needed = count * dtype.itemsize
    if needed != info.file_size - header.tell():
        raise InputError(
            f"{path}: {key} claims {needed} bytes by its header and holds {info.file_size - header.tell()}.", _AGAIN
        )
    if info.compress_size > path.stat().st_size:
        raise InputError(f"{path}: {key} claims {info.compress_size} bytes of a file of {path.stat().st_size}.", _AGAIN)
    if too_dense(needed, info.compress_size):
        raise InputError(
            f"{path}: {key} unpacks to {needed // max(1, info.compress_size)} times its size, unlike photographs.",
            "Check where the file comes from, or save it by numpy.savez without compression.",
        )
    with archive.open(info) as stream:
        stream.read(header.tell())
        array = np.empty(needed, dtype=np.uint8)
        done = 0
        while done < needed:
            block = stream.read(min(needed - done, 1 << 20))
            if not block:
                raise EOFError(f"{key} ends early")
            array[done : done + len(block)] = np.frombuffer(block, dtype=np.uint8)
            done += len(block)
        if stream.read(1):  # also makes zipfile verify the checksum
            raise EOFError(f"{key} is longer than in its header")
    return array.view(dtype).reshape(shape, order="F" if fortran_order else "C")

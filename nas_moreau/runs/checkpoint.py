"""Checkpoints that survive a kill at any moment, a full disk and a flipped bit.

A file is what `torch.save` makes of tensors and plain values, a zip archive, with a seal as the archive's comment:
other programs read it by `torch.load(path, weights_only=True)`. The seal, the last 24 bytes, is 8 bytes magic, then
little-endian schema number (4 bytes), length of what is before it (8) and CRC32 (4) over schema, length and all before
it. Nothing is interpreted before its checksum is verified, and then only with `torch.load(weights_only=True)`, so that
no code is ever taken from a file.

A folder holds `last.pt`, `previous.pt` (the one before) and `best.pt`.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import time
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nas_moreau.errors import InputError, first_line
from nas_moreau.runs.atomic import sync_folder, write_atomic, write_durable

SCHEMA = 4
"""Number of the payloads' layout; it grows whenever a stage saves other keys. Other numbers are refused."""
_MAGIC = b"NASMORCK"
_SEAL = struct.Struct("<8sIQI")
_CHECKED = struct.Struct("<IQ")  # the fields of the seal that its CRC covers
_COMMENT = struct.pack("<H", _SEAL.size)  # ends a zip archive: the length of its comment
_TRIES, _PAUSE = 5, 0.002
_SCALARS = (int, float, bool, str, type(None))


class Damaged(ValueError):
    """A checkpoint file is not the one that was written; the message has the reason."""


class OtherSchema(Damaged):
    """An intact checkpoint of another version's layout."""


def save_checkpoint(directory: str | os.PathLike[str], payload: dict[str, Any], best: bool = False) -> None:
    """Writes `payload` as last.pt, keeping the former one as previous.pt; with `best` as best.pt too.

    A kill at any point leaves a loadable checkpoint. Write the rows of an epoch (`Monitor.epoch`) before its
    checkpoint: on resume rows beyond the checkpoint are cut off, missing ones cannot be made up.

    Args:
        directory: Folder of the checkpoints; made if it is missing.
        payload: Tensors, numbers, strings, booleans, None, and lists, tuples and dicts of them. Tensors are stored
            detached and on the CPU.
        best: Whether this is the best so far.

    Raises:
        TypeError: The payload holds something else; nothing is written.
        DiskFull: No space is left (an OSError); the checkpoints that were there are intact.
    """
    folder = Path(directory)
    data = encode(payload)
    folder.mkdir(parents=True, exist_ok=True)
    if best:
        # Before last.pt: killed in between, the run resumes before this epoch and finds its best again.
        write_atomic(folder / "best.pt", data)
    last, temporary = folder / "last.pt", folder / "last.pt.tmp"
    write_durable(temporary, data, last)
    if last.exists():
        os.replace(last, folder / "previous.pt")
    os.replace(temporary, last)
    sync_folder(folder)


def load_checkpoint(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], str] | None:
    """Returns the newest intact payload and a note on the file it came from; None if there is no checkpoint.

    Raises:
        InputError: There are checkpoints, and all of them are damaged or of another schema.
    """
    folder = Path(directory)
    for _ in range(_TRIES):
        found, faults = _newest(folder)
        # last.pt is missing only for a moment while it is replaced: the next look finds it
        if found is None or found[1] == "last.pt" or "last.pt" in faults:
            break
        if found[1] == "last.pt.tmp" and not (folder / "last.pt").exists():
            break  # a save that was killed, not the next one of a saver at work
        time.sleep(_PAUSE)
    reasons = [f"{name} {fault}" for name, fault in faults.items()]
    if found is not None:
        payload, name = found
        return payload, f"{name} is used" + (f" because {' and '.join(reasons)}" if reasons else "") + "."
    if not set(faults) - {"last.pt.tmp"}:
        return None  # an incomplete first save is not a checkpoint
    raise InputError(
        f"No checkpoint in {folder} can be used: {'; '.join(reasons)}.",
        "Restore one of the files from a backup, or start again in another folder.",
    )


def _newest(folder: Path) -> tuple[tuple[dict[str, Any], str] | None, dict[str, str]]:
    """Returns the newest intact payload with its file's name, or None, and what is wrong with newer files."""
    faults: dict[str, str] = {}
    # last.pt.tmp is complete if the kill came between the two renames: its checksum decides
    for name in ("last.pt", "last.pt.tmp", "previous.pt"):
        try:
            return (read_checkpoint(folder / name), name), faults
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OtherSchema as fault:
            raise InputError(
                f"{folder / name} {fault}.",
                "Resume it with the version that wrote it, or start again in another folder.",
            ) from None
        except Damaged as fault:
            faults[name] = str(fault)
    return None, faults


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the payload of one checkpoint file, tensors on the CPU.

    Raises:
        Damaged: The file is cut, changed, of another kind, or (OtherSchema) of another schema.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror})") from error
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        raise Damaged("is not a plain file")
    with open(handle, "rb") as file:
        return decode(file, about.st_size)


def decode(file: BinaryIO, size: int) -> dict[str, Any]:
    """Returns the payload out of an open file of `size` bytes; see `read_checkpoint`."""
    if size < _SEAL.size:
        raise Damaged(f"is cut off ({size} bytes)")
    file.seek(size - _SEAL.size)
    magic, schema, length, checksum = _SEAL.unpack(file.read(_SEAL.size).ljust(_SEAL.size, b"\0"))
    if magic != _MAGIC:
        raise Damaged("is cut off, or is not a checkpoint of nas_moreau")
    if size - _SEAL.size != length:  # before anything of that size is allocated
        raise Damaged(f"holds {size - _SEAL.size:,} bytes of {length:,}")
    file.seek(0)
    data = file.read(size)
    if _checksum(schema, length, memoryview(data)[:length]) != checksum:
        raise Damaged("fails its checksum")
    if schema != SCHEMA:
        raise OtherSchema(f"has checkpoint schema {schema}, this version reads schema {SCHEMA}")
    # From here on the checksum is right: what does not fit was made by other means than `encode`, by accident or not.
    _check_archive(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch talks about odd pickles; they are refused or plain data
            payload = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        _check_sizes(payload, len(data))
        payload = plain(payload, "payload")
    except Exception as error:  # torch's reader has no list of what it raises
        raise Damaged(f"holds no plain data ({first_line(error)})") from error
    if type(payload) is not dict:
        raise Damaged(f"holds a {type(payload).__name__} where a dict should be")
    return payload


def _check_archive(data: bytes) -> None:
    """Refuses an archive that `torch.save` does not write: compressed, so that it could unpack to any size, or none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
    except Exception as error:  # zipfile has no list of what it raises either
        raise Damaged("holds no plain data (no archive of torch)") from error
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise Damaged("holds no plain data (its archive is compressed)")
    if sum(part.file_size for part in parts) > len(data):
        raise Damaged("holds no plain data (its archive claims more bytes than it has)")


def _check_sizes(value: Any, limit: int) -> None:
    """Refuses a tensor that claims more elements than the file has bytes for, as one with strides of zero can."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.numel() * value.element_size() > limit:
            raise ValueError(f"a tensor of shape {tuple(value.shape)} in {limit:,} bytes")
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            _check_sizes(part, limit)


def encode(payload: dict[str, Any]) -> bytes:
    """Returns the bytes of a checkpoint file holding `payload`."""
    if type(payload) is not dict:
        raise TypeError(f"A checkpoint is a dict, not {type(payload).__name__}.")
    buffer = io.BytesIO()
    torch.save(plain(payload, "payload"), buffer)
    return seal(buffer.getvalue())


def seal(archive: bytes, schema: int = SCHEMA) -> bytes:
    """Returns the bytes of a checkpoint file: a zip archive of torch, with its seal as the archive's comment."""
    parts = (memoryview(archive)[: -len(_COMMENT)], _COMMENT)
    return b"".join((*parts, _SEAL.pack(_MAGIC, schema, len(archive), _checksum(schema, len(archive), *parts))))


def _checksum(schema: int, length: int, *parts: bytes | memoryview) -> int:
    found = zlib.crc32(_CHECKED.pack(schema, length))
    for part in parts:
        found = zlib.crc32(part, found)
    return found


def plain(value: Any, where: str) -> Any:
    """Returns `value` as plain containers, numbers and detached CPU tensors.

    Raises:
        TypeError: Something else is in it; the message names the place.
    """
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
        tensor = value.detach().to("cpu")
        if type(tensor) is not Tensor:  # Parameters and Buffers; their data is all that counts
            tensor = tensor.as_subclass(Tensor)
        if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()  # a view would take its whole storage to the file
        return tensor
    if type(value) is list:
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if type(value) is tuple:
        return tuple(plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, dict):  # state_dict() gives an OrderedDict
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{where} has the key {key!r} ({type(key).__name__}); use strings or integers.")
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise TypeError(
        f"{where} is a {type(value).__name__}; "
        "a checkpoint holds tensors, numbers, strings, None, lists, tuples and dicts."
    )

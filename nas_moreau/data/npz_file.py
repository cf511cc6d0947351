"""Reads `npz:FILE`: uint8 NHWC images and integer labels, checked before any memory is allocated."""

from __future__ import annotations

import io
import tokenize
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from nas_moreau.data.images import MAX_BYTES, Images, Loaded, too_dense
from nas_moreau.errors import InputError

KEYS = ("x_train", "y_train", "x_test", "y_test")
_LONGEST_HEADER = 1 << 14
_MAKE_IT = "Write the file by numpy.savez_compressed(FILE, x_train=..., y_train=..., x_test=..., y_test=...)."


def read_npz(path: Path) -> Loaded:
    """Returns the images of the file; class names are the labels as text.

    Args:
        path: A file with `x_train y_train x_test y_test`: uint8 (n, height, width, channels) and integers
            (n,).

    Raises:
        InputError: The file differs from that in any way, or labels are not 0..k-1 with each present.
    """
    if not path.is_file():
        raise InputError(f"The file {path} does not exist.", "Check the path after npz:.")
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _arrays(archive, path)
    except MemoryError:
        raise InputError(f"There is not enough memory for {path}.", "Use fewer or smaller images.") from None
    except Exception as error:  # zipfile and its decompressors have no list of what they raise
        if isinstance(error, (InputError, PermissionError)):
            raise
        raise InputError(f"{path} cannot be read as an npz file ({error}).", "Copy or write it again.") from error
    train = _images(arrays, "train", path)
    test = _images(arrays, "test", path)
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise InputError(
            f"{path}: training images are {tuple(arrays['x_train'].shape[1:])}, test images "
            f"{tuple(arrays['x_test'].shape[1:])}.",
            "Give both the same height, width and channels.",
        )
    present = torch.unique(train.labels).tolist()
    if present != list(range(len(present))):
        raise InputError(
            f"{path}: y_train holds {len(present)} different labels between {present[0]} and {present[-1]}, "
            f"not each of 0 to {len(present) - 1}.",
            "Number the classes 0, 1, 2, ... without gaps.",
        )
    low, high = int(test.labels.min()), int(test.labels.max())
    if low < 0 or high >= len(present):
        wrong = low if low < 0 else high
        raise InputError(
            f"{path}: y_test holds the label {wrong}, outside 0 to {len(present) - 1} as in y_train.",
            "Give the test images labels of training classes.",
        )
    return Loaded(train, test, tuple(str(label) for label in present))


def _arrays(archive: zipfile.ZipFile, path: Path) -> dict[str, np.ndarray]:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    missing = [key for key in KEYS if key not in members]
    if missing:
        found = ", ".join(sorted(members)[:10]) or "nothing"
        raise InputError(f"{path} lacks {', '.join(missing)} (it holds {found}).", _MAKE_IT)
    if sum(members[key].file_size for key in KEYS) > MAX_BYTES:
        size = sum(members[key].file_size for key in KEYS)
        raise InputError(
            f"{path} unpacks to {size / 2**30:.1f} GiB; the limit is {MAX_BYTES >> 30} GiB.",
            "Use fewer or smaller images.",
        )
    return {key: _array(archive, members[key], key, path) for key in KEYS}


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str, path: Path) -> np.ndarray:
    """Returns one member, its header, length and compression checked before its bytes are read."""
    with archive.open(info) as stream:
        header = io.BytesIO(stream.read(_LONGEST_HEADER))
    try:
        version = npy.read_magic(header)
        reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = reader(header)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError) as error:
        raise InputError(f"{path}: {key} has a damaged header.", "Copy or write the file again.") from error
    _check_kind(shape, dtype, key, path)
    count = 1
    for length in shape:
        count *= length  # Python integers: no overflow on a forged header
    needed = count * dtype.itemsize
    if needed != info.file_size - header.tell():
        raise InputError(
            f"{path}: {key} claims {needed} bytes by its header and holds {info.file_size - header.tell()}.",
            "Copy or write the file again.",
        )
    if info.compress_size > path.stat().st_size:
        raise InputError(
            f"{path}: {key} claims {info.compress_size} bytes of a file of {path.stat().st_size}.",
            "Copy or write the file again.",
        )
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


def _check_kind(shape: tuple[int, ...], dtype: np.dtype, key: str, path: Path) -> None:
    if key.startswith("x"):
        if dtype != np.uint8:
            raise InputError(f"{path}: {key} is {dtype}, not uint8.", "Store pixels as uint8 from 0 to 255.")
        if len(shape) != 4:
            raise InputError(
                f"{path}: {key} has the shape {shape}, not (n, height, width, channels).",
                "Add the missing axis; grayscale images have one channel: x[..., None].",
            )
        if shape[3] > 16 or (shape[1] in (1, 3) and shape[3] > 4):
            raise InputError(
                f"{path}: {key} has the shape {shape}, with {shape[3]} channels "
                "if read as (n, height, width, channels).",
                "Move the channels last: x.transpose(0, 2, 3, 1).",
            )
    else:
        if dtype.kind not in "iu":
            raise InputError(f"{path}: {key} is {dtype}, not integer.", "Store labels as integers, for example int64.")
        if len(shape) != 1:
            raise InputError(f"{path}: {key} has the shape {shape}, not (n,).", "Flatten it: y.reshape(-1).")
    if min(shape) <= 0:
        raise InputError(f"{path}: {key} is empty (shape {shape}).", "Store at least one image of each class.")


def _images(arrays: dict[str, np.ndarray], part: str, path: Path) -> Images:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if len(x) != len(y):
        raise InputError(f"{path}: x_{part} has {len(x)} images, y_{part} {len(y)} labels.", "Give one label an image.")
    if y.dtype.kind == "u" and int(y.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{path}: y_{part} holds the label {int(y.max())}.", "Number the classes 0, 1, 2, ....")
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.from_numpy(y.astype(np.int64)))

"""Reads `idx:DIR`: the four files of MNIST and its relatives, gzipped or not."""

from __future__ import annotations

import gzip
import struct
import zlib
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas_moreau.data.arrays import labels_of
from nas_moreau.data.images import Images, Loaded, refuse_too_large, too_dense
from nas_moreau.data.pixel_ranges import Named
from nas_moreau.errors import InputError

FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
"""Part and content -> name; also read: a dot before `idx`, and files in a folder with the name of the file."""
_CURE = "Copy or download the file again."


def read_idx(directory: Path) -> Loaded:
    """Returns what the four files hold; class names are the labels as text, and images have one channel.

    Raises:
        InputError: A file is missing, damaged, of another format, or inconsistent with the others.
    """
    if directory.is_file():
        raise InputError(f"{directory} is a file.", "Give the folder of the four files.")
    found = {key: _find(directory, name) for key, name in FILES.items()}
    paths = {key: path for key, path in found.items() if path is not None}
    parts = ["train", "test"] if any(part == "test" for part, _ in paths) else ["train"]
    missing = [f"{FILES[key]}.gz" for key in FILES if key[0] in parts and key not in paths]
    if missing:
        raise InputError(f"{directory} lacks {', '.join(missing)}.", "Put the four files of the data set there.")
    pixels, labels = {}, {}
    for part in parts:
        image_path, label_path = paths[part, "images"], paths[part, "labels"]
        pixels[part], own = _read(image_path, 3), _read(label_path, 1)
        if len(pixels[part]) != len(own) or not len(own):
            raise InputError(f"{image_path} has {len(pixels[part])} images, {label_path} {len(own)} labels.", _CURE)
        labels[part] = Named(label_path.name, own.numpy())
    if len({read.shape[1:] for read in pixels.values()}) > 1:
        raise InputError(f"Training and test images in {directory} differ in size.", "Use files of one data set.")
    numbers, classes, notes = labels_of(labels, None, str(directory))
    images = {part: Images(pixels[part][:, None], numbers[part]) for part in parts}
    return Loaded(images["train"], images.get("test"), classes, tuple(notes))


def _find(directory: Path, name: str) -> Path | None:
    for spelling in (name, name.replace("-idx", ".idx")):
        for place in (directory, directory / spelling):
            for candidate in (place / f"{spelling}.gz", place / spelling):
                if candidate.is_file():
                    return candidate
    return None


def _read(path: Path, dimensions: int) -> Tensor:
    """Returns the uint8 array of one file; its size is known and checked before it is unpacked."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return _parse(stream, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}).", _CURE) from error


def _parse(stream: gzip.GzipFile | BufferedReader, path: Path, dimensions: int) -> Tensor:
    header = stream.read(4 * (1 + dimensions))
    if len(header) < 4 * (1 + dimensions):
        raise EOFError("its header is cut short")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
    if magic != 0x0800 + dimensions:
        raise InputError(
            f"{path} begins with {magic:#010x}, not {0x0800 + dimensions:#010x} "
            f"as idx files of {dimensions} dimensions do.",
            _CURE,
        )
    count, height, width = (*shape, 1, 1)[:3]
    refuse_too_large(count, 1, height, width, str(path))
    needed = count * height * width
    if too_dense(needed, path.stat().st_size):
        raise InputError(
            f"{path} claims {needed} bytes in a file of {path.stat().st_size}, which is too small for photographs.",
            "Check where the file comes from.",
        )
    blocks, left = [], needed
    while left:  # in blocks: a forged header cannot ask for more memory than the file fills
        block = stream.read(min(left, 1 << 24))
        if not block:
            raise EOFError(f"it holds {needed - left} of {needed} bytes")
        blocks.append(np.frombuffer(block, dtype=np.uint8))
        left -= len(block)
    if stream.read(1):
        raise InputError(f"{path} is longer than the {needed} bytes of its header.", _CURE)
    flat = np.concatenate(blocks) if blocks else np.empty(0, dtype=np.uint8)
    return torch.from_numpy(flat).reshape(shape)

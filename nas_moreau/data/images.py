"""A data set in memory, the statistics of its pixels, and a description of it as plain data."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_moreau.errors import InputError
from nas_moreau.text import printable

MAX_BYTES = 8 << 30
"""Larger data sets are refused before any memory is allocated."""
WHITE = 65535
"""The value of white in an image of 16 bits a channel."""
_DENSE = 64 << 20
_HIGHEST_RATIO = 200  # of unpacked to packed bytes; a forged file reaches 1,000
_NARROW = 32
_HASHED = 2048
"""Images hashed at a time, which bounds the memory of a copy."""


@dataclass(frozen=True)
class Images:
    """Pixels and labels that belong together.

    Attributes:
        pixels: uint8 (n, channels, height, width).
        labels: int64 (n,), on the same device.
    """

    pixels: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.dim() != 4:
            raise ValueError(
                f"pixels are {self.pixels.dtype} {tuple(self.pixels.shape)}; give uint8 (n, channels, height, width)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} {tuple(self.labels.shape)}; give int64 ({len(self.pixels)},)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Images:
        """Returns the same images on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def take(self, indices: Tensor) -> Images:
        """Returns the images at `indices` (int64, any device), in that order."""
        indices = indices.to(self.labels.device)
        return Images(self.pixels.index_select(0, indices), self.labels.index_select(0, indices))


Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, pixels scaled to 0..1."""


@dataclass(frozen=True)
class Loaded:
    """What a data source reads; `load_data` makes `Data` of it.

    Attributes:
        train: Training images.
        test: Test images, of the same size; None if the source has no such part (see `parts.settle`).
        classes: Class names; label i means `classes[i]`.
        notes: Sentences on what was assumed and what was done to the images.
        statistics: Mean and std to normalise with; None for those of the training pixels.
        files: The file of each training image, then of each validation image; empty if images have none.
        validation: Validation images, of the same size; None if the source has no such part.
        white: The value of white in images of 16 bits a channel; less than 65535 where a set uses fewer bits.
    """

    train: Images
    test: Images | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    statistics: Statistics | None = None
    files: tuple[Path, ...] = ()
    validation: Images | None = None
    white: int = WHITE


@dataclass(frozen=True)
class Data:
    """A named data set: training and test images, class names, and the statistics used to normalise.

    Attributes:
        name: The specification it was loaded by.
        classes: Class names; label i means `classes[i]`.
        train: Training images.
        test: Test images.
        mean: Mean of each channel, pixels scaled to 0..1.
        std: Standard deviation of each channel, pixels scaled to 0..1.
        notes: Sentences on what was done to the images or is unusual about them (resizing, held-out tests,
            imbalance).
        files: The file of each training image, in their order; empty if images have none.
        white: The value of white in images of 16 bits a channel; less than 65535 where a set uses fewer bits.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    white: int = WHITE

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits of the content: pixels and labels of both parts, class names and statistics.

        Neither the name nor the place of the data counts.
        """
        found = hashlib.sha256(repr((self.classes, self.mean, self.std, self.white)).encode("utf-8", "surrogatepass"))
        for images in (self.train, self.test):
            found.update(f"{tuple(images.pixels.shape)};".encode())
            for part in (*images.pixels.split(_HASHED), *images.labels.split(_HASHED)):
                found.update(memoryview(part.to("cpu").contiguous().flatten().numpy()).cast("B"))
        return found.hexdigest()[:32]

    @property
    def channels(self) -> int:
        """Number of channels of every image."""
        return self.train.pixels.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of every image."""
        return self.train.pixels.shape[2], self.train.pixels.shape[3]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        return self.channels, *self.image_size

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def to(self, device: torch.device | str) -> Data:
        """Returns the same data with its tensors on `device`."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def channel_statistics(pixels: Tensor, chunk: int = 512) -> Statistics:
    """Returns mean and (population) standard deviation of each channel, pixels scaled to 0..1.

    Both come from exact counts of the 256 values, so neither order nor chunk size changes a bit. A constant
    channel gets the standard deviation 1, so that normalising it gives zeros.

    Args:
        pixels: uint8 (n, channels, height, width), n at least 1.
        chunk: Images counted at a time, which bounds the memory.
    """
    mean, std = [], []
    for channel in range(pixels.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64, device=pixels.device)
        for part in pixels[:, channel].split(chunk):
            counts += torch.bincount(part.reshape(-1), minlength=256)
        histogram = counts.tolist()
        total = sum(histogram)
        first = sum(value * count for value, count in enumerate(histogram))
        second = sum(value * value * count for value, count in enumerate(histogram))
        variance = (total * second - first * first) / (total * total)  # exact integers up to the division
        mean.append(first / total / 255)
        std.append(math.sqrt(variance) / 255 if variance > 0 else 1.0)
    return tuple(mean), tuple(std)


def refuse_too_large(count: int, channels: int, height: int, width: int, what: str) -> None:
    """Raises InputError if `count` uint8 images exceed `MAX_BYTES`; called before memory is allocated."""
    needed = count * channels * height * width
    if needed > MAX_BYTES:
        raise InputError(
            f"{what} would take {needed / 2**30:.1f} GiB of memory ({count} images of {height}x{width}); "
            f"the limit is {MAX_BYTES >> 30} GiB.",
            "Use fewer or smaller images (data.image_size).",
        )


def too_dense(unpacked: int, packed: int) -> bool:
    """Returns whether the ratio of unpacked to packed bytes is too high for photographs."""
    return unpacked > _DENSE and unpacked > _HIGHEST_RATIO * packed


def white_of(highest: int) -> int:
    """Returns the value of white in 16-bit images whose highest value is known: that of 8, 10, 12, 14 or 16 bits."""
    return next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if highest < 2**bits)


def white_notes(highest: int, what: str) -> tuple[str, ...]:
    """Returns one sentence if the values of 16-bit pixels are taken for fewer bits, else nothing."""
    white = white_of(highest)
    if white == WHITE:
        return ()
    bits = white.bit_length()
    return (f"{what} go up to {highest} only: they are read as {bits} bits, {white} is white.",)


def pixel_notes(pixels: Tensor) -> tuple[str, ...]:
    """Returns one sentence when the pixels are all equal or span a small part of 0 to 255, else nothing."""
    low, high = int(pixels.min()), int(pixels.max())
    if high - low >= _NARROW:
        return ()
    found = (
        f"All training pixels are {low}" if high == low else f"Training pixels span only {low} to {high} of 0 to 255"
    )
    return (
        f"{found}: check how they were stored; x.astype('uint8') of pixels from 0 to 1 makes them black, "
        "(x * 255).round().astype('uint8') does not.",
    )


def imbalance_notes(labels: Tensor, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns one sentence when the largest class has at least 1.5 times the smallest, else nothing."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    least, most = min(counts), max(counts)
    if most < 1.5 * least:
        return ()
    low, high = (printable(classes[counts.index(count)]) for count in (least, most))
    return (f"Classes are imbalanced: '{high}' has {most} training images, '{low}' {least}; accuracy counts images.",)


def describe_data(data: Data) -> dict[str, Any]:
    """Returns plain data: name, classes with their numbers of images, image size, statistics and notes."""
    count = len(data.classes)
    return {
        "name": data.name,
        "classes": list(data.classes),
        "train": torch.bincount(data.train.labels, minlength=count).tolist(),
        "test": torch.bincount(data.test.labels, minlength=count).tolist(),
        "channels": data.channels,
        "image_size": list(data.image_size),
        "mean": list(data.mean),
        "std": list(data.std),
        "notes": list(data.notes),
        "white": data.white,
    }

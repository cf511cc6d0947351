"""The description of the images that a network was trained on (data.json): checked, and applied to other images."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nas_moreau.data.images import WHITE, Data, Images
from nas_moreau.data.resizing import fit_pixels
from nas_moreau.errors import InputError, did_you_mean, first_line, nearest

MAX_SIDE = 4096
"""Pixels of a side of an image, and its channels."""
_log = logging.getLogger(__name__)


def check_description(data: dict[str, Any], where: Path) -> dict[str, Any]:
    """Returns what `describe_data` returned once, as it was read from a file.

    Args:
        data: What the file holds.
        where: The file.

    Raises:
        InputError: It describes no images.
    """
    try:
        _check(data)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where} does not describe images ({first_line(error)}).", "Restore it, or make it again."
        ) from None
    return data


def _check(data: dict[str, Any]) -> None:
    classes, colours = data["classes"], data["channels"]
    if not classes or not all(isinstance(name, str) for name in classes) or len(data["image_size"]) != 2:
        raise ValueError("classes or image_size")
    if not all(is_count(size, MAX_SIDE) for size in (colours, *data["image_size"])):
        raise ValueError("channels or image_size")
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        values = data[name]
        if len(values) != colours or not all(type(v) in (int, float) and least < v < math.inf for v in values):
            raise ValueError(name)
    for name in ("train", "test"):
        if len(data[name]) != len(classes) or not all(type(n) is int and n >= 0 for n in data[name]):
            raise ValueError(name)
    if not isinstance(data["name"], str) or not all(isinstance(note, str) for note in data["notes"]):
        raise ValueError("name or notes")
    if not is_count(data["white"], WHITE):
        raise ValueError("white")


def is_count(value: Any, most: int) -> bool:
    """Returns whether a value is an integer from 1 to `most`."""
    return type(value) is int and 1 <= value <= most


def as_trained(data: Data, trained: Mapping[str, Any]) -> Data:
    """Returns another data set with the labels, the size, the mean and std, and the white of the images of a training.

    Classes are matched by name; the other set may lack some. One line is logged that the images are others.

    Args:
        data: The other data set.
        trained: The description of the images that the network was trained on (data.json).

    Raises:
        InputError: It has a class that the network does not know, or other channels.
    """
    classes = tuple(trained["classes"])
    unknown = [name for name in data.classes if name not in classes]
    if unknown:
        guess = did_you_mean(unknown[0], classes) if nearest(unknown[0], classes) else ""
        raise InputError(
            f"{data.name} has the class '{unknown[0]}', which the network was not trained on.",
            guess or f"Name the classes as in the training: {', '.join(classes[:10])}{', ...' * (len(classes) > 10)}.",
        )
    if data.channels != len(trained["mean"]):
        raise InputError(
            f"{data.name} has images of {data.channels} channels; the network was trained on {len(trained['mean'])}.",
            "Convert the images.",
        )
    size = (int(trained["image_size"][0]), int(trained["image_size"][1]))
    (height, width), (tall, wide) = data.image_size, size
    _log.info(
        "The images of %s are not those of the training (%s): they are normalised as in the training%s.",
        data.name,
        trained["name"],
        "" if size == data.image_size else f", and resized from {width}x{height} to {wide}x{tall}",
    )
    places = torch.tensor([classes.index(name) for name in data.classes], device="cpu")
    ratio = data.white / trained["white"] if data.white < WHITE else 1.0

    def changed(images: Images) -> Images:
        pixels = fit_pixels(images.pixels, size)
        if ratio != 1:
            pixels = (pixels * ratio).round_().clamp_(0, 255).to(torch.uint8)
        return Images(pixels, places[images.labels])

    return replace(
        data,
        classes=classes,
        train=changed(data.train),
        test=changed(data.test),
        mean=tuple(trained["mean"]),
        std=tuple(trained["std"]),
        white=trained["white"],
    )

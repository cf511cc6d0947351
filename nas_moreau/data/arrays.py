"""What arrays of images and labels may hold: layouts, ranges and spellings that can be read in one way only.

Pixels: uint8 or wider integers, floats from 0 to 1, -1 to 1 or 0 to 255, or booleans; (n, height, width), or with
channels last or first. Labels: integers, whole floats, booleans or text, (n,) or (n, 1), or one-hot (n, classes).
Everything else is refused with the line that converts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas_moreau.data.images import Images, Loaded
from nas_moreau.data.pixel_ranges import Named, scale_of, to_bytes
from nas_moreau.errors import InputError

_USUAL_CHANNELS = (1, 3, 4)
_MOST_CHANNELS = 16
_LARGEST_WHOLE = 2.0**53  # floats beyond it are not exact, and no class labels


def channel_axis(shape: tuple[int, ...], name: str, where: str) -> int | None:
    """Returns the axis of the channels of (n, ...) images: -1, 1, or None if there is none.

    Raises:
        InputError: The shape is none of images, or both readings are possible.
    """
    if len(shape) == 3 and not (shape[2] in _USUAL_CHANNELS and shape[1] > 2 * _MOST_CHANNELS):
        return None
    if len(shape) == 3:
        raise InputError(
            f"{where}: {name} has the shape {shape}; it is not clear whether its last axis holds channels.",
            f"If it does not: {name} = {name}[..., None].",
        )
    if len(shape) != 4:
        side = round(shape[1] ** 0.5) if len(shape) == 2 else 0
        cure = "Give (n, height, width) or (n, height, width, channels)."
        if side and side * side == shape[1]:
            cure = f"Reshape it: {name} = {name}.reshape(-1, {side}, {side})."
        elif len(shape) == 2 and shape[1] == 3072:
            cure = f"Reshape it; if it is from CIFAR: {name} = {name}.reshape(-1, 3, 32, 32)."
        raise InputError(f"{where}: {name} has the shape {shape}, not (n, height, width, channels).", cure)
    _, first, middle, last = shape
    readings = [axis for axis, count in ((-1, last), (1, first)) if count in _USUAL_CHANNELS]
    if not readings:
        readings = [
            axis
            for axis, count, height, width in ((-1, last, first, middle), (1, first, middle, last))
            if count <= _MOST_CHANNELS and count < min(height, width)
        ]
    square = [axis for axis in readings if (first == middle if axis == -1 else middle == last)]
    if len(readings) > 1 and len(square) == 1:
        readings = square
    if len(readings) == 1:
        return readings[0]
    raise InputError(
        f"{where}: {name} has the shape {shape}; which axis holds the channels is not clear.",
        f"Store images as (n, height, width, channels); from channels first: {name} = {name}.transpose(0, 2, 3, 1).",
    )


def as_array(name: str, value: Any) -> np.ndarray:
    """Returns an array, tensor or nested list as a NumPy array of plain values.

    Raises:
        InputError: It holds none.
    """
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (ValueError, TypeError):
        array = np.empty(0, dtype=object)
    if array.dtype.hasobject or array.dtype.names or array.ndim == 0 or not array.size:
        raise InputError(f"{name} holds neither images nor labels.", "Give a NumPy array or a tensor of plain values.")
    return array


def _one_label_an_image(images: Named, labels: Named) -> str:
    """Returns the cure where the numbers differ: the images may lie along the last axis, as in SVHN."""
    name, array = images
    if array.ndim == 4 and array.shape[-1] == labels.array.size:
        return f"If the last axis counts the images: {name} = {name}.transpose(3, 0, 1, 2)."
    return "Give one label an image."


def _as_column(labels: Named, count: int) -> Named:
    """Returns labels of `count` images that stand in a row (1, count) as (count,); a row of one image is one-hot."""
    name, array = labels
    return Named(name, array.reshape(-1)) if len(array) != count == array.size else labels


def loaded_arrays(
    images: Mapping[str, Named],
    labels: Mapping[str, Named],
    names: tuple[str, ...] | None,
    notes: Sequence[str],
    where: str,
) -> Loaded:
    """Returns what arrays of images and labels hold.

    Args:
        images: Part ("train", "validation", "test") -> array.
        labels: Part -> array, for the same parts.
        names: The class names, if they are given.
        notes: Sentences on how the arrays were read.
        where: Where they are from, for messages.

    Raises:
        InputError: They can be read in no way, or in more than one.
    """
    for part, (name, array) in images.items():
        count, own = len(array), labels[part]
        if count != max(own.array.shape[:1], default=0) and own.array.size != count:
            raise InputError(
                f"{where}: {name} has {count} images, {own.name} {len(own.array)} labels.",
                _one_label_an_image(images[part], own),
            )
    labels = {part: _as_column(own, len(images[part].array)) for part, own in labels.items()}
    pixels, on_pixels, white = pixels_of(images, where)
    by_part, classes, on_labels = labels_of(labels, names, where)
    parts = {part: Images(pixels[part], by_part[part]) for part in images}
    return Loaded(
        parts["train"],
        parts.get("test"),
        classes,
        (*on_pixels, *on_labels, *notes),
        validation=parts.get("validation"),
        white=white,
    )


def pixels_of(
    parts: Mapping[str, Named], where: str, known_white: int | None = None
) -> tuple[dict[str, Tensor], list[str], int]:
    """Returns uint8 (n, channels, height, width) of every part, sentences on what was assumed, and the value of white.

    Args:
        parts: Part -> array; all of one layout and range.
        where: The file, for messages.
        known_white: The value of white in images of 16 bits a channel, where it is known from other images of their
            kind; by default it follows from the highest value.

    Raises:
        InputError: An array holds no pixels, its layout or range is not clear, or the parts differ.
    """
    name, first = parts["train"]
    shapes = {part: named.array.shape for part, named in parts.items()}
    for part, shape in shapes.items():
        if shape[1:] != first.shape[1:] or len(shape) < 2:
            raise InputError(
                f"{where}: {name} has images of the shape {first.shape[1:]}, {parts[part].name} of {shape[1:]}.",
                "Give all parts the same height, width and channels.",
            )
    axis = channel_axis(first.shape, name, where)
    notes = []
    if axis == 1:
        notes.append(f"The arrays are read as (n, channels, height, width): {first.shape[1]} channels.")
    elif axis == -1 and first.shape[-1] not in _USUAL_CHANNELS:
        notes.append(f"The arrays are read as (n, height, width, channels): {first.shape[-1]} channels.")
    scale = scale_of(parts, where, known_white)
    notes += scale.notes
    pixels = {}
    for part, (_, array) in parts.items():
        values = torch.from_numpy(to_bytes(array, scale))
        moved = values[:, None] if axis is None else values if axis == 1 else values.permute(0, 3, 1, 2)
        pixels[part] = moved.contiguous()
    return pixels, notes, scale.white


def labels_of(
    parts: Mapping[str, Named], names: Sequence[str] | None, where: str
) -> tuple[dict[str, Tensor], tuple[str, ...], list[str]]:
    """Returns int64 labels of every part, the class names, and sentences on what was assumed.

    The distinct training labels are the classes; their names are `names`, or else the labels as text.

    Args:
        parts: Part -> array.
        names: Class names that the file holds, in the order of the labels; or None.
        where: The file, for messages.

    Raises:
        InputError: An array holds no labels, or other parts have labels that training has not.
    """
    notes: list[str] = []
    widths = {named.array.shape[1:] for named in parts.values() if max(named.array.shape[1:], default=1) > 1}
    if len(widths) > 1:
        raise InputError(
            f"{where}: one-hot labels of the parts have different numbers of classes.",
            "Give all parts the same classes.",
        )
    values = {part: _flat(named, where, notes) for part, named in parts.items()}
    kinds = {array.dtype.kind.replace("u", "i") for array in values.values()}
    if len(kinds) > 1:
        raise InputError(f"{where}: labels of the parts are of different kinds.", "Give all parts the same labels.")
    name = parts["train"].name
    present = np.unique(values["train"]).tolist()
    if len(present) > 20 and 2 * len(present) > len(values["train"]):
        raise InputError(
            f"{where}: {name} holds {len(present)} different values for {len(values['train'])} images.",
            "Give class labels: one value for all images of a class.",
        )
    known, classes = _classes(present, names, name, where, notes)
    found = {}
    for part, array in values.items():
        unique, inverse = np.unique(array, return_inverse=True)
        wrong = [value for value in unique.tolist() if value not in known]
        if wrong:
            span = f"0 to {len(known) - 1}" if present == list(range(len(present))) else f"the labels of {name}"
            raise InputError(
                f"{where}: {parts[part].name} holds the label {wrong[0]!r}, which is not one of {span}.",
                "Give all images labels of training classes.",
            )
        table = torch.tensor([known[value] for value in unique.tolist()], dtype=torch.int64, device="cpu")
        found[part] = table[torch.from_numpy(inverse.reshape(-1).astype(np.int64))]
    return found, classes, notes


def _flat(named: Named, where: str, notes: list[str]) -> np.ndarray:
    """Returns the labels of one part as integers, booleans or text (n,)."""
    name, array = named
    if array.dtype.kind not in "biufSU":
        raise InputError(
            f"{where}: {name} is {array.dtype}, not integer.", f"Store labels as integers: {name}.astype('int64')."
        )
    if array.dtype.kind == "f":
        if (array != np.rint(array)).any() or not (np.abs(array) < _LARGEST_WHOLE).all():  # NaN is not less either
            cure = f"{name} = {name}.argmax(1)" if array.ndim == 2 and min(array.shape) > 1 else ""
            raise InputError(
                f"{where}: {name} holds fractions, not class labels.",
                f"Store labels as integers{'; from scores: ' * bool(cure)}{cure}.",
            )
        array = array.astype(np.int64)
    if array.size == len(array):  # (n, 1)
        array = array.reshape(-1)
    if array.ndim == 2 and array.dtype.kind in "biu":
        rows = array.astype(bool)
        if ((array != 0) & (array != 1)).any() or (rows.sum(1) != 1).any():
            raise InputError(
                f"{where}: {name} has the shape {array.shape} and is not one-hot: an image has one class here.",
                f"Store one integer an image; from scores: {name} = {name}.argmax(1).",
            )
        notes.append(f"{name} is one-hot: the place of the 1 is the label, 0 to {array.shape[1] - 1}.")
        return rows.argmax(1)
    if array.ndim != 1:
        raise InputError(f"{where}: {name} has the shape {array.shape}, not (n,).", "Give one label an image.")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "backslashreplace")
    if array.dtype.kind == "U" and (np.char.strip(array) == "").any():
        raise InputError(f"{where}: {name} holds empty labels.", f"Remove these images: keep = {name} != ''.")
    return array


Label = int | bool | str


def _classes(
    present: list[Label], names: Sequence[str] | None, name: str, where: str, notes: list[str]
) -> tuple[dict[Label, int], tuple[str, ...]]:
    """Returns label -> number of its class, and the class names."""
    numbers = [value for value in present if not isinstance(value, str)]
    if not numbers and all(str(value).isdecimal() for value in present):
        present = sorted(present, key=lambda value: (int(value), value))
    if numbers and min(numbers) < 0 and numbers != [-1, 1]:
        raise InputError(
            f"{where}: {name} holds labels between {min(numbers)} and {max(numbers)}; negative ones often mark images "
            "without a label.",
            f"Remove these images: keep = {name} >= 0.",
        )
    if names is None:
        if numbers and not isinstance(numbers[0], bool) and numbers != list(range(len(numbers))):
            notes.append(f"The labels {_span(numbers)} are taken as {len(numbers)} classes of these names.")
        return {value: i for i, value in enumerate(present)}, tuple(str(value) for value in present)
    order: list[Label] = list(range(len(names))) if numbers else list(names)
    if numbers and max(numbers) == len(names) and min(numbers) >= 1:
        order = list(range(1, len(names) + 1))
        notes.append(f"Labels begin at 1: label 1 is '{names[0]}'.")
    if any(value not in order for value in present):
        raise InputError(
            f"{where}: {name} holds {_span(present)}, which does not fit the {len(names)} class names of the file.",
            "Give class_names one name for each label, in the order of the labels.",
        )
    return {value: i for i, value in enumerate(order)}, tuple(names)


def _span(present: Sequence[object]) -> str:
    shown = [str(value) for value in present]
    return ", ".join(shown) if len(shown) <= 6 else f"{', '.join(shown[:3])}, ..., {shown[-1]}"

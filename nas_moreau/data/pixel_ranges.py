"""Ranges of pixels in arrays, and how their values become bytes: integers of 8 to 16 bits, floats, booleans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nas_moreau.data.images import WHITE, white_notes, white_of
from nas_moreau.errors import InputError

_CHUNK = 1024
_ROUNDING = 0.01  # beyond the ends of a range
_DARK = -0.75  # pixels from -1 to 1 go below it in any set of photographs
_BRIGHT = 127  # pixels from 0 to 255 go beyond it in any set of photographs


class Named(NamedTuple):
    """An array with the name that its file gives it."""

    name: str
    array: np.ndarray


class Scale(NamedTuple):
    """byte = (value + offset) * factor; booleans and uint8 are not changed but for the factor."""

    offset: float
    factor: float
    notes: tuple[str, ...]
    white: int


def scale_of(parts: Mapping[str, Named], where: str, known_white: int | None) -> Scale:
    """Returns how values become bytes, from the range of all parts.

    Args:
        parts: Part -> array.
        where: The file, for messages.
        known_white: See `arrays.pixels_of`.

    Raises:
        InputError: The range is not clear, or the parts differ.
    """
    kinds = {named.array.dtype.kind for named in parts.values()}
    dtypes = {named.array.dtype for named in parts.values()}
    name, array = parts["train"]
    if len(kinds) > 1 or (len(dtypes) > 1 and np.dtype(np.uint8) in dtypes):
        raise InputError(
            f"{where}: the parts have pixels of different types, {', '.join(sorted(map(str, dtypes)))}.",
            "Give all parts the same type, uint8 for example.",
        )
    kind = array.dtype.kind
    if kind == "b":
        return Scale(0, 255, ("Pixels are true or false: they are read as white and black.",), WHITE)
    if kind not in "iuf":
        raise InputError(f"{where}: {name} is {array.dtype}, not uint8.", "Store pixels as uint8 from 0 to 255.")
    if array.dtype == np.uint8:
        return Scale(0, 1, (), WHITE)
    if known_white is not None and kind in "iu":
        return _of_known_white(array, known_white, name, where)
    ranges = {part: _range(named, where) for part, named in parts.items()}
    low, high = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())
    scale = _of_floats(low, high, name, where) if kind == "f" else _of_integers(int(low), int(high), name, where)
    rule = _rule(kind, low, high)
    for part, (least, most) in ranges.items():
        if _rule(kind, least, most) != rule:
            raise InputError(
                f"{where}: {parts[part].name} has pixels from {least:g} to {most:g}, other parts up to {high:g}.",
                "Give all parts pixels of one range.",
            )
    return scale


def _rule(kind: str, low: float, high: float) -> object:
    """Returns a key that differs where ranges are read in different ways."""
    if kind == "f":
        return "unit" if low >= -_ROUNDING and high <= 1 + _ROUNDING else "signed" if low < -_ROUNDING else "bytes"
    return white_of(int(high)) if 0 <= high <= WHITE else "wide"


def _of_floats(low: float, high: float, name: str, where: str) -> Scale:
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return Scale(0, 255, ("Pixels are from 0 to 1: 1 is white.",), WHITE)
    if -1 - _ROUNDING <= low <= _DARK and high <= 1 + _ROUNDING:
        return Scale(1, 127.5, ("Pixels are from -1 to 1: -1 is black, 1 is white.",), WHITE)
    if low >= -0.5 and _BRIGHT < high <= 255.5:
        return Scale(0, 1, ("Pixels are floats from 0 to 255; they are rounded.",), WHITE)
    lowest = 0 if low >= 0 else f"{low:g}"
    shifted = name if low >= 0 else f"({name} - ({lowest}))"
    raise InputError(
        f"{where}: {name} has pixels from {low:g} to {high:g}; which values are black and white is not clear.",
        f"Store them as uint8; if {lowest} is black and {high:g} white: "
        f"{name} = ({shifted} * (255 / {high - min(low, 0):g})).round().astype('uint8').",
    )


def _of_integers(low: int, high: int, name: str, where: str) -> Scale:
    if low < 0 or high > WHITE:
        raise InputError(
            f"{where}: {name} has pixels from {low} to {high}, not 0 to 255.",
            f"Store them as uint8; if {low} is black and {high} white: "
            f"{name} = (({name} - ({low})) * (255 / {high - low})).round().astype('uint8').",
        )
    white = white_of(high)
    return Scale(0, 255 / white, white_notes(high, "Pixels") if high > 255 else (), white if high > 255 else WHITE)


def _of_known_white(array: np.ndarray, white: int, name: str, where: str) -> Scale:
    """Returns the scale of integers that may be dark: their highest value does not show how many bits they have."""
    low, high = int(array.min()), int(array.max())
    if high <= 255 and array.dtype == np.uint16:
        raise InputError(
            f"{where}: {name} is uint16 and goes up to {high} only; whether 255 or {white} is white is not clear.",
            f"If it is 255: {name} = {name}.astype('uint8'); else: "
            f"{name} = ({name} * (255 / {white})).round().astype('uint8').",
        )
    if high > white:
        raise InputError(
            f"{where}: {name} has pixels up to {high}; in the images of the training {white} was white.",
            f"If {high} is white: {name} = ({name} * (255 / {high})).round().astype('uint8').",
        )
    return Scale(0, 255 / white, (), white) if low >= 0 and high > 255 else _of_integers(low, high, name, where)


def _range(named: Named, where: str) -> tuple[float, float]:
    low, high = float(named.array.min()), float(named.array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(
            f"{where}: {named.name} holds NaN or infinity.", "Remove these images, or replace their values."
        )
    return low, high


def to_bytes(array: np.ndarray, scale: Scale) -> np.ndarray:
    """Returns the values of an array as bytes."""
    if array.dtype == np.uint8:
        return array
    found = np.empty(array.shape, dtype=np.uint8)
    for start in range(0, len(array), _CHUNK):
        part = array[start : start + _CHUNK].astype(np.float64)
        found[start : start + _CHUNK] = np.rint((part + scale.offset) * scale.factor).clip(0, 255)
    return found

"""Decodes image files of any format and size into one tensor; unreadable ones are named all at once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nas_moreau.data.images import refuse_too_large
from nas_moreau.data.resizing import POLICY, fit_image
from nas_moreau.errors import InputError

_FORMATS = "png jpg jpeg jpe jfif bmp gif webp tif tiff ppm pgm pbm pnm tga jp2 avif heic heif"
ENDINGS = frozenset(f".{ending}" for ending in _FORMATS.split(" "))
_UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
)
_SHOWN = 10
_DEFAULT_SIZE = 32
_LARGEST_KEPT = 512


def is_image(path: Path) -> bool:
    """Returns whether the name has an image's ending and no leading dot; the file is not opened."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def read_images(files: Sequence[Path], mode: str, image_size: int | None = None) -> tuple[Tensor, str]:
    """Returns uint8 (n, channels, height, width) and a sentence on how the size came about.

    Camera rotation (EXIF) is undone, transparency is put on white, 16-bit values are scaled to 8 bits,
    animations give their first frame. Without `image_size`, images that all have one size of at most 512
    pixels a side keep it; else 32 pixels is used.

    Args:
        files: Image files, at least one.
        mode: "RGB" (3 channels) or "L" (1 channel); other images are converted.
        image_size: Requested height and width, or None.

    Raises:
        InputError: Some files cannot be read (the first ten are named, with the count), or all are too much
            for memory.
    """
    bad: dict[Path, str] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a plugin's remarks on metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for path in files:
            try:
                with Image.open(path) as image:
                    sizes[_upright_size(image)] += 1
            except (*_UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
                bad[path] = _reason(error)
        width, height, sentence = _target(sizes, image_size)
        channels = len(mode)
        refuse_too_large(len(files), channels, height, width, f"{len(files)} image files")
        pixels = torch.empty(len(files), channels, height, width, dtype=torch.uint8, device="cpu")
        for index, path in enumerate(files):
            if path in bad:
                continue
            try:
                pixels[index] = _decode(path, mode, (height, width))
            except (*_UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
                bad[path] = _reason(error)
    if bad:
        listed = "; ".join(f"{path} ({reason})" for path, reason in sorted(bad.items())[:_SHOWN])
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InputError(
            f"{len(bad)} of {len(files)} image files cannot be read: {listed}{more}.",
            "Repair or remove these files.",
        )
    return pixels, sentence


def read_image(path: Path, channels: int, size: tuple[int, int]) -> Tensor:
    """Returns one image as uint8 (channels, height, width), brought to `size` (height, width) by the policy.

    Raises:
        InputError: It cannot be read; the cause names the file and the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _decode(path, "L" if channels == 1 else "RGB", size)
        except (*_UNREADABLE, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InputError(f"{path} cannot be read: {_reason(error)}.", "Give an image file.") from None


def _decode(path: Path, mode: str, size: tuple[int, int]) -> Tensor:
    with Image.open(path) as image:
        flat = fit_image(_flatten(image, mode), size)
    return torch.from_numpy(np.asarray(flat).reshape(*size, len(mode)).copy()).permute(2, 0, 1)


def _target(sizes: Counter[tuple[int, int]], image_size: int | None) -> tuple[int, int, str]:
    """Returns width and height to store at, and a sentence about them."""
    if image_size is None and len(sizes) == 1:
        ((width, height),) = sizes
        if max(width, height) <= _LARGEST_KEPT:
            return width, height, f"All images are {width}x{height} and are kept so."
    size = image_size or _DEFAULT_SIZE
    if set(sizes) == {(size, size)}:
        return size, size, f"All images are {size}x{size} and are kept so."
    found = f"Images have {len(sizes)} different sizes"
    if len(sizes) == 1:
        ((width, height),) = sizes
        found = f"Images are {width}x{height}"
    return size, size, f"{found}: {POLICY.format(size=size)}."


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (width, height) after the camera's rotation, without decoding."""
    turned = image.format in ("JPEG", "MPO", "TIFF", "WEBP") and image.getexif().get(0x0112, 1) in (
        5,
        6,
        7,
        8,
    )
    return (image.height, image.width) if turned else image.size


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Returns the upright image in `mode`, transparency on white."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        values = np.asarray(upright, dtype=np.float64)
        if upright.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of mode {upright.mode} are neither 8 nor 16 bits")
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert(mode)
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert(mode)


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).split("\n")[0][:100]

"""Decodes image files of any format and size into one tensor; unreadable ones are named all at once."""

from __future__ import annotations

import os
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from nas_moreau.data.images import WHITE, refuse_too_large, too_dense, white_notes, white_of
from nas_moreau.data.resizing import POLICY, fit_image
from nas_moreau.errors import InputError

_FORMATS = "png jpg jpeg jpe jfif bmp gif webp tif tiff ppm pgm pbm pnm tga jp2 avif"
_RAW = frozenset((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"))
"""Endings of cameras' raw files, of which Pillow would read the thumbnail."""
_UNDECODED = _RAW | {".heic", ".heif", ".svg", ".jxl", ".exr", ".dcm"}
"""Endings of images that Pillow does not decode: such files are refused by name, not passed over."""
ENDINGS = frozenset(f".{ending}" for ending in _FORMATS.split(" ")) | _UNDECODED
_UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    IndexError,
    KeyError,
    Image.DecompressionBombError,
)
_SHOWN = 10
_DEFAULT_SIZE = 32
_LARGEST_KEPT = 512
_BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS; run git lfs pull",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"%pdf": "a PDF",
    b"pk\x03\x04": "a zip file",
}
"""First bytes, in lower case -> what the file is."""


def is_image(path: Path) -> bool:
    """Returns whether the name has an image's ending and no leading dot; the file is not opened."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


_OF_SEVERAL = ("GIF", "TIFF", "PNG", "WEBP", "AVIF")
"""Formats whose further frames or pages are images, and not previews or depth as in photographs of phones."""


class Read(NamedTuple):
    """Images of files.

    Attributes:
        pixels: uint8 (n, channels, height, width).
        notes: Sentences on size and depth.
        white: The value of white in files of 16 bits a channel.
    """

    pixels: Tensor
    notes: tuple[str, ...]
    white: int


def read_images(files: Sequence[Path], mode: str, image_size: int | None = None) -> Read:
    """Returns the pixels of image files.

    Camera rotation (EXIF) is undone, transparency is put on white, 16-bit values are scaled to 8 bits by the highest
    value of all files, animations give their first frame, JPEGs of more than `Image.MAX_IMAGE_PIXELS` are decoded at
    reduced size. Without `image_size`, images that all have one size of at most 512 pixels a side keep it; else 32
    pixels is used.

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
    highest, reduced, several = 0, 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a plugin's remarks on metadata
        for path in files:
            try:
                with _open(path) as image:
                    sizes[_upright_size(image)] += 1
                    highest = max(highest, _highest(image))
                    reduced += _is_huge(image)
                    several += image.format in _OF_SEVERAL and getattr(image, "n_frames", 1) > 1
            except _UNREADABLE as error:
                bad[path] = _reason(error, path)
        width, height, sentence = _target(sizes, image_size)
        white = white_of(highest) if highest else WHITE
        channels = len(mode)
        refuse_too_large(len(files), channels, height, width, f"{len(files)} image files")
        pixels = torch.empty(len(files), channels, height, width, dtype=torch.uint8, device="cpu")
        for index, path in enumerate(files):
            if path in bad:
                continue
            try:
                pixels[index] = _decode(path, mode, (height, width), white)
            except _UNREADABLE as error:
                bad[path] = _reason(error, path)
    if bad:
        raise _unreadable(bad, len(files))
    notes = [sentence, *(white_notes(highest, "16-bit images") if highest else ())]
    if reduced:
        notes.append(
            f"{reduced} JPEG files of more than {_megapixels(Image.MAX_IMAGE_PIXELS)} were read at reduced size."
        )
    if several:
        notes.append(f"Files with several frames or pages: {several}; the first one of each is read.")
    return Read(pixels, tuple(notes), white)


def read_image(path: Path, channels: int, size: tuple[int, int], white: int = WHITE) -> Tensor:
    """Returns one image as uint8 (channels, height, width), brought to `size` (height, width) by the policy.

    Args:
        path: The file.
        channels: 1 or 3.
        size: (height, width).
        white: The value of white if the file has 16 bits a channel; higher values become white.

    Raises:
        InputError: It cannot be read; the cause names the file and the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _decode(path, "L" if channels == 1 else "RGB", size, white)
        except _UNREADABLE as error:
            raise InputError(f"{path} cannot be read: {_reason(error, path)}.", _cure([path])) from None


def _unreadable(bad: dict[Path, str], count: int) -> InputError:
    listed = "; ".join(f"{path} ({reason})" for path, reason in sorted(bad.items())[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return InputError(f"{len(bad)} of {count} image files cannot be read: {listed}{more}.", _cure(list(bad)))


def _cure(bad: Sequence[Path]) -> str:
    """Returns what to do about files that cannot be read: a command that converts those that another program can."""
    endings = sorted({path.suffix.lower() for path in bad} & _UNDECODED)
    if not endings:
        return "Repair or remove these files."
    folder = shlex.quote(os.path.commonpath([path.parent for path in bad]) or ".")
    names = " -o ".join(f"-iname '*{ending}'" for ending in endings)
    return (
        f"Convert {' and '.join(endings)} files to JPEG, with ImageMagick: find {folder} \\( {names} \\) "
        "-exec magick {} {}.jpg ';' -exec mv {} {}.original ';' (iPhone: Settings, Camera, Formats, Most Compatible)."
    )


def _open(path: Path) -> Image.Image:
    """Returns the opened image, as `Image.open` does; JPEGs of any size are opened, to be decoded at reduced size.

    Raises:
        ValueError: It is too large to be decoded, or its size is not that of its bytes.
    """
    if path.suffix.lower() in _RAW:
        raise ValueError("a camera's raw file")
    try:
        image = Image.open(path)
    except Image.DecompressionBombError:
        try:
            image = JpegImageFile(path)
        except SyntaxError:
            raise ValueError(
                f"more than {_megapixels(2 * (Image.MAX_IMAGE_PIXELS or 0))}; reduce it: "
                f"magick mogrify -resize 2048x2048 {shlex.quote(str(path))}"
            ) from None
    pixels, stored = image.width * image.height, path.stat().st_size
    if pixels > (Image.MAX_IMAGE_PIXELS or pixels) and too_dense(pixels * len(image.getbands()), stored):
        image.close()
        raise ValueError(f"it claims {_megapixels(pixels)} in {stored:,} bytes, unlike photographs")
    return image


def _megapixels(count: int | None) -> str:
    millions = (count or 0) / 1e6
    return f"{millions:,.0f} megapixels" if millions >= 10 else f"{millions:.3g} megapixels"


def _is_huge(image: Image.Image) -> bool:
    limit = Image.MAX_IMAGE_PIXELS
    return limit is not None and image.width * image.height > limit and isinstance(image, JpegImageFile)


def _highest(image: Image.Image) -> int:
    """Returns the highest value of an image of 16 bits a channel; 0 for others, which are not decoded."""
    return min(WHITE, max(0, int(np.asarray(image).max()))) if image.mode.startswith("I") else 0


def _decode(path: Path, mode: str, size: tuple[int, int], white: int) -> Tensor:
    with _open(path) as image:
        if _is_huge(image):
            image.draft(None, (4 * max(size), 4 * max(size)))
        flat = fit_image(_flatten(image, mode, white), size)
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
    # a PNG without EXIF before its pixels would be decoded for it
    known = image.format in ("JPEG", "MPO", "TIFF", "WEBP", "AVIF") or "exif" in image.info
    turned = known and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def _flatten(image: Image.Image, mode: str, white: int) -> Image.Image:
    """Returns the upright image in `mode`, transparency on white."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        values = np.asarray(upright, dtype=np.float64)
        if upright.mode == "F":
            raise ValueError("pixels are floating-point numbers; scale them to 0..255 and save 8 bits a channel")
        if values.min() < 0 or values.max() > WHITE:
            raise ValueError(f"pixels of mode {upright.mode} are neither 8 nor 16 bits")
        values = (values / (white / 255)).round().clip(0, 255)
        return Image.fromarray(values.astype(np.uint8)).convert(mode)
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert(mode)


def _reason(error: BaseException, path: Path) -> str:
    """Returns why a file cannot be read, by its content if Pillow does not know it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if not isinstance(error, UnidentifiedImageError):
        return str(error).split("\n")[0][:200] or type(error).__name__
    try:
        with path.open("rb") as file:
            first = file.read(64).lower()
    except OSError:
        first = b""
    if not first:
        return "an empty file"
    if first[4:8] == b"ftyp":  # the boxes of ISO media: HEIC, AVIF, films
        brand = first[8:12].decode("latin-1").strip()
        kind = (
            "a HEIC image" if brand in ("heic", "heix", "hevc", "mif1", "msf1") else f"a film or image of type {brand}"
        )
    else:
        known = (what for start, what in _BEGINNINGS.items() if first.lstrip().startswith(start))
        kind = next(known, "not an image Pillow can read")
    return kind

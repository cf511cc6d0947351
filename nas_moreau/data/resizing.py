"""The one resizing policy: shorter side to the requested size, then the centre crop."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from nas_moreau.data.images import refuse_too_large
from nas_moreau.errors import InputError

POLICY = "the shorter side resized to {size} pixels (bilinear, antialiased), then the centre {size}x{size} kept"


def check_image_size(image_size: int | None) -> None:
    """Raises InputError unless `image_size` is None or from 1 to 4096."""
    if image_size is not None and not 1 <= image_size <= 4096:
        raise InputError(f"The image size {image_size} is not within 1 to 4096.", "Give it in pixels, for example 32.")


def fit_image(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Returns `image` as size x size, or as (height, width), by the policy.

    The central part of that shape is cut before resizing, which is the same picture and keeps a very long
    image from becoming huge.
    """
    width, height = image.size
    tall, wide = (size, size) if isinstance(size, int) else size
    if (width, height) == (wide, tall):
        return image
    scale = min(width / wide, height / tall)
    cut_width, cut_height = max(1, round(scale * wide)), max(1, round(scale * tall))
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    box = (left, top, left + cut_width, top + cut_height)
    return image.resize((wide, tall), Image.Resampling.BILINEAR, box=box)


def fit_pixels(pixels: Tensor, size: int | tuple[int, int], chunk: int = 1024) -> Tensor:
    """Returns uint8 (n, channels, height, width) as size x size, or as (height, width), by the same policy."""
    height, width = pixels.shape[2:]
    tall, wide = (size, size) if isinstance(size, int) else size
    if (height, width) == (tall, wide):
        return pixels
    refuse_too_large(len(pixels), pixels.shape[1], tall, wide, "The resized data")
    scale = min(width / wide, height / tall)
    cut_width, cut_height = max(1, round(scale * wide)), max(1, round(scale * tall))
    top, left = (height - cut_height) // 2, (width - cut_width) // 2
    cut = pixels[:, :, top : top + cut_height, left : left + cut_width]
    fitted = torch.empty(*pixels.shape[:2], tall, wide, dtype=torch.uint8, device=pixels.device)
    for start in range(0, len(pixels), chunk):
        part = cut[start : start + chunk].to(torch.float32)
        part = functional.interpolate(part, (tall, wide), mode="bilinear", antialias=True, align_corners=False)
        fitted[start : start + chunk] = part.round_().clamp_(0, 255).to(torch.uint8)
    return fitted

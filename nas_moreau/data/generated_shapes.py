"""The embedded data set `shapes`: generated images; a class is a shape, a texture and a colour together.

Ten of the twelve combinations of {disc, cross, triangle} x {striped, chequered} x {warm, cool}. For eight of
them each attribute has a partner class that differs in it alone: blindness to one confuses whole pairs.
Nothing else is informative: position, size, rotation, hue within the family, brightness, contrast, the texture's
period, direction and phase, background (two colours of any hue, another texture, small distractors),
lighting and noise are drawn at random.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas_moreau.data.images import Images, Loaded, refuse_too_large
from nas_moreau.data.splitting import generator_for

if TYPE_CHECKING:
    from nas_moreau.data.sources import Request

SHAPES = ("disc", "cross", "triangle")
TEXTURES = ("striped", "chequered")
COLOURS = ("warm", "cool")
_COMBINATIONS = tuple(
    (shape, texture, colour)
    for shape in range(3)
    for texture in range(2)
    for colour in range(2)
    if shape < 2 or texture == colour
)
CLASSES = tuple(f"{COLOURS[c]}_{TEXTURES[t]}_{SHAPES[s]}" for s, t, c in _COMBINATIONS)
TRAIN_SHAPES, TEST_SHAPES = 4000, 1000
_CHUNK = 500
_DISTRACTORS = 2


def read_shapes(request: Request) -> Loaded:
    """Returns the data set `shapes` for a request's seed and image size (32 pixels by default)."""
    size = request.image_size or 32
    train = generate_shapes(TRAIN_SHAPES, request.seed, "train", size)
    return Loaded(train, generate_shapes(TEST_SHAPES, request.seed, "test", size), CLASSES)


def generate_shapes(count: int, seed: int, part: str, image_size: int = 32) -> Images:
    """Returns `count` images, classes as equal in number as can be and in random order.

    Args:
        count: How many.
        seed: The data set's seed; parts of different names are independent.
        part: For example "train" or "test".
        image_size: Height and width; everything drawn scales with it.
    """
    refuse_too_large(count, 3, image_size, image_size, "The data set shapes")
    generator = generator_for(seed, f"shapes {part}")
    labels = (torch.arange(count, device="cpu") % len(CLASSES))[
        torch.randperm(count, generator=generator, device="cpu")
    ]
    pixels = torch.empty(count, 3, image_size, image_size, dtype=torch.uint8, device="cpu")
    for start in range(0, count, _CHUNK):
        part_labels = labels[start : start + _CHUNK]
        pixels[start : start + _CHUNK] = _paint(part_labels, image_size, generator)
    return Images(pixels, labels)


def _paint(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Returns uint8 (n, 3, size, size) images; lengths below are in units of a 32-pixel image."""
    count = len(labels)

    def draw(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=generator, device="cpu") * (high - low) + low

    shape, texture, colour = torch.tensor(_COMBINATIONS, device="cpu")[labels].T[:, :, None, None]
    axis = (torch.arange(size, dtype=torch.float32, device="cpu") + 0.5) * (32 / size) - 16
    rows, columns = axis[None, :, None], axis[None, None, :]

    # Background: a blend of two colours of any hue along a random direction, faintly textured.
    blend = torch.sigmoid(_along(rows, columns, draw(0, 2 * math.pi)) / draw(2, 16) + draw(-0.5, 0.5))
    first = hsv_to_rgb(draw(0, 1), draw(0.1, 0.7), draw(0.2, 0.7))
    second = hsv_to_rgb(draw(0, 1), draw(0.1, 0.7), draw(0.2, 0.7))
    kind = (draw(0, 1) < 0.5).long()
    ripple = _texture(rows, columns, kind, draw(0, math.pi), draw(3.5, 7), draw(0, 6.3), draw(0, 6.3))
    image = (first + (second - first) * blend[:, None]) * (1 + draw(0, 0.25) * ripple)[:, None]

    # Distractors: small blots of any colour.
    for _ in range(_DISTRACTORS):
        y, x, radius = rows - draw(-15, 15), columns - draw(-15, 15), draw(1, 3)
        blot = _coverage((y.square() + x.square()).sqrt() - radius, size)[:, None]
        image = image + (hsv_to_rgb(draw(0, 1), draw(0.2, 0.9), draw(0.3, 1)) - image) * blot

    # The object: a signed distance gives the shape, a hue of its family the colour.
    radius = draw(6.5, 10.5)
    y, x = rows - draw(-1, 1) * (15 - radius), columns - draw(-1, 1) * (15 - radius)
    turn = draw(0, 2 * math.pi)
    u, v = _along(y, x, turn), _along(y, x, turn + math.pi / 2)
    inside = _coverage(signed_distance(u, v, shape, radius), size)[:, None]
    hue = torch.where(colour == 0, draw(-0.06, 0.13), draw(0.48, 0.67))
    body = hsv_to_rgb(hue, draw(0.5, 1), draw(0.6, 1))
    pattern = _texture(y, x, texture, draw(0, math.pi), draw(4, 7), draw(0, 6.3), draw(0, 6.3))
    body = body * (1 + draw(0.25, 0.55) * pattern)[:, None]
    image = image + (body - image) * inside

    # Lighting falls off along a random direction; noise is independent in each value.
    light = draw(0.6, 1.15) * (1 + draw(0, 0.02) * _along(rows, columns, draw(0, 2 * math.pi)))
    noise = torch.randn(image.shape, generator=generator, device="cpu") * draw(0.02, 0.07)[:, None]
    return (image * light[:, None] + noise).mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _along(rows: Tensor, columns: Tensor, angle: Tensor) -> Tensor:
    """Returns the coordinate along the direction `angle`."""
    return columns * angle.cos() + rows * angle.sin()


def signed_distance(u: Tensor, v: Tensor, shape: Tensor, radius: Tensor) -> Tensor:
    """Returns roughly the signed distance from the outline, negative inside; all shapes have equal areas."""
    disc = (u.square() + v.square()).sqrt() - radius
    long, short = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    arm = radius * math.sqrt(math.pi / 20)  # arms as wide as 2 arm, out to 3 arm: the area is 20 arm^2
    cross = torch.maximum(long - 3 * arm, short - arm)
    inradius = math.sqrt(math.pi / (3 * math.sqrt(3)))  # of a triangle with the area 3 sqrt(3) inradius^2
    triangle = torch.maximum(u.abs() * (math.sqrt(3) / 2) - v / 2, v) - radius * inradius
    return torch.where(shape == 0, disc, torch.where(shape == 1, cross, triangle))


def _coverage(distance: Tensor, size: int) -> Tensor:
    """Returns how much of each pixel is inside, 0 to 1: an edge one pixel wide."""
    return (0.5 - distance * (size / 32)).clamp_(0, 1)


def _texture(
    rows: Tensor,
    columns: Tensor,
    kind: Tensor,
    angle: Tensor,
    period: Tensor,
    phase: Tensor,
    other_phase: Tensor,
) -> Tensor:
    """Returns stripes (kind 0) or a chequered pattern (kind 1), from -1 to 1, with soft edges."""
    frequency = 2 * math.pi / period
    one = (_along(rows, columns, angle) * frequency + phase).sin()
    other = (_along(rows, columns, angle + math.pi / 2) * frequency + other_phase).sin()
    return (2 * torch.where(kind == 0, one, one * other)).clamp_(-1, 1)


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Returns (n, 3, 1, 1) RGB of (n, 1, 1) hue (1 is a full turn), saturation and value."""
    offsets = torch.tensor([5.0, 3.0, 1.0], device="cpu")[None, :, None, None]
    k = (offsets + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))

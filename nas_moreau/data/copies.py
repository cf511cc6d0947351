"""Exact copies among the images of a data set: in training and test, or with two labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as f

from nas_moreau.data.images import Images

_CHUNK = 2048
"""Images at a time, which bounds the memory."""


def copies_notes(train: Images, test: Images) -> tuple[str, ...]:
    """Returns a sentence for each kind of copies that makes a result look better, or labels contradict each other.

    Args:
        train: Training images.
        test: Test images, of the same size.
    """
    of_train, of_test = _keys(train.pixels), _keys(test.pixels)
    notes = []
    if shared := int(torch.isin(of_test, of_train).sum()):
        notes.append(
            f"Test images that are exact copies of training images: {shared:,} of {len(test):,}. The test accuracy is "
            "overestimated."
        )
    groups, group = of_train.unique(return_inverse=True)
    lowest = torch.full((len(groups),), len(train), device=group.device).scatter_reduce_(0, group, train.labels, "amin")
    if contradicting := len(groups[group[train.labels != lowest[group]]].unique()):
        notes.append(f"Training images that stand in several classes, as exact copies: {contradicting:,}.")
    return tuple(notes)


def _keys(pixels: Tensor) -> Tensor:
    """Returns a number (int64) for each image that differs for different images but for a chance of about 2^-64."""
    width = -(-pixels[0].numel() // 8)
    draw = torch.Generator(device="cpu").manual_seed(0)
    bounds = torch.iinfo(torch.int64)
    factors = torch.randint(bounds.min, bounds.max, (width,), generator=draw, device="cpu").to(pixels.device) | 1
    keys = []
    for part in pixels.split(_CHUNK):
        flat = part.reshape(len(part), -1)
        if missing := 8 * width - flat.shape[1]:
            flat = f.pad(flat, (0, missing))
        keys.append((flat.contiguous().view(torch.int64) * factors).sum(1))  # modulo 2^64
    return torch.cat(keys)

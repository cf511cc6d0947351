"""Loss, accuracy and confusion of a classifier on a part of a data set; the `evaluate` stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from nas_moreau.data import Augment, Images


class Evaluation(NamedTuple):
    """Means over all images: `loss` (cross-entropy, nats), `accuracy` (0..1), `confusion` (true class, predicted class)."""

    loss: float
    accuracy: float
    confusion: list[list[int]]
    samples: int


@torch.no_grad()
def evaluate_model(
    model: nn.Module | Callable[[Tensor], Tensor],
    images: Images,
    augment: Augment,
    num_classes: int,
    indices: Tensor | None = None,
    batch_size: int = 250,
    channels_last: bool = False,
    give_up: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Returns how well `model` does in evaluation mode; its mode is put back afterwards.

    Args:
        model: float images (n, channels, height, width) -> logits (n, num_classes).
        images: The whole set, on the model's device.
        augment: Called without a generator: it only normalises.
        num_classes: Number of classes.
        indices: Which images; all of them by default.
        batch_size: Images evaluated at a time.
        channels_last: Memory layout of the batches.
        give_up: Called before every batch; what it raises ends the evaluation.
    """
    training = getattr(model, "training", False)
    if training:
        model.eval()
    try:
        return _measure(model, images, augment, num_classes, indices, batch_size, channels_last, give_up)
    finally:
        if training:
            model.train()


def _measure(
    model: Any, images: Images, augment: Augment, num_classes: int, indices: Tensor | None, batch_size: int,
    channels_last: bool, give_up: Callable[[], None],
) -> Evaluation:  # fmt: skip
    device = images.labels.device
    indices = torch.arange(len(images), device=device) if indices is None else indices
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for part in indices.split(batch_size):
        give_up()
        batch = images.take(part)
        x = augment(batch.pixels)
        logits = model(x.contiguous(memory_format=torch.channels_last) if channels_last else x).float()
        loss += f.cross_entropy(logits, batch.labels, reduction="sum")
        pairs = batch.labels * num_classes + logits.argmax(-1)
        confusion += torch.bincount(pairs, minlength=num_classes * num_classes)
    table = confusion.reshape(num_classes, num_classes)
    samples = len(indices)
    return Evaluation(loss.item() / samples, table.diagonal().sum().item() / samples, table.tolist(), samples)

"""Loss, accuracy and confusion matrix of a classifier on a part of a data set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from nas_moreau.data import Part


class Misclassified(NamedTuple):
    """A misclassified image: its index in the set, the two classes, and the softmax weight of the wrong one."""

    image: int
    true: int
    predicted: int
    confidence: float


class Evaluation(NamedTuple):
    """The evaluation of a classifier on some images.

    Attributes:
        loss: Mean cross-entropy, nats.
        accuracy: 0..1.
        confusion: (true class, predicted class) counts.
        samples: Number of images.
        worst: The misclassified images of the highest loss, worst first, if any were requested.
    """

    loss: float
    accuracy: float
    confusion: list[list[int]]
    samples: int
    worst: tuple[Misclassified, ...] = ()


@torch.no_grad()
def evaluate_model(
    model: nn.Module | Callable[[Tensor], Tensor],
    part: Part,
    num_classes: int,
    batch_size: int = 250,
    channels_last: bool = False,
    check_stop: Callable[[], None] = lambda: None,
    worst: int = 0,
) -> Evaluation:
    """Returns loss and accuracy of `model` in evaluation mode; its mode is restored afterwards.

    Args:
        model: float images (n, channels, height, width) -> logits (n, num_classes).
        part: The images, on the model's device; they are normalised, not augmented.
        num_classes: Number of classes.
        batch_size: Images evaluated at a time.
        channels_last: Memory layout of the batches.
        check_stop: Called before every batch; may raise to end the evaluation.
        worst: Number of misclassified images to return.
    """
    trained = model if isinstance(model, nn.Module) and model.training else None
    if trained is not None:
        trained.eval()
    try:
        return _measure(model, part, num_classes, batch_size, channels_last, check_stop, worst)
    finally:
        if trained is not None:
            trained.train()


def _measure(
    model: Callable[[Tensor], Tensor],
    part: Part,
    num_classes: int,
    batch_size: int,
    channels_last: bool,
    check_stop: Callable[[], None],
    worst: int,
) -> Evaluation:
    device = part.images.labels.device
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    seen: list[Tensor] = []  # (loss, true, predicted, confidence) of every image
    for indices in part.indices.split(batch_size):
        check_stop()
        batch = part.images.take(indices)
        x = part.augment(batch.pixels)
        logits = model(x.contiguous(memory_format=torch.channels_last) if channels_last else x).float()
        loss += f.cross_entropy(logits, batch.labels, reduction="sum")
        predicted = predicted_classes(logits, batch.labels)
        pairs = batch.labels * num_classes + predicted
        confusion.index_add_(0, pairs, torch.ones_like(pairs))  # (bincount would wait for the device)
        if worst:
            share = logits.softmax(-1).amax(-1)
            each = f.cross_entropy(logits, batch.labels, reduction="none")
            seen.append(torch.stack([each.double(), batch.labels.double(), predicted.double(), share.double()], 1))
    samples = len(part)
    total, *counts = torch.cat([loss.reshape(1), confusion.double()]).tolist()
    table = [[int(n) for n in counts[row : row + num_classes]] for row in range(0, len(counts), num_classes)]
    accuracy = sum(table[i][i] for i in range(num_classes)) / samples
    return Evaluation(total / samples, accuracy, table, samples, _worst(part.indices, seen, worst))


def predicted_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the class of the largest logit, (n,); where one is NaN, a class that is wrong: argmax would give class 0.

    Args:
        logits: (n, classes).
        labels: (n,).
    """
    found = logits.argmax(-1)
    return torch.where(logits.isnan().any(-1), (labels + 1) % logits.shape[-1], found)


def _worst(indices: Tensor, seen: list[Tensor], count: int) -> tuple[Misclassified, ...]:
    """Returns the misclassified images of the highest loss; the earlier one first among equals."""
    if not seen:
        return ()
    rows = torch.cat(seen)
    wrong = (rows[:, 1] != rows[:, 2]).nonzero().flatten()
    order = wrong[rows[wrong, 0].sort(descending=True, stable=True).indices][:count]
    return tuple(
        Misclassified(int(index), int(true), int(predicted), confidence)
        for index, (_, true, predicted, confidence) in zip(indices[order].tolist(), rows[order].tolist())
    )


@dataclass(frozen=True)
class EvaluateResult:
    """The evaluation of a finished run.

    Attributes:
        split: "test" (a retraining) or "held_out" (a search).
        evaluation: Its numbers.
        classes: Class names.
    """

    split: str
    evaluation: Evaluation
    classes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Accuracy, 0..1."""
        return self.evaluation.accuracy

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats."""
        return self.evaluation.loss

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON of an evaluation: split, accuracy, loss (None if it is not finite), samples."""
        found = self.evaluation
        loss = found.loss if math.isfinite(found.loss) else None
        return {"split": self.split, "accuracy": found.accuracy, "loss": loss, "samples": found.samples}

    def file(self) -> bytes:
        """Returns evaluation.json: `to_dict`, class names, confusion matrix and the accuracy of each class."""
        rows = self.evaluation.confusion
        detail = {
            "classes": list(self.classes),
            "confusion": rows,
            "class_accuracy": [row[i] / sum(row) if sum(row) else None for i, row in enumerate(rows)],
        }
        return json.dumps(self.to_dict() | detail, indent=1).encode()

"""Data hyper-cleaning: one weight sigmoid(x_i) for each training sample, learned so that validation data are fitted.

    F(x, y) = mean over validation samples of loss(y)
    f(x, y) = mean over training samples of sigmoid(x_i) loss_i(y)  +  ridge/2 |y's matrices|^2

with the cross-entropy as loss and y a network of two layers. Samples with wrong labels end with small weights: a
sample counts as wrong where sigmoid(x_i) < 1/2, its value at the start. The task is that of Franceschi et al. (ICML
2017, section 5.1); the sizes are the usual 5,000 training, 5,000 validation and 10,000 test samples, the ridge of
1e-3 |y|^2 that of Ji, Yang and Liang (ICML 2021).

Labels none of which are known to be right are judged by halves: each half is the training set of one network and the
validation set of the other, and the sum of the two problems is solved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as f

from nas_moreau.bilevel import Bilevel
from nas_moreau.bilevel.tensors import Tensors
from nas_moreau.data import Data, generator_for
from nas_moreau.errors import InputError

TRAIN, VALIDATION, TEST = 5000, 5000, 10000
HIDDEN = 64
RIDGE = 2e-3
"""Of f; in units of 1/2 |y|^2."""


class Part(NamedTuple):
    """Samples: flat standardised images (n, d), labels (n,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Cleaning:
    """A hyper-cleaning problem, ready to be solved.

    Attributes:
        problem: F and f. x has one tensor of logits for each fold, y four (`two_layers`).
        x, y: The start: all weights 1/2, a random network.
        judged: Index of each weighted sample in the data's training images, by folds.
        labels: The label each of them bears, after corruption.
        corrupted: Whether that label was changed.
        training, test: The parts, one for each fold, and the test images.
    """

    problem: Bilevel
    x: Tensors
    y: Tensors
    judged: Tensor
    labels: Tensor
    corrupted: Tensor
    training: tuple[Part, ...]
    test: Part

    def weights(self, x: Tensors) -> Tensor:
        """Returns sigmoid(x) of all judged samples, (n,)."""
        return torch.sigmoid(torch.cat(x))

    @torch.no_grad()
    def accuracy(self, y: Tensors) -> float:
        """Returns the share of test images classified rightly; with two folds, by the mean of their probabilities."""
        chances = sum(two_layers(part, self.test.images).softmax(-1) for part in networks(y))
        assert isinstance(chances, Tensor)
        return float((chances.argmax(-1) == self.test.labels).double().mean())

    @torch.no_grad()
    def predicted(self, y: Tensors) -> Tensor:
        """Returns the class that the network of its fold gives each judged sample, (n,)."""
        found = [two_layers(part, fold.images).argmax(-1) for part, fold in zip(networks(y), self.training)]
        return torch.cat(found)


def two_layers(y: Sequence[Tensor], images: Tensor) -> Tensor:
    """Returns the logits (n, classes) of relu(images W1 + b1) W2 + b2, y = [W1, b1, W2, b2]."""
    return torch.relu(torch.addmm(y[1], images, y[0])) @ y[2] + y[3]


def networks(y: Tensors) -> list[Tensors]:
    """Returns y by networks of four tensors."""
    return [y[i : i + 4] for i in range(0, len(y), 4)]


def corrupt_labels(labels: Tensor, classes: int, rate: float, seed: int) -> tuple[Tensor, Tensor]:
    """Returns labels of which round(rate * n) were changed to another class, all equally likely, and where (n,) bool.

    Args:
        labels: (n,) int64.
        classes: Number of classes.
        rate: 0 to 1.
        seed: The user's seed.

    Raises:
        InputError: The rate is not within 0 to 1, or there is no other class.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"The rate of corruption is {rate:g}.", "Give it between 0 and 1.")
    if rate > 0 and classes < 2:
        raise InputError("Labels of a single class cannot be corrupted.", "Use data with two classes or more.")
    generator = generator_for(seed, "corrupted labels")
    count = round(rate * len(labels))
    chosen = torch.randperm(len(labels), generator=generator, device="cpu")[:count].to(labels.device)
    other = torch.randint(1, max(classes, 2), (count,), generator=generator, device="cpu").to(labels.device)
    changed = labels.clone()
    changed[chosen] = (labels[chosen] + other) % classes
    return changed, changed != labels


def f1_score(flagged: Tensor, corrupted: Tensor) -> tuple[float, float, float]:
    """Returns precision, recall and F1 = 2 tp / (flagged + corrupted) of finding the corrupted; 0 where undefined."""
    hits, found, there = (int(t.sum()) for t in (flagged & corrupted, flagged, corrupted))
    return hits / max(found, 1), hits / max(there, 1), 2 * hits / max(found + there, 1)


def hyper_cleaning(
    data: Data,
    corrupt: float = 0.5,
    seed: int = 0,
    sizes: tuple[int, int, int] = (TRAIN, VALIDATION, TEST),
    hidden: int = HIDDEN,
    ridge: float = RIDGE,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Cleaning:
    """Returns the problem on random parts of the data.

    Args:
        data: Any images. Fewer training images than `sizes` are divided in the same proportion.
        corrupt: Share of the training labels that are changed. 0 judges the labels as they are, of all training
            images, in two halves.
        seed: Seed of the parts, of the corruption and of the network's start.
        sizes: Training, validation and test samples.
        hidden: Width of the hidden layer.
        ridge: Factor of the ridge in f.
        device, dtype: Of all tensors.

    Raises:
        InputError: The rate is not within 0 to 1, or there are too few images.
    """
    generator = generator_for(seed, "hyper-cleaning parts")
    order = torch.randperm(len(data.train), generator=generator, device="cpu")
    if corrupt == 0:
        half = len(order) // 2
        folds = [(order[:half], order[half:]), (order[half:], order[:half])]
    else:
        share = min(1.0, len(order) / (sizes[0] + sizes[1]))
        train, validation = int(share * sizes[0]), int(share * sizes[1])
        folds = [(order[:train], order[train : train + validation])]
    if min(len(part) for fold in folds for part in fold) < data.num_classes:
        raise InputError(
            f"{len(order)} training images of {data.num_classes} classes are too few to be divided.",
            "Use at least two images a class, better hundreds.",
        )
    judged = torch.cat([train for train, _ in folds])
    labels, corrupted = corrupt_labels(data.train.labels[judged], data.num_classes, corrupt, seed)
    at_test = torch.randperm(len(data.test), generator=generator, device="cpu")[: sizes[2]].sort().values

    def part(pixels: Tensor, own: Tensor) -> Part:
        mean, std = (torch.tensor(v, dtype=dtype, device="cpu")[:, None, None] for v in (data.mean, data.std))
        flat = ((pixels.to(dtype) / 255 - mean) / std).flatten(1)
        return Part(flat.to(device), own.to(device))

    training, begin = [], 0
    for chosen, _ in folds:
        training.append(part(data.train.pixels[chosen], labels[begin : begin + len(chosen)]))
        begin += len(chosen)
    # labels as they are: each half is judged with the labels of the other
    checks = training[::-1]
    if corrupt:
        checks = [part(data.train.pixels[held], data.train.labels[held]) for _, held in folds]
    inputs = training[0].images.shape[1]
    y = [
        t.to(device)
        for fold in range(len(folds))
        for t in _start(inputs, hidden, data.num_classes, generator_for(seed, "network", fold), dtype)
    ]
    return Cleaning(
        cleaning_problem(training, checks, ridge),
        [torch.zeros(len(train), dtype=dtype, device=device) for train, _ in folds],
        y,
        judged,
        labels,
        corrupted,
        tuple(training),
        part(data.test.pixels[at_test], data.test.labels[at_test]),
    )


def cleaning_problem(training: Sequence[Part], validation: Sequence[Part], ridge: float) -> Bilevel:
    """Returns F and f as above, summed over folds.

    The batch is None for all samples, or a number m for the first m of each part, a random choice as their order is.
    """

    def upper(x: Tensors, y: Tensors, batch: int | None) -> Tensor:
        losses = [
            f.cross_entropy(two_layers(net, v.images[:batch]), v.labels[:batch])
            for net, v in zip(networks(y), validation)
        ]
        return torch.stack(losses).sum()

    def lower(x: Tensors, y: Tensors, batch: int | None) -> Tensor:
        terms = []
        for logits, net, t in zip(x, networks(y), training):
            losses = f.cross_entropy(two_layers(net, t.images[:batch]), t.labels[:batch], reduction="none")
            size = net[0].square().sum() + net[2].square().sum()
            terms.append((torch.sigmoid(logits[:batch]) * losses).mean() + 0.5 * ridge * size)
        return torch.stack(terms).sum()

    return Bilevel(upper, lower)


def _start(inputs: int, hidden: int, classes: int, generator: torch.Generator, dtype: torch.dtype) -> Tensors:
    """Returns W1, b1, W2, b2: normal entries of variance 1/(number of inputs), zero biases."""

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu").to(dtype) / math.sqrt(
            rows
        )

    def zeros(n: int) -> Tensor:
        return torch.zeros(n, dtype=dtype, device="cpu")

    return [normal(inputs, hidden), zeros(hidden), normal(hidden, classes), zeros(classes)]

"""Several mixtures of one supernet, scored on the same images: for selection, perturbation and one-hot evaluation.

BatchNorm uses the statistics of each batch, as in training. The running statistics belong to the soft mixture: with one
operation an edge the states have another scale. Observed on three searches in NAS-Bench-201 (2,000 images each): with
running statistics every one-hot cell stays at chance (accuracy .06 to .15, losses up to 16), by batch statistics they
reach .09 to .26 and differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as f

from nas_moreau.architecture import Genotype, SearchSpace, Supernet
from nas_moreau.architecture.spaces.neighbours import chosen_operations
from nas_moreau.data import Part, seed_for
from nas_moreau.search.supernet_problem import Mixing
from nas_moreau.training.evaluate import predicted_classes

BATCH = 250
"""Images per batch, at most."""


class Score(NamedTuple):
    """Cross-entropy (nats) and accuracy (0..1), means over the images."""

    loss: float
    accuracy: float


def one_hot(space: SearchSpace, genotype: Genotype, like: Tensor) -> Mixing:
    """Returns the mixing weights 1 for a genotype's operations and 0 for all others.

    Args:
        space: The space of `genotype`.
        genotype: The operations to keep.
        like: Gives the type and the device.
    """
    active = chosen_operations(space, genotype)
    weights = [torch.zeros(space.alpha_shape, dtype=like.dtype, device=like.device) for _ in space.cells]
    for table, cell in zip(weights, space.cells):
        for edge, numbers in enumerate(active[cell]):
            for number in numbers:
                table[edge, number] = 1
    return Mixing(weights, [active[cell] for cell in space.cells])


@torch.no_grad()
def score_mixtures(
    supernet: Supernet,
    mixtures: Sequence[Mixing],
    part: Part,
    channels_last: bool = False,
    check_stop: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Returns the score of every mixture; the supernet is left unchanged, its running statistics included.

    Every mixture is evaluated on the same batches, of equal size to within one image, with the same random draws inside
    the network (noise). The batches are shuffled, because a batch of one class has atypical statistics.

    Args:
        supernet: With the weights to use.
        mixtures: Mixing weights for every cell.
        part: The images.
        channels_last: Memory layout of the batches.
        check_stop: Called before every batch; may raise to end the work.
    """
    order = part.shuffled()
    batches = order.tensor_split(math.ceil(len(order) / BATCH))
    scratch = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    sums = torch.zeros((len(mixtures), 2), dtype=torch.float64, device=order.device)
    training = supernet.training
    supernet.train()
    try:
        for number, indices in enumerate(batches):
            check_stop()
            batch = part.images.take(indices)
            x = part.augment(batch.pixels).to(supernet.classifier.weight.dtype)
            x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
            for i, mixing in enumerate(mixtures):
                torch.manual_seed(seed_for(0, "draws while candidates are measured", number))
                logits = functional_call(supernet, scratch, (x, *mixing.by_cell(supernet.space)))
                sums[i, 0] += f.cross_entropy(logits, batch.labels, reduction="sum")
                sums[i, 1] += (predicted_classes(logits, batch.labels) == batch.labels).sum()
    finally:
        supernet.train(training)
    return [Score(*row) for row in (sums / len(order)).tolist()]

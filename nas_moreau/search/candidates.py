"""Several mixtures of one supernet, measured on the same images: what selection, perturbation and the monitor compare.

BatchNorm uses the statistics of each batch, as in training. The running statistics belong to the soft mixture: with one
operation an edge the states have another scale. Seen on three searches in NAS-Bench-201 (2,000 images each): with
running statistics every one-hot cell stays at chance (accuracy .06 to .15, losses up to 16), by batch statistics they
reach .09 to .26 and differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as f

from nas_moreau.architecture import Genotype, SearchSpace, Supernet
from nas_moreau.architecture.spaces.neighbours import Chosen, chosen_operations
from nas_moreau.data import Part, seed_for

BATCH = 250


class Candidate(NamedTuple):
    """Mixing weights by cell name, (edges, operations), and the operations to compute (None: all)."""

    mixture: Mapping[str, Tensor]
    active: Chosen | None = None


class Score(NamedTuple):
    """Cross-entropy (nats) and accuracy (0..1), means over the images."""

    loss: float
    accuracy: float


def one_hot(space: SearchSpace, genotype: Genotype, like: Tensor) -> Candidate:
    """Returns the mixture that gives a genotype's operations the weight 1 and the others none.

    Args:
        space: The space of `genotype`.
        genotype: What is kept.
        like: Gives the type and the device.
    """
    active = chosen_operations(space, genotype)
    mixture = {name: torch.zeros(space.alpha_shape, dtype=like.dtype, device=like.device) for name in active}
    for name, rows in active.items():
        for edge, numbers in enumerate(rows):
            for number in numbers:
                mixture[name][edge, number] = 1
    return Candidate(mixture, active)


@torch.no_grad()
def measure(
    supernet: Supernet,
    candidates: Sequence[Candidate],
    part: Part,
    channels_last: bool = False,
    check_stop: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Returns each candidate's score; the supernet is left as it was, its running statistics included.

    Every candidate sees the same batches, of equal size to within one image, and the same draws of operations that draw
    (noise). The batches are mixed again from the part's order, because a batch of one class has odd statistics.

    Args:
        supernet: With the weights to be used.
        candidates: What to measure.
        part: The images.
        channels_last: Memory layout of the batches.
        check_stop: Called before every batch; may raise to end the work.
    """
    order = part.shuffled()
    batches = order.tensor_split(math.ceil(len(order) / BATCH))
    scratch = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    sums = torch.zeros((len(candidates), 2), dtype=torch.float64, device=order.device)
    training = supernet.training
    supernet.train()
    try:
        for number, indices in enumerate(batches):
            check_stop()
            batch = part.images.take(indices)
            x = part.augment(batch.pixels).to(supernet.classifier.weight.dtype)
            x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
            for i, candidate in enumerate(candidates):
                torch.manual_seed(seed_for(0, "draws while candidates are measured", number))
                logits = functional_call(supernet, scratch, (x, candidate.mixture, candidate.active))
                sums[i, 0] += f.cross_entropy(logits, batch.labels, reduction="sum")
                sums[i, 1] += (logits.argmax(-1) == batch.labels).sum()
    finally:
        supernet.train(training)
    return [Score(*row) for row in (sums / len(order)).tolist()]

"""GDAS (Dong & Yang, CVPR 2019): on every edge one operation, drawn by Gumbel-softmax, is evaluated."""

from __future__ import annotations

import torch
from torch import Tensor

from nas_moreau.architecture import SearchSpace
from nas_moreau.search.supernet_problem import Batch, Mixing

HOTTEST, COLDEST = 10.0, 0.1
"""The temperature falls linearly from the first to the second over the search, as published."""


def gumbel_paths(space: SearchSpace, alphas: list[Tensor], batch: Batch) -> Mixing:
    """Returns one-hot weights drawn with probabilities softmax(alphas), and the paths they stand for.

    The gradient is straight-through: that of softmax((log softmax(alphas) + Gumbel noise) / temperature). Only the
    drawn operations are evaluated, so only their weights pass a gradient on, as in the paper.
    """
    temperature = HOTTEST + (COLDEST - HOTTEST) * batch.progress
    generator = torch.Generator(device="cpu").manual_seed(batch.seed)
    weights = []
    for logits in alphas:
        # on the CPU in double precision: the same draws on every device
        noise = torch.empty(logits.shape, dtype=torch.float64, device="cpu").exponential_(generator=generator)
        gumbel = -noise.log().to(logits)
        soft = torch.softmax((torch.log_softmax(logits, -1) + gumbel) / temperature, -1)
        hard = torch.nn.functional.one_hot(soft.argmax(-1), logits.shape[-1]).to(soft)
        weights.append(hard + (soft - soft.detach()))
    if alphas[0].is_meta:
        return Mixing(weights)  # nothing was drawn, so that no path is known
    # one reading from the device for all cells
    drawn = torch.stack(weights).argmax(-1).tolist()
    return Mixing(weights, [[(k,) for k in path] for path in drawn])

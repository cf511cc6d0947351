"""DrNAS (Chen et al., ICLR 2021): the mixing weights are draws from Dirichlet distributions that the alphas set.

Used of the paper: concentrations elu(alpha) + 1, pathwise gradients, first-order alternation, and its l2 regulariser
towards the symmetric Dirichlet (alpha = 0), which is the weight decay of the alphas' Adam, the configuration's
`search.alphas.weight_decay`: 1e-3 by default, as published. Not used: progressive shrinking (two stages, weak
operations dropped, more channels let through) and the first epochs in which the alphas rest. Partial channels are
`drnas+pc`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Dirichlet
from torch.nn import functional as f

from nas_moreau.architecture import SearchSpace
from nas_moreau.search.supernet_problem import Batch, Mixing

SMALLEST = 1e-6
"""Concentrations are kept above this; below, draws and their gradients are no longer finite."""


def dirichlet_weights(space: SearchSpace, alphas: list[Tensor], batch: Batch) -> Mixing:
    """Returns weights drawn from Dirichlet(elu(alphas) + 1), edge by edge, with pathwise gradients."""
    if alphas[0].is_meta:
        # no numbers to draw with: the mean has the shape and the dependence on the alphas
        return Mixing([(f.elu(logits) + 1) / (f.elu(logits) + 1).sum(-1, keepdim=True) for logits in alphas])
    # on the CPU in double precision: the same draws on every device; the library draws from the global generator
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(batch.seed)
        # one reading from the device for all cells
        concentrations = (f.elu(torch.stack(alphas).double().cpu()) + 1).clamp(min=SMALLEST)
        return Mixing([
            Dirichlet(concentration, validate_args=False).rsample().to(logits)
            for concentration, logits in zip(concentrations, alphas)
        ])  # fmt: skip

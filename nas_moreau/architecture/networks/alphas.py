"""The logits of a supernet: one for each operation of each edge and, with partial channels, one for each edge."""

from __future__ import annotations

import torch
from torch import nn

from nas_moreau.architecture.spaces.space import SearchSpace


def initial_alphas(space: SearchSpace, scale: float, with_edges: bool, device: torch.device) -> nn.ParameterDict:
    """Returns cell name -> Parameter of shape (edges, operations), drawn from the global generator.

    Args:
        space: Cells, edges and operations.
        scale: Standard deviation.
        with_edges: Whether "edge_" + cell name -> Parameter of shape (edges,) follows for each of them.
        device: Where they are made.
    """

    def drawn(*shape: int) -> nn.Parameter:
        return nn.Parameter(scale * torch.randn(shape, device=device))

    alphas = nn.ParameterDict({name: drawn(*space.alpha_shape) for name in space.cells})
    for name in space.cells if with_edges else ():
        alphas[f"edge_{name}"] = drawn(len(space.edges))
    return alphas

"""Partial channels (PC-DARTS, Xu et al., ICLR 2020): only some of every state's channels go through candidates.

Along an edge the first 1/k of a state's channels is mixed as usual, and the others bypass it (halved by 2x2 max pooling
where the edge has stride 2); then the channels are shuffled, so that other channels are mixed on the next edge. Few
channels make an edge's mixture noisy, so edges have weights: a softmax over the edges into a node. The channels that
bypass the candidates are the same for all edges that leave a state, and the shuffle is linear: it is done once for each
state and each node, not for each edge.

Not used of the paper: the first 15 epochs without steps of the alphas, and its larger batches and step sizes, which are
settings of the configuration.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from nas_moreau.architecture.networks.mixed_cell import Active, MixedCell, Shared
from nas_moreau.architecture.spaces.space import SearchSpace
from nas_moreau.errors import InputError


def check_share(channels: int, share: int) -> None:
    """Raises InputError unless 1/share of `channels` is an integer of at least two channels."""
    if share < 1 or channels % share or (share > 1 and channels < 2 * share):
        raise InputError(
            f"One in {share} of {channels} channels is not an integer of at least two.",
            f"Set channels to a multiple of {2 * share}, or partial_channels to a divisor of half of them.",
        )


def edge_weights(space: SearchSpace, logits: Tensor) -> Tensor:
    """Returns the softmax of `logits` (edges,) over the edges into each node."""
    targets = [target for _, target in space.edges]  # ascending
    counts = [targets.count(target) for target in dict.fromkeys(targets)]
    return torch.cat([torch.softmax(part, 0) for part in logits.split(counts)])


def passed_by(state: Tensor, share: int, stride: int) -> Tensor:
    """Returns the channels of `state` that go through no candidate, at the resolution behind an edge of that stride."""
    rest = state[:, state.shape[1] // share :]
    # as large as what a stride of 2 leaves of an odd side
    return rest if stride == 1 else f.max_pool2d(rest, 2, 2, ceil_mode=True)


def shuffled(x: Tensor, share: int) -> Tensor:
    """Returns the channels of `x` in the order 0, c, 2c, ..., 1, c + 1, ... with c = channels / share."""
    return x.unflatten(1, (share, -1)).transpose(1, 2).flatten(1, 2)


class PartialCell(nn.Module):
    """One cell with partial channels and edge weights.

    Args:
        mixed: The cell of all candidates, 1/share as wide and without preprocessing.
        preprocess: One module for each input, or none at all.
        share: One in `share` channels goes through the candidates.
    """

    def __init__(self, mixed: MixedCell, preprocess: nn.ModuleList, share: int):
        super().__init__()
        self.preprocess, self.mixed, self.share = preprocess, mixed, share
        self.name, self.halves = mixed.name, mixed.halves

    def forward(self, inputs: list[Tensor], mixture: Tensor, active: Active | None, edges: Tensor) -> Tensor:
        """Returns the concatenated nodes.

        Args:
            inputs: The input states.
            mixture: (edges, operations), the weight of every candidate on its edge.
            active: As for `MixedCell`.
            edges: (edges,), the weight of every edge.
        """
        mixed = self.mixed
        if len(self.preprocess):
            inputs = [module(x) for module, x in zip(self.preprocess, inputs)]
        states = list(inputs)
        shared: Shared = {}
        passing: dict[int, Tensor] = {}
        products, shares = (mixture * edges.unsqueeze(1)).reshape(-1, 1), edges.unbind()
        weights = products.squeeze(1).unbind()
        scales = products.expand(-1, mixed.channels).contiguous().unbind()
        for node in range(mixed.inputs, mixed.inputs + mixed.nodes):
            total, rest = None, []
            for edge, (source, target) in enumerate(mixed.places):
                if target != node:
                    continue
                front = states[source][:, : mixed.channels]
                for k, name in enumerate(mixed.names[edge]):
                    if name != "none" and (active is None or k in active[edge]):
                        place = edge * mixed.width + k
                        weight, scale = weights[place], scales[place]
                        total = mixed.add(total, edge, k, front, shared, weight, scale)
                if source not in passing:
                    passing[source] = passed_by(states[source], self.share, mixed.stride(source))
                rest.append(passing[source] * shares[edge])
            by = reduce(add, rest)
            total = torch.zeros_like(by[:, : mixed.channels]) if total is None else total
            states.append(shuffled(torch.cat((total, by), 1), self.share))
        concat = mixed.concat
        return states[concat[0]] if len(concat) == 1 else torch.cat([states[i] for i in concat], 1)

"""The supernet without sharing, a separate module for every candidate of every edge: the oracle of `supernet.Supernet`.

It follows the published description literally (ReLU in each operation, BatchNorm after each pool, weights multiplied
after the operation, `none` as zeros). Slow on purpose: only tests and the benchmark use it. Parameters have the same
names as in `Supernet`, so one state dict serves both (`matching_state`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from nas_moreau.architecture.networks.operations import build_operation
from nas_moreau.architecture.networks.skeleton import NetworkSize, build_frame, pool_features, run_cells
from nas_moreau.architecture.networks.supernet import initial_alphas
from nas_moreau.architecture.spaces.skeletons import NetworkPart
from nas_moreau.architecture.spaces.space import SearchSpace


class Zero(nn.Module):
    """The operation `none`: zeros in the shape of the (strided) input."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Returns zeros, (n, c, h/stride, w/stride)."""
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def _total(terms: Iterable[Tensor]) -> Tensor:
    return reduce(add, terms)


class LiteralCell(nn.Module):
    """One cell; `operations[edge][name]` are complete operations."""

    def __init__(
        self,
        space: SearchSpace,
        part: NetworkPart,
        preprocess: nn.ModuleList,
        partial_channels: int = 1,
    ):
        super().__init__()
        self.space, self.name, self.preprocess = space, part.name, preprocess
        self.share, channels = partial_channels, part.channels // partial_channels
        norm = partial(nn.BatchNorm2d, affine=False)
        self.operations = nn.ModuleList()
        for edge, (source, _) in enumerate(space.edges):
            stride = part.stride if source < space.inputs else 1
            candidates = nn.ModuleDict()
            for operation in space.candidates(part.name, edge):
                candidates[operation] = (
                    Zero(stride)
                    if operation == "none"
                    else build_operation(operation, channels, stride, norm, pool_norm=space.skeleton.pools_have_norm)
                )
            self.operations.append(candidates)

    def forward(self, inputs: list[Tensor], mixture: Tensor, edges: Tensor | None = None) -> Tensor:
        """Returns the concatenated nodes; `edges` holds the weight of every edge, with partial channels."""
        states = list(inputs)
        for i, module in enumerate(self.preprocess):
            states[i] = module(inputs[i])
        for node in range(self.space.inputs, self.space.inputs + self.space.nodes):
            incoming = []
            for edge, (source, target) in enumerate(self.space.edges):
                if target == node:
                    if edges is None:
                        incoming.append(self._mixed(edge, states[source], mixture))
                    else:
                        incoming.append(edges[edge] * self._partly_mixed(edge, states[source], mixture))
            states.append(_total(incoming))
        return torch.cat([states[i] for i in self.space.concat], 1)

    def _mixed(self, edge: int, x: Tensor, mixture: Tensor) -> Tensor:
        candidates: Any = self.operations[edge]
        return _total([mixture[edge, k] * operation(x) for k, operation in enumerate(candidates.values())])

    def _partly_mixed(self, edge: int, x: Tensor, mixture: Tensor) -> Tensor:
        """Partial channels as PC-DARTS describes them: an edge on its own, channel shuffle by reshaping."""
        n, channels = x.shape[:2]
        mixed, rest = self._mixed(edge, x[:, : channels // self.share], mixture), x[:, channels // self.share :]
        if mixed.shape[2:] != rest.shape[2:]:
            rest = nn.functional.max_pool2d(rest, 2, 2, ceil_mode=True)
        whole = torch.cat([mixed, rest], 1)
        groups = whole.reshape(n, self.share, channels // self.share, *whole.shape[2:])
        return groups.transpose(1, 2).reshape(n, channels, *whole.shape[2:])


class LiteralSupernet(nn.Module):
    """The same function as `Supernet`, with the same arguments."""

    classifier: nn.Linear

    def __init__(
        self,
        space: SearchSpace,
        channels: int = 16,
        layers: int = 8,
        num_classes: int = 10,
        in_channels: int = 3,
        alpha_scale: float = 1e-3,
        partial_channels: int = 1,
    ):
        super().__init__()
        size = NetworkSize(channels, layers, num_classes, in_channels)
        parts = space.skeleton.parts(dict.fromkeys(space.cells, len(space.concat)), channels, layers)
        make_cell = partial(LiteralCell, space, partial_channels=partial_channels)
        frame = build_frame(space.skeleton, parts, size, partial(nn.BatchNorm2d, affine=False), make_cell)
        self.parts, self.cells, self.stem, self.head_norm, self.classifier = frame
        self.space, self.in_channels = space, in_channels
        self.alphas = initial_alphas(space, alpha_scale, partial_channels > 1, self.classifier.weight.device)

    def _edges(self, name: str) -> Tensor | None:
        """Returns the weight of every edge: a softmax over the edges into its node."""
        if f"edge_{name}" not in self.alphas:
            return None
        powers, targets = torch.exp(self.alphas[f"edge_{name}"]), [target for _, target in self.space.edges]
        totals = [_total(power for power, other in zip(powers, targets) if other == target) for target in targets]
        return powers / torch.stack(totals)

    def _mixture(self, name: str) -> Tensor:
        """Returns the weight of every candidate: a softmax over those of its edge; unused columns are 0."""
        logits, rows = self.alphas[name], []
        for edge in range(len(self.space.edges)):
            count = len(self.space.candidates(name, edge))
            rows.append(nn.functional.pad(torch.softmax(logits[edge, :count], 0), (0, logits.shape[1] - count)))
        return torch.stack(rows)

    def weights(self) -> list[nn.Parameter]:
        """Returns all parameters but the alphas."""
        return [p for name, p in self.named_parameters() if not name.startswith("alphas.")]

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (n, num_classes) of images (n, in_channels, height, width)."""
        maps = run_cells(
            self,
            images,
            lambda cell, inputs: cell(inputs, self._mixture(cell.name), self._edges(cell.name)),
        )
        return self.classifier(pool_features(self.head_norm, maps[-1]))


def matching_state(literal: LiteralSupernet, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict for `literal` from one of `Supernet`: statistics after a shared pool go to every edge."""
    matched: dict[str, Tensor] = {}
    state = {name.replace(".mixed.", "."): value for name, value in state.items()}
    for name, value in literal.state_dict().items():
        parts = name.split(".")
        if name.endswith("num_batches_tracked"):
            matched[name] = state.get(name, value)
        elif len(parts) > 4 and parts[2] == "operations" and parts[4] in ("max_pool_3x3", "avg_pool_3x3"):
            source = literal.space.edges[int(parts[3])][0]
            matched[name] = state[".".join([*parts[:2], "pools", f"{source}_{parts[4]}", *parts[5:]])]
        else:
            matched[name] = state[name]
    return matched

"""The supernet: every candidate on every edge, mixed by softmax weights; what edges have in common is computed once.

What is shared, and why the result is exact:

* Edges that leave one state apply the same parameter-free work to it: one ReLU, one max pool and one average pool for
  each (state, stride) in place of one for each edge. The affine-free BatchNorm after a pool is the same for every edge,
  too.
* alpha * BN(z) is BN(z) with weight alpha, so the mixture costs no pass of its own.
* `none` contributes nothing: it takes its share of the softmax and is never computed.
* Equal candidates on the edges that leave one state run as one wide operation (`nas_moreau.architecture.stacked`).
* A caller who knows which candidates have weight can name them (`active`); the others are not computed either.

`nas_moreau.architecture.literal` spells the same function out without sharing; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nas_moreau.architecture.native import NativeCell, check_kernels, native_cell, run_native, usable
from nas_moreau.architecture.operations import PREPARATIONS, Operation, PlainBatchNorm, build_operation
from nas_moreau.architecture.partial_cell import PartialCell, check_share, edge_weights
from nas_moreau.architecture.skeleton import add_skeleton, pool_features, run_cells
from nas_moreau.architecture.space import SearchSpace
from nas_moreau.architecture.stacked import Copies, Stack, gather_lattices, run_stack, stack_of, watched

POOLS = ("max_pool_3x3", "avg_pool_3x3")

# for every edge of a cell, the numbers of the operations that are computed
Active = Sequence[Collection[int]]
# what edges have in common, computed when first asked for: pools by name, preparations by state and name
Shared = dict[str | tuple[int, str], Tensor]


class Leaving(NamedTuple):
    """The edges that leave one state and the numbers of the operations on them, by how they are computed."""

    edges: list[int]
    targets: list[int]
    stacks: dict[int, Stack]
    shared: list[int]  # the same for all edges: pools and identities
    single: list[int]  # edge by edge


class MixedCell(nn.Module):
    """One cell with all candidates on all edges.

    Args:
        space: Edges, operations and the nodes to concatenate.
        channels: Channels of every node.
        halves: Edges that leave an input have stride 2.
        preprocess: One module for each input, or none at all.
        kernels: As for `Supernet`.
    """

    name: str  # the cell's in the space

    def __init__(
        self, space: SearchSpace, channels: int, halves: bool, preprocess: nn.ModuleList, kernels: str = "auto"
    ):
        super().__init__()
        self.halves, self.preprocess, self.concat = halves, preprocess, space.concat
        self.inputs, self.nodes, self.channels = space.inputs, space.nodes, channels
        self.names = space.operations
        self.places = space.edges
        pool_norm = space.skeleton == "darts"
        self.operations = nn.ModuleList()  # one ModuleDict an edge: what has parameters of its own
        self.pools = nn.ModuleDict()  # "state_pool": what edges that leave one state share
        for source, _ in self.places:
            stride = self.stride(source)
            own = nn.ModuleDict()
            for name in self.names:
                if name in POOLS:
                    key = f"{source}_{name}"
                    if key not in self.pools:
                        self.pools[key] = build_operation(name, channels, stride, PlainBatchNorm, pool_norm)
                elif name != "none":
                    own[name] = build_operation(name, channels, stride, PlainBatchNorm)
            self.operations.append(own)
        self.kernels, self.native = kernels, self._native()
        self.leaving = [self._leaving(source) for source in range(self.inputs + self.nodes)]

    def _leaving(self, source: int) -> Leaving:
        edges = [edge for edge, place in enumerate(self.places) if place[0] == source]
        found = Leaving(edges, [self.places[edge][1] for edge in edges], {}, [], [])
        for k, name in enumerate(self.names if edges else ()):
            operations = [self.operation(edge, name) for edge in edges if name != "none"]
            if not operations:
                continue
            stack = None
            if name in POOLS or operations[0].is_identity:
                found.shared.append(k)
            elif stack := stack_of(operations):
                found.stacks[k] = stack
            else:
                found.single.append(k)
        return found

    def _native(self, active: Active | None = None) -> NativeCell | None:
        """Returns this cell's plan for the native operator, or None if a part of it has to stay portable."""
        width = len(self.names)
        edges = [
            (source, target, edge * width + k, self.operation(edge, name))
            for edge, (source, target) in enumerate(self.places)
            for k, name in enumerate(self.names)
            if name != "none" and (active is None or k in active[edge])
        ]
        return native_cell(self.inputs, self.nodes, self.channels, self.halves, self.concat, edges)

    def operation(self, edge: int, name: str) -> Operation:
        """Returns the module of candidate `name` on edge number `edge`."""
        own: Any = self.operations[edge]
        shared: Any = self.pools
        return shared[f"{self.places[edge][0]}_{name}"] if name in POOLS else own[name]

    def stride(self, source: int) -> int:
        """Returns the stride of the edges that leave state `source`."""
        return 2 if self.halves and source < self.inputs else 1

    def forward(self, inputs: list[Tensor], mixture: Tensor, active: Active | None = None) -> Tensor:
        """Returns the concatenated nodes.

        Args:
            inputs: The input states.
            mixture: (edges, operations), the weight of every candidate, in the order of the space.
            active: The candidates to compute, edge by edge (all by default); the others contribute nothing, whatever
                their weight, and their running statistics stay as they are.
        """
        if len(self.preprocess):
            inputs = [module(x) for module, x in zip(self.preprocess, inputs)]
        if self.native is not None and usable(self.native, self.kernels, inputs, self.training):
            plan = self.native if active is None else self._native(active)
            assert plan is not None, "a part of what is known whole"
            return run_native(plan, inputs, mixture.reshape(-1), self.training)
        by_stacks = active is None and not any(watched(s) for leaving in self.leaving for s in leaving.stacks.values())
        states = list(inputs)
        if by_stacks:
            self._sum_wide(states, mixture)
        else:
            self._sum_edges(states, mixture, active)
        return states[self.concat[0]] if len(self.concat) == 1 else torch.cat([states[i] for i in self.concat], 1)

    def _sum_wide(self, states: list[Tensor], mixture: Tensor) -> None:
        """Appends the nodes to `states`, what leaves a state computed for all edges together."""
        arrived: dict[int, Tensor] = {}
        rows = mixture.unbind()
        for i, leaving in enumerate(self.leaving):
            if i >= self.inputs:
                states.append(arrived[i] if i in arrived else self._nothing(states[0]))
            if not leaving.edges:
                continue
            weights = torch.stack([rows[edge] for edge in leaving.edges], 1)  # (operations, edges)
            found = list(zip(leaving.targets, self._leave(leaving, states[i], weights)))
            for edge, target in zip(leaving.edges, leaving.targets):
                for k in leaving.single:
                    weight = rows[edge][k]
                    scale = weight.expand(self.channels).contiguous()
                    found.append((target, self._add(None, edge, i, self.names[k], states[i], {}, weight, scale)))
            for target, x in found:
                arrived[target] = arrived[target] + x if target in arrived else x

    def _leave(self, leaving: Leaving, state: Tensor, weights: Tensor) -> list[Tensor]:
        """Returns what stacks and shared operations send along each edge that leaves `state`."""
        edges = len(leaving.edges)
        total: Tensor | None = None
        apart: tuple[Tensor, int] | None = None
        wide: list[Tensor] = []
        # contiguous: batch_norm reads its weight as if it were
        scales = weights.unsqueeze(2).expand(-1, -1, self.channels).contiguous().flatten(1).unbind()
        copies, source = Copies(state, edges), self.places[leaving.edges[0]][0]
        for k, stack in leaving.stacks.items():
            x, lattices = run_stack(stack, copies, scales[k], self.training)
            if lattices == 1:
                wide = [wide[0].add_(x)] if wide else [x]
            else:
                apart = (x, lattices) if apart is None else (apart[0].add_(x), lattices)
        if apart is not None:
            wide.append(gather_lattices(*apart))
        for k in leaving.shared:
            x = self.pools[f"{source}_{self.names[k]}"](state) if self.names[k] in POOLS else state
            total = _add_weighted(total, x.permute(0, 2, 3, 1).unsqueeze(3), weights[k].unsqueeze(1))
        for x in wide:
            x = x.permute(0, 2, 3, 1).unflatten(3, (edges, self.channels))
            total = x if total is None else total + x
        return [] if total is None else [x.permute(0, 3, 1, 2) for x in total.unbind(3)]

    def _sum_edges(self, states: list[Tensor], mixture: Tensor, active: Active | None) -> None:
        """Appends the nodes to `states`, edge by edge; only `active` candidates, if given, are computed."""
        shared: Shared = {}
        # one unbind for all weights: a separate indexing for each would cost a backward kernel each
        weights = mixture.reshape(-1).unbind()
        scales = mixture.reshape(-1, 1).expand(-1, self.channels).contiguous().unbind()
        for node in range(self.inputs, self.inputs + self.nodes):
            total = None
            for edge, (source, target) in enumerate(self.places):
                if target != node:
                    continue
                for k, name in enumerate(self.names):
                    if name == "none" or (active is not None and k not in active[edge]):
                        continue
                    place = edge * len(self.names) + k
                    total = self._add(total, edge, source, name, states[source], shared, weights[place], scales[place])
            states.append(self._nothing(states[0]) if total is None else total)

    def _nothing(self, x: Tensor) -> Tensor:
        """Returns the state of a node that no active candidate reaches."""
        return torch.zeros_like(x[:, :, ::2, ::2] if self.halves else x)

    def _add(
        self,
        total: Tensor | None,
        edge: int,
        source: int,
        name: str,
        state: Tensor,
        shared: Shared,
        weight: Tensor,
        scale: Tensor,
    ) -> Tensor:
        """Returns total + weight * operation(state), computing what edges share only once (kept in `shared`)."""
        operation = self.operation(edge, name)
        if name in POOLS:
            pool = f"{source}_{name}"
            if pool not in shared:
                shared[pool] = operation(state)
            return _add_weighted(total, shared[pool], weight)
        key = (source, operation.prepare)
        if key not in shared:
            shared[key] = PREPARATIONS[operation.prepare](state, operation.stride)
        x = shared[key] if operation.body is None else operation.body(shared[key])
        if operation.norm is None:
            return _add_weighted(total, x, weight)
        x = operation.norm(x, scale)
        return x if total is None else total.add_(x)


def _add_weighted(total: Tensor | None, x: Tensor, weight: Tensor) -> Tensor:
    return x * weight if total is None else torch.addcmul(total, x, weight)


class Supernet(nn.Module):
    """The DARTS-style supernet of a search space: (n, in_channels, height, width) -> (n, num_classes) logits.

    `alphas` maps a cell's name to its Parameter of logits, shape (edges, operations), shared by all cells of that name;
    with partial channels also "edge_" + name to logits of the edges, shape (edges,). Both are initialised with
    `alpha_scale` * N(0, 1). BatchNorm within cells is affine-free, as published.

    Args:
        space: What may exist.
        channels: Channels of the first cell's nodes.
        layers: Cells in all (DARTS skeleton) or in each of three stages (NAS-Bench-201).
        num_classes: Classes.
        in_channels: Channels of the images.
        alpha_scale: Standard deviation of the initial logits.
        kernels: "auto" takes the native operator for cells where it can (CPU, float32 or float64), "portable" never;
            "native" is "auto" that fails where there is no compiled operator.
        partial_channels: One in so many channels goes through the candidates (`architecture.partial_cell`, always
            portable); 1 for the plain supernet without edge weights.

    Raises:
        InputError: A size is not positive, or the channels cannot be shared out so.
    """

    stem: nn.Sequential
    cells: nn.ModuleList
    classifier: nn.Linear

    def __init__(
        self,
        space: SearchSpace,
        channels: int = 16,
        layers: int = 8,
        num_classes: int = 10,
        in_channels: int = 3,
        alpha_scale: float = 1e-3,
        kernels: str = "auto",
        partial_channels: int = 1,
    ):
        super().__init__()
        self.space = space
        check_kernels(kernels)
        check_share(channels, partial_channels)

        def make_cell(name: str, width: int, halves: bool, preprocess: nn.ModuleList) -> MixedCell | PartialCell:
            if partial_channels == 1:
                cell: MixedCell | PartialCell = MixedCell(space, width, halves, preprocess, kernels)
            else:
                narrow = MixedCell(space, width // partial_channels, halves, nn.ModuleList(), "portable")
                cell = PartialCell(narrow, preprocess, partial_channels)
            cell.name = name
            return cell

        widths = {name: len(space.concat) for name in space.cells}
        add_skeleton(self, space.cells, widths, channels, layers, num_classes, in_channels, PlainBatchNorm, make_cell)
        device = self.classifier.weight.device
        self.alphas = nn.ParameterDict(
            {name: nn.Parameter(alpha_scale * torch.randn(space.alpha_shape, device=device)) for name in space.cells}
        )
        if partial_channels > 1:
            for name in space.cells:
                logits = alpha_scale * torch.randn(len(space.edges), device=device)
                self.alphas[f"edge_{name}"] = nn.Parameter(logits)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Returns all parameters but the alphas, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("alphas.")}

    def weights(self) -> list[nn.Parameter]:
        """Returns all parameters but the alphas."""
        return list(self.named_weights().values())

    def mixture(self) -> dict[str, Tensor]:
        """Returns the softmax of the alphas by cell name, each (edges, operations)."""
        return {name: torch.softmax(self.alphas[name], -1) for name in self.space.cells}

    def edge_weights(self) -> dict[str, Tensor]:
        """Returns the weights of the edges by cell name, each (edges,); empty without partial channels."""
        edges = {name: f"edge_{name}" for name in self.space.cells}
        return {name: edge_weights(self.space, self.alphas[key]) for name, key in edges.items() if key in self.alphas}

    def forward(
        self,
        images: Tensor,
        mixture: Mapping[str, Tensor] | None = None,
        active: Mapping[str, Active] | None = None,
    ) -> Tensor:
        """Returns logits.

        Args:
            images: (n, in_channels, height, width).
            mixture: Cell name -> (edges, operations) weights, in place of the softmax of the alphas. (The weights of
                edges, with partial channels, come on top of both.)
            active: Cell name -> for every edge the numbers of the operations to compute; by default all are. For
                sparse mixtures: the work of the active ones alone. The weights of the others get no gradient.
        """
        mixture = self.mixture() if mixture is None else mixture
        chosen = active or {}
        edges = self.edge_weights()

        def run_cell(cell: MixedCell | PartialCell, inputs: list[Tensor]) -> Tensor:
            weights = (edges[cell.name],) if edges else ()
            return cell(inputs, mixture[cell.name], chosen.get(cell.name), *weights)

        maps = run_cells(self, images, run_cell)
        return self.classifier(pool_features(self, maps[-1]))

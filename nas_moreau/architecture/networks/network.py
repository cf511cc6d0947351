"""The network a genotype describes, as it is trained and used after the search."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas_moreau.architecture.networks.batch_shard import draw_rows
from nas_moreau.architecture.networks.native import CellEdge, NativeCell, check_kernels, native_cell, run_native, usable
from nas_moreau.architecture.networks.operations import build_operation
from nas_moreau.architecture.networks.scripting import scriptable
from nas_moreau.architecture.networks.skeleton import (
    AuxiliaryHead,
    NetworkSize,
    build_frame,
    pool_features,
    run_cells,
)
from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.skeletons import NetworkPart
from nas_moreau.errors import InputError


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Returns x (n, c, h, w) with each sample zeroed with probability `rate` and the others scaled by 1/(1-rate)."""
    return x * (_kept(x, rate) / (1 - rate))


def _kept(x: Tensor, rate: float) -> Tensor:
    """Returns (n, 1, 1, 1) zeros with probability `rate`, else ones."""

    def draw(rows: int) -> Tensor:
        if torch.compiler.is_compiling():
            # bernoulli_ would make the rate a constant of the compiled code, to be compiled again in every epoch
            return (torch.rand((rows, 1, 1, 1), device=x.device) >= rate).to(x.dtype)
        return torch.empty((rows, 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(1 - rate)

    return draw_rows(len(x), draw)


class DerivedCell(nn.Module):
    """One cell with the operations its genotype kept.

    Args:
        cell: Edges (operation, from, to) and the nodes to concatenate; `none` edges contribute nothing.
        part: Number of input states, channels of the nodes, and the stride of the edges that leave an input.
        preprocess: One module for each input, or none at all.
        kernels: As for `Network`.
    """

    def __init__(self, cell: Cell, part: NetworkPart, preprocess: nn.ModuleList, kernels: str = "auto"):
        super().__init__()
        inputs, channels, halves = len(part.reads), part.channels, part.stride == 2
        self.halves, self.preprocess, self.concat = halves, preprocess, cell.concat
        # in canonical order, so that equal genotypes give equal networks and one state dict fits them all
        kept = sorted((e for e in cell.edges if e[0] != "none"), key=lambda e: (e[2], e[1], e[0]))
        self.places = [(source, target) for _, source, target in kept]
        self.last_node = max([*cell.concat, *(target for _, _, target in cell.edges)])
        operations = [
            build_operation(name, channels, part.stride if source < inputs else 1, nn.BatchNorm2d)
            for name, source, _ in kept
        ]
        self.operations = nn.ModuleList(operations)
        edges = [CellEdge(*place, i, operation) for i, (place, operation) in enumerate(zip(self.places, operations))]
        self.kernels = kernels
        self.native = native_cell(part, self.last_node + 1 - inputs, self.concat, edges, droppable=True)

    def forward(self, inputs: list[Tensor], drop_path_rate: float = 0.0) -> Tensor:
        """Returns the concatenated nodes of the input states, all of them (n, channels, height, width)."""
        if len(self.preprocess):
            inputs = [module(x) for module, x in zip(self.preprocess, inputs)]
        if self.native is not None and usable(self.native, self.kernels, inputs, self.training):
            return self._run_native(self.native, inputs, drop_path_rate if self.training else 0.0)
        states = list(inputs)
        for node in range(len(inputs), self.last_node + 1):
            total = None
            for (source, target), operation in zip(self.places, self.operations):
                if target != node:
                    continue
                x = operation(states[source])
                if self.training and drop_path_rate > 0 and not operation.is_identity:
                    x = drop_path(x, drop_path_rate)
                total = x if total is None else total + x
            states.append(self._nothing(states[0]) if total is None else total)
        return states[self.concat[0]] if len(self.concat) == 1 else torch.cat([states[i] for i in self.concat], 1)

    def _run_native(self, plan: NativeCell, inputs: list[Tensor], rate: float) -> Tensor:
        """Returns the same as `forward` from the native operator, from the same random draws."""
        x, scales, keep = inputs[0], [1.0] * len(self.operations), None
        if rate > 0:
            dropped = [not operation.is_identity for operation in self.operations]
            scales = [1 / (1 - rate) if drop else 1.0 for drop in dropped]
            rows = [_kept(x, rate).flatten() for drop in dropped if drop]
            keep = torch.stack(rows) > 0 if rows else None
        mixture = torch.tensor(scales, dtype=x.dtype, device=x.device)
        return run_native(plan, inputs, mixture, self.training, keep)

    def _nothing(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, ::2, ::2] if self.halves else x)


class Network(nn.Module):
    """An image classifier built from a genotype: (n, in_channels, height, width) -> (n, num_classes) logits.

    In training mode with `auxiliary=True` the output is the pair (logits, auxiliary logits).

    Args:
        genotype: What was found; its skeleton lays out the network.
        channels: Channels of the first cell's nodes (published: 36 for DARTS, 16 for NAS-Bench-201).
        layers: Number of cells, in the unit of the skeleton (DARTS: 20 in all, NAS-Bench-201: 5 in each of 3 stages).
        num_classes: Classes; 0 leaves the classifier out, and the pooled features are the output.
        auxiliary: Add the auxiliary classifier, where the skeleton has a place for it (DARTS: after cell 2*layers//3).
        drop_path: Probability that an edge is dropped for a sample in training; `network.drop_path` can be changed.
        in_channels: Channels of the images.
        kernels: "auto", "portable" or "native", as for `Supernet`.

    Raises:
        InputError: A size is not positive, or an auxiliary head is requested and the skeleton has none.
    """

    def __init__(
        self,
        genotype: Genotype,
        channels: int = 36,
        layers: int = 20,
        num_classes: int = 10,
        auxiliary: bool = False,
        drop_path: float = 0.0,
        in_channels: int = 3,
        kernels: str = "auto",
    ):
        super().__init__()
        check_kernels(kernels)
        self.genotype, self.num_classes, self.drop_path = genotype, num_classes, drop_path
        self.in_channels, size = in_channels, NetworkSize(channels, layers, num_classes, in_channels)

        def make_cell(part: NetworkPart, preprocess: nn.ModuleList) -> DerivedCell:
            return DerivedCell(genotype.cells[part.name], part, preprocess, kernels)

        parts = genotype.network_parts(channels, layers)
        frame = build_frame(genotype.skeleton, parts, size, nn.BatchNorm2d, make_cell)
        self.parts, self.cells, self.stem, self.head_norm, self.classifier = frame
        self.num_features = parts[-1].outputs
        self.auxiliary, self.auxiliary_place = None, 0
        if auxiliary:
            place = genotype.skeleton.auxiliary_place
            if place is None or not num_classes:
                raise InputError(
                    f"A network of the skeleton {genotype.skeleton} with {num_classes} classes has no auxiliary head.",
                    "Set auxiliary to false.",
                )
            self.auxiliary_place = place(layers) + 1  # after the stem
            self.auxiliary = AuxiliaryHead(parts[self.auxiliary_place].outputs, num_classes)

    def forward_maps(self, images: Tensor) -> list[Tensor]:
        """Returns the feature maps after the stem and after every cell, oldest first."""
        return run_cells(self, images, lambda cell, inputs: cell(inputs, self.drop_path))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Returns logits (n, num_classes), in training with an auxiliary head the pair (logits, auxiliary logits)."""
        maps = self.forward_maps(images)
        logits = self.classifier(pool_features(self.head_norm, maps[-1]))
        if self.auxiliary is not None and self.training:
            return logits, self.auxiliary(maps[self.auxiliary_place])
        return logits

    def __prepare_scriptable__(self) -> nn.Module:
        """Returns what `torch.jit.script` compiles."""
        return scriptable(self, self.drop_path)

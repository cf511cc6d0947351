"""The supernet: every candidate on every edge, mixed by softmax weights.

`mixed_cell` computes once what several edges share; `literal` computes the same function without sharing, and tests
compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nas_moreau.architecture.networks.mixed_cell import Active, MixedCell
from nas_moreau.architecture.networks.native import check_kernels
from nas_moreau.architecture.networks.operations import PlainBatchNorm
from nas_moreau.architecture.networks.partial_cell import PartialCell, check_share, edge_weights
from nas_moreau.architecture.networks.skeleton import NetworkSize, build_frame, pool_features, run_cells
from nas_moreau.architecture.spaces.skeletons import NetworkPart
from nas_moreau.architecture.spaces.space import SearchSpace


class Supernet(nn.Module):
    """The DARTS-style supernet of a search space: (n, in_channels, height, width) -> (n, num_classes) logits.

    `alphas` maps a cell's name to its Parameter of logits, shape (edges, operations), shared by all cells of that name;
    with partial channels also "edge_" + name to logits of the edges, shape (edges,). Both are initialised with
    `alpha_scale` * N(0, 1). BatchNorm within cells is affine-free, as published.

    Args:
        space: What may exist.
        channels: Channels of the first cell's nodes.
        layers: Number of cells, in the unit of the skeleton (DARTS: in all, NAS-Bench-201: in each of three stages).
        num_classes: Classes.
        in_channels: Channels of the images.
        alpha_scale: Standard deviation of the initial logits.
        kernels: "auto" uses the native operator for cells where it can (CPU, float32 or float64), "portable" never;
            "native" is "auto" that fails where there is no compiled operator.
        partial_channels: One in `partial_channels` channels goes through the candidates (`networks.partial_cell`,
            always portable); 1 for the plain supernet without edge weights.

    Raises:
        InputError: A size is not positive, or the channels cannot be divided by `partial_channels`.
    """

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
        self.space, self.in_channels = space, in_channels
        size = NetworkSize(channels, layers, num_classes, in_channels)
        check_kernels(kernels)
        check_share(channels, partial_channels)

        def make_cell(part: NetworkPart, preprocess: nn.ModuleList) -> MixedCell | PartialCell:
            if partial_channels == 1:
                return MixedCell(space, part, preprocess, kernels)
            narrow = part._replace(channels=part.channels // partial_channels)
            return PartialCell(MixedCell(space, narrow, nn.ModuleList(), "portable"), preprocess, partial_channels)

        parts = space.skeleton.parts(dict.fromkeys(space.cells, len(space.concat)), channels, layers)
        frame = build_frame(space.skeleton, parts, size, PlainBatchNorm, make_cell)
        self.parts, self.cells, self.stem, self.head_norm, self.classifier = frame
        self._unused: dict[tuple[str, torch.device], Tensor] = {}  # made once for each cell and device
        self.alphas = initial_alphas(space, alpha_scale, partial_channels > 1, self.classifier.weight.device)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Returns all parameters but the alphas, by name."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("alphas.")}

    def weights(self) -> list[nn.Parameter]:
        """Returns all parameters but the alphas."""
        return list(self.named_weights().values())

    def operation_logits(self, alphas: Sequence[Tensor]) -> list[Tensor]:
        """Returns the logits of the operations, (edges, operations) for every cell in the order of the space.

        Where an edge has fewer candidates than others, the logits of the unused columns are -inf: a softmax gives them
        the weight 0 exactly, and no gradient.

        Args:
            alphas: Tensors in the order of `alphas.values()`, among which there may be logits of edges.
        """
        found = {name: logits for name, logits in zip(self.alphas, alphas) if name in self.space.cells}
        if not self.space.ragged:
            return list(found.values())
        return [
            logits.masked_fill(self._unused_columns(name, logits.device), -math.inf) for name, logits in found.items()
        ]

    def _unused_columns(self, name: str, device: torch.device) -> Tensor:
        key = name, device
        if key not in self._unused:
            edges, operations = self.space.alpha_shape
            counts = [len(self.space.candidates(name, edge)) for edge in range(edges)]
            mask = torch.arange(operations, device="cpu") >= torch.tensor(counts, device="cpu").unsqueeze(1)
            self._unused[key] = mask.to(device)
        return self._unused[key]

    def alpha_groups(self) -> list[list[list[int]]]:
        """Returns, for every tensor of `alphas`, the positions of the entries that each softmax takes.

        For operations one softmax an edge, over its candidates; for edges one a node.
        """
        columns = self.space.alpha_shape[1]

        def of(name: str) -> list[list[int]]:
            if name not in self.space.cells:
                return self.space.incoming()
            counts = [len(self.space.candidates(name, edge)) for edge in range(len(self.space.edges))]
            return [[edge * columns + k for k in range(count)] for edge, count in enumerate(counts)]

        return [of(name) for name in self.alphas]

    def mixture(self) -> dict[str, Tensor]:
        """Returns the softmax of the alphas by cell name, each (edges, operations)."""
        logits = self.operation_logits(list(self.alphas.values()))
        return {name: torch.softmax(table, -1) for name, table in zip(self.space.cells, logits)}

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
            mixture: Cell name -> (edges, operations) weights; by default the softmax of the alphas. (With partial
                channels, both are multiplied by the weights of the edges.)
            active: Cell name -> for every edge the numbers of the operations to compute; all by default. The other
                operations cost nothing and their weights get no gradient.
        """
        mixture = self.mixture() if mixture is None else mixture
        chosen = active or {}
        edges = self.edge_weights()

        def run_cell(cell: MixedCell | PartialCell, inputs: list[Tensor]) -> Tensor:
            weights = (edges[cell.name],) if edges else ()
            return cell(inputs, mixture[cell.name], chosen.get(cell.name), *weights)

        maps = run_cells(self, images, run_cell)
        return self.classifier(pool_features(self.head_norm, maps[-1]))


def initial_alphas(space: SearchSpace, scale: float, with_edges: bool, device: torch.device) -> nn.ParameterDict:
    """Returns cell name -> Parameter of shape (edges, operations), drawn from the global generator.

    Args:
        space: Cells, edges and operations.
        scale: Standard deviation.
        with_edges: Whether "edge_" + cell name -> Parameter of shape (edges,) follows for each cell (partial channels).
        device: Where they are made.
    """
    alphas = nn.ParameterDict()  # filled one by one: made from a mapping it would sort the names
    shapes = {name: space.alpha_shape for name in space.cells}
    edges = {f"edge_{name}": space.alpha_shape[:1] for name in space.cells if with_edges}
    for name, shape in {**shapes, **edges}.items():
        alphas[name] = nn.Parameter(scale * torch.randn(shape, device=device))
    return alphas

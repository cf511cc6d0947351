"""Images a second in the retraining of a derived network, four implementations side by side.

    plain                the network as one plain PyTorch file (what `export --format python` writes), NCHW
    plain-channels-last  the same on channels-last tensors
    portable             `Network` without native operators, channels last
    native               `Network` on the native operators, channels last (CPU only)

A step is forward, backward, clipping and SGD with momentum, without drop-path and auxiliary head, on one batch of
random images. All start from the same weights. Variants take turns; medians are reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau.architecture import Network, published_cell
from nas_moreau.diagnostics.bench_cases import CLASSES, Size, random_batch
from nas_moreau.diagnostics.bench_measures import clock, hardware
from nas_moreau.export.formats import structure_of
from nas_moreau.export.standalone import Network as PlainNetwork
from nas_moreau.kernels.cell import available

RETRAINING = Size(36, 20, 16)
"""The published channels and cells."""
NETWORKS = ("plain", "plain-channels-last", "portable", "native")


@dataclass(frozen=True)
class NetworkRow:
    """One implementation: the median of `n` steps in milliseconds, and images a second."""

    network: str
    cell: str
    size: list[int]
    threads: int
    n: int
    milliseconds: float
    images_per_second: float


@dataclass(frozen=True)
class NetworkResult:
    """The table, and the machine that it was measured on."""

    rows: list[NetworkRow]
    hardware: str
    torch: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return asdict(self)


def build_network(kind: str, size: Size, cell: str, device: torch.device) -> nn.Module:
    """Returns the network `kind` of NETWORKS for the published cell `cell`, with the same weights for every kind."""
    genotype = published_cell(cell)
    torch.manual_seed(0)
    kernels = "native" if kind == "native" else "portable"
    network = Network(genotype, size.channels, size.layers, CLASSES, kernels=kernels)
    net: nn.Module = network
    if kind.startswith("plain"):
        net = PlainNetwork(genotype.to_dict()["cells"], structure_of(network), 3, CLASSES)
        net.load_state_dict(network.state_dict())
    return net.to(device).to(memory_format=torch.contiguous_format if kind == "plain" else torch.channels_last)


def training_step(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Returns a function that does one step of training."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)

    def step() -> None:
        optimizer.zero_grad()
        f.cross_entropy(net(images), labels).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()

    return step


def benchmark_network(
    size: Size = RETRAINING, cell: str = "DARTS_V2", threads: int = 1, rounds: int = 3, device: str = "cpu"
) -> NetworkResult:
    """Returns the times of a training step of all implementations.

    Args:
        size: Channels, cells and batch.
        cell: Name of a published cell.
        threads: CPU threads.
        rounds: n of the medians.
        device: Where to run.
    """
    place, before = torch.device(device), torch.get_num_threads()
    kinds = NETWORKS if place.type == "cpu" and available() else NETWORKS[:3]
    images, labels = (part.to(place) for part in random_batch(size.batch))
    torch.set_num_threads(threads)
    try:
        steps = {}
        for kind in kinds:
            layout = torch.contiguous_format if kind == "plain" else torch.channels_last
            net = build_network(kind, size, cell, place)
            steps[kind] = training_step(net, images.to(memory_format=layout), labels)
            steps[kind]()  # warm up
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, step in steps.items():
                times[kind].append(clock(step, place))
    finally:
        torch.set_num_threads(before)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    rows = [
        NetworkRow(kind, cell, list(size), threads, rounds, median, 1e3 * size.batch / median)
        for kind, median in medians.items()
    ]
    return NetworkResult(rows, hardware(place), torch.__version__)

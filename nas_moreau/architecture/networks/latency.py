"""Latency that is measured on the device: of any modules in turns, and of the operations of a search space."""

from __future__ import annotations

import itertools
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nas_moreau.architecture.networks.costs import BuildNetwork
from nas_moreau.architecture.networks.network import DerivedCell
from nas_moreau.architecture.spaces.genotype import Cell
from nas_moreau.architecture.spaces.space import SearchSpace

ROUNDS = 25
"""Timings of each call; the median counts."""
SHORTEST = 1e-3
"""Seconds of a timing: a module that takes less is called several times in it."""
FEWEST = 5
"""With fewer timings in which the thread was not interrupted, those that were count too."""


class Timed:
    """Calls that are timed in turns.

    Args:
        device: Of the modules.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> int:
        """Adds a call and returns its number."""
        self.calls.append((module, args, kwargs or {}))
        return len(self.calls) - 1

    @torch.no_grad()
    def run(self, rounds: int = ROUNDS) -> list[tuple[float, float]]:
        """Returns median and half interquartile range of each call, ms."""
        wait: Callable[[], None] = (lambda: None) if self.device.type == "cpu" else torch.accelerator.synchronize

        def timing(number: int, times: int) -> tuple[float, bool]:
            module, args, kwargs = self.calls[number]
            before = _interruptions()
            wait()
            begin = time.perf_counter()
            for _ in range(times):
                module(*args, **kwargs)
            wait()
            return (time.perf_counter() - begin) / times, _interruptions() == before

        repeats = []
        for number in range(len(self.calls)):
            timing(number, 2)
            once = timing(number, 3)[0]
            repeats.append(max(1, min(1000, round(SHORTEST / max(once, 1e-9)))))
        found: list[list[tuple[float, bool]]] = [[] for _ in self.calls]
        for _ in range(rounds):
            for number, times in enumerate(repeats):
                found[number].append(timing(number, times))
        return [_summary(values) for values in found]


def _interruptions() -> int:
    """Returns how often this thread had to leave its processor to another program, where that is known."""
    who = getattr(resource, "RUSAGE_THREAD", None)
    return 0 if who is None else resource.getrusage(who).ru_nivcsw


def _summary(timings: list[tuple[float, bool]]) -> tuple[float, float]:
    undisturbed = [value for value, alone in timings if alone]
    values = undisturbed if len(undisturbed) >= FEWEST else [value for value, _ in timings]
    ordered = sorted(1e3 * value for value in values)
    quarter = len(ordered) // 4
    return statistics.median(ordered), (ordered[-1 - quarter] - ordered[quarter]) / 2


def operation_latencies(
    space: SearchSpace,
    build: BuildNetwork,
    input_size: tuple[int, int, int],
    device: torch.device,
    rounds: int = ROUNDS,
) -> dict[tuple[str, int, str], float]:
    """Returns (cell, edge number, operation) -> measured milliseconds for one image, in evaluation mode.

    An operation is timed by itself, at its real input in every cell of the network, and its times are added up.

    Args:
        space: Cells, edges and operations.
        build: Makes the network of a genotype.
        input_size: (channels, height, width) of an image.
        device: Where it is measured.
        rounds: Timings of each operation.
    """
    image = torch.zeros((1, *input_size), device=device)
    empty = {cell: Cell((("none", 0, space.inputs),), space.concat) for cell in space.cells}
    timed = Timed(device)
    # an operation takes as long on all edges that leave an input, and on all others
    numbers: dict[tuple[str, bool, str], list[int]] = {}
    places = [(c, n, e) for c, (n, e) in itertools.product(space.cells, enumerate(space.edges))]
    for cell, number, edge in places:
        for name in space.candidates(cell, number):
            key = (cell, edge[0] < space.inputs, name)
            if key in numbers or name == "none":
                continue
            genotype = space.genotype({**empty, cell: Cell(((name, *edge),), space.concat)})
            numbers[key] = _add_operations(build(genotype).to(device).eval(), image, timed)
    times = [ms for ms, _ in timed.run(rounds)]
    return {
        (cell, number, name): sum(times[i] for i in numbers.get((cell, edge[0] < space.inputs, name), ()))
        for cell, number, edge in places
        for name in space.candidates(cell, number)
    }


def _add_operations(network: nn.Module, image: torch.Tensor, timed: Timed) -> list[int]:
    """Adds the operations of a network's cells, with their inputs, to what is timed, and returns their numbers."""
    found: list[int] = []

    def add(operation: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(timed.add(operation, tuple(arg.clone() for arg in args)))

    cells = [part for part in network.modules() if isinstance(part, DerivedCell)]
    handles = []
    for cell in cells:
        cell.kernels = "portable"  # native kernels do not call the operations one by one
        handles += [operation.register_forward_pre_hook(add) for operation in cell.operations]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return found

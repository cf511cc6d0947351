"""What the benchmark runs: four supernets, one evaluation or one whole search step of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau.architecture import LiteralSupernet, Supernet, load_space
from nas_moreau.bilevel import Method
from nas_moreau.config import SearchConfig
from nas_moreau.diagnostics.published_steps import published_step
from nas_moreau.errors import InputError
from nas_moreau.search.methods import build_method, parse_method, search_methods
from nas_moreau.search.supernet_problem import Batch, supernet_problem

SUPERNETS = ("literal", "literal-channels-last", "portable", "native")
EVALUATION = "evaluation"
"""Stands in the place of a method for one forward and one full backward pass."""
LITERAL_METHODS = (EVALUATION, "darts1", "darts2")
DEFAULT_METHODS = (*LITERAL_METHODS, "moreau-gauss-seidel", "moreau-jacobi", "moreau-lagged")
IMAGE, CLASSES = 32, 10
CPU = torch.device("cpu")


class Size(NamedTuple):
    """A supernet and a batch: `channels` of the first cell, `layers` cells, `batch` images of 32x32."""

    channels: int
    layers: int
    batch: int


SIZES = {"T": Size(8, 5, 16), "M": Size(16, 8, 16), "full": Size(16, 8, 64)}


class Case(NamedTuple):
    """One thing to time.

    Attributes:
        supernet: One of SUPERNETS.
        method: EVALUATION or a search method without additions.
        size: Of the supernet and the batch.
        space: Name of the search space.
        device: Where it runs.
    """

    supernet: str
    method: str
    size: Size
    space: str = "darts"
    device: torch.device = CPU

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory layout of images and weights."""
        return torch.contiguous_format if self.supernet == "literal" else torch.channels_last


def parse_size(text: str) -> Size:
    """Returns the size named `T`, `M` or `full`, or written as `channels,layers,batch`.

    Raises:
        InputError: It is neither.
    """
    if text in SIZES:
        return SIZES[text]
    numbers = text.split(",")
    if len(numbers) != 3 or not all(n.strip().isdecimal() and int(n) > 0 for n in numbers):
        raise InputError(f"Invalid size '{text}'.", f"Give {', '.join(SIZES)} or channels,layers,batch, e.g. 16,8,64.")
    return Size(*map(int, numbers))


def random_batch(
    count: int, side: int = IMAGE, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns standard normal RGB images (count, 3, side, side) and random labels, on the CPU."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    images = torch.randn((count, 3, side, side), generator=generator, dtype=dtype, device="cpu")
    return images, torch.randint(0, CLASSES, (count,), generator=generator, device="cpu")


def known_methods() -> list[str]:
    """Returns what can be timed: one evaluation, and every search method that takes steps."""
    return [EVALUATION, *(name for name, method in search_methods().items() if method.takes_steps)]


def goes_with(supernet: str, method: str) -> bool:
    """Returns whether a method can be timed on a supernet.

    The literal ones run the published scripts' steps alone; the native kernels have no second derivatives.
    """
    if supernet.startswith("literal"):
        return method in LITERAL_METHODS
    info = None if method == EVALUATION else parse_method(method).info
    return supernet != "native" or info is None or "hessian" not in info.needs


def build_supernet(case: Case) -> nn.Module:
    """Returns the case's supernet, with the same weights every time."""
    channels, layers, _ = case.size
    torch.manual_seed(0)
    if case.supernet.startswith("literal"):
        net: nn.Module = LiteralSupernet(load_space(case.space), channels, layers, CLASSES)
    else:
        kernels = "native" if case.supernet == "native" else "portable"
        net = Supernet(load_space(case.space), channels, layers, CLASSES, kernels=kernels)
    return net.to(case.device).to(memory_format=case.memory_format)


def build_batch(case: Case, seed: int = 2) -> Batch:
    """Returns a batch of random images."""
    images, labels = random_batch(case.size.batch, seed=seed)
    images = images.to(device=case.device, memory_format=case.memory_format)
    return Batch(images, labels.to(case.device), 0.0)


def method_of(name: str) -> Method:
    """Returns the method as a search with the default configuration runs it."""
    return build_method(SearchConfig(method=name), steps_per_epoch=1000)[0]


def build_run(case: Case) -> Callable[[], None]:
    """Returns a function without arguments that does one evaluation or one whole search step."""
    net, upper, lower = build_supernet(case), build_batch(case, 1), build_batch(case)
    if case.method == EVALUATION:
        return lambda: evaluate(net, lower)
    if case.supernet.startswith("literal"):
        return published_step(net, case.method, upper, lower)
    solver = method_of(case.method)
    posed = supernet_problem(net, mix=parse_method(case.method).mix)
    held = [posed.x, posed.y, solver.init(posed.problem, posed.x, posed.y, upper, lower)]

    def step() -> None:
        held[:] = solver.step(posed.problem, *held, upper, lower)[:3]

    return step


def evaluate(net: nn.Module, batch: Batch) -> None:
    """Runs one forward and one full backward pass."""
    net.zero_grad(set_to_none=True)
    f.cross_entropy(net(batch.images), batch.labels).backward()

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
from nas_moreau.search.methods import build_method
from nas_moreau.search.supernet_problem import Batch, supernet_problem

SUPERNETS = ("literal", "literal-channels-last", "portable", "native")
LITERAL_METHODS = ("evaluation", "darts1", "darts2")
OUR_METHODS = (*LITERAL_METHODS, "moreau-gauss-seidel", "moreau-jacobi", "moreau-lagged")
IMAGE, CLASSES = 32, 10


class Size(NamedTuple):
    """A supernet and a batch: `channels` of the first cell, `layers` cells, `batch` images of 32x32."""

    channels: int
    layers: int
    batch: int


SIZES = {"T": Size(8, 5, 16), "M": Size(16, 8, 16), "full": Size(16, 8, 64)}


def parse_size(text: str) -> Size:
    """Returns the size named `T`, `M` or `full`, or written as `channels,layers,batch`.

    Raises:
        InputError: It is neither.
    """
    if text in SIZES:
        return SIZES[text]
    numbers = text.split(",")
    if len(numbers) != 3 or not all(n.strip().isdigit() and int(n) > 0 for n in numbers):
        raise InputError(f"'{text}' is no size.", f"Give {', '.join(SIZES)} or channels,layers,batch such as 16,8,64.")
    return Size(*map(int, numbers))


def build_supernet(space: str, size: str, supernet: str, device: torch.device) -> nn.Module:
    """Returns the supernet called `supernet`, with weights that are the same every time."""
    channels, layers, _ = parse_size(size)
    torch.manual_seed(0)
    if supernet.startswith("literal"):
        net: nn.Module = LiteralSupernet(load_space(space), channels, layers, CLASSES)
    else:
        kernels = "native" if supernet == "native" else "portable"
        net = Supernet(load_space(space), channels, layers, CLASSES, kernels=kernels)
    layout = torch.contiguous_format if supernet == "literal" else torch.channels_last
    return net.to(device).to(memory_format=layout)


def build_batches(size: str, supernet: str, device: torch.device) -> tuple[Batch, Batch]:
    """Returns an upper and a lower batch of random images."""
    layout = torch.contiguous_format if supernet == "literal" else torch.channels_last

    def batch(seed: int) -> Batch:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        images = torch.randn((parse_size(size).batch, 3, IMAGE, IMAGE), generator=generator, device="cpu")
        labels = torch.randint(0, CLASSES, (len(images),), generator=generator, device="cpu")
        return Batch(images.to(device=device, memory_format=layout), labels.to(device), 0.0)

    return batch(1), batch(2)


def method_of(name: str) -> Method:
    """Returns the method as a search with the default configuration runs it."""
    return build_method(SearchConfig(method=name), steps_per_epoch=1000)[0]


def build_run(space: str, size: str, supernet: str, method: str, device: torch.device) -> Callable[[], None]:
    """Returns a function without arguments that does one evaluation or one whole search step."""
    net = build_supernet(space, size, supernet, device)
    upper, lower = build_batches(size, supernet, device)
    if method == "evaluation":
        return lambda: evaluate(net, lower)
    if supernet.startswith("literal"):
        return published_step(net, method, upper, lower)
    solver = method_of(method)
    posed = supernet_problem(net)
    held = [posed.x, posed.y, solver.init(posed.problem, posed.x, posed.y)]

    def step() -> None:
        held[:] = solver.step(posed.problem, *held, upper, lower)[:3]

    return step


def evaluate(net: nn.Module, batch: Batch) -> None:
    """Runs one forward and one full backward pass."""
    net.zero_grad(set_to_none=True)
    f.cross_entropy(net(batch.images), batch.labels).backward()

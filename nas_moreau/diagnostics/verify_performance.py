"""Whether `performance` settings compute what the configuration says: one step against float64 on the CPU.

For a search: the losses F, f and f at theta, all their gradients, and the architecture gradient that follows from them.
For a retraining: the loss and its gradient. Weights, batches and theta (one step of the weights away from y) are the
same for all settings; the batch is small, because of the CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nas_moreau.architecture import Genotype
from nas_moreau.bilevel.tensors import add, norm, subtract, value_and_grads
from nas_moreau.config import Config, PerformanceConfig
from nas_moreau.diagnostics.bench_cases import CLASSES, random_batch
from nas_moreau.search.build import build_supernet
from nas_moreau.search.supernet_problem import Batch, supernet_problem
from nas_moreau.training.device import autocast, set_up_torch
from nas_moreau.training.recipe import build_network, training_loss

CHANNELS = 3
CPU = torch.device("cpu")
TOLERANCES = {"float32": (1e-4, 1e-2), "tf32": (1e-2, 0.1), "bfloat16": (2e-2, 0.5), "float16": (1e-2, 0.1)}
"""Largest relative errors of the losses, and of gradients and directions as vectors. Half of the length is an angle of
30 degrees; gradients in bfloat16 differ by a fifth on small supernets on a CPU."""


class Step(NamedTuple):
    """Losses and vectors of one step, on the CPU in float64."""

    losses: Tensor
    vectors: dict[str, Tensor]


class Errors(NamedTuple):
    """The largest relative error of the losses, and of each vector."""

    loss: float
    vectors: dict[str, float]

    def within(self, tolerance: tuple[float, float]) -> bool:
        """Returns whether no error is above the tolerance."""
        return self.loss <= tolerance[0] and all(error <= tolerance[1] for error in self.vectors.values())


def tolerance(performance: PerformanceConfig, tf32: bool) -> tuple[float, float]:
    """Returns what is allowed for a choice of settings."""
    return TOLERANCES["tf32" if tf32 and performance.precision == "float32" else performance.precision]


def errors(found: Step, exact: Step) -> Errors:
    """Returns how far a step is from the exact one; a number that is not finite counts as infinitely far."""
    loss = ((found.losses - exact.losses) / exact.losses).abs().max().item()
    apart = {name: (found.vectors[name] - exact.vectors[name]).norm() / v.norm() for name, v in exact.vectors.items()}
    return Errors(_finite(loss), {name: _finite(error.item()) for name, error in apart.items()})


def _finite(error: float) -> float:
    return error if error == error else float("inf")


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().to(CPU, torch.float64).flatten() for tensor in tensors])


def search_step(
    config: Config, device: torch.device, batch_size: int, theta: list[Tensor] | None, dtype: torch.dtype
) -> tuple[Step, list[Tensor]]:
    """Returns losses, gradients and architecture gradient of a search, and the theta at which they were computed.

    Args:
        config: Its `search` and `performance` sections, space and seed are used.
        device: Where to compute.
        batch_size: Images of a batch.
        theta: Returned by a call in float64; None to compute it.
        dtype: Type of weights and images; float64 for the reference.
    """
    settings, performance = config.search, config.performance
    set_up_torch(performance, device)
    layout = torch.channels_last if performance.channels_last else torch.contiguous_format
    size = settings.image_size or 32
    supernet = build_supernet(config, CLASSES, (CHANNELS, size, size), device, dtype)
    transform = torch.compile if performance.compile else lambda forward: forward
    posed = supernet_problem(supernet, 0.0, performance.precision, transform)
    upper, lower = (
        Batch(images.to(device, dtype).contiguous(memory_format=layout), labels.to(device), 0.0)
        for images, labels in (random_batch(batch_size, size, i, torch.float64) for i in range(2))
    )
    at_y = value_and_grads(posed.problem.f, posed.x, posed.y, lower)
    if theta is None:
        length = settings.weights.lr * min(1.0, (settings.weights.clip or 1e9) / norm(at_y.grad_y).item())
        theta = [t.to(CPU) for t in add(posed.y, at_y.grad_y, -length)]
    there = [t.to(device, dtype) for t in theta]
    at_theta = value_and_grads(posed.problem.at_theta, posed.x, there, lower)
    above = value_and_grads(posed.problem.F, posed.x, posed.y, upper)
    direction = add(subtract(at_y.grad_x, at_theta.grad_x), above.grad_x, 1 / settings.moreau.c)
    vectors = {
        "F_x": above.grad_x,
        "F_y": above.grad_y,
        "f_x": at_y.grad_x,
        "f_y": at_y.grad_y,
        "f_x(theta)": at_theta.grad_x,
        "f_y(theta)": at_theta.grad_y,
        "d_x": direction,
    }
    losses = _flat([above.value, at_y.value, at_theta.value])
    return Step(losses, {name: _flat(tensors) for name, tensors in vectors.items()}), theta


def retraining_step(
    config: Config, genotype: Genotype, device: torch.device, batch_size: int, image_size: int, dtype: torch.dtype
) -> Step:
    """Returns loss and gradient of a step of retraining without drop-path; arguments as for `search_step`."""
    settings, performance = config.retrain, config.performance
    set_up_torch(performance, device)
    layout = torch.channels_last if performance.channels_last else torch.contiguous_format
    network = build_network(config, genotype, CLASSES, CHANNELS).to(device, dtype).to(memory_format=layout).train()
    network.drop_path = 0.0
    images, labels = random_batch(batch_size, image_size, 2, torch.float64)
    loss_of, _ = training_loss(settings.model_copy(update={"mixup": 0.0, "cutmix": 0.0}), CLASSES)
    forward = torch.compile(network) if performance.compile else network
    with autocast(device.type, performance.precision):
        output = forward(images.to(device, dtype).contiguous(memory_format=layout))
        logits, auxiliary = output if isinstance(output, tuple) else (output, None)
        loss = loss_of(logits, labels.to(device))
        if auxiliary is not None:
            loss = loss + settings.auxiliary_weight * loss_of(auxiliary, labels.to(device))
    scale = 1024.0 if performance.precision == "float16" else 1.0
    gradient = torch.autograd.grad(scale * loss, list(network.parameters()), allow_unused=True)
    return Step(_flat([loss]), {"gradient": _flat([g / scale for g in gradient if g is not None])})

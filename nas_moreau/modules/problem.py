"""The search for choices as a bilevel problem: the user's loss on two parts of the data, in alphas and weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad

from nas_moreau.modules.choice import Choice, Mixture, Places, mixed_by
from nas_moreau.search.problem import Buffers, Posed, beta_term, pose
from nas_moreau.search.supernet_problem import Mix
from nas_moreau.training.device import autocast


class ModuleBatch(NamedTuple):
    """The data on which an objective is evaluated.

    Attributes:
        data: The user's batch.
        progress: Completed fraction of the search, 0..1.
        seed: Seed of the random draws of a method for this batch.
    """

    data: Any
    progress: float
    seed: int = 0


class LossStats(NamedTuple):
    """Auxiliary output of F and f: the loss without regularisation."""

    loss: Tensor


class WithLoss(nn.Module):
    """The user's module and loss as one module, so that a functional call reaches the module inside any loss."""

    def __init__(self, module: nn.Module, loss: Callable[[nn.Module, Any], Tensor]):
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Any) -> Tensor:
        """Returns the loss."""
        return self.loss(self.module, batch)


class ModuleTensors(NamedTuple):
    """What a search changes in a module, by name in `WithLoss`.

    Attributes:
        weights: Trainable parameters that are not alphas, each once.
        buffers: Running statistics.
    """

    weights: dict[str, nn.Parameter]
    buffers: Buffers

    @classmethod
    def of(cls, whole: WithLoss) -> ModuleTensors:
        """Returns those of a module."""
        alphas = {id(part.alphas) for part in whole.modules() if isinstance(part, Choice)}
        named = whole.named_parameters()
        weights = {name: p for name, p in named if p.requires_grad and id(p) not in alphas}
        return cls(weights, dict(whole.named_buffers()))


def handed_call(whole: WithLoss) -> Callable[[dict[str, Tensor], Any], Tensor]:
    """Returns (tensors by name, batch) -> the loss of the module with these parameters and buffers.

    torch's functional call leaves the last of them in a submodule that is registered in several places; here such ones
    get their own back.

    Args:
        whole: Module and loss.
    """
    counts: dict[int, int] = {}
    for _, part in whole.named_modules(remove_duplicate=False):
        counts[id(part)] = counts.get(id(part), 0) + 1
    several = [part for part in whole.modules() if counts[id(part)] > 1]
    owned: list[tuple[Any, Any]] = [(held, dict(held)) for p in several for held in (p._parameters, p._buffers)]

    def call(tensors: dict[str, Tensor], batch: Any) -> Tensor:
        try:
            value: Tensor = functional_call(whole, tensors, (batch,))
            return value
        finally:
            for held, own in owned:
                held.update(own)

    return call


def softmax_mixtures(logits: Iterable[Tensor]) -> list[Mixture]:
    """Returns the softmax of the alphas of every decision, each (1, options)."""
    return [Mixture(torch.softmax(rows, -1)[0]) for rows in logits]


class DecisionSpace(NamedTuple):
    """The decisions as a mixing knows a search space: one cell, an edge for each; unused columns are -inf."""

    ragged: bool


def _mixed(mix: Mix, x: list[Tensor], batch: Any) -> list[Mixture]:
    """Returns the mixtures that a mixing gives for all decisions as the edges of one cell."""
    counts = [rows.shape[1] for rows in x]
    padded = torch.cat([pad(rows, (0, max(counts) - rows.shape[1]), value=-math.inf) for rows in x])
    space: Any = DecisionSpace(len(set(counts)) > 1)
    found = mix(space, [padded], batch)
    active = [None for _ in x] if found.active is None else [tuple(chosen) for chosen in found.active[0]]
    return [Mixture(row[:count], chosen) for row, count, chosen in zip(found.weights[0], counts, active)]


def module_problem(
    whole: WithLoss,
    places: Places,
    x: list[Tensor],
    *,
    beta: float = 0.0,
    precision: str = "float32",
    mix: Mix | None = None,
    scalarised: Callable[[Tensor, list[Tensor]], Tensor] | None = None,
    rebound: Collection[str] = (),
) -> Posed:
    """Returns the bilevel problem of a search for choices.

    Args:
        whole: Module and loss; its trainable parameters are y, its buffers follow f at y.
        places: Its Choices.
        x: Alphas of every decision, each (1, options).
        beta: Weight of the beta-DARTS term in F, reached linearly at the end of the search.
        precision: "float32" or "bfloat16" (autocast).
        mix: Computes the mixing weights from the alphas; None for their softmax.
        scalarised: Makes F of the loss and the alphas of every decision; None for the loss.
        rebound: Buffers of the module to which it assigns new tensors.
    """
    weights, own = ModuleTensors.of(whole)
    names, decisions = list(weights), list(places.by_name)
    numbers = {id(choice.alphas): i for i, same in enumerate(places.by_name.values()) for choice in same}
    alphas = {name: numbers[id(p)] for name, p in whole.named_parameters() if id(p) in numbers}
    replaced = [f"module.{name}" for name in rebound]
    device = x[0].device.type if x else next(iter(weights.values())).device.type
    call = handed_call(whole)

    def loss(x: list[Tensor], y: list[Tensor], batch: ModuleBatch, buffers: Buffers) -> tuple[Tensor, LossStats]:
        mixtures = softmax_mixtures(x) if mix is None else _mixed(mix, x, batch)
        # the loss may read the alphas too: a penalty of all parameters of the module, for one
        tensors = dict(zip(names, y)) | buffers | {name: x[i][0] for name, i in alphas.items()}
        for name in replaced:  # the graph may need their values of before
            tensors[name] = buffers[name].clone()
        with mixed_by(places, dict(zip(decisions, mixtures))), autocast(device, precision):
            value = call(tensors, batch.data)
        for name in replaced:
            buffers[name].copy_(tensors[name].detach())
        value = value if value.dtype == torch.float64 else value.float()
        return value, LossStats(value)

    def added(x: list[Tensor], batch: ModuleBatch) -> list[Tensor]:
        return [beta * batch.progress * beta_term(x)] if beta and x else []

    y = [p.detach().clone() for p in weights.values()]
    return pose(loss, x, y, own, added, scalarised, are_read=True)

"""The check that a module computes with the weights that it is handed, in the backward pass too.

A search evaluates the module by functional calls, at other weights than its own. What reads the module's own weights
all the same gives wrong gradients without an error: activation checkpointing, which runs parts of the module again in
the backward pass, when the call is over, or parameters that are kept in a plain list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nas_moreau.data.splitting import seeded
from nas_moreau.errors import InputError, first_line
from nas_moreau.modules.check import left_as_it_was
from nas_moreau.modules.choice import Mixture, Places, mixed_by
from nas_moreau.modules.problem import ModuleTensors, WithLoss, handed_call

CHANGE = 0.2
"""Relative size of a random change of the weights: what reads others shows."""
TOLERANCE = 1e-3
"""Relative difference of gradients that rounding explains; 0 on a CPU."""

Found = tuple[Tensor, list[Tensor]]
"""Loss and gradients."""


def check_handed_weights(whole: WithLoss, places: Places, batch: Any) -> None:
    """Compares loss and gradients at weights that are handed to the module with those where it holds the same weights.

    Args:
        whole: Module and loss, in training mode; it stays as it is.
        places: Its Choices.
        batch: A batch of the training data.

    Raises:
        InputError: They differ by more than two evaluations of the same do, or the backward pass fails.
    """
    named, call = ModuleTensors.of(whole).weights, handed_call(whole)
    draw = torch.Generator(device="cpu").manual_seed(0)
    changed = [_changed(weight.detach(), draw) for weight in named.values()]
    kept = [weight.detach().clone() for weight in named.values()]

    def own() -> Found:
        return whole(batch), list(named.values())

    def handed() -> Found:
        tensors = [tensor.clone().requires_grad_() for tensor in changed]
        mixtures = {
            name: Mixture(torch.softmax(choices[0].alphas.detach(), -1)) for name, choices in places.by_name.items()
        }
        with mixed_by(places, mixtures):
            return call(dict(zip(named, tensors)), batch), tensors

    try:
        by_hand = _gradients(whole, handed)
        with torch.no_grad():
            torch._foreach_copy_(list(named.values()), changed)
        first, second = _gradients(whole, own), _gradients(whole, own)
    except InputError:
        raise
    except Exception as error:
        raise _refusal(f"{type(error).__name__}: {first_line(error)}") from error
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(named.values()), kept)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (*first, *second)):
        return  # changed too far: nothing is known
    noise, difference = _difference(first, second), _difference(first, by_hand)
    if not difference <= TOLERANCE * (20 if first[0].element_size() < 4 else 1) + 10 * noise:
        raise _refusal(f"they differ by {100 * difference:.2g} %")


def _gradients(whole: WithLoss, evaluate: Any) -> list[Tensor]:
    """Returns the loss and the gradients, which are computed when the call is over."""
    with left_as_it_was(whole), seeded(0):
        value, weights = evaluate()
        found = torch.autograd.grad(value, weights, allow_unused=True)
    return [value.detach().reshape(1), *(tensor.flatten() for tensor in found if tensor is not None)]


def _changed(weight: Tensor, draw: torch.Generator) -> Tensor:
    size = weight.abs().mean() if weight.numel() else weight.sum()
    noise = torch.randn(weight.shape, generator=draw, device="cpu").to(weight.device, weight.dtype)
    return weight + CHANGE * size * noise


def _difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Returns the relative difference of two lists of tensors; infinite if their forms differ."""
    if [tensor.shape for tensor in a] != [tensor.shape for tensor in b]:
        return float("inf")
    one, other = (torch.cat([tensor.detach().float() for tensor in tensors]) for tensors in (a, b))
    return float((one - other).norm() / one.norm().clamp_min(1e-30))


def _refusal(reason: str) -> InputError:
    return InputError(
        "The module computes with other weights than those that it is handed: its gradients are not those of a module "
        f"that holds them ({reason}).",
        "Switch activation checkpointing off, and keep no parameters in plain lists or closures.",
    )

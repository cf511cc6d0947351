"""Problems that a method would answer wrongly: found out before the first step, refused with the cure."""

from __future__ import annotations

import torch

from nas_moreau.bilevel.method import Method
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Tensors, norm, random_like, subtract

PROBES = 4
"""Random points at which a prox is compared between two x."""


def refusal(problem: Bilevel, x: Tensors, y: Tensors, method: Method | None, minibatches: bool) -> str | None:
    """Returns why the problem cannot be solved as it is posed, and what to do; None if nothing is known against it."""
    if problem.coupled and (method is not None or minibatches):
        return (
            "The lower level's constraints change with x; their multipliers are lost in this method. "
            "Leave method and batches out: solve(problem, x, y) finds the multipliers."
        )
    if problem.g is not None and _hides_x(problem, x, y):
        return (
            "g.prox changes with x while grad_x g is 0: a constraint that moves with x, and its multiplier would be "
            "lost. Give it as Bilevel(constraint=h) with h(x, y) <= 0, or as project_y(x, y)."
        )
    return None


def _hides_x(problem: Bilevel, x: Tensors, y: Tensors) -> bool:
    """Whether g's prox answers to x though g's value does not, at random points near the start."""
    g = problem.g
    assert g is not None
    generator = torch.Generator(device="cpu").manual_seed(0)
    moved = False
    for _ in range(PROBES):
        elsewhere = problem.onto_x([t + drawn for t, drawn in zip(x, random_like(x, generator))])
        point = [t + drawn for t, drawn in zip(y, random_like(y, generator))]
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in elsewhere]
            value = g.value(leaves, point)
            if value.requires_grad:
                grads = torch.autograd.grad(value, leaves, allow_unused=True)
                if any(
                    grad is not None and bool(grad.abs().max() > 0) for grad in grads if grad is None or grad.numel()
                ):
                    return False
        with torch.no_grad():
            apart = float(norm(subtract(g.prox(elsewhere, point, 0.5), g.prox(x, point, 0.5))))
        moved = moved or apart > 1e-6 * (1 + float(norm(point)))
    return moved

"""Problems that a method would answer wrongly, arguments and constants out of range, found before the first step."""

from __future__ import annotations

import math
from typing import Any

import torch

from nas_moreau.bilevel.method import Method, State, StepSize
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Tensors, norm, random_like, subtract
from nas_moreau.bilevel.updates import Update

ORDERS = ("gauss-seidel", "jacobi", "lagged")
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


def check_arguments(steps: Any, tolerance: float, method: Any, watch: Any) -> None:
    """Raises TypeError or ValueError where an argument of `solve` is of another kind than it must be."""
    if not isinstance(steps, int):
        raise TypeError(f"steps is {steps!r}; give a whole number.")
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least one step is needed.")
    if math.isnan(tolerance):
        raise ValueError("tolerance is not a number; give one such as 1e-8.")
    if method is not None and not isinstance(method, Method):
        what = f"the function {method.__name__}, not called" if hasattr(method, "__name__") else repr(method)
        raise TypeError(f"method is {what}. Give what moreau() or another function of nas_moreau.bilevel returns.")
    if watch is not None and not callable(watch):
        raise TypeError(f"watch is {watch!r}; give a function of (k, x, y, info).")


def check_state(state: Any, method: Method, x: Tensors, y: Tensors) -> None:
    """Raises ValueError where a state cannot be one of this method on these x and y.

    Args:
        state: Given to `solve`.
        method: The method that would continue with it.
        x, y: Where it would continue.
    """
    like = {"x": x, "mean_d": x, "theta": y, "y": y, "v": y}
    for name, tensors in like.items():
        held = getattr(state, name, ())
        if held and [t.shape for t in held] != [t.shape for t in tensors]:
            raise ValueError("state belongs to an x and y of other shapes. Leave it out, or give the x and y it is of.")
    if isinstance(state, State) and (state.tuning is None) != (method.explain is None):
        raise ValueError("state belongs to another method, or to other constants. Give that method, or no state.")


def check_constants(
    constants: dict[str, StepSize | str], p: float, order: str, fewest: int, updates: dict[str, Update | None]
) -> None:
    """Raises ValueError where an argument of `moreau` is out of its range.

    Args:
        constants: alpha, beta, eta, gamma and c by name.
        p, order: As given.
        fewest: The smaller one of theta_steps and lower_steps.
        updates: The update rules by name.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; use one of {', '.join(ORDERS)}.")
    for name, constant in constants.items():
        if isinstance(constant, str):
            if constant != "auto":
                raise ValueError(f"{name} is {constant!r}; give a number, a function of k, or 'auto'.")
        elif not callable(constant) and not constant > 0:
            raise ValueError(f"{name} is {constant}; it must be positive.")
    if not 0 <= p < 0.5:
        raise ValueError(f"p is {p}; the theory needs 0 <= p < 1/2.")
    if fewest < 1:
        raise ValueError(f"theta_steps or lower_steps is {fewest}; at least one step of each is needed.")
    update_x = updates["update_x"]
    if update_x is not None and constants["alpha"] == "auto" and not update_x.finds_length:
        raise ValueError(
            "alpha is 'auto', but an update rule of x has its own scale. Give a number, or distance_over_gradients()."
        )
    for name, size in (("y", "beta"), ("theta", "eta")):
        rule = updates[f"update_{name}"]
        if rule is not None and rule.rescales and constants[size] == "auto":
            raise ValueError(f"{size} is 'auto', but the update rule of {name} has its own scale. Give a number.")

"""Arithmetic on lists of tensors, and gradients of objectives with respect to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.problem import Shared
from nas_moreau.bilevel.problem import Tensors as Tensors


class Evaluated(NamedTuple):
    """One evaluation: the value, its gradients (empty where they were not asked for), and what came beside the value.

    uses_x says whether the objective depends on any tensor of x (False where that was not asked for).
    """

    value: Tensor
    grad_x: Tensors
    grad_y: Tensors
    aux: Any
    uses_x: bool


def evaluate(objective: Any, x: Tensors, y: Tensors, batch: Any, wrt_x: bool, wrt_y: bool) -> Evaluated:
    """Returns an objective's value and the gradients that are asked for, and no others, all detached.

    A tensor that the objective does not use gets a zero gradient. Of a `Shared` objective it is the whole's.

    Raises:
        TypeError: The objective did not return a scalar tensor.
    """
    with torch.enable_grad():
        x = [t.detach().requires_grad_(wrt_x) for t in x]
        y = [t.detach().requires_grad_(wrt_y) for t in y]
        returned = objective(x, y, batch)
        value, aux = returned if isinstance(returned, tuple) else (returned, None)
        if not isinstance(value, Tensor) or value.ndim:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"An objective must return a scalar tensor, not {what}; take a sum or a mean.")
        inputs = [*(x if wrt_x else ()), *(y if wrt_y else ())]
        if inputs and value.requires_grad:
            grads: list[Tensor | None] = list(torch.autograd.grad(value, inputs, allow_unused=True))
        else:
            grads = [None for _ in inputs]
    filled = [torch.zeros_like(t) if grad is None else grad for t, grad in zip(inputs, grads)]
    count = len(x) if wrt_x else 0
    uses_x = any(grad is not None for grad in grads[:count])
    value, aux = value.detach(), detach(aux)
    if isinstance(objective, Shared):
        value, filled, aux = objective.reduce(value, filled, aux)
    return Evaluated(value, filled[:count], filled[count:], aux, uses_x)


class Pieces(NamedTuple):
    """F, f at y and f at theta, and the gradient of F/c + f(y) - f(theta) by x, y and theta; all detached."""

    values: tuple[Tensor, Tensor, Tensor]
    by_x: Tensors
    by_y: Tensors
    by_theta: Tensors


def evaluate_together(
    together: Any, x: Tensors, y: Tensors, theta: Tensors, upper_batch: Any, lower_batch: Any, c: float
) -> Pieces:
    """Returns what the lagged order needs of F and f, from one forward and one backward pass."""
    with torch.enable_grad():
        leaves = [[t.detach().requires_grad_() for t in part] for part in (x, y, theta)]
        F, f, f_theta = together(*leaves, upper_batch, lower_batch)
        inputs = [t for part in leaves for t in part]
        grads = torch.autograd.grad(F / c + f - f_theta, inputs, allow_unused=True)
    filled = [torch.zeros_like(t) if grad is None else grad for t, grad in zip(inputs, grads)]
    a, b = len(x), len(x) + len(y)
    values = (F.detach(), f.detach(), f_theta.detach())
    return Pieces(values, filled[:a], filled[a:b], filled[b:])


def scalar_of(returned: Any) -> Tensor:
    """Returns the value of an objective that may have returned (value, aux)."""
    return returned[0] if isinstance(returned, tuple) else returned


def grad_x_of_g(g: Any, x: Tensors, y: Tensors) -> Tensors:
    """Returns grad_x g(x, y)."""
    return evaluate(lambda x, y, batch: g.value(x, y), x, y, None, True, False).grad_x


def detach(value: Any) -> Any:
    """Returns `value` with every tensor in it (lists, tuples, dicts) detached."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: detach(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(detach, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(detach, value))
    return value


def add(a: Tensors, b: Tensors, factor: float = 1.0) -> Tensors:
    """Returns a + factor * b."""
    return list(torch._foreach_add(a, b, alpha=factor)) if a else []


def subtract(a: Tensors, b: Tensors) -> Tensors:
    """Returns a - b."""
    return list(torch._foreach_sub(a, b)) if a else []


def scale(a: Tensors, factor: float) -> Tensors:
    """Returns factor * a."""
    return list(torch._foreach_mul(a, factor)) if a else []


def dot(a: Tensors, b: Tensors) -> Tensor:
    """Returns the inner product of two lists, a 0-dim tensor."""
    if len(a) == 1:
        return torch.sum(a[0] * b[0])
    return torch.stack([torch.sum(s * t) for s, t in zip(a, b)]).sum()


def norm(a: Tensors) -> Tensor:
    """Returns the Euclidean norm of a list taken as one vector, a 0-dim tensor."""
    if len(a) == 1:
        return torch.linalg.vector_norm(a[0])
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(a)))


def random_like(a: Tensors, generator: torch.Generator) -> Tensors:
    """Returns standard normal numbers in the shapes of a list, drawn on the CPU: the same ones on every device."""
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu").to(t) for t in a]

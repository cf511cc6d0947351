"""Arithmetic on lists of tensors, and gradients of objectives with respect to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.problem import Sharded
from nas_moreau.bilevel.problem import Tensors as Tensors


class Evaluated(NamedTuple):
    """One evaluation of an objective; all tensors are detached.

    Attributes:
        value: The objective's value, a 0-dim tensor.
        grad_x, grad_y: Its gradients; empty where they were not requested.
        aux: What the objective returned in addition to its value.
        uses_x: Whether the value depends on any tensor of x; False where grad_x was not requested.
    """

    value: Tensor
    grad_x: Tensors
    grad_y: Tensors
    aux: Any
    uses_x: bool


def value_and_grads(objective: Any, x: Tensors, y: Tensors, batch: Any = None, wrt: str = "xy") -> Evaluated:
    """Returns an objective's value and its gradients with respect to x, y or both; no other gradient is computed.

    A tensor that the objective does not use gets a zero gradient. For a `Sharded` objective the result is that of the
    whole batch.

    Args:
        objective: (x, y, batch) -> scalar, or (scalar, aux).
        x, y: Where; they are detached first.
        batch: Passed on to the objective.
        wrt: "xy", "x", "y" or "".

    Raises:
        TypeError: The objective did not return a scalar tensor.

    Example:
        >>> import torch
        >>> found = value_and_grads(lambda x, y, batch: x[0] * y[0] ** 2, [torch.tensor(2.0)], [torch.tensor(3.0)])
        >>> found.value, found.grad_x, found.grad_y
        (tensor(18.), [tensor(9.)], [tensor(12.)])
    """
    wrt_x, wrt_y = "x" in wrt, "y" in wrt
    with torch.enable_grad():
        x = [t.detach().requires_grad_(wrt_x) for t in x]
        y = [t.detach().requires_grad_(wrt_y) for t in y]
        returned = objective(x, y, batch)
        found, aux = returned if isinstance(returned, tuple) else (returned, None)
        check_scalar(found)
        inputs = [*(x if wrt_x else ()), *(y if wrt_y else ())]
        if inputs and found.requires_grad:
            grads: list[Tensor | None] = list(torch.autograd.grad(found, inputs, allow_unused=True))
        else:
            grads = [None for _ in inputs]
    filled = [torch.zeros_like(t) if grad is None else grad for t, grad in zip(inputs, grads)]
    count = len(x) if wrt_x else 0
    uses_x = any(grad is not None for grad in grads[:count])
    found, aux = found.detach(), detach(aux)
    if isinstance(objective, Sharded):
        found, filled, aux = objective.reduce(found, filled, aux)
    return Evaluated(found, filled[:count], filled[count:], aux, uses_x)


def value(objective: Any, x: Tensors, y: Tensors, batch: Any = None) -> Tensor:
    """Returns the objective's value, a 0-dim tensor."""
    return value_and_grads(objective, x, y, batch, wrt="").value


def grad_x(objective: Any, x: Tensors, y: Tensors, batch: Any = None) -> Tensors:
    """Returns the objective's gradient with respect to x."""
    return value_and_grads(objective, x, y, batch, wrt="x").grad_x


def grad_y(objective: Any, x: Tensors, y: Tensors, batch: Any = None) -> Tensors:
    """Returns the objective's gradient with respect to y."""
    return value_and_grads(objective, x, y, batch, wrt="y").grad_y


class Pieces(NamedTuple):
    """F, f at y and f at theta, and the gradient of F/c + f(y) - f(theta) by x, y and theta; all detached."""

    values: tuple[Tensor, Tensor, Tensor]
    by_x: Tensors
    by_y: Tensors
    by_theta: Tensors


class AtX:
    """F(x, .) and f(x, .) after the work that depends on x alone, and their gradients.

    Args:
        at_x: Of a `Bilevel`.
        x: The point.
        upper_batch, lower_batch: Of F and f.
    """

    def __init__(self, at_x: Any, x: Tensors, upper_batch: Any, lower_batch: Any):
        with torch.enable_grad():
            self.x = [t.detach().requires_grad_() for t in x]
            self.F, self.f = at_x(self.x, upper_batch, lower_batch)

    def grad_f(self, y: Tensors) -> Tensors:
        """Returns grad_y f(x, y), without a backward pass through the work on x."""
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in y]
            return list(torch.autograd.grad(self.f(leaves), leaves))

    def grad_penalised(self, y: Tensors, c: float) -> Tensors:
        """Returns the gradient of F/c + f in y, without a backward pass through the work on x."""
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in y]
            return list(torch.autograd.grad(self.F(leaves) / c + self.f(leaves), leaves))

    def pieces(self, y: Tensors, theta: Tensors, c: float) -> Pieces:
        """Returns what the lagged order needs, from one backward pass; only once, since it frees the graph."""
        with torch.enable_grad():
            at_y, at_theta = ([t.detach().requires_grad_() for t in part] for part in (y, theta))
            F, f, f_theta = self.F(at_y), self.f(at_y), self.f(at_theta)
            inputs = [*self.x, *at_y, *at_theta]
            grads = torch.autograd.grad(F / c + f - f_theta, inputs, allow_unused=True)
        filled = [torch.zeros_like(t) if grad is None else grad for t, grad in zip(inputs, grads)]
        a, b = len(self.x), len(self.x) + len(y)
        values = (F.detach(), f.detach(), f_theta.detach())
        return Pieces(values, filled[:a], filled[a:b], filled[b:])


def check_scalar(value: Any) -> None:
    """Raises TypeError if the value of an objective is not a floating-point tensor without dimensions."""
    if isinstance(value, Tensor) and not value.ndim and value.is_floating_point():
        return
    if not isinstance(value, Tensor):
        what = f"{type(value).__name__}; do not convert it to a number"
    elif value.ndim:
        what = f"a tensor of shape {tuple(value.shape)}; take a sum or a mean"
    else:
        what = f"one of type {value.dtype}"
    raise TypeError(f"An objective must return a floating-point scalar tensor, not {what}.")


def scalar_of(returned: Any) -> Tensor:
    """Returns the value of an objective that may have returned (value, aux)."""
    return returned[0] if isinstance(returned, tuple) else returned


def grad_x_of_g(g: Any, x: Tensors, y: Tensors) -> Tensors:
    """Returns grad_x g(x, y)."""
    return grad_x(lambda x, y, batch: g.value(x, y), x, y)


def detach(given: Any) -> Any:
    """Returns `given` with every tensor in it (lists, tuples, dicts) detached."""
    if isinstance(given, Tensor):
        return given.detach()
    if isinstance(given, dict):
        return {key: detach(item) for key, item in given.items()}
    if isinstance(given, tuple) and hasattr(given, "_fields"):
        return type(given)(*map(detach, given))
    if isinstance(given, (list, tuple)):
        return type(given)(map(detach, given))
    return given


def add(a: Tensors, b: Tensors, factor: float | Tensor = 1.0) -> Tensors:
    """Returns a + factor * b; a factor that is a 0-dim tensor is not read back from the device."""
    if isinstance(factor, Tensor):
        b, factor = scale(b, factor), 1.0
    return list(torch._foreach_add(a, b, alpha=factor)) if a else []


def subtract(a: Tensors, b: Tensors) -> Tensors:
    """Returns a - b."""
    return list(torch._foreach_sub(a, b)) if a else []


def scale(a: Tensors, factor: float | Tensor) -> Tensors:
    """Returns factor * a; the factor may be a 0-dim tensor."""
    if isinstance(factor, Tensor) and a:
        factor = factor.to(a[0].dtype)  # of the same type all products are one kernel
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


def largest(a: Tensors) -> Tensor | None:
    """Returns the largest absolute value, NaN where there is one, as a 0-dim tensor; None for no numbers."""
    filled = [t for t in a if t.numel()]
    if len(filled) < 2:
        return torch.linalg.vector_norm(filled[0], float("inf")) if filled else None
    return torch.stack(torch._foreach_norm(filled, float("inf"))).max()


def random_like(a: Tensors, generator: torch.Generator) -> Tensors:
    """Returns standard normal numbers in the shapes of a list, drawn on the CPU: the same ones on every device."""
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu").to(t) for t in a]

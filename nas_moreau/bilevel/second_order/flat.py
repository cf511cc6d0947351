"""A bilevel problem on flat vectors, with gradients, products with second derivatives, and a count of evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nas_moreau.bilevel.method import NO_BATCHES, Batches
from nas_moreau.bilevel.problem import Bilevel, Tensors
from nas_moreau.bilevel.tensors import check_scalar, scalar_of

Function = Callable[..., Tensor]
OUTSIDE = (torch.linalg.LinAlgError, ArithmeticError, ValueError)  # type: ignore[attr-defined]
"""What an objective may raise outside its domain, such as a Cholesky factorisation of an indefinite matrix."""


class OutOfBudgetError(Exception):
    """The evaluations that a phase may use are spent."""


class FlatProblem:
    """F, f, g and the constraints of a problem as functions of two vectors u (for x) and w (for y).

    Args:
        problem: The problem.
        x, y: Tensors of the right shapes; a vector holds all entries of a list, in its order.
        batches: Passed to F and f.

    Attributes:
        dtype: Of u and w: double precision where the device has it, whatever the tensors' types.
        eps: The coarsest relative precision of the tensors and of the values of F and f.
        evaluations: Forward and backward passes so far; a product with a second derivative counts as one.
        limit: Number of evaluations at which `OutOfBudgetError` is raised.
        nonconvex: Whether negative curvature of f(x, .) was met.
        started: Whether F and f are known to be defined at the start; an objective that raises one of `OUTSIDE` after
            that is outside its domain there, and counts as NaN.
    """

    def __init__(self, problem: Bilevel, x: Tensors, y: Tensors, batches: Batches = NO_BATCHES):
        self.problem, self.like_x, self.like_y, self.batches = problem, x, y, batches
        self.dtype = widest(x[0].device)
        self.eps = max(torch.finfo(tensor.dtype).eps for tensor in [*x, *y])
        self.evaluations, self.limit, self.nonconvex, self.started = 0, math.inf, False, False

    @property
    def smooth(self) -> bool:
        """Whether the lower level has neither g, Y nor a constraint."""
        return not self.proximal and self.problem.constraint is None

    @property
    def proximal(self) -> bool:
        """Whether the lower level has a g or a set Y."""
        return self.problem.g is not None or self.problem.project_y is not None

    def start(self) -> tuple[Tensor, Tensor]:
        """Returns the tensors that the problem was made with, as vectors."""
        return self.flatten(self.like_x), self.flatten(self.like_y)

    def flatten(self, tensors: Tensors) -> Tensor:
        """Returns all entries of a list as one vector."""
        return torch.cat([tensor.detach().reshape(-1).to(self.dtype) for tensor in tensors])

    def lists(self, u: Tensor, w: Tensor) -> tuple[Tensors, Tensors]:
        """Returns the two lists of tensors."""
        return unflatten(u, self.like_x), unflatten(w, self.like_y)

    # --- the parts of the problem -----------------------------------------------------------------------------------

    def F(self, u: Tensor, w: Tensor) -> Tensor:
        """Returns F, differentiable."""
        return self._called(lambda x, y: self._scalar(self.problem.F(x, y, self.batches.upper)), u, w)

    def f(self, u: Tensor, w: Tensor) -> Tensor:
        """Returns f, differentiable."""
        return self._called(lambda x, y: self._scalar(self.problem.at_theta(x, y, self.batches.lower)), u, w)

    def g(self, u: Tensor, w: Tensor) -> Tensor:
        """Returns g, differentiable in u; 0 without g."""
        g = self.problem.g
        return w.new_zeros(()) if g is None else g.value(*self.lists(u, w)).to(self.dtype)

    def prox(self, u: Tensor, w: Tensor, step: float) -> Tensor:
        """Returns Prox of step * g(x, .) and the indicator of Y, differentiable where g's prox is."""
        return self._joined(self.problem.prox_y(*self.lists(u, w.clone()), step))  # it may work in place

    def h(self, u: Tensor, w: Tensor) -> Tensor:
        """Returns the constraints h(x, y) <= 0 as one vector, differentiable."""
        assert self.problem.constraint is not None
        found = self.problem.constraint(*self.lists(u, w))
        entries = list(found) if isinstance(found, (list, tuple)) else [found]
        if not entries or not all(isinstance(entry, Tensor) for entry in entries):
            raise TypeError("constraint must return a tensor or a list of tensors, each entry of them to be <= 0.")
        return self._joined(entries)

    def onto_x(self, u: Tensor) -> Tensor:
        """Returns the projection onto X."""
        if self.problem.project_x is None:
            return u
        return self.flatten(self.problem.onto_x(unflatten(u.clone(), self.like_x)))

    def _called(self, function: Callable[[Tensors, Tensors], Tensor], u: Tensor, w: Tensor) -> Tensor:
        """Returns a function's value, NaN outside its domain."""
        try:
            return function(*self.lists(u, w))
        except OUTSIDE:
            if not self.started:
                raise
            return math.nan * (u.sum() + w.sum())

    def _joined(self, tensors: Tensors) -> Tensor:
        return torch.cat([tensor.reshape(-1).to(self.dtype) for tensor in tensors])

    def _scalar(self, returned: Any) -> Tensor:
        value = scalar_of(returned)
        check_scalar(value)
        if value.dtype != self.dtype:
            self.eps = max(self.eps, torch.finfo(value.dtype).eps)
            value = value.to(self.dtype)
        return value

    # --- evaluations ------------------------------------------------------------------------------------------------

    def count(self, number: int) -> None:
        """Adds to the evaluations.

        Raises:
            OutOfBudgetError: They exceed `limit`.
        """
        self.evaluations += number
        if self.evaluations > self.limit:
            raise OutOfBudgetError

    def gradients(self, function: Function, *at: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        """Returns the value of a function as a number, and its gradients by all arguments, detached."""
        self.count(1)
        with torch.enable_grad():
            leaves = tuple(part.detach().requires_grad_() for part in at)
            value = function(*leaves)
            if not value.requires_grad:
                return float(value), tuple(torch.zeros_like(part) for part in leaves)
            found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        return float(value.detach()), found

    def gradient_with_graph(self, function: Function, *at: Tensor, wrt: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the gradient of a function by one argument, differentiable, and the leaves that stand for `at`."""
        self.count(1)
        with torch.enable_grad():
            leaves = tuple(part.detach().requires_grad_() for part in at)
            value = function(*leaves)
            if not value.requires_grad:
                return torch.zeros_like(leaves[wrt]), leaves
            (found,) = torch.autograd.grad(
                value, leaves[wrt], create_graph=True, allow_unused=True, materialize_grads=True
            )
        return found, leaves

    def value(self, function: Function, *at: Tensor) -> float:
        """Returns the value of a function as a number, infinite where it is not a number."""
        self.count(1)
        with torch.no_grad():
            found = float(function(*at))
        return found if math.isfinite(found) else math.inf

    def finite_at(self, u: Tensor, w: Tensor) -> bool:
        """Whether F, f, their gradients and h are finite at the start; raises what the functions raise."""
        inside = self.problem.constraint is None or bool(torch.isfinite(self.h(u, w)).all())
        numbers = [inside]
        for function in (self.F, self.f):
            value, gradients = self.gradients(function, u, w)
            numbers += [math.isfinite(value), *(bool(torch.isfinite(gradient).all()) for gradient in gradients)]
        self.started = True
        return all(numbers)

    def values(self, u: Tensor, w: Tensor) -> list[float]:
        """Returns F and f at a point."""
        return [self.value(function, u, w) for function in (self.F, self.f)]

    def alike(self, before: list[float], after: list[float]) -> bool:
        """Whether values at one point are the same but for rounding errors."""
        return all(abs(a - b) <= 1e3 * self.eps * abs(a) for a, b in zip(before, after))

    def jacobian(self, vector: Tensor, leaf: Tensor) -> Tensor:
        """Returns the matrix of derivatives of a vector by a leaf, (len(vector), len(leaf))."""
        if not vector.requires_grad or not len(vector):
            return vector.detach().new_zeros(len(vector), len(leaf))
        unit = torch.eye(len(vector), dtype=vector.dtype, device=vector.device)
        try:
            (rows,) = torch.autograd.grad(
                vector, leaf, unit, retain_graph=True, is_grads_batched=True, allow_unused=True, materialize_grads=True
            )
        except RuntimeError:  # an operation that has no batching rule
            rows = torch.stack([self.product(vector, leaf, row) for row in unit])
        else:
            self.count(len(vector))
        if rows.shape != (len(vector), len(leaf)):  # the vector does not depend on the leaf
            return vector.detach().new_zeros(len(vector), len(leaf))
        return rows.detach()

    def product(self, vector: Tensor, leaf: Tensor, v: Tensor) -> Tensor:
        """Returns v' (derivative of a vector by a leaf), one backward pass."""
        self.count(1)
        if not vector.requires_grad:
            return torch.zeros_like(leaf)
        (found,) = torch.autograd.grad(vector, leaf, v, retain_graph=True, allow_unused=True, materialize_grads=True)
        return found.detach()


def unflatten(vector: Tensor, like: Tensors) -> Tensors:
    """Returns the list of tensors whose entries a vector holds, in the types of `like`."""
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, like)]


def widest(device: torch.device) -> torch.dtype:
    """Returns the most precise floating-point type of a device."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def drawn_like(vector: Tensor, generator: torch.Generator) -> Tensor:
    """Returns standard normal numbers, drawn on the CPU: the same ones on every device."""
    return torch.randn(vector.shape, generator=generator, dtype=torch.float64, device="cpu").to(vector)


def seeded(seed: int) -> torch.Generator:
    """Returns a generator on the CPU."""
    return torch.Generator(device="cpu").manual_seed(seed)

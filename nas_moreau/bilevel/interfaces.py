"""Ways to state a problem: a differentiable argmin, a module as y, several upper objectives; a progress line."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import torch
from torch import Tensor

from nas_moreau.bilevel.problem import Bilevel, Objective
from nas_moreau.bilevel.second_order.flat import FlatProblem
from nas_moreau.bilevel.second_order.implicit import solve_lower
from nas_moreau.bilevel.second_order.lower import Adjoint
from nas_moreau.bilevel.structures import Structure, on_lists
from nas_moreau.bilevel.tensors import Tensors, scalar_of

ACCURATE = 1e-6
"""Largest lower residual of a minimiser that is handed out."""


def argmin(f: Callable[..., Tensor], y0: Any, **parts: Any) -> Callable[[Any], Any]:
    """Returns x -> the minimiser of f(x, .) near y0, differentiable in x by the implicit function theorem.

    Its backward pass costs one linear solve with f_yy and one product with f_xy; it cannot be differentiated again,
    which raises RuntimeError.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> y = argmin(lambda x, y: (y.exp() - x * y).sum(), torch.zeros(2, dtype=torch.float64))(x)   # y = log x
        >>> y.sum().backward()
        >>> x.grad
        tensor([1.0000, 0.5000], dtype=torch.float64)

    Args:
        f: (x, y) -> scalar; x and y have the forms that they are given in: a tensor, or a list or dict of tensors.
        y0: Where the search starts; it chooses the basin.
        **parts: `g`, `project_y` or `constraint` of `Bilevel`, for a lower level that is not smooth; the constraint
            gets x and y in the forms of f, g and the projection get lists of tensors.

    Returns:
        A function that raises ArithmeticError where no isolated minimiser is found, in its backward pass where autograd
        has no derivative of the prox or projection.
    """
    single_y = isinstance(y0, Tensor)
    begin = [y0] if single_y else y0

    def minimiser(x: Any) -> Any:
        single_x = isinstance(x, Tensor)
        form_x, form_y = Structure("x", [x] if single_x else x), Structure("y", begin)

        def in_form(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda a, b, *batch: function(a[0] if single_x else a, b[0] if single_y else b)

        given_parts = dict(parts)
        if given_parts.get("constraint") is not None:
            given_parts["constraint"] = in_form(given_parts["constraint"])
        problem = on_lists(Bilevel(F=in_form(f), f=in_form(f), **given_parts), form_x, form_y)
        given = [x] if single_x else form_x.listed(x)
        found = list(_Argmin.apply(problem, form_y.tensors, *given))
        return found[0] if single_y else form_y.arrange(found)

    return minimiser


class _Argmin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Bilevel, y0: Tensors, *x: Tensor) -> tuple[Tensor, ...]:
        flat = FlatProblem(problem, [t.detach() for t in x], y0)
        u, w = flat.start()
        with torch.enable_grad():
            lower = solve_lower(flat, u, w)
        residual = lower.error
        if not residual <= ACCURATE or not (lower.definite or math.isnan(lower.curvature)):
            raise ArithmeticError(
                f"No isolated minimiser was found from y0 (residual {residual:.1e}, smallest curvature "
                f"{lower.curvature:.1e} of the largest). Start elsewhere, or add curvature to f."
            )
        ctx.adjoint, ctx.flat = lower.adjoint, flat
        ctx.save_for_backward(*x)
        return tuple(flat.lists(u, lower.w.detach())[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        flat: FlatProblem = ctx.flat
        adjoint: Adjoint = ctx.adjoint
        with torch.no_grad():
            correction = adjoint(flat.flatten(list(grads)))
        if not torch.isfinite(correction).all():
            raise ArithmeticError(
                "The minimiser has no derivative known to autograd: write the prox or projection in torch operations."
            )
        corrections, _ = flat.lists(correction, flat.start()[1])
        if torch.is_grad_enabled():  # of a gradient that is to be differentiated again
            corrections = list(_Once.apply(*corrections, *ctx.saved_tensors))
        return None, None, *corrections


class _Once(torch.autograd.Function):
    """Gradients that depend on x in a way which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, *gradients_and_x: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.clone() for t in gradients_and_x[: len(gradients_and_x) // 2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError("A minimiser of argmin can be differentiated once only.")


def from_module(module: torch.nn.Module) -> tuple[dict[str, Tensor], Callable[..., Any]]:
    """Returns a module's parameters as a y for `solve`, and a call of the module with other parameters.

    Example:
        >>> import torch
        >>> y, call = from_module(torch.nn.Linear(2, 1))
        >>> sorted(y), call(y, torch.zeros(3, 2)).shape
        (['bias', 'weight'], torch.Size([3, 1]))

    Args:
        module: Its buffers are used as they are; a module that changes them (BatchNorm in training) is not a
            function of its parameters.

    Returns:
        A dict of detached copies, and (y, *args, **kwargs) -> the module's output.
    """

    def call(y: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(module, y, args, kwargs)

    return {name: p.detach().clone() for name, p in module.named_parameters()}, call


def stacked(problem: Bilevel, data: Any = None) -> Bilevel:
    """Returns many problems of one form as one problem: every tensor of x and y gets a first dimension over problems.

    F, f and the constraint are mapped by `torch.func.vmap`, F and f are summed, so that the solutions are those of the
    single problems; one status and one certificate stand for all.

    Example:
        >>> import torch
        >>> from nas_moreau.bilevel import Bilevel, solve, stacked
        >>> one = Bilevel(  # x = y = target / 2
        ...     F=lambda x, y, target: 0.5 * (y[0] - target) ** 2 + 0.5 * x[0] ** 2,
        ...     f=lambda x, y, target: 0.5 * (y[0] - x[0]) ** 2,
        ... )
        >>> targets = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
        >>> start = [torch.zeros(3, dtype=torch.float64)]
        >>> solve(stacked(one, targets), start, start).x[0].round(decimals=6)
        tensor([0.5000, 1.0000, 2.0000], dtype=torch.float64)

    Args:
        problem: A single problem, without g and projections.
        data: What every problem gets as its batch: a tensor, or lists and dicts of tensors, with the same first
            dimension; None for the batch that `solve` passes, whole.

    Raises:
        ValueError: The problem has a g, a projection or `at_x`.
    """
    if any(part is not None for part in (problem.g, problem.project_x, problem.project_y, problem.at_x)):
        raise ValueError("Only problems without g, projections and at_x can be stacked. Use a constraint, or a loop.")

    def summed(objective: Objective | None) -> Any:
        if objective is None:
            return None
        single = objective
        dims = (0, 0, None if data is None else 0)
        each = torch.func.vmap(lambda x, y, batch: scalar_of(single(x, y, batch)), in_dims=dims)
        return lambda x, y, batch: each(x, y, batch if data is None else data).sum()

    constraint = problem.constraint and torch.func.vmap(problem.constraint)
    return Bilevel(summed(problem.F), summed(problem.f), f_theta=summed(problem.f_theta), constraint=constraint)


def tchebycheff(
    objectives: Sequence[Objective],
    weights: Sequence[float] | None = None,
    mu: float = 10.0,
    ideal: Sequence[float] | None = None,
) -> Objective:
    """Returns one upper objective of several: (1/mu) log sum_i exp( mu w_i (F_i - z_i) ), a smooth maximum.

    The smooth Tchebycheff scalarisation (Lin et al., ICML 2024), used for several upper objectives by MOMEHA (arXiv
    2608.12704). Different weights lead to different Pareto-optimal points, also where the front is not convex.

    Args:
        objectives: F_i, each (x, y, batch) -> scalar, or (scalar, aux).
        weights: w_i > 0; default 1 / number of objectives.
        mu: Sharpness; the maximum itself for mu to infinity, at most log(number) / mu below it.
        ideal: z_i, the least value of each objective; default 0.

    Raises:
        ValueError: The numbers of objectives, weights and ideals differ, or one of the constants is not positive.
    """
    count = len(objectives)
    if not count:
        raise ValueError("There are no objectives.")
    weights = [1 / count] * count if weights is None else weights
    ideal = [0.0] * count if ideal is None else ideal
    if not count == len(weights) == len(ideal):
        raise ValueError(f"There are {count} objectives, {len(weights)} weights and {len(ideal)} ideal values.")
    if not mu > 0 or not all(w > 0 for w in weights):
        raise ValueError("mu and the weights must be positive.")

    def F(x: Any, y: Any, batch: Any) -> Tensor:
        terms = [w * (scalar_of(part(x, y, batch)) - z) for part, w, z in zip(objectives, weights, ideal)]
        return torch.logsumexp(mu * torch.stack(terms), 0) / mu

    return F


def show_progress(steps: int | None = None, stream: TextIO | None = None, every: float = 0.5) -> Callable[..., None]:
    """Returns a `watch` for `solve` that writes one line: steps, F where it is known, seconds.

    Args:
        steps: Number of steps, shown beside the present one.
        stream: Where to write; default standard error.
        every: Seconds between two updates.
    """
    out, begun = sys.stderr if stream is None else stream, time.monotonic()
    latest = [begun - every]

    def watch(k: int, x: Any, y: Any, info: Any) -> None:
        now = time.monotonic()
        if now - latest[0] < every and k + 1 != steps:
            return
        latest[0] = now
        total = "" if steps is None else f"/{steps}"
        value = "" if info is None or info.F is None else f"  F {float(info.F):.6g}"
        print(f"\rstep {k + 1}{total}{value}  {now - begun:.1f} s", end="", file=out, flush=True)

    return watch

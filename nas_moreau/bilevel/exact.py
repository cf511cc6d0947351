"""The hypergradient of a small smooth problem, exactly.

    dF(x, y*(x))/dx = F_x - f_xy f_yy^-1 F_y    at y* = argmin f(x, .)

It is computed in three independent ways; `penalised_minimum` finds the point at which the direction of Moreau's method
approaches it. These are oracles, for a few thousand unknowns at most (Hessians are dense). Methods that follow the
hypergradient are in `rivals/hypergradient.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel import tensors
from nas_moreau.bilevel.problem import Bilevel, Objective
from nas_moreau.bilevel.stationarity import lower_solution
from nas_moreau.bilevel.tensors import Tensors, add, grad_x, grad_y, scalar_of, subtract, value_and_grads

TRIES = 30
"""Maximum number of Newton steps; quadratic convergence needs far fewer, so more would not help."""
NEAR = (1e-3, 1e-5, 1e-7)
"""|f_y| at which Newton's method takes over from gradient steps; the next one if it did not reach a minimum."""


class Exact(NamedTuple):
    """The hypergradient at x, with the quantities it was computed from.

    Attributes:
        d_x: The hypergradient.
        y: The lower level's minimiser.
        residual: |f_y| there.
        lowest, highest: The smallest and the largest eigenvalue of f_yy there.
        v: f_yy^-1 F_y.
        f_yy: The Hessian there, (n, n).
    """

    d_x: Tensors
    y: Tensors
    residual: float
    lowest: float
    highest: float
    v: Tensors
    f_yy: Tensor


class Penalised(NamedTuple):
    """A stationary point of F/c + f - v_gamma(x, .) in y with theta the prox of y.

    Attributes:
        y, theta: The point.
        residual: Of both equations, relative to |F_y|/c.
        is_minimum: Whether the point is a minimum in y.
    """

    y: Tensors
    theta: Tensors
    residual: float
    is_minimum: bool


def exact_hypergradient(
    problem: Bilevel, x: Tensors, y: Tensors, upper_batch: Any = None, lower_batch: Any = None, tolerance: float = 1e-10
) -> Exact:
    """Returns the hypergradient by the implicit function theorem, the linear system solved by factorisation.

    Args:
        problem: Smooth, its lower level without constraints and with a positive definite Hessian at the minimiser.
        x: The point.
        y: Start of the search for the lower minimiser.
        upper_batch: On which F is evaluated.
        lower_batch: On which f is evaluated.
        tolerance: Bound on |f_y|; float64 is needed to reach the default.

    Raises:
        ValueError: The problem has g or project_y; the minimiser was not reached; f_yy is not positive definite there.

    Example:
        >>> import torch
        >>> from nas_moreau.bilevel import Bilevel, exact_hypergradient
        >>> problem = Bilevel(
        ...     F=lambda x, y, batch: 0.5 * (x[0] - 1) ** 2 + 0.5 * y[0] ** 2,
        ...     f=lambda x, y, batch: y[0] ** 2 - x[0] * y[0],
        ... )
        >>> at = [torch.tensor(2.0, dtype=torch.float64)]
        >>> found = exact_hypergradient(problem, at, at)
        >>> round(float(found.y[0]), 9), round(float(found.d_x[0]), 9)  # y* = x/2, dF/dx = x - 1 + x/4
        (1.0, 1.5)
    """
    y, residual, curvature = lower_minimum(problem, x, y, lower_batch, tolerance)
    eigenvalues = torch.linalg.eigvalsh(curvature)
    lowest, highest = float(eigenvalues[0]), float(eigenvalues[-1])
    if not lowest > 0:
        raise ValueError(
            f"The Hessian of f has the eigenvalue {lowest:.1e} where f_y vanishes, so the lower solution is not "
            "a function of x there. Add a ridge to f, or start from another y."
        )
    upper = value_and_grads(problem.F, x, y, upper_batch)
    v = shaped(torch.linalg.solve(curvature, flat(upper.grad_y)), y)
    d_x = subtract(upper.grad_x, _second(problem.f, x, y, lower_batch, v)[0])
    return Exact(d_x, y, residual, lowest, highest, v, curvature)


def unrolled_hypergradient(
    problem: Bilevel, x: Tensors, exact: Exact, upper_batch: Any = None, lower_batch: Any = None, error: float = 1e-9
) -> tuple[Tensors, int]:
    """Returns (the hypergradient by reverse mode through the lower iterations, the number of iterations).

        y_{t+1} = y_t - b f_y(x, y_t) + m (y_t - y_{t-1})        Polyak's momentum, from y*

    with the best constants for the known eigenvalues, and as many steps as a truncation error of about `error` needs.
    Only the iterates are kept; the graph of every step is computed again in the backward pass. No linear system is
    solved.

    Args:
        problem: As for `exact_hypergradient`.
        x: The point.
        exact: What `exact_hypergradient` returned there: its y and its eigenvalues are used.
        upper_batch: On which F is evaluated.
        lower_batch: On which f is evaluated.
        error: Relative error of the truncation.
    """
    low, high = math.sqrt(exact.lowest), math.sqrt(exact.highest)
    b, m = 4 / (low + high) ** 2, ((high - low) / (high + low)) ** 2
    steps = 10 if m == 0 else 10 + math.ceil(1.25 * math.log(error) / (0.5 * math.log(m)))  # 1.25: t m^(t/2) is slower
    path, previous = [exact.y], exact.y
    for _ in range(steps):
        gradient = grad_y(problem.f, x, path[-1], lower_batch)
        ahead = add(add(path[-1], gradient, -b), subtract(path[-1], previous), m)
        previous = path[-1]
        path.append(ahead)
    upper = value_and_grads(problem.F, x, path[-1], upper_batch)
    d_x, adjoint = upper.grad_x, upper.grad_y  # adjoint: of y_t
    earlier = [torch.zeros_like(t) for t in adjoint]  # what y_{t-1} has from the step t -> t+1 already
    for point in reversed(path[:-1]):
        in_x, in_y = _second(problem.f, x, point, lower_batch, adjoint)
        d_x = add(d_x, in_x, -b)
        through = add(add(adjoint, adjoint, m), in_y, -b)
        adjoint, earlier = add(through, earlier), [-m * t for t in adjoint]
    return d_x, steps


def value_differences(
    problem: Bilevel, x: Tensors, exact: Exact, upper_batch: Any = None, lower_batch: Any = None, width: float = 1e-3
) -> Tensors:
    """Returns the hypergradient as central differences of F(x, y*(x)), the lower level solved again at every x.

    Four values for every coordinate of x (error of order width^4). It uses no derivative of the upper level and no
    mixed one.

    Args:
        problem: As for `exact_hypergradient`.
        x: The point.
        exact: What `exact_hypergradient` returned there; its y is the start.
        upper_batch: On which F is evaluated.
        lower_batch: On which f is evaluated.
        width: Width of the differences.
    """
    factor = torch.linalg.lu_factor(exact.f_yy)
    position = flat(x)

    def value(place: int, shift: float) -> float:
        moved = position.clone()
        moved[place] += shift
        at = shaped(moved, x)
        y, _ = _newton(problem, at, exact.y, lower_batch, 1e-12, factor)
        return float(tensors.value(problem.F, at, y, upper_batch))

    slopes = [
        (8 * (value(i, width) - value(i, -width)) - (value(i, 2 * width) - value(i, -2 * width))) / (12 * width)
        for i in range(position.numel())
    ]
    return shaped(position.new_tensor(slopes), x)


def penalised_minimum(
    problem: Bilevel,
    x: Tensors,
    exact: Exact,
    c: float,
    gamma: float,
    batches: tuple[Any, Any] = (None, None),
    start: tuple[Tensors, Tensors] | None = None,
    tolerance: float = 1e-9,
) -> Penalised:
    """Returns the y that minimises F/c + f - v_gamma(x, .) at fixed x near a start, and its exact prox theta.

        F_y(y)/c + f_y(y) - (y - theta)/gamma = 0,    f_y(theta) + (theta - y)/gamma = 0

    by Newton's method on both equations at once. It is a minimum if the Hessian without theta is positive definite.

    Args:
        problem: Smooth, the lower level without constraints.
        x: Fixed.
        exact: What `exact_hypergradient` returned there.
        c: The penalty.
        gamma: Parameter of the envelope.
        batches: On which F and f are evaluated.
        start: y and theta; default their first-order values around exact.y.
        tolerance: Bound on the equations, relative to |F_y|/c at exact.y.
    """
    (upper_batch, lower_batch), like, count = batches, exact.y, exact.f_yy.shape[0]
    unit = torch.eye(count, dtype=exact.f_yy.dtype, device=exact.f_yy.device) / gamma
    scale = float(flat(grad_y(problem.F, x, like, upper_batch)).norm()) / c

    def equations(z: Tensor) -> Tensor:
        at_y, at_theta = shaped(z[:count], like), shaped(z[count:], like)
        F_y = flat(grad_y(problem.F, x, at_y, upper_batch))
        f_y = flat(grad_y(problem.f, x, at_y, lower_batch))
        f_theta = flat(grad_y(problem.f, x, at_theta, lower_batch))
        apart = (z[:count] - z[count:]) / gamma
        return torch.cat([F_y / c + f_y - apart, f_theta - apart])

    def blocks(F_yy: Tensor, of_y: Tensor, of_theta: Tensor) -> Tensor:
        left = torch.cat([F_yy / c + of_y - unit, unit], 1)
        return torch.cat([left, torch.cat([-unit, of_theta + unit], 1)])

    def jacobian(z: Tensor) -> Tensor:
        at_y, at_theta = shaped(z[:count], like), shaped(z[count:], like)
        return blocks(
            hessian(problem.F, x, at_y, upper_batch),
            hessian(problem.f, x, at_y, lower_batch),
            hessian(problem.f, x, at_theta, lower_batch),
        )

    if start is None:
        v = flat(exact.v)
        theta = flat(like) - torch.linalg.solve(exact.f_yy, v) / (c * gamma)
        z = torch.cat([theta - v / c, theta])
    else:
        z = torch.cat([flat(part) for part in start])
    nearby = blocks(hessian(problem.F, x, like, upper_batch), exact.f_yy, exact.f_yy)
    z, size = _root(equations, jacobian, z, tolerance * scale, torch.linalg.lu_factor(nearby))
    found = jacobian(z)
    of_theta = found[count:, count:]
    reduced = found[:count, :count] + torch.linalg.inv(of_theta) / gamma**2
    definite = all(float(torch.linalg.eigvalsh(part + part.mT)[0]) > 0 for part in (of_theta, reduced))
    return Penalised(shaped(z[:count], like), shaped(z[count:], like), size / scale if scale else size, definite)


def moreau_direction(
    problem: Bilevel, x: Tensors, y: Tensors, theta: Tensors, c: float, upper_batch: Any = None, lower_batch: Any = None
) -> Tensors:
    """Returns c d_x of (10), F_x + c (f_x(y) - f_x(theta)), in the hypergradient's units."""
    upper = grad_x(problem.F, x, y, upper_batch)
    here = grad_x(problem.f, x, y, lower_batch)
    there = grad_x(problem.f, x, theta, lower_batch)
    return add(upper, subtract(here, there), c)


def lower_minimum(
    problem: Bilevel, x: Tensors, y: Tensors, batch: Any = None, tolerance: float = 1e-10
) -> tuple[Tensors, float, Tensor]:
    """Returns (a minimiser of f(x, .), |f_y| there, f_yy there).

    Gradient steps from y, then Newton's method with dense Hessians; if that does not reach a minimum, more gradient
    steps first.

    Raises:
        ValueError: The problem has g or project_y, or the tolerance was not reached.
    """
    if problem.g is not None or problem.project_y is not None:
        raise ValueError(
            "An exact hypergradient needs a smooth lower level without constraints, and the problem has g or "
            "project_y. Leave them out."
        )
    for near in NEAR:
        y = lower_solution(problem, x, y, batch, tolerance=max(tolerance, near), steps=2000).point
        found, residual = _newton(problem, x, y, batch, tolerance, None)
        curvature = hessian(problem.f, x, found, batch)
        if residual <= tolerance and int(torch.linalg.cholesky_ex(curvature)[1]) == 0:
            break
    if not residual <= tolerance:
        raise ValueError(
            f"The lower level was not solved: |f_y| is {residual:.1e} and should be {tolerance:.0e}. "
            "Give f a ridge and float64."
        )
    return found, residual, curvature


def hessian(objective: Objective, x: Tensors, y: Tensors, batch: Any = None) -> Tensor:
    """Returns the second derivative of an objective in y, (n, n) for y of n numbers in all, dense and symmetric."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in y]
        gradient = flat(_graph_of(objective, [t.detach() for t in x], leaves, batch))
        if not gradient.requires_grad:  # the objective is linear in y
            return torch.zeros((gradient.numel(),) * 2, dtype=gradient.dtype, device=gradient.device)
        unit = torch.eye(gradient.numel(), dtype=gradient.dtype, device=gradient.device)
        rows = torch.autograd.grad(gradient, leaves, unit, is_grads_batched=True, allow_unused=True)
    count = unit.shape[0]
    parts = [unit.new_zeros(count, t.numel()) if r is None else r.reshape(count, -1) for r, t in zip(rows, y)]
    full = torch.cat(parts, 1)
    return 0.5 * (full + full.mT)


def flat(tensors: Tensors) -> Tensor:
    """Returns a list of tensors as one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def shaped(vector: Tensor, like: Tensors) -> Tensors:
    """Returns a vector as a list of tensors of the shapes of another list."""
    return [part.reshape(t.shape) for part, t in zip(vector.split([t.numel() for t in like]), like)]


def _graph_of(objective: Objective, x: Tensors, y: Tensors, batch: Any) -> Tensors:
    """Returns the gradient in y with its graph."""
    value = scalar_of(objective(x, y, batch))
    return list(torch.autograd.grad(value, y, create_graph=True, allow_unused=True, materialize_grads=True))


def _second(objective: Objective, x: Tensors, y: Tensors, batch: Any, v: Tensors) -> tuple[Tensors, Tensors]:
    """Returns (f_xy v, f_yy v)."""
    with torch.enable_grad():
        leaves_x, leaves_y = ([t.detach().requires_grad_() for t in part] for part in (x, y))
        slope = (flat(_graph_of(objective, leaves_x, leaves_y, batch)) * flat(v)).sum()
        parts = torch.autograd.grad(slope, [*leaves_x, *leaves_y], allow_unused=True, materialize_grads=True)
    return list(parts[: len(x)]), list(parts[len(x) :])


def _newton(
    problem: Bilevel, x: Tensors, y: Tensors, batch: Any, tolerance: float, factor: Any
) -> tuple[Tensors, float]:
    """Returns (a root of f_y(x, .), |f_y| there); `factor` may be that of a Hessian from nearby."""
    root, size = _root(
        lambda z: flat(grad_y(problem.f, x, shaped(z, y), batch)),
        lambda z: hessian(problem.f, x, shaped(z, y), batch),
        flat(y),
        tolerance,
        factor,
    )
    return shaped(root, y), size


def _root(
    equations: Callable[[Tensor], Tensor],
    jacobian: Callable[[Tensor], Tensor],
    z: Tensor,
    tolerance: float,
    factor: Any = None,
) -> tuple[Tensor, float]:
    """Returns (z, |equations(z)|) after Newton's method.

    A factorisation serves for as long as each step divides the residual by five; then a new one is made. Steps with a
    fresh one are halved until the residual falls.
    """
    fresh = False
    value = equations(z)
    size = float(value.norm())
    for _ in range(TRIES):
        if size <= tolerance or not math.isfinite(size):
            break
        if factor is None:
            *factor, singular = torch.linalg.lu_factor_ex(jacobian(z))
            if bool(singular):
                break
            fresh = True
        step, length = torch.linalg.lu_solve(*factor, value[:, None])[:, 0], 1.0
        new = equations(z - step)
        while fresh and length > 1e-3 and not float(new.norm()) < (1 - 0.1 * length) * size:
            length /= 2
            new = equations(z - length * step)
        reached = float(new.norm())
        if reached < size:
            z, value = z - length * step, new
        elif fresh:
            break  # rounding, or no root near
        if not reached < 0.2 * size:
            factor, fresh = None, False
        else:
            fresh = False
        size = min(size, reached)
    return z, size

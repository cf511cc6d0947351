"""An adapter for the public benchmark `benchmark_bilevel` (benchopt): runs this package's solver on its problems.

    cp scripts/benchopt_solver.py benchmark_bilevel/solvers/nas_moreau.py
    benchopt run benchmark_bilevel -d simulated -s "nas_moreau" -s saba -s f2sa

The benchmark's objectives are JAX functions f(inner, outer, start, batch_size). They become torch functions here whose
gradients, and products with second derivatives, are JAX's. The solver gets the whole of the samples in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel import Bilevel, solve

try:
    import jax
    import numpy
    from benchmark_utils import constants
    from benchopt import BaseSolver
    from benchopt.stopping_criterion import SufficientProgressCriterion
except ImportError:  # outside the benchmark: the bridge alone
    BaseSolver, constants = object, None


class Oracle(NamedTuple):
    """A smooth function of (inner, outer) in another array library; everything is passed as torch tensors.

    Attributes:
        value: (inner, outer) -> scalar.
        gradient: (inner, outer) -> the two gradients.
        product: (inner, outer, v, w) -> the second derivative times (v, w), in two parts.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    product: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, oracle: Oracle, inner: Tensor, outer: Tensor) -> Tensor:
        ctx.oracle = oracle
        ctx.save_for_backward(inner, outer)
        return oracle.value(inner, outer)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        by_inner, by_outer = _Gradient.apply(ctx.oracle, *ctx.saved_tensors)
        return None, grad * by_inner, grad * by_outer


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, oracle: Oracle, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
        ctx.oracle = oracle
        ctx.save_for_backward(inner, outer)
        return oracle.gradient(inner, outer)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor, w: Tensor) -> Any:
        return None, *ctx.oracle.product(*ctx.saved_tensors, v, w)


def objective(oracle: Oracle) -> Callable[[list[Tensor], list[Tensor], Any], Tensor]:
    """Returns the function as an objective for `Bilevel`: x is the outer variable, y the inner one."""
    return lambda x, y, batch: _Value.apply(oracle, y[0], x[0])


def from_jax(function: Callable[..., Any], samples: int, dtype: torch.dtype) -> Oracle:
    """Returns a JAX function of the benchmark as an oracle, on all of its samples."""

    def whole(inner: Any, outer: Any) -> Any:
        return function(inner, outer, start=0, batch_size=samples)

    value, gradient = jax.jit(whole), jax.jit(jax.grad(whole, argnums=(0, 1)))
    product = jax.jit(lambda inner, outer, v, w: jax.jvp(jax.grad(whole, argnums=(0, 1)), (inner, outer), (v, w))[1])

    def there(tensor: Tensor) -> Any:
        return jax.numpy.asarray(tensor.detach().numpy())

    def back(array: Any) -> Tensor:
        return torch.tensor(numpy.asarray(array), dtype=dtype)

    return Oracle(
        lambda inner, outer: back(value(there(inner), there(outer))),
        lambda inner, outer: tuple(map(back, gradient(there(inner), there(outer)))),
        lambda inner, outer, v, w: tuple(map(back, product(*map(there, (inner, outer, v, w))))),
    )


class Solver(BaseSolver):  # type: ignore[misc]
    """`solve(problem, x, y)` with nothing given."""

    name = "nas_moreau"
    requirements = ("torch", "jax", "jaxlib")
    parameters = {"tolerance": [1e-8]}  # noqa: RUF012
    if constants is not None:
        stopping_criterion = SufficientProgressCriterion(patience=constants.PATIENCE, strategy="callback")

    @staticmethod
    def get_next(stop_val: int) -> int:
        """Returns the number of evaluations of the benchmark's metric after the next one."""
        return stop_val + 1

    def set_objective(
        self, f_inner: Any, f_outer: Any, n_inner_samples: int, n_outer_samples: int, inner_var0: Any, outer_var0: Any
    ) -> None:
        """Receives the problem."""
        start = [torch.tensor(numpy.asarray(array)) for array in (outer_var0, inner_var0)]
        self.x, self.y = [start[0]], [start[1]]
        self.problem = Bilevel(
            F=objective(from_jax(f_outer, n_outer_samples, start[1].dtype)),
            f=objective(from_jax(f_inner, n_inner_samples, start[1].dtype)),
        )
        self.found = self.x[0], self.y[0]

    def run(self, callback: Callable[[], bool]) -> None:
        """Solves; the benchmark looks at every line search."""

        def watch(k: int, x: list[Tensor], y: list[Tensor], info: Any) -> bool:
            self.found = x[0], y[0]
            return not callback()

        solution = solve(self.problem, self.x, self.y, tolerance=self.tolerance, watch=watch)
        self.found = solution.x[0], solution.y[0]
        while callback():
            pass

    def get_result(self) -> dict[str, Any]:
        """Returns the point in the benchmark's form."""
        outer, inner = (jax.numpy.asarray(tensor.detach().numpy()) for tensor in self.found)
        return {"inner_var": inner, "outer_var": outer}

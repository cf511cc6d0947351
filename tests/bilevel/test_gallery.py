"""A part of the gallery (scripts/benchmark_gallery.py runs all of it), and the adapter for benchmark_bilevel."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from benchopt_solver import Oracle, objective
from gallery.problems import GALLERY

from nas_moreau.bilevel import Bilevel, solve
from nas_moreau.bilevel.second_order.flat import FlatProblem
from nas_moreau.bilevel.second_order.implicit import at_start, hyper_objective

QUICK = [
    "quadratic-condition-100", "exponential", "weighted-logistic", "float32-quadratic", "large-diagonal",
    "minimax-five", "least-squares-wide", "rastrigin-2", "kink-above-at-zero", "lower-simplex", "lower-ball",
    "lasso-weights", "upper-simplex", "coupled-bound", "coupled-budget", "coupled-ball", "coupled-inactive",
    "coupled-vertex", "coupled-units", "wavy-above", "saddle-on-a-box", "huge-x",
]  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_solved_with_nothing_given(name):
    posed = GALLERY[name]()
    found = solve(posed.problem, posed.x, posed.y)
    assert found.status == "solved" and posed.error(found.x) < 1e-6


def test_the_gallery_is_large_and_of_every_kind():
    some = ["stochastic-ridge", "large-diagonal", "float32-quadratic", "minimax-five", "rastrigin-2", "lasso-weights"]
    some += ["kink-above-at-zero", "lower-ball", "coupled-bound", "least-squares-wide", "coupled-units"]
    kinds = {kind for name in some for kind in GALLERY[name]().kinds}
    assert len(GALLERY) >= 60
    assert kinds >= {"smooth", "scaled", "kinked", "basins", "flat", "minimax", "constrained", "coupled"}
    assert kinds >= {"nonsmooth", "stochastic", "large", "float32"}


def test_the_simulated_problem_of_benchmark_bilevel():
    """Squared hypergradient at most 1e-8 within 12,000 gradients."""
    posed = GALLERY["simulated-quadratics"]()
    found = solve(posed.problem, posed.x, posed.y)
    flat = FlatProblem(posed.problem, found.x, found.y)
    u, w = flat.start()
    assert float(hyper_objective(flat)(u, at_start(w)).gradient.square().sum()) <= 1e-8
    assert found.status == "solved" and found.evaluations <= 12_000


def test_objectives_of_another_library_are_differentiated_twice():
    """f = (y - 2 x)^2 with gradient and products by hand, as they come from JAX."""
    below = Oracle(
        lambda y, x: (y - 2 * x).square().sum(),
        lambda y, x: (2 * (y - 2 * x), -4 * (y - 2 * x)),
        lambda y, x, v, w: (2 * v - 4 * w, -4 * v + 8 * w),
    )
    above = Oracle(
        lambda y, x: (y - 1).square().sum() + x.square().sum(),
        lambda y, x: (2 * (y - 1), 2 * x),
        lambda y, x, v, w: (2 * v, 2 * w),
    )
    start = [torch.zeros(3, dtype=torch.float64)]
    found = solve(Bilevel(objective(above), objective(below)), start, start)
    assert found.status == "solved"
    torch.testing.assert_close(found.x[0], torch.full((3,), 0.4, dtype=torch.float64))

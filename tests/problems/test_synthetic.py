"""The exact solutions satisfy the definition of their problems: y minimises the lower level, x the reduced
objective.
"""

import math

import pytest
import torch

from nas_moreau.bilevel import lower_solution
from nas_moreau.problems import lasso, merely_convex, orthogonal_case, quadratic, relative_error, sine

A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)


def reduced(case, x, y):
    """F at the lower level's solution nearest y."""
    return float(case.problem.F(x, lower_solution(case.problem, x, y).point, None))


@pytest.mark.parametrize(
    "case",
    [sine(1), sine(4, a=-1.3, c=0.7), sine(3, a=3.1, c=torch.tensor([0.1, -1.0, 2.0])), quadratic(3), quadratic(2, A)],
    ids=lambda case: case.name,
)
def test_exact_solutions_are_local_minima_of_the_reduced_objective(case):
    x, y = case.x_exact, case.y_exact
    assert relative_error(lower_solution(case.problem, x, y).point, y) < 1e-9
    assert case.error(x) == 0.0
    least = reduced(case, x, y)
    for i in range(x[0].numel()):
        for h in (-1e-3, 1e-3):
            moved = [x[0].clone()]
            moved[0][i] += h
            assert reduced(case, moved, y) > least
            assert case.error(moved) == pytest.approx(1e-3 / max(1.0, float(x[0].norm())))


@pytest.mark.parametrize(("a", "n"), [(2.0, 1), (-2.3, 5), (0.9, 3), (3.9, 2)])
def test_the_sine_solution_is_the_best_of_all_valleys(a, n):
    case = sine(n, a=a, c=0.4)
    least = float(case.problem.F(case.x_exact, case.y_exact, None))
    valley = float(case.x_exact[0] + case.y_exact[0][0] - 0.4)
    assert least == pytest.approx(n * (valley - 2 * a) ** 2 / (1 + n))
    for other in range(-4, 5):
        C = -math.pi / 2 + 2 * math.pi * other
        x = ((1 - n) * a + n * C) / (1 + n)
        y = [torch.full((n,), C + 0.4 - x, dtype=torch.float64)]
        assert float(case.problem.F([torch.tensor([x], dtype=torch.float64)], y, None)) >= least - 1e-12


def test_merely_convex_solution():
    case = merely_convex(3)
    x, y = case.x_exact, case.y_exact
    assert float(case.problem.F(x, y, None)) == 0.0
    found = lower_solution(case.problem, x, [torch.zeros(3, dtype=torch.float64), y[1]]).point
    assert relative_error(found, y) < 1e-9


@pytest.mark.parametrize("n", [2, 10])
def test_lasso_solution_set(n):
    case = lasso(n)
    assert case.error(case.x_exact) == 0.0
    assert relative_error(case.y_of(case.x_exact), case.y_exact) == 0.0
    best = float(case.problem.F(case.x_exact, case.y_exact, None))
    assert best == pytest.approx(-0.5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x = [torch.rand(n, generator=generator, dtype=torch.float64) * 2 / n]
        y = case.y_of(x)
        assert relative_error(lower_solution(case.problem, x, case.y).point, y) < 1e-9
        assert (float(case.problem.F(x, y, None)) > best + 1e-12) == (case.error(x) > 1e-12)


def test_an_odd_lasso_is_refused():
    with pytest.raises(ValueError, match="even"):
        lasso(3)


def test_orthogonal_group_lasso():
    case = orthogonal_case(4)
    x = case.x_exact
    assert relative_error(lower_solution(case.problem, x, case.y).point, case.y_of(x)) < 1e-9
    least = float(case.problem.F(x, case.y_of(x), None))
    for i in range(4):
        for h in (-1e-3, 1e-3):
            moved = [x[0].clone()]
            moved[0][i] += h
            assert float(case.problem.F(moved, case.y_of(moved), None)) > least

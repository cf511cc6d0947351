"""The oracles on a quadratic where all is known by hand: F = |x-p|^2/2 + |y-q|^2/2, f = y'Hy/2 - y'Bx.

y* = H^-1 B x, hypergradient (x - p) + B' H^-1 (y* - q). With M = gamma H (I + gamma H)^-1 the penalised minimiser
solves (y - q)/c + M H y - M B x = 0, and its prox is theta = (I + gamma H)^-1 (y + gamma B x).
"""

import pytest
import torch

from nas_moreau.bilevel import Bilevel
from nas_moreau.bilevel.exact import (
    exact_hypergradient,
    flat,
    hessian,
    moreau_direction,
    penalised_minimum,
    unrolled_hypergradient,
    value_differences,
)
from nas_moreau.bilevel.prox import L1


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


H = tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.7]])
B = tensor([[1.0, -0.5], [0.2, 0.8], [-0.3, 0.4]])
P, Q = tensor([0.4, -1.0]), tensor([1.0, 0.5, -2.0])
X, Y = tensor([0.7, -0.2]), tensor([0.5, -1.5, 2.0])
PROBLEM = Bilevel(
    lambda x, y, b: 0.5 * (flat(x) - P).square().sum() + 0.5 * (flat(y) - Q).square().sum(),
    lambda x, y, b: 0.5 * flat(y) @ H @ flat(y) - flat(y) @ B @ flat(x),
)
STAR = torch.linalg.solve(H, B @ X)
TRUE = (X - P) + B.T @ torch.linalg.solve(H, STAR - Q)
AT = ([X[:1], X[1:]], [Y[:2], Y[2:]])  # lists of several tensors


def test_three_ways_to_the_hypergradient():
    exact = exact_hypergradient(PROBLEM, *AT)
    torch.testing.assert_close(flat(exact.y), STAR, rtol=0, atol=1e-12)
    torch.testing.assert_close(flat(exact.d_x), TRUE, rtol=0, atol=1e-12)
    torch.testing.assert_close(exact.f_yy, H, rtol=0, atol=1e-14)
    assert exact.lowest == pytest.approx(float(torch.linalg.eigvalsh(H)[0]))
    unrolled, _ = unrolled_hypergradient(PROBLEM, AT[0], exact)
    torch.testing.assert_close(flat(unrolled), TRUE, rtol=0, atol=1e-7)
    torch.testing.assert_close(flat(value_differences(PROBLEM, AT[0], exact)), TRUE, rtol=0, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.5, 10.0])
@pytest.mark.parametrize("c", [1.0, 100.0])
def test_the_penalised_minimiser_by_hand(c, gamma):
    exact = exact_hypergradient(PROBLEM, *AT)
    found = penalised_minimum(PROBLEM, AT[0], exact, c, gamma)
    eye = torch.eye(3, dtype=torch.float64)
    M = gamma * H @ torch.linalg.inv(eye + gamma * H)
    y = torch.linalg.solve(eye / c + M @ H, Q / c + M @ B @ X)
    theta = torch.linalg.solve(eye + gamma * H, y + gamma * B @ X)
    torch.testing.assert_close(flat(found.y), y, rtol=0, atol=1e-10)
    torch.testing.assert_close(flat(found.theta), theta, rtol=0, atol=1e-10)
    assert found.is_minimum and found.residual < 1e-9
    direction = moreau_direction(PROBLEM, AT[0], found.y, found.theta, c)
    torch.testing.assert_close(flat(direction), (X - P) - c * B.T @ (y - theta), rtol=0, atol=1e-8)


def test_a_saddle_of_the_penalised_problem_is_no_minimum():
    """F = -|y|^2/2 outweighs f at c = .1: the stationary point is a maximum along y."""
    problem = Bilevel(lambda x, y, b: -0.5 * flat(y).square().sum() + flat(y).sum(), PROBLEM.f)
    exact = exact_hypergradient(problem, *AT)
    assert not penalised_minimum(problem, AT[0], exact, 0.1, 10.0).is_minimum
    assert penalised_minimum(problem, AT[0], exact, 100.0, 10.0).is_minimum


def test_a_lower_level_far_from_a_quadratic():
    """f = sum cosh(y_i - x_i): y* = x, f_yy = I, f_xy = -I, so dF/dx = F_x + F_y at y = x."""
    problem = Bilevel(
        lambda x, y, b: (flat(y) ** 3).sum() * flat(x).sum(), lambda x, y, b: torch.cosh(flat(y) - flat(x)).sum()
    )
    x, y = [tensor([0.3, -0.4, 1.1])], [tensor([3.0, -3.0, 0.0])]
    exact = exact_hypergradient(problem, x, y)
    total = x[0].sum()
    torch.testing.assert_close(flat(exact.d_x), (x[0] ** 3).sum() + 3 * x[0] ** 2 * total, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flat(value_differences(problem, x, exact)), flat(exact.d_x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        flat(unrolled_hypergradient(problem, x, exact)[0]), flat(exact.d_x), rtol=1e-7, atol=1e-7
    )


def test_hessian_of_a_linear_objective_is_zero():
    assert torch.equal(hessian(lambda x, y, b: flat(y).sum(), *AT), torch.zeros(3, 3, dtype=torch.float64))


def test_what_has_no_hypergradient_is_refused():
    with pytest.raises(ValueError, match="project_y"):
        exact_hypergradient(Bilevel(PROBLEM.F, PROBLEM.f, g=L1(1.0)), *AT)
    flat_one = Bilevel(PROBLEM.F, lambda x, y, b: 0.5 * (y[0].sum() - flat(x).sum()) ** 2)
    with pytest.raises(ValueError, match="eigenvalue"):
        exact_hypergradient(flat_one, *AT)
    bottomless = Bilevel(PROBLEM.F, lambda x, y, b: flat(y).sum() * flat(x).sum())
    with pytest.raises(ValueError, match="f_y"):
        exact_hypergradient(bottomless, *AT)

"""Rivals by hand on one quadratic: F = |x-p|^2/2 + |y-q|^2/2, f = y'Hy/2 - y'Bx, so y* = H^-1 B x.

The hypergradient at x is (x - p) + B' H^-1 (y* - q).
"""

import pytest
import torch

from nas_moreau.bilevel import Bilevel, StepSizes, sgd, solve, two_sided
from nas_moreau.bilevel.method import Iterate
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.bilevel.prox import L1
from nas_moreau.bilevel.rivals.darts import darts1, darts2, joint
from nas_moreau.bilevel.rivals.hypergradient import implicit_cg, neumann, rhg
from nas_moreau.bilevel.rivals.penalties import bome, f2sa, fixed_penalty, v_pbgd


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


H = tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.7]])
B = tensor([[1.0, -0.5], [0.2, 0.8], [-0.3, 0.4]])
P, Q = tensor([0.4, -1.0]), tensor([1.0, 0.5, -2.0])
PROBLEM = Bilevel(
    lambda x, y, b: 0.5 * (x[0] - P).square().sum() + 0.5 * (y[0] - Q).square().sum(),
    lambda x, y, b: 0.5 * y[0] @ H @ y[0] - y[0] @ B @ x[0],
)
X, Y = tensor([0.7, -0.2]), tensor([0.5, -1.5, 2.0])


def one_step(method, x=X, y=Y):
    new_x, new_y, _, info = method.step(PROBLEM, [x], [y], method.init(PROBLEM, [x], [y]))
    return new_x[0], new_y[0], info


def lower_gradient(x, y):
    return H @ y - B @ x


def hypergradient(x):
    return (x - P) + B.T @ torch.linalg.solve(H, torch.linalg.solve(H, B @ x) - Q)


def central_differences(value, x, h=1e-5):
    units = torch.eye(x.numel(), dtype=x.dtype)
    return tensor([(value(x + h * e) - value(x - h * e)) / (2 * h) for e in units])


def test_darts1():
    x, y, _ = one_step(darts1(0.1, 0.2))
    torch.testing.assert_close(x, X - 0.1 * (X - P))
    torch.testing.assert_close(y, Y - 0.2 * lower_gradient(x, Y))


def test_joint():
    """Both at the old point; c_k = 4 (k+1)^.5 falls in d_y alone."""
    method = joint(0.1, 0.2, c=4.0, p=0.5)
    x, y, state = [X], [Y], method.init(PROBLEM, [X], [Y])
    for c in (4.0, 4.0 * 2**0.5):
        expected_x = x[0] - 0.1 * (x[0] - P)
        expected_y = y[0] - 0.2 * (lower_gradient(x[0], y[0]) + (y[0] - Q) / c)
        x, y, state, info = method.step(PROBLEM, x, y, state)
        torch.testing.assert_close(x[0], expected_x)
        torch.testing.assert_close(y[0], expected_y)
        assert info.c == pytest.approx(c)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.1)])
def test_darts2_is_the_gradient_through_one_step(momentum, decay):
    """On a quadratic the central difference is exact; with momentum, a second step has the first one's direction
    in its buffer.
    """
    method = darts2(0.1, 0.2, update_y=sgd(momentum, decay))
    state = method.init(PROBLEM, [X], [Y])
    x1, y1, state, _ = method.step(PROBLEM, [X], [Y], state)
    buffer = lower_gradient(x1[0], Y) + decay * Y
    x2, _, _, _ = method.step(PROBLEM, x1, y1, state)

    def ahead(x):
        y = y1[0] - 0.2 * (momentum * buffer + lower_gradient(x, y1[0]) + decay * y1[0])
        return float(PROBLEM.F([x], [y], None))

    torch.testing.assert_close((x1[0] - x2[0]) / 0.1, central_differences(ahead, x1[0]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("truncate", [None, 2, 5])
def test_rhg_against_finite_differences(truncate):
    method = rhg(1.0, 0.3, inner_steps=5, truncate=truncate)
    x, y, info = one_step(method)

    def unrolled(x):
        y = Y
        for t in range(5):  # the steps before the last `truncate` are taken at the fixed X
            y = y - 0.3 * lower_gradient(X if t < 5 - (truncate or 5) else x, y)
        return float(PROBLEM.F([x], [y], None))

    torch.testing.assert_close(X - x, central_differences(unrolled, X), rtol=1e-6, atol=1e-7)
    inner = Y
    for _ in range(5):
        inner = inner - 0.3 * lower_gradient(X, inner)
    torch.testing.assert_close(y, inner)
    assert float(info.f) == pytest.approx(float(PROBLEM.f([X], [Y], None)))


@pytest.mark.parametrize(
    "method",
    [implicit_cg(1.0, 0.5, 400, 3), neumann(1.0, 0.5, 400, 400), rhg(1.0, 0.5, 400)],
    ids=["cg", "neumann", "rhg"],
)
def test_hypergradients_at_the_lower_solution(method):
    """Against finite differences of F(x, y*(x)), to 1e-6."""

    def reduced(x):
        return float(PROBLEM.F([x], [torch.linalg.solve(H, B @ x)], None))

    x, y, _ = one_step(method)
    torch.testing.assert_close(X - x, central_differences(reduced, X), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(X - x, hypergradient(X), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(y, torch.linalg.solve(H, B @ X), rtol=1e-8, atol=1e-9)


def test_neumann_series_by_hand():
    """Two terms: v = s (2 I - s H) F_y at y after one inner step."""
    x, _, _ = one_step(neumann(1.0, 0.3, 1, 2, 0.4))
    inner = Y - 0.3 * lower_gradient(X, Y)
    v = 0.4 * (2 * (inner - Q) - 0.4 * H @ (inner - Q))
    torch.testing.assert_close(X - x, (X - P) + B.T @ v)


def test_bome():
    x, y, _ = one_step(bome(0.1, 0.2, 0.3, inner_steps=2, barrier=0.5), y=Q / 2)
    theta = Q / 2
    for _ in range(2):
        theta = theta - 0.3 * lower_gradient(X, theta)
    q_x, q_y = -B.T @ Q / 2 + B.T @ theta, lower_gradient(X, Q / 2)
    F_x, F_y = X - P, -Q / 2
    square = q_x @ q_x + q_y @ q_y
    weight = max(float((0.5 * square - F_x @ q_x - F_y @ q_y) / square), 0.0)
    assert weight > 0
    torch.testing.assert_close(x, X - 0.1 * (F_x + weight * q_x))
    torch.testing.assert_close(y, Q / 2 - 0.2 * (F_y + weight * q_y))


def test_f2sa():
    x, y, info = one_step(f2sa(0.1, 0.02, 0.3, 7.0))
    theta = Y - 0.3 * lower_gradient(X, Y)
    new_y = Y - 0.02 * ((Y - Q) + 7 * lower_gradient(X, Y))
    torch.testing.assert_close(y, new_y)
    torch.testing.assert_close(x, X - 0.1 * ((X - P) + 7 * (-B.T @ new_y + B.T @ theta)))
    assert info.c is None


def test_v_pbgd():
    x, y, _ = one_step(v_pbgd(0.1, 0.02, 0.3, 7.0, inner_steps=1))
    theta = Y - 0.3 * lower_gradient(X, Y)
    torch.testing.assert_close(x, X - 0.1 * ((X - P) + 7 * (-B.T @ Y + B.T @ theta)))
    torch.testing.assert_close(y, Y - 0.02 * ((Y - Q) + 7 * lower_gradient(X, Y)))


def test_two_sided():
    theta = Y + 0.3
    method = two_sided(0.1, 0.02, 0.3, 7.0, gamma=2.0)
    state = method.init(PROBLEM, [X], [Y])._replace(theta=[theta])
    x, y, state, _ = method.step(PROBLEM, [X], [Y], state)
    new_theta = theta - 0.3 * (lower_gradient(X, theta) - (theta - Q) / 7 + (theta - Y) / 2)
    torch.testing.assert_close(state.theta[0], new_theta)
    torch.testing.assert_close(y[0], Y - 0.02 * ((Y - Q) + 7 * (lower_gradient(X, Y) - (Y - new_theta) / 2)))
    torch.testing.assert_close(x[0], X - 0.1 * ((X - P) - 3.5 * B.T @ (Y - theta)))


@pytest.mark.parametrize("c", [10.0, 20.0])
def test_the_bias_of_two_sides_falls_with_the_square_of_c(c):
    """F = (y - 1)^2 + x^2 / 10, f = (y - x)^2 / 2 + y^4 / 4."""
    problem = Bilevel(
        lambda x, y, b: (y[0] - 1).square().sum() + 0.1 * x[0].square().sum(),
        lambda x, y, b: 0.5 * (y[0] - x[0]).square().sum() + 0.25 * (y[0] ** 4).sum(),
    )
    start = [torch.tensor([0.5], dtype=torch.float64)]
    exact = solve(problem, start, start).x[0]
    errors = [
        float((solve(problem, start, start, two_sided(0.1, 0.3 / k, 0.2, k), steps=3000).x[0] - exact).abs())
        for k in (c, 2 * c)
    ]
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.25)


def test_fixed_penalty():
    x, y, _ = one_step(fixed_penalty(0.1, 0.02, 7.0))
    torch.testing.assert_close(x, X - 0.1 * ((X - P) - 7 * B.T @ lower_gradient(X, Y)))
    torch.testing.assert_close(y, Y - 0.02 * ((Y - Q) + 7 * H @ lower_gradient(X, Y)))


SIZES = StepSizes(alpha=0.05, beta=0.02, eta=0.3, gamma=2.0, c=3.0, p=0.0, inner_steps=3)


@pytest.mark.parametrize(
    "name", [name for name, info in METHODS.items() if info.needs & {"hessian", "penalty", "barrier"}]
)
def test_a_nonsmooth_lower_level_is_refused(name):
    problem = Bilevel(PROBLEM.F, PROBLEM.f, g=L1(1.0))
    with pytest.raises(ValueError, match="moreau"):
        METHODS[name].build(SIZES).init(problem, [X], [Y])


@pytest.mark.parametrize("name", METHODS)
def test_the_contract(name):
    method = METHODS[name].build(SIZES)
    x, y = [X.clone().requires_grad_()], [Y.clone().requires_grad_()]
    state = method.init(PROBLEM, x, y)
    new_x, new_y, state, info = method.step(PROBLEM, x, y, state, None, None)
    again = method.step(PROBLEM, new_x, new_y, state)
    assert x[0].detach().equal(X) and y[0].detach().equal(Y)
    assert not any(t.requires_grad for t in (new_x[0], new_y[0]))
    assert not any(found.requires_grad for found in (info.F, info.f) if found is not None)
    assert again[2].k == 2 and "d_y" in info.norms and all(norm.ndim == 0 for norm in info.norms.values())
    residual = method.residual(info, Iterate([X], [Y], method.init(PROBLEM, x, y)), Iterate(new_x, new_y, state))
    assert float(residual) > 0


@pytest.mark.parametrize("name", METHODS)
def test_the_evaluations_of_a_step_are_those_of_the_table(name):
    """Calls of F and f; a product with the Hessian is one evaluation and calls neither."""
    calls = []

    def counted(objective):
        return lambda x, y, batch: (calls.append(1), objective(x, y, batch))[1]

    problem = Bilevel(counted(PROBLEM.F), counted(PROBLEM.f))
    method = METHODS[name].build(SIZES)
    state = method.init(problem, [X], [Y])
    calls.clear()
    method.step(problem, [X], [Y], state)
    products = {"rhg": 3, "rhg-truncated": 1, "implicit-cg": 4, "neumann": 3, "fixed-penalty": 1}.get(name, 0)
    assert len(calls) + products == METHODS[name].count(SIZES)


def test_a_method_that_cannot_find_step_sizes_says_so():
    with pytest.raises(ValueError, match="moreau"):
        METHODS["darts1"].build(StepSizes())

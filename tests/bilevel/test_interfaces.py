"""argmin, from_module, tchebycheff, show_progress, and the order of arguments."""

import inspect
import io

import pytest
import torch

from nas_moreau.bilevel import (
    Bilevel,
    StepSizes,
    argmin,
    from_module,
    moreau,
    show_progress,
    solve,
    stacked,
    tchebycheff,
)
from nas_moreau.bilevel.prox import L1


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_argmin_has_the_derivative_of_the_minimiser():
    """y = A^-1 x, dy/dx = A^-1."""
    A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    minimiser = argmin(lambda x, y: 0.5 * y @ A @ y - x @ y, torch.zeros(2, dtype=torch.float64))
    jacobian = torch.autograd.functional.jacobian(minimiser, t(1.0, -2.0))
    torch.testing.assert_close(jacobian, torch.linalg.inv(A))


def test_argmin_of_dicts_and_of_a_nonsmooth_problem():
    minimiser = argmin(
        lambda x, y: 0.5 * (y["w"] - x["v"]).square().sum(), {"w": t(0.0, 0.0)}, g=L1(weight=lambda x: [x[1]])
    )
    x = {"v": t(2.0, 0.1).requires_grad_(), "s": t(0.5).requires_grad_()}
    y = minimiser(x)
    torch.testing.assert_close(y["w"], t(1.5, 0.0))
    y["w"].sum().backward()
    torch.testing.assert_close(x["s"].grad, t(-1.0))
    torch.testing.assert_close(x["v"].grad, t(1.0, 0.0))


def test_argmin_without_a_minimiser_is_an_error():
    with pytest.raises(ArithmeticError, match="No isolated minimiser"):
        argmin(lambda x, y: (x * y).sum(), t(0.0))(t(1.0))


def test_a_module_serves_as_y():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    y, call = from_module(net)
    inputs, targets = torch.randn(30, 3, dtype=torch.float64), torch.randn(30, dtype=torch.float64)

    def loss(weights, rows):
        return (call(weights, inputs[rows])[:, 0] - targets[rows]).square().mean()

    problem = Bilevel(
        F=lambda x, y, batch: loss(y, slice(15, None)) + 0.01 * x["decay"].square(),
        f=lambda x, y, batch: loss(y, slice(15)) + x["decay"].exp() * sum(p.square().sum() for p in y.values()),
    )
    found = solve(problem, {"decay": torch.tensor(-2.0, dtype=torch.float64)}, y, steps=200)
    assert set(found.y) == set(dict(net.named_parameters())) and found.status == "solved"
    assert torch.equal(net[0].weight, y["0.weight"])


def test_tchebycheff_balances_weighted_objectives():
    """F1 = (y - 1)^2, F2 = (y + 1)^2 with weights w and 1 - w: w F1 = (1 - w) F2 for mu to infinity."""
    parts = [lambda x, y, b: (y[0] - 1).square().sum(), lambda x, y, b: (y[0] + 1).square().sum()]
    for w in (0.5, 0.8):
        problem = Bilevel(tchebycheff(parts, [w, 1 - w], mu=1000.0), lambda x, y, b: (y[0] - x[0]).square().sum())
        found = solve(problem, [t(0.3)], [t(0.0)])
        ratio = (w / (1 - w)) ** 0.5
        assert float(found.x[0]) == pytest.approx((ratio - 1) / (ratio + 1), abs=5e-3)
    with pytest.raises(ValueError, match="positive"):
        tchebycheff(parts, [1.0, -1.0])
    with pytest.raises(ValueError, match="weights"):
        tchebycheff(parts, [1.0])


def test_progress_is_one_line():
    out = io.StringIO()
    watch = show_progress(2, out)
    watch(0, None, None, None)
    watch(1, None, None, None)
    assert "step 2/2" in out.getvalue() and "\n" not in out.getvalue()


def test_stacked_problems_have_the_solutions_of_the_single_ones():
    """f = (y - x)^2 / 2 + (y^2 - data)^2 / 8, F = (y - 1)^2 + x^2: not linear, other data for every problem."""

    def one(data):
        return Bilevel(
            F=lambda x, y, batch: (y["w"] - 1).square().sum() + 0.1 * x[0].square(),
            f=lambda x, y, b: (
                0.5 * (y["w"] - x[0]).square().sum() + (y["w"].square() - (data if b is None else b)).square().sum() / 8
            ),
        )

    data = t(0.2, 0.7, 1.5)
    many = solve(stacked(one(None), data), [t(0.5, 0.5, 0.5)], {"w": torch.full((3, 1), 0.5, dtype=torch.float64)})
    assert many.status == "solved"
    for found, own in zip(many.x[0], data):
        single = solve(one(own), [torch.tensor(0.5, dtype=torch.float64)], {"w": t(0.5)})
        assert float(found) == pytest.approx(float(single.x[0]), abs=1e-6)
    with pytest.raises(ValueError, match="stacked"):
        stacked(Bilevel(one(None).F, one(None).f, g=L1(1.0)))


def test_arguments_that_were_published_keep_their_places():
    """Callers may pass them by position; new ones come after them."""
    sizes = "alpha beta eta gamma c p"
    rules = "update_x update_y update_theta"
    expected = {
        moreau: f"{sizes} order theta_steps {rules}",
        StepSizes: f"{sizes} inner_steps {rules}",
        Bilevel: "F f g project_x project_y f_theta",
        solve: "problem x y method",
    }
    for function, names in expected.items():
        assert list(inspect.signature(function).parameters)[: len(names.split())] == names.split()

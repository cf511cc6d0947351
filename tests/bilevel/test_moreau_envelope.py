"""Algorithm 1 on F = (x-1)^2/2 + y^2, f = (y-x)^2/2 + x y, and on problems that show one fault each, by hand."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nas_moreau.bilevel import Bilevel, moreau
from nas_moreau.bilevel.prox import L1, project_box

ORDERS = ["gauss-seidel", "jacobi", "lagged"]
CONSTANTS = {"alpha": 0.1, "beta": 0.2, "eta": 0.3, "gamma": 2.0, "c": 4.0, "p": 0.25}


def scalar(value):
    return [torch.tensor(float(value), dtype=torch.float64)]


def by_hand():
    """F_x = x-1, F_y = 2y; f_x = (x-y) + y = x at any y... so f_x differs in y only through 2xy: f = (y-x)^2/2 + x
    y^2.
    """
    return Bilevel(
        lambda x, y, b: 0.5 * (x[0] - 1) ** 2 + y[0] ** 2, lambda x, y, b: 0.5 * (y[0] - x[0]) ** 2 + x[0] * y[0] ** 2
    )


def expected(order, x, y, theta, k):
    """Equations (9) to (13) with f_x = x - y + y^2, f_y = y - x + 2xy, F_x = x - 1, F_y = 2y."""
    c_k = 4.0 * (k + 1) ** 0.25
    theta_new = theta - 0.3 * ((theta - x + 2 * x * theta) + (theta - y) / 2.0)
    place = theta if order == "lagged" else theta_new
    d_x = (x - 1) / c_k + (x - y + y**2) - (x - place + place**2)
    x_new = x - 0.1 * d_x
    at = x_new if order == "gauss-seidel" else x
    d_y = 2 * y / c_k + (y - at + 2 * at * y) - (y - theta_new) / 2.0
    return x_new, y - 0.2 * d_y, theta_new


@pytest.mark.parametrize("order", ORDERS)
def test_three_steps_equal_the_equations(order):
    method, problem = moreau(**CONSTANTS, order=order), by_hand()
    x, y = scalar(0.7), scalar(-1.3)
    state = method.init(problem, x, y)
    assert state.theta[0].equal(y[0]) and state.k == 0
    numbers = (0.7, -1.3, -1.3)
    for k in range(3):
        x, y, state, info = method.step(problem, x, y, state)
        numbers = expected(order, *numbers, k)
        assert [float(x[0]), float(y[0]), float(state.theta[0])] == pytest.approx(numbers, rel=1e-14)
        assert info.c == pytest.approx(4.0 * (k + 1) ** 0.25)
    assert state.k == 3 and not x[0].requires_grad and not y[0].requires_grad


@pytest.mark.parametrize(("order", "count"), [("gauss-seidel", 6), ("jacobi", 4), ("lagged", 3)])
def test_evaluations_of_a_step(order, count):
    calls = []
    plain = by_hand()

    def counted(name, objective):
        def call(x, y, batch):
            calls.append((name, batch))
            return objective(x, y, batch)

        return call

    problem = Bilevel(counted("F", plain.F), counted("f", plain.f), f_theta=counted("theta", plain.f))
    method = moreau(**CONSTANTS, order=order)
    x, y = scalar(1), scalar(2)
    method.step(problem, x, y, method.init(problem, x, y), upper_batch="up", lower_batch="low")
    assert len(calls) == count
    assert {batch for name, batch in calls if name == "F"} == {"up"}
    assert {batch for name, batch in calls if name != "F"} == {"low"}
    assert [name for name, _ in calls].count("theta") == (1 if order == "lagged" else 2)

    calls.clear()
    method = moreau(**CONSTANTS, order=order, theta_steps=3)
    method.step(problem, x, y, method.init(problem, x, y))
    assert len(calls) == count + 2


@pytest.mark.parametrize("order", ORDERS)
def test_inputs_are_left_as_they_were(order):
    problem, method = by_hand(), moreau(**CONSTANTS, order=order)
    x, y = [scalar(0.3)[0].requires_grad_()], [scalar(0.4)[0].requires_grad_()]
    state = method.init(problem, x, y)
    theta = state.theta[0]
    first = method.step(problem, x, y, state)
    again = method.step(problem, x, y, state)
    assert (x[0].item(), y[0].item(), theta.item()) == (0.3, 0.4, 0.4)
    assert x[0].grad is None and x[0]._version == y[0]._version == theta._version == 0
    assert first[0][0].equal(again[0][0]) and first[1][0].equal(again[1][0])


def test_theta_is_a_constant_in_the_direction_of_y():
    """At x = 2, y = 1, theta = 1: f = xy, g none. theta+ = 1 - .5*2 = 0 and d_y = F_y/c + 2 - (1 - 0)/1 = F_y/c + 1.

    A gradient through theta+ (dtheta+/dy = 1/2) would give F_y/c + 2 - (1 - 0)(1 - 1/2)/1 - ... = another number.
    """
    problem = Bilevel(lambda x, y, b: 3 * y[0], lambda x, y, b: x[0] * y[0])
    method = moreau(1e-12, 1.0, 0.5, 1.0, 1.0, p=0.0)
    x, y = scalar(2), scalar(1)
    _, y_new, state, info = method.step(problem, x, y, method.init(problem, x, y))
    assert float(state.theta[0]) == 0.0
    assert float(info.norms["d_y"]) == pytest.approx(3 + 2 - 1)
    assert float(y_new[0]) == pytest.approx(1 - 4)


def test_limit_of_the_sine_problem_is_the_one_with_theta_detached():
    """(19) at n=1 with the constants under which an attached theta+ ends at 2.2076; detached it nears 3 pi / 4."""
    problem = Bilevel(lambda x, y, b: (x[0] - 2) ** 2 + (y[0] - 4) ** 2, lambda x, y, b: torch.sin(x[0] + y[0] - 2))
    method = moreau(0.16, 0.107, 0.2286, gamma=0.4, c=10.0)
    x, y = scalar(2.2), scalar(4.2)
    state = method.init(problem, x, y)
    for _ in range(1500):
        x, y, state, _ = method.step(problem, x, y, state)
    assert abs(float(x[0]) - 3 * math.pi / 4) < 0.02


def test_terms_of_g_enter_x_and_the_prox_enters_y():
    """g = x |y| with x = 1/2, f = (y-3)^2/2: theta+ = shrink(3, 1/4) and d_x = F_x/c + |y| - |theta+|."""
    problem = Bilevel(
        lambda x, y, b: x[0] + y[0],
        lambda x, y, b: 0.5 * (y[0] - 3) ** 2,
        g=L1(lambda x: x),
        project_x=project_box(0.0, 1.0),
    )
    method = moreau(10.0, 0.5, 0.5, gamma=1e12, c=2.0, p=0.0)
    x, y = scalar(0.5), scalar(3)
    x_new, y_new, state, info = method.step(problem, x, y, method.init(problem, x, y))
    assert float(state.theta[0]) == pytest.approx(2.75)
    assert float(info.norms["d_x"]) == pytest.approx(0.5 + 3 - 2.75)
    assert float(x_new[0]) == 0.0
    assert float(y_new[0]) == pytest.approx(3 - 0.5 * 0.5)


@pytest.mark.parametrize("order", ORDERS)
def test_modules_by_functional_call_and_aux(order):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    names = [name for name, _ in net.named_parameters()]
    images, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])

    def loss(x, y, batch):
        logits = functional_call(net, dict(zip(names, y)), (images * x[0].exp(),))
        return nn.functional.cross_entropy(logits, labels), {"logits": logits}

    problem = Bilevel(loss, loss)
    method = moreau(0.1, 0.1, 0.1, 1.0, 1.0, order=order)
    before = [p.detach().clone() for p in net.parameters()]
    x, y = [torch.zeros(3, dtype=torch.float64)], list(net.parameters())
    state = method.init(problem, x, y)
    losses = []
    for _ in range(20):
        x, y, state, info = method.step(problem, x, y, state)
        losses.append(float(info.f))
    assert losses[-1] < losses[0]
    assert info.F_aux["logits"].shape == (5, 2) and not info.F_aux["logits"].requires_grad
    assert all(p.equal(old) and p.grad is None for p, old in zip(net.parameters(), before))


@pytest.mark.parametrize("order", ORDERS)
def test_no_value_is_read_back_so_meta_works(order):
    problem, method = by_hand(), moreau(**CONSTANTS, order=order)
    x, y = [torch.zeros((), device="meta")], [torch.zeros((), device="meta")]
    x, y, state, info = method.step(problem, x, y, method.init(problem, x, y))
    assert x[0].is_meta and state.theta[0].is_meta and info.norms["d_x"].is_meta and info.cosine.is_meta


def test_constants_may_be_functions_of_the_step():
    problem = by_hand()
    method = moreau(lambda k: 0.1 / (k + 1), 0.2, 0.3, lambda k: 2.0 + k, lambda k: 5.0 * (k + 1), p=0.3)
    x, y = scalar(0.5), scalar(0.5)
    state = method.init(problem, x, y)
    for k in range(3):
        x, y, state, info = method.step(problem, x, y, state)
        assert (info.alpha, info.gamma, info.c) == (0.1 / (k + 1), 2.0 + k, 5.0 * (k + 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"order": "newton"}, "order"),
        ({"gamma": 0.0}, "gamma"),
        ({"c": -1.0}, "c is"),
        ({"p": 0.5}, "p < 1/2"),
        ({"theta_steps": 0}, "theta_steps"),
        ({"alpha": "automatic"}, "'auto'"),
    ],
)
def test_constants_out_of_range_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        moreau(**(CONSTANTS | change))


def test_x_lost_on_the_way_to_theta_is_found():
    def lost(x, y, batch):
        return 0.5 * (y[0] - x[0].detach()) ** 2

    plain = by_hand()
    method = moreau(**CONSTANTS)
    x, y = scalar(1), scalar(1)
    for problem, words in [
        (Bilevel(plain.F, plain.f, f_theta=lost), "at y but not at theta"),
        (Bilevel(plain.F, lost), "does not depend on x"),
    ]:
        with pytest.raises(ValueError, match=words):
            method.step(problem, x, y, method.init(problem, x, y))


def test_an_objective_that_is_no_scalar_is_refused():
    problem = Bilevel(lambda x, y, b: y[0] * torch.ones(2), lambda x, y, b: x[0] * y[0])
    method = moreau(**CONSTANTS)
    x, y = scalar(1), scalar(1)
    with pytest.raises(TypeError, match="scalar"):
        method.step(problem, x, y, method.init(problem, x, y))


@pytest.mark.parametrize("order", ORDERS)
def test_lower_steps_move_theta_and_y_before_x(order):
    """Three steps of theta and y at the same x, then the step of the method from there."""
    problem, x, y = by_hand(), scalar(0.7), scalar(-1.3)
    several, single = moreau(**CONSTANTS, order=order, lower_steps=3), moreau(**CONSTANTS, order=order)
    found = several.step(problem, x, y, several.init(problem, x, y))
    number, theta = -1.3, -1.3
    for _ in range(2):  # beta .2, eta .3, gamma 2, c 4
        theta -= 0.3 * ((theta - 0.7 + 2 * 0.7 * theta) + (theta - number) / 2)
        number -= 0.2 * (2 * number / 4 + (number - 0.7 + 2 * 0.7 * number) - (number - theta) / 2)
    state = single.init(problem, x, y)._replace(theta=scalar(theta))
    wanted = single.step(problem, x, scalar(number), state)
    torch.testing.assert_close([*found[0], *found[1], *found[2].theta], [*wanted[0], *wanted[1], *wanted[2].theta])

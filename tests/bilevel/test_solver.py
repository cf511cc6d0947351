"""The loop: stopping, the guard, the history, the removal of bias, polish; and the theory made visible."""

import math

import numpy
import pytest
import torch

from nas_moreau.bilevel import (
    Bilevel,
    debiased,
    distance_over_gradients,
    lower_solution,
    merit,
    moreau,
    polished,
    residual,
    solve,
)
from nas_moreau.bilevel.prox import L1, project_box
from nas_moreau.bilevel.rivals.darts import darts1


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def quadratic():
    """(77) with n = 1: x* = y* = 1/2. At fixed c, gamma: the penalised solution is known, see `penalised`."""
    return Bilevel(
        lambda x, y, b: 0.5 * (x[0] - 1) ** 2 + 0.5 * y[0] ** 2, lambda x, y, b: 0.5 * y[0] ** 2 - x[0] * y[0]
    )


def penalised(c, gamma):
    """phi - v = (y - x)^2/2 * gamma/(1+gamma) =: s (y-x)^2/2, so with k = c s: x = (1+k)/(1+2k), y = k/(1+2k)."""
    k = c * gamma / (1 + gamma)
    return (1 + k) / (1 + 2 * k), k / (1 + 2 * k)


def zero():
    return [tensor(0.0)]


def test_limit_at_fixed_c_is_the_penalised_solution():
    method = moreau(0.5, 0.3, 0.3, gamma=2.0, c=5.0, p=0.0)
    found = solve(quadratic(), zero(), zero(), method, steps=3000, tolerance=1e-12)
    assert found.converged and found.status == "solved" and found.steps < 3000
    assert (float(found.x[0]), float(found.y[0])) == pytest.approx(penalised(5.0, 2.0), abs=1e-9)
    R = residual(quadratic(), found.x, found.y, 5.0, 2.0)
    assert R.total < 1e-8 and R.gap == pytest.approx((1 / 11) ** 2 / 3, rel=2) and R.gap > 0


def test_residual_by_hand():
    """At x = 1, y = 0, gamma = 2, c = 3: theta* = 2/3, R_x = 0 + 3(0 + 2/3), R_y = 0 + 3(-1 + (2/3)/2), gap = s/2
    = 1/3.
    """
    R = residual(quadratic(), [tensor(1.0)], zero(), 3.0, 2.0)
    assert float(R.theta[0]) == pytest.approx(2 / 3)
    assert R.x == pytest.approx(2.0) and R.y == pytest.approx(2.0) and R.gap == pytest.approx(1 / 3)
    V = merit(quadratic(), [tensor(1.0)], zero(), zero(), 3.0, 2.0, lipschitz=1.0)
    assert pytest.approx(0.0 / 3 + 1 / 3 + (1 + 1 / 4) * (2 / 3) ** 2) == V


def test_residual_with_constraints_and_a_nonsmooth_term():
    """x = 0 on the edge of X = [0, 1] with a gradient pushing out, y = 0 in the kink of |y|: both parts vanish."""
    problem = Bilevel(
        lambda x, y, b: 2 * x[0] + 0.3 * y[0],
        lambda x, y, b: 0.5 * y[0] ** 2,
        g=L1(1.0),
        project_x=project_box(0.0, 1.0),
    )
    assert residual(problem, zero(), zero(), 1.0, 1.0).total == pytest.approx(0, abs=1e-6)
    moved = residual(problem, [tensor(0.5)], [tensor(0.4)], 1.0, 1.0)
    theta = 0.0  # argmin u^2/2 + |u| + (u - .4)^2/2
    assert moved.x == pytest.approx(2.0, rel=1e-6)
    assert moved.y == pytest.approx(0.3 + 0.4 + 1 - (0.4 - theta), rel=1e-6)


def test_lower_solution_of_a_badly_conditioned_level():
    spread = torch.logspace(0, 4, 6, dtype=torch.float64)
    problem = Bilevel(lambda x, y, b: y[0].sum(), lambda x, y, b: 0.5 * (spread * (y[0] - x[0]) ** 2).sum())
    found = lower_solution(problem, [tensor(3.0)], [torch.zeros(6, dtype=torch.float64)], tolerance=1e-9)
    torch.testing.assert_close(found.point[0], torch.full((6,), 3.0, dtype=torch.float64), rtol=1e-7, atol=1e-7)
    assert found.residual <= 1e-9


def test_bias_is_removed_and_polish_solves_the_lower_level():
    plain = solve(quadratic(), zero(), zero(), steps=600)
    better = solve(quadratic(), zero(), zero(), steps=600, debias=True, polish=True)
    assert abs(float(plain.x[0]) - 0.5) < 1e-2
    assert abs(float(better.x[0]) - 0.5) < 1e-5
    assert float(better.y[0]) == pytest.approx(float(better.x[0]), abs=1e-9)
    assert better.steps > plain.steps and len(better.message) > len(plain.message)
    again = polished(quadratic(), debiased(quadratic(), plain, moreau(), 600))
    assert torch.equal(again.x[0], better.x[0]) and torch.equal(again.y[0], better.y[0])


def test_bias_of_given_constants_is_removed_too():
    method = moreau(0.5, 0.3, 0.3, gamma=2.0, c=5.0, p=0.0)
    found = solve(quadratic(), zero(), zero(), method, steps=2000, debias=True)
    assert abs(float(found.x[0]) - 0.5) < 1e-4 < abs(penalised(5.0, 2.0)[0] - 0.5)


def test_divergence_is_reported_and_the_last_finite_point_returned():
    method = moreau(50.0, 50.0, 50.0, gamma=2.0, c=5.0)
    found = solve(quadratic(), [tensor(1.0)], zero(), method, steps=2000)
    assert not found.converged and found.status == "diverged" and math.isnan(found.movement)
    assert math.isfinite(float(found.x[0])) and found.steps < 2000


def test_history_minibatches_and_watch():
    problem = Bilevel(lambda x, y, b: 0.5 * (x[0] - b) ** 2 + 0.5 * y[0] ** 2, lambda x, y, b: b * (y[0] - x[0]) ** 2)
    method, seen = moreau(0.1, 0.1, 0.1, 1.0, 1.0), []

    def watch(k, x, y, info):
        seen.append((k, float(info.F)))
        return k == 6

    found = solve(problem, zero(), zero(), method, steps=50, batches=lambda k: (float(k), 1.0), watch=watch)
    assert found.steps == 7 and found.status == "stopped"
    assert found.history["F"] == [F for _, F in seen] and seen[3] == (3, found.history["F"][3])
    assert len(found.history["d_x"]) == 7 and found.history["c"][1] == pytest.approx(2**0.49)
    assert solve(problem, zero(), zero(), method, steps=3, batches=lambda k: (1.0, 1.0)).status == "out-of-steps"


def test_debias_needs_a_penalty():
    with pytest.raises(ValueError, match="debias"):
        solve(quadratic(), zero(), zero(), darts1(0.1, 0.1), debias=True)


def merely_convex():
    """(18) with n = 1."""
    return Bilevel(
        lambda x, y, b: 0.5 * (x[0] - y[1]) ** 2 + 0.5 * (y[0] - 1) ** 2, lambda x, y, b: 0.5 * y[0] ** 2 - x[0] * y[0]
    )


@pytest.mark.parametrize("name", ["quadratic", "merely convex", "l1"])
def test_merit_falls_at_every_step(name):
    """V_k of (16), order gauss-seidel, with small steps and small eta as the theorem asks; 150 steps, no slack but
    rounding.
    """
    if name == "quadratic":
        problem, y, lowest = quadratic(), zero(), 0.0
    elif name == "merely convex":
        problem, y, lowest = merely_convex(), [tensor(0.0), tensor(0.0)], 0.0
    else:
        problem = Bilevel(
            lambda x, y, b: 0.5 * (y[0] - 0.2) ** 2,
            lambda x, y, b: 0.5 * (y[0] - 1) ** 2,
            g=L1(lambda x: x),
            project_x=project_box(0.0, 1.0),
        )
        y, lowest = zero(), 0.0
    gamma = 2.0
    # eta below (1/gamma - rho) / (L_f + 1/gamma)^2 = .5 / 2.25
    method = moreau(0.01, 0.01, 0.2, gamma, c=2.0, p=0.3)
    x = [tensor(0.5)]
    state = method.init(problem, x, y)
    state = state._replace(theta=[t + 0.7 for t in state.theta])
    values = []
    for k in range(150):
        c = 2.0 * (k + 1) ** 0.3
        values.append(merit(problem, x, y, state.theta, c, gamma, 1.0, lowest))
        x, y, state, _ = method.step(problem, x, y, state)
    falls = numpy.diff(values)
    assert (falls <= 1e-12).all() and values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("p", [0.25, 0.4])
@pytest.mark.parametrize("name", ["merely convex", "sine"])
def test_rates(name, p):
    """log-log slopes over K = 30 .. 1000: min R_k at least as fast as K^-(1-2p)/2, phi - v as fast as K^-p.

    A constant sequence has slope 0 and fails both.
    """
    if name == "sine":
        problem = Bilevel(lambda x, y, b: (x[0] - 2) ** 2 + (y[0] - 4) ** 2, lambda x, y, b: torch.sin(x[0] + y[0] - 2))
        method, gamma, x, y = moreau(0.16, 0.1, 0.22, 0.4, c=4.0, p=p), 0.4, [tensor(1.0)], [tensor(4.0)]
        c = 4.0
    else:
        problem, method, gamma, c = merely_convex(), moreau(0.3, 0.3, 0.3, 2.0, c=1.0, p=p), 2.0, 1.0
        x, y = zero(), [tensor(0.0), tensor(0.0)]
    state = method.init(problem, x, y)
    places, least, residuals, gaps, ks = set(numpy.geomspace(30, 1000, 12).astype(int)), math.inf, [], [], []
    for k in range(1001):
        if k in places or k % 25 == 0:
            R = residual(problem, x, y, c * (k + 1) ** p, gamma, start=state.theta)
            least = min(least, R.total)
            if k in places:
                ks.append(k), residuals.append(max(least, 1e-9)), gaps.append(max(R.gap, 1e-15))
        x, y, state, _ = method.step(problem, x, y, state)

    def slope(values):
        return numpy.polyfit(numpy.log(ks), numpy.log(values), 1)[0]

    assert slope(residuals) <= -(1 - 2 * p) / 2 + 0.02
    assert slope(gaps) <= -p + 0.05


@pytest.mark.parametrize(
    "given, fault",
    [
        (torch.zeros(2), "x is a Tensor"),
        ([], "x is empty"),
        ([torch.zeros(2, dtype=torch.int64)], "x holds torch.int64"),
        ([numpy.zeros(2)], "x holds ndarray"),
    ],
)
def test_what_is_no_list_of_tensors_is_named(given, fault):
    with pytest.raises(TypeError, match=f"^{fault}"):
        solve(quadratic(), given, zero())


@pytest.mark.parametrize("method", [moreau(), moreau(update_x=distance_over_gradients())])
def test_numbers_that_are_not_finite_at_the_start_are_told(method):
    with pytest.raises(ValueError, match="finite"):
        solve(Bilevel(quadratic().F, lambda x, y, b: y[0] * x[0] * math.nan), zero(), zero(), method)


def test_parameters_of_a_module_serve_as_a_start(recwarn):
    start = [torch.nn.Parameter(tensor(0.0))]
    found = solve(quadratic(), start, start, steps=30)
    assert not recwarn.list and not found.x[0].requires_grad and float(start[0]) == 0

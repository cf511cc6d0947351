"""Curvatures of a quadratic are its eigenvalues; the constants follow from them; c climbs to the right basin."""

import math
import random

import pytest
import torch

from nas_moreau.bilevel import Bilevel, moreau, solve
from nas_moreau.bilevel.automatic.curvature import measure
from nas_moreau.bilevel.automatic.measured import FIRST_CONVEX, FIRST_NONCONVEX, LAST, begin, explain
from nas_moreau.bilevel.method import Batches


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def quadratic():
    """F = 3x^2/2 + y'diag(1,2)y/2, f = y'diag(4,1)y/2 - 2 x y_1 - x^2/2: f_xx = -1, f_yy = diag(4,1), f_xy = (-2,0)."""
    upper, lower = tensor([1.0, 2.0]), tensor([4.0, 1.0])
    return Bilevel(
        lambda x, y, b: 1.5 * x[0] ** 2 + 0.5 * (upper * y[0] ** 2).sum(),
        lambda x, y, b: 0.5 * (lower * y[0] ** 2).sum() - 2 * x[0] * y[0][0] - 0.5 * x[0] ** 2,
    )


def test_curvatures_are_the_blocks_eigenvalues():
    found = measure(quadratic(), [tensor(0.3)], [tensor([1.0, -2.0])], Batches(), seed=0, iterations=40)
    joint = torch.linalg.eigvalsh(tensor([[-1.0, -2.0, 0.0], [-2.0, 4.0, 0.0], [0.0, 0.0, 1.0]])).abs().max()
    assert found.F_xx == pytest.approx(3, rel=1e-4) and found.F_yy == pytest.approx(2, rel=1e-4)
    assert found.f_xx == pytest.approx(1, rel=1e-4) and found.f_yy == pytest.approx(4, rel=1e-4)
    assert found.phi_xy == pytest.approx(2, rel=1e-4) and found.phi == pytest.approx(float(joint), rel=1e-3)
    assert pytest.approx(3, rel=1e-3) == found.F and found.rho == pytest.approx(0, abs=1e-3)


def test_weak_convexity_is_seen():
    concave = Bilevel(quadratic().F, lambda x, y, b: -0.5 * y[0].square().sum() + x[0] * y[0].sum())
    found = measure(concave, [tensor(0.3)], [tensor([1.0, -2.0])], Batches(), seed=0, iterations=20)
    assert found.rho == pytest.approx(1, rel=1e-3)


def test_constants_follow_from_curvatures():
    problem = quadratic()
    x, y = [tensor(0.3)], [tensor([1.0, -2.0])]
    method = moreau()
    state = method.init(problem, x, y)
    L, gamma, c = state.tuning.curvature, state.tuning.gamma, state.tuning.c
    assert gamma == pytest.approx(10 / L.f_yy) and c == pytest.approx(FIRST_CONVEX * L.F / L.phi)
    info = method.step(problem, x, y, state)[3]
    assert info.eta == pytest.approx(0.8 / (L.f_yy + 1 / gamma))
    assert info.beta == pytest.approx(0.8 / (L.F_yy / c + L.f_yy + 1 / gamma))
    assert info.alpha == pytest.approx(0.8 / (L.F_xx / c + max(L.f_xx, L.phi_xy**2 / (L.f_yy + 1 / gamma))))
    assert "convex in y there" in explain(state.tuning)


def test_given_constants_are_kept():
    problem = quadratic()
    x, y = [tensor(0.3)], [tensor([1.0, -2.0])]
    method = moreau(alpha=0.01, gamma=lambda k: 3.0)
    info = method.step(problem, x, y, method.init(problem, x, y))[3]
    assert (info.alpha, info.gamma) == (0.01, 3.0)


def sine(n, a, shift):
    problem = Bilevel(
        lambda x, y, b: (x[0] - a).square().sum() + (y[0] - a - shift).square().sum(),
        lambda x, y, b: torch.sin(x[0] + y[0] - shift).sum(),
    )
    valley = -math.pi / 2 + 2 * math.pi * round((2 * a + math.pi / 2) / (2 * math.pi))
    return problem, ((1 - n) * a + n * valley) / (1 + n), [tensor([-6.0])], [torch.zeros(n, dtype=torch.float64)]


def run(problem, x, y, steps):
    method = moreau()
    state = method.init(problem, x, y)
    assert state.tuning.c == pytest.approx(FIRST_NONCONVEX * state.tuning.c_last / LAST)
    for _ in range(steps):
        x, y, state, info = method.step(problem, x, y, state)
    assert info.c >= state.tuning.c_last
    return x, state


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_the_sine_problem_from_the_papers_start(n):
    problem, best, x, y = sine(n, 2.0, 2.0)
    x, _ = run(problem, x, y, 300)
    assert abs(float(x[0]) - best) / max(1, abs(best)) < 1e-2


def test_random_sine_problems_land_in_the_global_basin():
    """The valleys are 2 pi apart, so a wrong one is an error above 1 for each of these."""
    rng = random.Random(0)
    for n in (1, 3, 20):
        for _ in range(2):
            a, shift = rng.uniform(-4, 4), rng.uniform(-4, 4)
            problem, best, x, y = sine(n, a, shift)
            x, _ = run(problem, x, y, 250)
            assert abs(float(x[0]) - best) < 0.1, (n, a, shift)


def test_without_curvature_the_slopes_set_the_first_c():
    """F = 5 y, f = (y-x)^2/2 at (0, 1): |grad F| = 5, |grad f| = sqrt 2."""
    problem = Bilevel(lambda x, y, b: 5 * y[0], lambda x, y, b: 0.5 * (y[0] - x[0]) ** 2)
    tuning = begin(problem, [tensor(0.0)], [tensor(1.0)])
    assert tuning.c == pytest.approx(FIRST_CONVEX * 5 / math.sqrt(2), rel=1e-6)


def test_a_lower_level_without_curvature_is_refused():
    problem = Bilevel(lambda x, y, b: (x[0] - y[0]) ** 2, lambda x, y, b: 2 * x[0] + y[0])
    with pytest.raises(ValueError, match="alpha, beta, eta, gamma and c"):
        begin(problem, [tensor(0.0)], [tensor(1.0)])


@pytest.mark.slow
def test_a_lower_level_that_grows_steeper_on_the_way_is_followed():
    """f = e^x y^2/2 - y, so y* = e^-x and f_yy = e^x; F = (y - .3)^2/2, so x* = log(1/.3)."""
    problem = Bilevel(lambda x, y, b: 0.5 * (y[0] - 0.3) ** 2, lambda x, y, b: 0.5 * x[0].exp() * y[0] ** 2 - y[0])
    best = math.log(1 / 0.3)
    from_below = solve(problem, [tensor(-1.0)], [tensor(1.0)], moreau(), steps=2000)
    assert -1 < best - 0.5 < float(from_below.x[0]) < best + 0.1
    from_above = solve(problem, [tensor(2.0)], [tensor(1.0)], moreau(), steps=2000)
    assert float(from_above.x[0]) == pytest.approx(best, abs=1e-4)


def test_a_step_that_was_too_long_is_taken_back():
    """Curvatures measured as a thousandth of the true ones: without a look at the secants the first steps diverge."""
    problem = quadratic()
    x, y = [tensor(0.3)], [tensor([1.0, -2.0])]
    method = moreau()
    state = method.init(problem, x, y)
    L = state.tuning.curvature
    state = state._replace(tuning=state.tuning._replace(curvature=L._replace(f_yy=L.f_yy / 1000, f_xx=L.f_xx / 1000)))
    start_at = y
    for _ in range(40):
        x, y, state, _ = method.step(problem, x, y, state)
    assert state.tuning.curvature.f_yy > 0.5 * L.f_yy
    assert float(y[0].norm()) < 2 * float(start_at[0].norm())


def test_c_climbs_where_F_and_f_share_work():
    """`at_x` hides grad_y f(x, theta), at which the automatic constants look; the solution must be the same."""
    apart = Bilevel(lambda x, y, b: (x[0] - 1).square() + y[0].square().sum(), quadratic().f)
    shared = Bilevel(apart.F, apart.f, at_x=lambda x, u, b: (lambda y: apart.F(x, y, u), lambda y: apart.f(x, y, b)))
    x, y = [tensor(0.3)], [tensor([1.0, -2.0])]
    found = [solve(problem, x, y, moreau(order="lagged"), steps=300) for problem in (apart, shared)]
    assert found[1].state.tuning.rungs > 0 and found[0].message == found[1].message


def test_given_constants_are_told_as_given():
    """Of c and gamma the message must say what was used, not what would have been chosen."""
    found = solve(quadratic(), [tensor(0.3)], [tensor([1.0, -2.0])], moreau(c=3.0, gamma=1.5, p=0.0), steps=20)
    assert "gamma 1.5;" in found.message and "c 3 " in found.message
    assert found.history["c"] == [3.0] * 20

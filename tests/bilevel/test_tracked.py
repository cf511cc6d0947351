"""Automatic constants for networks: y's curvature is followed, x finds the length of its steps."""

import pytest
import torch

from nas_moreau.bilevel import Bilevel, adam, distance_over_gradients, moreau, sgd, solve
from nas_moreau.bilevel.automatic.tracked import ENVELOPE, FALL, GAMMA, LONG, SHORT, C, begin
from nas_moreau.bilevel.method import Batches


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def steep(factor=1.0):
    """F_yy = diag(3, 1), f_yy = factor diag(4, 1): the greatest eigenvalue of F_yy/c + f_yy is 3/c + 4 factor."""
    upper, lower = tensor([3.0, 1.0]), factor * tensor([4.0, 1.0])
    return Bilevel(
        lambda x, y, b: 0.5 * (upper * (y[0] - 1) ** 2).sum(),
        lambda x, y, b: 0.5 * (lower * y[0] ** 2).sum() - (x[0] * y[0]).sum(),
    )


X, Y = [torch.zeros(2, dtype=torch.float64)], [torch.zeros(2, dtype=torch.float64)]


def test_steps_follow_from_the_curvature_in_y():
    found = begin(steep(), X, Y, Batches(), 2.0, 0.5)
    assert (found.c, found.gamma) == (2.0, 0.5) and found.curvature == pytest.approx(3 / 2 + 4, rel=1e-3)
    assert found.step == pytest.approx(SHORT / (5.5 + 2), rel=1e-3)
    method = moreau(update_x=distance_over_gradients())
    info = method.step(steep(), X, Y, method.init(steep(), X, Y))[3]
    L = 3 / C + 4
    assert (info.alpha, info.c) == (1, C) and info.gamma == pytest.approx(ENVELOPE / L, rel=1e-3)
    assert info.beta == info.eta == pytest.approx(SHORT / (L + L / ENVELOPE), rel=1e-3)
    # 3/C + 400 is so steep that gamma = 1 is the greater
    assert begin(steep(100), X, Y, Batches(), None, None).gamma == GAMMA


def looked(found, factor, k=15):
    """The constants after step k of the method where f is `factor` times as steep."""
    problem, y = steep(factor), [tensor([0.3, -0.2])]
    method = moreau(c=2.0, gamma=0.5, p=0.0, update_x=distance_over_gradients())
    state = method.init(steep(), X, y)._replace(k=k, tuning=found)
    return method.step(problem, X, y, state)[2].tuning


def test_increases_of_the_curvature_take_effect_at_once_and_decreases_gradually():
    found = begin(steep(), X, Y, Batches(), 2.0, 0.5)
    same = looked(found, 1)
    assert same.curvature == pytest.approx(5.5, rel=1e-3) and same.step == pytest.approx(found.step, rel=1e-3)
    # within the range the step stays as it is; 3/2 + 4 * 2 = 9.5, 11.5 / 7.5 < 2 / 1
    steeper = looked(found, 2)
    assert steeper.curvature == pytest.approx(9.5, rel=1e-3) and steeper.step == found.step
    far_steeper = looked(found, 10)
    assert far_steeper.step == pytest.approx(LONG / (far_steeper.curvature + 2)) and far_steeper.step < found.step
    flatter = looked(found, 0.1)
    assert flatter.curvature == pytest.approx(FALL * 5.5, rel=1e-3)
    assert flatter.step == pytest.approx(SHORT / (FALL * found.curvature + 2), rel=1e-3)
    assert looked(found, 0.1, k=3).curvature == found.curvature
    assert looked(found, 10, k=16) is found


def test_x_needs_a_number_or_a_rule_that_finds_the_length():
    with pytest.raises(ValueError, match="distance_over_gradients"):
        moreau(update_x=adam())
    moreau(0.1, update_x=adam())
    moreau(update_x=distance_over_gradients())


@pytest.mark.parametrize("order", ["gauss-seidel", "lagged"])
def test_no_constant_is_needed(order):
    """F = |y - 1|^2/2, f = |y - x|^2/2: x* = 1. From x = -1, with momentum on y."""
    problem = Bilevel(
        lambda x, y, b: 0.5 * (y[0] - 1).square().sum(), lambda x, y, b: 0.5 * (y[0] - x[0]).square().sum()
    )
    method = moreau(order=order, update_x=distance_over_gradients(), update_y=sgd(0.9), update_theta=sgd(0.9))
    found = solve(problem, [tensor([-1.0, -1.0])], [tensor([0.0, 3.0])], method, steps=400)
    assert float((found.x[0] - 1).abs().max()) < 0.05
    assert f"{found.state.tuning.step:.3g}" in found.message


def test_a_lower_level_without_curvature_is_refused():
    problem = Bilevel(lambda x, y, b: x[0].square().sum(), lambda x, y, b: (x[0] * 2 + y[0]).sum())
    with pytest.raises(ValueError, match="beta and eta"):
        begin(problem, X, Y, Batches(), 1.0, 1.0)

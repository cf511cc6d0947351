"""Mirror and projected steps against their closed forms, with weights and gradients written out in double precision."""

import pytest
import torch

from nas_moreau.bilevel import Bilevel, exponentiated_gradient, mirror, moreau, projected, solve
from nas_moreau.bilevel.prox import project_simplex

GROUPS = [[0, 1, 2], [4, 5], [8, 9, 10, 11]]  # of a (3, 4) tensor; 3, 6 and 7 belong to none


def softmaxes(logits, groups):
    flat = logits.flatten()
    return [torch.softmax(flat[group], -1) for group in groups]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(logits, groups, gradients):
    """The gradient, in the logits, of a loss whose gradients in the softmax weights are given."""
    logits = logits.clone().requires_grad_()
    loss = sum((weights * g).sum() for weights, g in zip(softmaxes(logits, groups), gradients))
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("groups", [GROUPS, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]])
@pytest.mark.parametrize("rule", ["mirror", "projected"])
def test_a_step_on_logits_is_the_closed_form_in_the_weights(rule, groups):
    logits, step = draw(3, 4), 0.3
    gradients = [draw(len(group), seed=i) for i, group in enumerate(groups)]
    before = softmaxes(logits, groups)
    default = len(groups[0]) == 4
    update = {"mirror": mirror, "projected": projected}[rule](None if default else [groups])
    (after,), _ = update.apply([slope(logits, groups, gradients)], step, [logits], update.init([logits]))
    for weights, gradient, found in zip(before, gradients, softmaxes(after, groups)):
        if rule == "mirror":
            expected = weights * torch.exp(-step * gradient)
            expected = expected / expected.sum()
        else:
            (expected,) = project_simplex()([weights - step * gradient])
            expected = expected.clamp(min=1e-6)
            expected = expected / expected.sum()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    untouched = [i for i in range(12) if not any(i in group for group in groups)]
    assert torch.equal(after.flatten()[untouched], logits.flatten()[untouched])


def test_exponentiated_gradient_is_the_closed_form_and_keeps_the_simplex():
    weights, direction = torch.softmax(draw(2, 5), -1), draw(2, 5, seed=1)
    rule = exponentiated_gradient()
    (found,), _ = rule.apply([direction], 0.7, [weights], rule.init([weights]))
    expected = weights * torch.exp(-0.7 * direction)
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rule", [mirror(), projected()])
def test_weights_that_vanish_stay_finite_and_can_return(rule):
    params = [torch.tensor([[0.0, -200.0, 1.0]])]
    for _ in range(50):
        weights = torch.softmax(params[0], -1)
        gradient = torch.tensor([[1.0, -1.0, 1.0]])
        direction = weights * (gradient - (weights * gradient).sum(-1, keepdim=True))
        params, _ = rule.apply([direction], 0.5, params, rule.init(params))
        assert torch.isfinite(params[0]).all()


def test_the_solver_takes_the_mirror_step_on_a_simplex():
    """min_x |y - t|^2 over the simplex with y = x below: the solution is t itself, inside the simplex."""
    target = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    problem = Bilevel(
        F=lambda x, y, batch=None: (y[0] - target).square().sum() / 2,
        f=lambda x, y, batch=None: (y[0] - x[0]).square().sum() / 2,
    )
    start = [torch.full((3,), 1 / 3, dtype=torch.float64)]
    method = moreau(alpha=0.3, beta=0.3, eta=0.3, gamma=1.0, c=4.0, p=0.0, update_x=exponentiated_gradient())
    found = solve(problem, start, [torch.zeros(3, dtype=torch.float64)], method, steps=3000)
    assert found.x[0].sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(found.x[0], target, rtol=0, atol=1e-3)

"""Minibatches without a method: implicit steps with falling step sizes and averages."""

import pytest
import torch

from nas_moreau.bilevel import Bilevel, soba, solve
from nas_moreau.bilevel.prox import L1


def generator(seed):
    return torch.Generator().manual_seed(seed)


N = 400
INPUTS = torch.randn(2 * N, 5, generator=generator(0), dtype=torch.float64)
TARGETS = INPUTS[:, :2].sum(1) + torch.randn(2 * N, generator=generator(1), dtype=torch.float64)


def loss(y, rows):
    return 0.5 * (INPUTS[rows] @ y - TARGETS[rows]).square().mean()


def ridge():
    """A weight for each input of a ridge regression; a batch is a tensor of row numbers, None is all rows."""
    return Bilevel(
        F=lambda x, y, b: loss(y[0], slice(N, None) if b is None else b) + 0.05 * (x[0] + 1).square().sum(),
        f=lambda x, y, b: loss(y[0], slice(N) if b is None else b) + 0.5 * (x[0].exp() * y[0].square()).sum(),
    )


def batches(k):
    rows = torch.randint(0, N, (2, 50), generator=generator(1000 + k))
    return rows[0] + N, rows[1]


def start():
    return [torch.zeros(5, dtype=torch.float64)]


@pytest.mark.parametrize("method", [None, soba(variance_reduction=True)])
def test_ridge_from_batches(method):
    exact = solve(ridge(), start(), start()).x[0]
    found = solve(ridge(), start(), start(), method, batches=batches, steps=800)
    assert found.status == "out-of-steps"
    assert float((found.x[0] - exact).norm() / exact.norm()) < 0.05


def test_steps_continue_with_the_state():
    whole = solve(ridge(), start(), start(), batches=batches, steps=40)
    half = solve(ridge(), start(), start(), batches=batches, steps=25)
    more = solve(ridge(), half.x, half.y, batches=batches, steps=15, state=half.state)
    assert torch.equal(more.x[0], whole.x[0]) and torch.equal(more.y[0], whole.y[0])


def test_a_nonsmooth_lower_level_goes_to_the_envelope():
    problem = Bilevel(ridge().F, lambda x, y, b: loss(y[0], b), g=L1(weight=lambda x: [x[0].exp()]))
    found = solve(problem, start(), start(), batches=batches, steps=30)
    assert found.status == "out-of-steps" and found.history["f_theta"]
    with pytest.raises(ValueError, match="smooth"):
        solve(problem, start(), start(), soba(), batches=batches, steps=3)


def test_a_coupled_constraint_is_refused():
    problem = Bilevel(ridge().F, ridge().f, constraint=lambda x, y: y[0].sum() - x[0].sum())
    assert solve(problem, start(), start(), batches=batches, steps=3).status == "refused"

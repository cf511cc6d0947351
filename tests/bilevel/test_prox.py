"""Every prox is the minimiser that its definition names, every projection the nearest point."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_moreau.bilevel.prox import (
    L1,
    MCP,
    SCAD,
    GroupLasso,
    Zero,
    project_ball,
    project_box,
    project_simplex,
)

GROUPS = torch.tensor([0, 0, 1, 2, 1])
X = [torch.tensor([0.4, 0.0, 2.0], dtype=torch.float64)]
TERMS = {
    "zero": Zero(),
    "l1": L1(0.7),
    "l1 weighted by x": L1(lambda x: [x[0][GROUPS]]),
    "group lasso": GroupLasso(GROUPS, 3),
    "group lasso, one weight": GroupLasso(GROUPS, 3, 0.8),
    "scad": SCAD(0.6, 3.7),
    "mcp": MCP(0.6, 2.5),
}
vectors = st.lists(st.floats(-4, 4), min_size=5, max_size=5)


@pytest.mark.parametrize("name", TERMS)
@settings(derandomize=True, max_examples=25, deadline=None)
@given(point=vectors, step=st.floats(0.05, 2.0))
def test_prox_minimises(name, point, step):
    """No point near, and none on a coarse cloud through 0 and y, has a lower value."""
    g, y = TERMS[name], torch.tensor(point, dtype=torch.float64)
    found = g.prox(X, [y], step)[0]

    def value(u):
        return float(g.value(X, [u]) + (u - y).square().sum() / (2 * step))

    least = value(found)
    generator = torch.Generator().manual_seed(0)
    for radius in (1e-4, 1e-2, 0.3, 2.0):
        for shift in torch.randn(20, 5, generator=generator, dtype=torch.float64):
            assert least <= value(found + radius * shift) + 1e-9
    for scale in torch.linspace(-0.5, 1.5, 21, dtype=torch.float64):
        assert least <= value(scale * y) + 1e-9


@pytest.mark.parametrize(
    ("g", "y", "step", "answer"),
    [
        (L1(2.0), [3.0, -0.5], 0.5, [2.0, 0.0]),
        (SCAD(1.0, 3.0), [1.5, 2.5, 4.0], 1.0, [0.5, 2.0, 4.0]),  # soft; (2*2.5 - 3)/1; untouched
        (MCP(1.0, 2.0), [0.5, 1.5, 3.0], 1.0, [0.0, 1.0, 3.0]),  # 0; (1.5 - 1)/(1 - 1/2); untouched
        (GroupLasso(torch.tensor([0, 0, 1]), 2, 1.0), [3.0, 4.0, 0.5], 2.0, [1.8, 2.4, 0.0]),  # 5 -> 3; .5 -> 0
    ],
)
def test_by_hand(g, y, step, answer):
    torch.testing.assert_close(g.prox([], [torch.tensor(y)], step)[0].abs(), torch.tensor(answer))


@pytest.mark.parametrize(("g", "limit"), [(SCAD(1.0, 3.0), 2.0), (MCP(1.0, 2.0), 2.0)])
def test_steps_beyond_the_weak_convexity_are_refused(g, limit):
    with pytest.raises(ValueError, match="step"):
        g.prox([], [torch.ones(2)], limit)


def test_gradient_in_x_of_the_weighted_terms():
    x = [X[0].clone().requires_grad_()]
    y = [torch.tensor([3.0, 4.0, 0.0, -2.0, 1.0], dtype=torch.float64)]
    (grad,) = torch.autograd.grad(GroupLasso(GROUPS, 3).value(x, y), x)
    assert grad.tolist() == [5.0, 1.0, 2.0]


@settings(derandomize=True, max_examples=40, deadline=None)
@given(point=vectors, other=vectors)
def test_projections_are_nearest_points(point, other):
    """Characterised by (p - P p)'(q - P p) <= 0 for every q of the set."""
    p, q = torch.tensor(point, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    inside = {
        project_box(-1.0, 0.5): q.clamp(-1.0, 0.5),
        project_box(low=0.0): q.abs(),
        project_ball(1.5): q * min(1.0, 1.5 / max(float(q.norm()), 1e-9)),
        project_simplex(2.0): 2 * torch.softmax(q, -1),
    }
    for project, member in inside.items():
        found = project([p])[0]
        assert float((p - found) @ (member - found)) <= 1e-9
        torch.testing.assert_close(project([found])[0], found, rtol=1e-9, atol=1e-9)


def test_simplex_by_hand():
    found = project_simplex()([torch.tensor([[0.9, 0.5, -1.0], [0.2, 0.2, 0.2]])])[0]
    torch.testing.assert_close(found, torch.tensor([[0.7, 0.3, 0.0], [1 / 3, 1 / 3, 1 / 3]]))

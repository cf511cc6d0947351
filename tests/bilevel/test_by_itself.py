"""`solve` without a method: what it must not call solved, what it must solve, and what it says of the rest."""

import math

import pytest
import torch

from nas_moreau.bilevel import Bilevel, moreau, solve
from nas_moreau.bilevel.prox import SCAD, project_box


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def square(tensor):
    return tensor.square().sum()


UNITS = t(1e-4, 1.0, 1e5)
FLIP = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)


def follows(F, **parts):
    """y = x below."""
    return Bilevel(F, lambda x, y, b: 0.5 * square(y[0] - x[0]), **parts)


# --- the minimiser is found, and nothing depends on units ------------------------------------------------------------


@pytest.mark.parametrize("name, problem, x, y, exact", [
    ("a maximum below", Bilevel(
        lambda x, y, b: square(x[0] - 1) + square(y[0].square() - 1),
        lambda x, y, b: 0.25 * square(y[0].square() - 1) + (x[0] * y[0].square()).sum() / 100,
    ), t(0.0), t(0.0), t(1 / (1 + 1 / 2500))),
    ("units of x", Bilevel(
        lambda x, y, b: 0.5 * square(y[0] - t(2.0, 3.0)), lambda x, y, b: 0.5 * square(y[0] - t(1e-3, 1e3) * x[0])
    ), t(0.0, 0.0), t(0.0, 0.0), t(2000.0, 0.003)),
    ("first curvature 0", Bilevel(
        lambda x, y, b: 0.5 * square(y[0] - 0.01), lambda x, y, b: (0.5 * x[0].exp() * y[0].square() - y[0]).sum()
    ), t(-1.0), t(0.0), t(math.log(100))),
    ("a kink of F", follows(lambda x, y, b: 2 * y[0].abs().sum() + 0.5 * square(x[0] - 1)), t(2.0), t(0.0), t(0.0)),
    ("a maximum above", follows(
        lambda x, y, b: (square(y[0] - 1) - 1) ** 2 + 1e-3 * square(y[0])
    ), t(1.0), t(0.0), t(0.0)),
    ("a maximum on a box", follows(
        lambda x, y, b: -square(y[0]), project_x=project_box(-1.0, 2.0)
    ), t(0.0), t(0.0), None),
    ("a maximum of a box below", Bilevel(
        lambda x, y, b: square(y[0] - 0.5) + square(x[0] - 1),
        lambda x, y, b: (-0.5 * square(y[0]) - 0.1 * x[0] * y[0]).sum(), project_y=project_box(-1.0, 1.0),
    ), t(0.0), t(0.0), t(1.0)),
    ("a constant of 1e8", follows(lambda x, y, b: 1e8 + square(y[0] - 1) + square(x[0])), t(2.0), t(1.0), t(0.5)),
    ("tiny objectives", Bilevel(
        lambda x, y, b: 1e-12 * (square(y[0] - 1) + square(x[0])), lambda x, y, b: 1e-10 * square(y[0] - x[0])
    ), t(3.0), t(0.0), t(0.5)),
    ("a domain", Bilevel(
        lambda x, y, b: square(y[0] - 1), lambda x, y, b: 0.5 * square(y[0] - x[0].log())
    ), t(0.1), t(0.0), t(math.e)),
    ("a start at the solution", follows(lambda x, y, b: square(y[0] - 1) + square(x[0])), t(0.5), t(0.5), t(0.5)),
    ("a set of minimisers", Bilevel(
        lambda x, y, b: square(y[0] - t(1.0, 3.0)) + 0.1 * square(x[0]),
        lambda x, y, b: 0.5 * (y[0][0] - x[0][0]) ** 2,
    ), t(0.0), t(0.0, 0.0), t(1 / 1.1)),
    ("a weakly convex g", Bilevel(
        lambda x, y, b: 0.5 * square(y[0] - 1.8) + 0.5 * square(x[0] - 1),
        lambda x, y, b: 0.5 * square(y[0] - 2 * x[0]), g=SCAD(0.2),
    ), t(0.5), t(0.0), t(4.6 / 5)),
    ("y above a moving bound", Bilevel(
        lambda x, y, b: 0.5 * square(x[0] - 1) + 0.5 * square(y[0]), lambda x, y, b: 0.5 * square(y[0]),
        project_y=lambda x, y: [torch.maximum(y[0], x[0])],
    ), t(0.0), t(0.0), t(0.5)),
])  # fmt: skip
def test_solved(name, problem, x, y, exact):
    found = solve(problem, [x], [y])
    assert found.status == "solved" and found.converged
    if exact is not None:
        torch.testing.assert_close(found.x[0], exact, rtol=1e-6, atol=1e-9)
    assert max(found.certificate.lower_residual, found.certificate.hypergradient) < 1e-7 and found.evaluations > 0


@pytest.mark.parametrize("name, problem, x, y, exact", [
    ("units of y", Bilevel(
        lambda x, y, b: 0.5 * square(UNITS * y[0] - 1) + 0.05 * square(x[0]),
        lambda x, y, b: 0.5 * square(UNITS * y[0] - x[0]),
    ), t(3.0, 1.0, 1.0), t(0.0, 0.0, 0.0), t(1.0, 1.0, 1.0) / 1.1),
    ("units of x far from the start", Bilevel(
        lambda x, y, b: 0.5 * square(y[0] - 1) + 0.05 * square(UNITS * x[0]),
        lambda x, y, b: 0.5 * square(y[0] - UNITS * x[0]),
    ), t(1.0, 1.0, 1.0), t(0.0, 0.0, 0.0), 1 / 1.1 / UNITS),
    ("an error outside the domain", Bilevel(
        lambda x, y, b: square(y[0] - 0.52),
        lambda x, y, b: 0.5 * square(torch.linalg.cholesky(torch.eye(2) + x[0] * FLIP).T @ y[0]) - y[0].sum(),
    ), t(-0.5), t(0.0, 0.0), t(1 / 0.52 - 1)),
    ("a kink of f that was not declared", Bilevel(
        lambda x, y, b: square(y[0] - 1) + square(x[0]),
        lambda x, y, b: torch.maximum(y[0] - x[0], 2 * (x[0] - y[0])).sum(),
    ), t(4.0), t(0.0), t(0.5)),
    ("x hidden from autograd", Bilevel(
        lambda x, y, b: square(y[0] - 1) + 0.1 * square(x[0]), lambda x, y, b: square(y[0] - x[0].detach())
    ), t(0.5), t(0.0), t(1 / 1.1)),
    ("two wells beside a concave kink", Bilevel(
        lambda x, y, b: square(y[0] + 1.2) + 0.1 * square(x[0]),
        lambda x, y, b: (0.5 * y[0].square() - y[0].abs() - 0.2 * x[0] * y[0]).sum(),
    ), t(2.0), t(1.0), t(-2 / 7)),
    ("an oblique kink of F", follows(
        lambda x, y, b: y[0].max() + 0.1 * square(x[0] - t(3.0, 2.0))
    ), t(5.0, -1.0), t(0.0, 0.0), t(0.0, 0.0)),
])  # fmt: skip
def test_hard_for_derivatives(name, problem, x, y, exact):
    found = solve(problem, [x], [y])
    assert found.status == "solved"
    torch.testing.assert_close(found.x[0], exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_small_types(kind):
    """Products of gradients below the smallest number of the type, and types without linear algebra."""
    scale = 1e-30 if kind == torch.float32 else 1.0
    problem = Bilevel(
        lambda x, y, b: scale * (square(y[0] - 1) + square(x[0])), lambda x, y, b: 0.5 * square(y[0] - x[0])
    )
    found = solve(problem, [torch.full((2,), 3.0, dtype=kind)], [torch.zeros(2, dtype=kind)])
    assert found.x[0].dtype == kind and found.status in ("solved", "out-of-steps")
    torch.testing.assert_close(found.x[0].double(), t(0.5, 0.5), rtol=1e-2, atol=0)


def test_values_that_differ_at_one_point_are_refused():
    generator = torch.Generator().manual_seed(0)
    noisy = follows(lambda x, y, b: square(y[0] - 1 + torch.randn(1, generator=generator)))
    found = solve(noisy, [t(2.0)], [t(0.0)])
    assert found.status == "refused" and "batches" in found.message


def test_aux_and_mixed_types():
    problem = Bilevel(
        lambda x, y, b: (square(y[0] - 1) + square(x[0]) + square(x[1] - 2), {"seen": x[0]}),
        lambda x, y, b: (0.5 * square(y[0] - x[0]) + 0.5 * square(y[1] - x[1]), 1),
    )
    found = solve(problem, [t(2.0), torch.zeros(2)], [t(1.0), torch.zeros(2)])
    assert found.converged and found.x[1].dtype == torch.float32
    assert float(found.x[0]) == pytest.approx(0.5, abs=1e-6)


# --- what is not solved --------------------------------------------------------------------------------------------


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return v.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


@pytest.mark.parametrize("name, problem, x, y", [
    ("an infimum at infinity", follows(lambda x, y, b: (-y[0]).exp().sum()), t(0.0), t(0.0)),
    ("one of two entries", follows(lambda x, y, b: (-y[0][0]).exp() + (y[0][1] - 1) ** 2), t(0.0, 0.0), t(0.0, 0.0)),
    ("unbounded", follows(lambda x, y, b: -square(y[0])), t(0.3), t(0.0)),
    ("linear", follows(lambda x, y, b: y[0].sum()), t(0.3), t(0.0)),
    ("linear below", Bilevel(
        lambda x, y, b: square(y[0] - 1) + square(x[0] - 1), lambda x, y, b: (x[0] * y[0]).sum()
    ), t(0.3), t(0.0)),
    ("unbounded below", Bilevel(
        lambda x, y, b: square(y[0] - 1) + square(x[0] - 1), lambda x, y, b: (y[0] ** 3 - x[0] * y[0]).sum()
    ), t(3.0), t(-2.0)),
    ("no minimum below", Bilevel(
        lambda x, y, b: square(y[0] - 1) + square(x[0] - 1),
        lambda x, y, b: torch.nn.functional.softplus(-x[0].exp() * y[0]).sum(),
    ), t(0.0), t(0.0)),
    ("a jump where another minimiser becomes the deepest", Bilevel(
        lambda x, y, b: square(y[0] + 1) + 0.1 * square(x[0] - 0.5),
        lambda x, y, b: square(y[0].square() - 1) - 0.3 * (x[0] * y[0]).sum(),
    ), t(0.5), t(1.0)),
    ("a plateau", follows(lambda x, y, b: square(y[0].clamp(10, 10.4) - 10.2)), t(50.0), t(0.0)),
    ("not finite at the start", Bilevel(
        lambda x, y, b: square(y[0] - 1), lambda x, y, b: square(y[0] - x[0].log())
    ), t(-0.1), t(0.0)),
    ("no feasible y", Bilevel(
        lambda x, y, b: square(x[0] - 1) + square(y[0]), lambda x, y, b: square(y[0]),
        constraint=lambda x, y: square(y[0]) + 1,
    ), t(0.0), t(0.0)),
])  # fmt: skip
def test_never_called_solved(name, problem, x, y):
    found = solve(problem, [x], [y], steps=200)
    assert found.status in ("out-of-steps", "not-minimal", "diverged", "biased") and not found.converged
    assert torch.isfinite(found.x[0]).all() and found.message


def test_an_objective_that_is_differentiable_once_is_left_to_the_envelope():
    problem = Bilevel(
        lambda x, y, b: 0.5 * square(y[0] - 1) + 0.5 * square(x[0]),
        lambda x, y, b: 0.5 * OnceDifferentiable.apply(y[0] - x[0]),
    )
    found = solve(problem, [t(2.0)], [t(0.0)], steps=300)
    assert found.status in ("biased", "out-of-steps")
    assert float(found.x[0]) == pytest.approx(0.5, abs=1e-3)


# --- constraints that move with x ----------------------------------------------------------------------------------


class HiddenBound:
    """y >= x as a g with value 0: its multiplier is in nobody's hands."""

    def value(self, x, y):
        return y[0].new_zeros(())

    def prox(self, x, y, step):
        return [torch.maximum(y[0], x[0])]


def bounded(**parts):
    return Bilevel(
        lambda x, y, b: 0.5 * square(x[0] - 1) + 0.5 * square(y[0]), lambda x, y, b: 0.5 * square(y[0]), **parts
    )


@pytest.mark.parametrize("method", [None, moreau()])
def test_a_prox_that_hides_a_moving_constraint_is_refused(method):
    found = solve(bounded(g=HiddenBound()), [t(0.0)], [t(0.0)], method)
    assert found.status == "refused" and "constraint" in found.message and found.steps == 0


@pytest.mark.parametrize("constraint", [lambda x, y: square(x[0] - y[0]), lambda x, y: square(torch.relu(y[0] - x[0]))])
def test_an_equality_in_disguise_is_not_called_solved_beside_its_solution(constraint):
    # the gradient of the constraint vanishes where it is 0: no multiplier exists, and rounding error in h is 1e-5 in y
    F, f = (lambda x, y, batch: square(y[0] - 1) + square(x[0] - 2)), (lambda x, y, batch: square(y[0] - 3))
    found = solve(Bilevel(F, f, constraint=constraint), [t(3.0)], [t(3.0)])
    assert found.status != "solved" or abs(float(found.x[0]) - 1.5) < 1e-7
    both = Bilevel(F, f, constraint=lambda x, y: torch.stack([x[0] - y[0], y[0] - x[0]]))
    found = solve(both, [t(3.0)], [t(3.0)])
    assert found.status == "solved" and abs(float(found.x[0]) - 1.5) < 1e-7


def test_the_same_as_a_constraint_has_its_multiplier():
    found = solve(bounded(constraint=lambda x, y: x[0] - y[0]), [t(0.0)], [t(0.0)])
    assert found.converged and float(found.x[0]) == pytest.approx(0.5, abs=1e-8)
    # f_y - lambda = 0
    assert float(found.multipliers[0]) == pytest.approx(0.5, abs=1e-8)


@pytest.mark.parametrize("parts", [
    {"constraint": lambda x, y: x[0] - y[0]}, {"project_y": lambda x, y: [torch.maximum(y[0], x[0])]},
])  # fmt: skip
def test_methods_refuse_constraints_that_move(parts):
    assert solve(bounded(**parts), [t(0.0)], [t(0.0)], moreau()).status == "refused"


def test_a_constraint_excludes_other_restrictions():
    with pytest.raises(ValueError, match="constraint excludes"):
        bounded(constraint=lambda x, y: x[0] - y[0], project_y=project_box(0.0, 1.0))


# --- limits ----------------------------------------------------------------------------------------------------------


def test_watch_stops_without_a_method():
    problem = follows(lambda x, y, b: 100 * (y[0][1] - y[0][0] ** 2) ** 2 + (1 - y[0][0]) ** 2)
    found = solve(problem, [t(-1.2, 1.0)], [t(0.0, 0.0)], watch=lambda k, x, y, info: k == 4)
    assert found.status == "stopped" and found.steps == 5
    assert float(problem.F(found.x, found.y, None)) < float(problem.F([t(-1.2, 1.0)], [t(-1.2, 1.0)], None))


def test_a_run_without_a_method_continues():
    problem = follows(lambda x, y, b: 100 * (y[0][1] - y[0][0] ** 2) ** 2 + (1 - y[0][0]) ** 2)
    begun = solve(problem, [t(-1.2, 1.0)], [t(0.0, 0.0)], steps=10)
    assert begun.status == "out-of-steps" and begun.steps <= 11
    found = solve(problem, begun.x, begun.y, state=begun.state)
    assert found.converged and float(found.x[0][0]) == pytest.approx(1.0, abs=1e-6)


def test_a_large_lower_level_that_is_not_convex_stays_within_its_budget():
    n = 20_000
    problem = Bilevel(
        lambda x, y, b: square(y[0] - 0.5) / n + square(x[0] - 1),
        lambda x, y, b: (0.25 * y[0] ** 4 - 0.5 * y[0] ** 2 * x[0]).sum(),
    )
    found = solve(problem, [t(0.5)], [torch.full((n,), 0.1, dtype=torch.float64)], steps=20)
    assert found.evaluations < 20 * 200


def test_a_state_of_another_kind_is_refused():
    problem = follows(lambda x, y, b: square(y[0] - 1) + square(x[0]))
    given = solve(problem, [t(0.0)], [t(0.0)], moreau(), steps=3)
    with pytest.raises(ValueError, match="state belongs"):
        solve(problem, [t(0.0)], [t(0.0)], state=given.state)

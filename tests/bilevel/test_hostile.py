"""Problems and arguments made to mislead: wells of one depth, saddles without slope, plateaus, states of others."""

import math

import pytest
import torch

from nas_moreau.bilevel import Bilevel, argmin, load_solution, moreau, soba, solve, tchebycheff, two_sided
from nas_moreau.bilevel.prox import L1, project_box, project_simplex

F64 = torch.float64


def t(*values):
    return torch.tensor(values, dtype=F64)


def square(tensor):
    return tensor.square().sum()


def follows(F, **parts):
    """y = x below."""
    return Bilevel(F, lambda x, y, b: 0.5 * square(y[0] - x[0]), **parts)


def easy(**parts):
    """x = y = 1/2."""
    return follows(lambda x, y, b: square(y[0] - 1) + square(x[0]), **parts)


def wells(wanted, **parts):
    """Every y of -1 and 1 is a minimiser below; F prefers one of them."""
    return Bilevel(
        lambda x, y, b: square(y[0] - wanted) + square(x[0] - y[0].sum()),
        lambda x, y, b: square(y[0].square() - 1),
        **parts,
    )


def last_of_many(x, y, batch):
    """y = x but for its last entry, whose minimisers are -1 and 1, with a maximum at 0."""
    return square(y[0][:-1] - x[0]) + (y[0][-1] ** 2 - 1) ** 2 / 4


def summing(x, y, batch):
    """A set of minimisers: y sums to x."""
    return 0.5 * (y[0].sum() - x[0].sum()) ** 2


# --- the right point, and the status that it deserves ----------------------------------------------------------------


@pytest.mark.parametrize("name, problem, x, y, exact", [
    ("wells of the same depth", wells(t(1.0)), t(-1.0), t(-0.5), t(1.0)),
    ("a start at the other well", wells(t(1.0)), t(-1.0), t(-1.0), t(1.0)),
    ("eight wells", wells(t(1.0, -1.0, 1.0)), t(-3.0), t(-1.0, -1.0, -1.0), t(1.0)),
    ("wells in a box", wells(t(1.0), project_y=project_box(-3.0, 3.0)), t(-1.0), t(-1.0), t(1.0)),
    ("small wells", Bilevel(
        lambda x, y, b: square(1e3 * y[0] - 1) + square(x[0] - 1e3 * y[0]),
        lambda x, y, b: square((1e3 * y[0]).square() - 1),
    ), t(-1.0), t(-1e-3), t(1.0)),
    ("a saddle of many x", follows(
        lambda x, y, b: square(y[0][:-1] - 1) + (y[0][-1] ** 2 - 1) ** 2 / 4
    ), torch.zeros(50, dtype=F64), torch.zeros(50, dtype=F64), None),
    ("a saddle of many y", Bilevel(
        lambda x, y, b: (y[0][0] - 1) ** 2 + square(x[0]) + 0.1 * (y[0][-1] ** 2 - x[0][0]) ** 2, last_of_many
    ), t(2.0), torch.zeros(500, dtype=F64), t(1.1 / 2.1)),
    ("a degenerate minimum above", follows(lambda x, y, b: (y[0] - 1).pow(4).sum()), t(3.0), t(0.0), t(1.0)),
    ("a set within a box", Bilevel(
        lambda x, y, b: square(y[0] - t(0.3, 0.2)) + square(x[0] - 0.7), summing, project_y=project_box(0.0, 1.0)
    ), t(0.0), t(0.0, 0.0), t(1.9 / 3)),
    ("a set cut by the edge of a box", Bilevel(
        lambda x, y, b: square(y[0] - t(-1.0, 0.5)) + square(x[0] - 0.7), summing, project_y=project_box(0.0, 1.0)
    ), t(0.3), t(0.1, 0.1), t(0.6)),
    ("a set within a simplex", Bilevel(
        lambda x, y, b: square(y[0] - t(0.2, 0.3, 0.5)) + square(x[0] - 1),
        lambda x, y, b: 0.5 * (y[0][0] - x[0].sum()) ** 2, project_y=project_simplex(),
    ), t(0.0), t(1.0, 0.0, 0.0), t(0.52)),
    ("a lasso with a column twice", Bilevel(
        lambda x, y, b: square(y[0] - t(0.3, 0.5)) + square(x[0] - 1), summing, g=L1(0.1)
    ), t(0.0), t(0.0, 0.0), t(2.9 / 3)),
    ("a saddle of many x on a box", follows(
        lambda x, y, b: square(y[0][:-1] - 1) - y[0][-1] ** 2, project_x=project_box(-1.0, 1.0)
    ), torch.zeros(50, dtype=F64), torch.zeros(50, dtype=F64), None),
    ("a projection that works in place", easy(
        project_x=lambda x: [v.clamp_(min=0.7) for v in x]
    ), t(0.0), t(0.0), t(0.7)),
])  # fmt: skip
def test_solved(name, problem, x, y, exact):
    found = solve(problem, [x], [y])
    assert found.status == "solved"
    if exact is None:  # either sign of the last entry
        exact = torch.ones(50, dtype=F64)
        found.x[0][-1] = found.x[0][-1].abs()
    torch.testing.assert_close(found.x[0], exact, rtol=1e-6, atol=1e-8)


MANY = torch.ones(31, dtype=F64)


@pytest.mark.parametrize("name, F, start", [
    ("a plateau of many x", lambda x, y, b: square(y[0].clamp(10, 10.4) - 10.2), 50 * MANY),
    ("an infimum at infinity of one of many x", lambda x, y, b: y[0][0].tanh() + square(y[0][1:] - 1), MANY),
])  # fmt: skip
def test_never_called_solved(name, F, start):
    found = solve(follows(F), [start], [0 * start])
    assert not found.converged and torch.isfinite(found.x[0]).all()


AUTO, SHORT = moreau(), moreau(0.05, 0.05, 0.05, 1.0, 2.0, p=0.0)


@pytest.mark.parametrize("name, problem, x, y", [
    ("a plateau", follows(lambda x, y, b: square(y[0].clamp(10, 10.4) - 10.2)), t(50.0), t(50.0)),
    ("a maximum on a box", follows(lambda x, y, b: -square(y[0]), project_x=project_box(-1.0, 1.0)), t(0.0), t(0.0)),
    ("a concave kink on a box", follows(
        lambda x, y, b: -2 * y[0].abs().sum() + 0.5 * square(x[0]), project_x=project_box(-3.0, 3.0)
    ), t(0.0), t(0.0)),
    ("a saddle of many x", follows(
        lambda x, y, b: square(y[0][:-1] - 1) + (y[0][-1] ** 2 - 1) ** 2 / 4
    ), torch.cat([torch.ones(49, dtype=F64), t(0.0)]), torch.cat([torch.ones(49, dtype=F64), t(0.0)])),
    ("a weight beyond which y is 0", Bilevel(
        lambda x, y, b: square(y[0] - 1), lambda x, y, b: 0.5 * square(y[0] - 2), g=L1(lambda x: [x[0]])
    ), t(5.0), t(0.0)),
    ("a shallow well", Bilevel(
        lambda x, y, b: square(y[0] - 1) + square(x[0] - 1),
        lambda x, y, b: square(y[0].square() - 1) + 0.3 * y[0].sum() - 1e-8 * (x[0] * y[0]).sum(),
    ), t(1.0), t(0.9597338)),
])  # fmt: skip
def test_a_method_is_not_called_solved(name, problem, x, y):
    found = solve(problem, [x], [y], AUTO, steps=60, polish=name == "a shallow well")
    assert not found.converged and not found.certificate.holds(1e-8)


def test_closures_that_change_are_refused():
    calls = 0

    def drifting(x, y, batch):
        nonlocal calls
        calls += 1
        return square(y[0] - 1) + square(x[0]) + max(0, calls - 20)

    assert solve(follows(drifting), [t(1.0)], [t(0.0)]).status == "refused"


def test_the_certificate_is_that_of_the_last_point():
    found = solve(easy(), [t(1.0)], [t(0.0)], steps=1)
    torch.testing.assert_close(found.x[0], t(0.5))
    assert found.certificate.hypergradient < 1e-7


def test_the_bias_of_y_is_removed_where_x_rests_on_its_bound():
    problem, method = easy(project_x=project_box(0.7, 2.0)), moreau(0.2, 0.2, 0.2, 1.0, 10.0)
    found = solve(problem, [t(0.0)], [t(0.0)], method, steps=400, debias=True)
    torch.testing.assert_close(found.x[0], t(0.7))
    assert abs(float(found.y[0]) - 0.7) < 1e-4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("parts", [{}, {"constraint": lambda x, y: y[0] - 0.3}, {"project_y": project_box(-1.0, 0.3)}])
def test_the_callers_gradient_mode_changes_nothing(mode, parts):
    outside = solve(easy(**parts), [t(1.0)], [t(0.0)])
    with mode():
        inside = solve(easy(**parts), [t(1.0)], [t(0.0)])
    assert inside.status == outside.status and inside.evaluations == outside.evaluations
    torch.testing.assert_close(inside.x[0], outside.x[0], rtol=0, atol=0)


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"method": "moreau"},
        {"method": moreau},
        {"steps": 10.5},
        {"watch": True},
        {"batches": [1, 2, 3]},
    ],
)
def test_arguments_of_another_kind(given):
    with pytest.raises(TypeError):
        solve(easy(), [t(1.0)], [t(0.0)], **given)


def test_a_tolerance_that_is_not_a_number():
    with pytest.raises(ValueError, match="tolerance"):
        solve(easy(), [t(1.0)], [t(0.0)], tolerance=math.nan)


@pytest.mark.parametrize("value", [1.0, None, torch.tensor(3), torch.tensor(1 + 1j), torch.zeros(1)])
@pytest.mark.parametrize("method", [None, SHORT])
def test_objectives_that_return_no_number(value, method):
    with pytest.raises(TypeError, match="objective"):
        solve(follows(lambda x, y, b: value), [t(1.0)], [t(0.0)], method)


@pytest.mark.parametrize("value", [0.0, [], {"a": torch.zeros(1)}])
def test_constraints_that_return_no_tensor(value):
    with pytest.raises(TypeError, match="constraint"):
        solve(easy(constraint=lambda x, y: value), [t(1.0)], [t(0.0)])


def test_a_constraint_that_is_not_finite_at_the_start():
    found = solve(easy(constraint=lambda x, y: (y[0] - 3).log()), [t(1.0)], [t(0.0)])
    assert found.status == "diverged" and "constraint" in found.message


def test_tensors_without_data():
    with pytest.raises(TypeError, match="data"):
        solve(easy(), [torch.zeros(1, device="meta")], [t(0.0)])


def test_a_generator_of_batches_ends():
    with pytest.raises(ValueError, match="generator"):
        solve(easy(), [t(1.0)], [t(0.0)], batches=((k for k in range(3)), (k for k in range(3))), steps=10)


# --- states ----------------------------------------------------------------------------------------------------------


def states():
    start, whole = ([t(1.0)], [t(0.0)]), lambda k: (None, None)
    return {
        "auto": solve(easy(), *start, AUTO, steps=3).state,
        "constants": solve(easy(), *start, SHORT, steps=3).state,
        "two-sided": solve(easy(), *start, two_sided(0.05, 0.05, 0.05), steps=3).state,
        "stochastic": solve(easy(), *start, soba(), steps=3, batches=whole).state,
        "alone": solve(easy(), *start, steps=1).state,
        "a number": 5,
    }


@pytest.mark.parametrize("method", ["auto", "stochastic", "alone"])
def test_states_of_other_methods(method):
    methods = {"auto": AUTO, "stochastic": soba(), "alone": None}
    for name, state in states().items():
        if name != method:
            with pytest.raises(ValueError, match="state"):
                solve(easy(), [t(1.0)], [t(0.0)], methods[method], steps=3, state=state)


@pytest.mark.parametrize("name, method", [("auto", AUTO), ("constants", SHORT), ("alone", None)])
def test_states_of_other_shapes(name, method):
    with pytest.raises(ValueError, match="state"):
        solve(easy(), [t(1.0, 2.0, 3.0)], [t(0.0, 0.0, 0.0)], method, steps=3, state=states()[name])


def test_a_saved_state_of_another_method(tmp_path):
    solve(easy(), [t(1.0)], [t(0.0)], AUTO, steps=3).save(tmp_path / "auto.pt")
    read = load_solution(tmp_path / "auto.pt")
    with pytest.raises(ValueError, match="state"):
        solve(easy(), read.x, read.y, state=read.state)


def test_a_file_that_is_no_solution(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="no solution"):
        load_solution(tmp_path / "text.pt")


@pytest.mark.parametrize("parts", [{}, {"method": AUTO, "steps": 5}])
@pytest.mark.parametrize("call", [1, 7, 90, 150, 200])
def test_ctrl_c_anywhere_returns_a_point(parts, call):
    calls = 0

    def interrupted(x, y, batch):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return 100 * (y[0][1] - y[0][0] ** 2) ** 2 + (1 - y[0][0]) ** 2

    found = solve(follows(interrupted), [t(-1.2, 1.0)], [t(0.0, 0.0)], **parts)
    assert found.status == "stopped" or calls < call
    assert torch.isfinite(found.x[0]).all()


# --- argmin, several objectives --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"project_y": project_box(0.0, 5.0)},
        {"g": L1(0.1)},
        {"constraint": lambda x, y: -y},
    ],
)
def test_argmin_hands_out_no_member_of_a_set(parts):
    with pytest.raises(ArithmeticError):
        argmin(lambda x, y: (y.sum() - x.sum()) ** 2, t(0.0, 0.0), **parts)(t(1.0, 2.0))


def test_argmin_gives_its_constraint_what_f_gets():
    x = t(1.0, 2.0).requires_grad_()
    y = argmin(lambda x, y: square(y - 2 * x), t(0.0, 0.0), constraint=lambda x, y: y.sum() - 3 * x[0])(x)
    torch.testing.assert_close(y.detach(), t(0.5, 2.5))  # 2 x less half of what exceeds 3 x_1
    (gradient,) = torch.autograd.grad(y[0], x)
    torch.testing.assert_close(gradient, t(2.5, -1.0))


def test_argmin_without_a_derivative_raises_in_its_backward_pass():
    def clipped(tensors):
        return [torch.from_numpy(tensors[0].detach().numpy().clip(0.0, 1.5))]

    x = t(1.0, 2.0).requires_grad_()
    y = argmin(lambda x, y: square(y - x), t(0.0, 0.0), project_y=clipped)(x)
    torch.testing.assert_close(y.detach(), t(1.0, 1.5))
    with pytest.raises(ArithmeticError):
        y.sum().backward()


def test_argmin_is_differentiated_once_only():
    def objective(x):
        return argmin(lambda x, y: (y.exp() - x * y).sum(), t(0.0, 0.0))(x).sum() + square(x)

    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.functional.hessian(objective, t(1.0, 2.0))


def test_tchebycheff_of_no_objective():
    with pytest.raises(ValueError):
        tchebycheff([])

"""The loop: stopping, the guard, the history, the removal of bias, polish; and the theory made visible."""

import math

import numpy
import pytest
import torch

from nas_moreau.bilevel import (
    Bilevel,
    adam,
    debiased,
    distance_over_gradients,
    load_solution,
    lower_solution,
    merit,
    moreau,
    polished,
    residual,
    solve,
)
from nas_moreau.bilevel.prox import L1, project_box
from nas_moreau.bilevel.rivals.darts import darts1
from nas_moreau.bilevel.rivals.penalties import f2sa


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
    assert not found.converged and found.status == "biased" and found.steps < 3000
    # as large as the formula says, relative to x
    assert found.certificate.bias == pytest.approx((penalised(5.0, 2.0)[0] - 0.5) / float(found.x[0]), rel=0.01)
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
    plain = solve(quadratic(), zero(), zero(), moreau(), steps=600)
    better = solve(quadratic(), zero(), zero(), moreau(), steps=600, debias=True, polish=True)
    assert abs(float(plain.x[0]) - 0.5) < 1e-2
    assert abs(float(better.x[0]) - 0.5) < 1e-5
    assert float(better.y[0]) == pytest.approx(float(better.x[0]), abs=1e-9)
    assert better.status in ("biased", "solved") and better.steps > plain.steps
    assert len(better.history["F"]) == better.steps
    again = polished(quadratic(), debiased(quadratic(), plain, moreau(), 600))
    assert torch.equal(again.x[0], better.x[0]) and torch.equal(again.y[0], better.y[0])


def test_a_bias_that_was_removed_counts_as_solved_to_a_fitting_tolerance():
    found = solve(quadratic(), zero(), zero(), moreau(), steps=600, debias=True, polish=True, tolerance=1e-4)
    assert found.status == "solved" and found.converged


@pytest.mark.parametrize("method", [darts1(0.1, 0.5), f2sa(0.02, 0.02, 0.5, 10.0)])
def test_a_method_that_settles_elsewhere_is_not_called_solved(method):
    found = solve(quadratic(), zero(), zero(), method, steps=2000, tolerance=1e-6)
    assert abs(float(found.x[0]) - 0.5) > 1e-3 and found.status == "biased" and not found.converged
    # x of the certificate's estimate, relative to x
    assert found.certificate.bias == pytest.approx(abs(float(found.x[0]) - 0.5) / abs(float(found.x[0])), rel=0.1)


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
        ([], "x holds no numbers"),
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
    found = solve(quadratic(), start, start, moreau(), steps=30)
    assert not recwarn.list and not found.x[0].requires_grad and float(start[0]) == 0


# --- continuing, stopping, saving, counting ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", [moreau, lambda: moreau(order="lagged"), lambda: moreau(0.1, 0.1, 0.1, 2.0, 5.0)])
def test_thirty_steps_and_thirty_more_are_sixty(make):
    whole = solve(quadratic(), zero(), zero(), make(), steps=60)
    half = solve(quadratic(), zero(), zero(), make(), steps=30)
    more = solve(quadratic(), half.x, half.y, make(), steps=30, state=half.state)
    assert more.x[0].numpy().tobytes() == whole.x[0].numpy().tobytes()
    assert more.y[0].numpy().tobytes() == whole.y[0].numpy().tobytes()
    assert [*half.history["F"], *more.history["F"]] == whole.history["F"]


def test_a_saved_solution_continues_as_the_one_in_memory(tmp_path):
    half = solve(quadratic(), zero(), zero(), moreau(), steps=30)
    half.save(tmp_path / "half.pt")
    torch.load(tmp_path / "half.pt", weights_only=True)
    again = load_solution(tmp_path / "half.pt")
    assert (again.status, again.certificate, again.history) == (half.status, half.certificate, half.history)
    kept = solve(quadratic(), half.x, half.y, moreau(), steps=30, state=half.state)
    read = solve(quadratic(), again.x, again.y, moreau(), steps=30, state=again.state)
    assert kept.x[0].numpy().tobytes() == read.x[0].numpy().tobytes()


def test_minibatches_continue_with_the_next_number():
    problem = Bilevel(lambda x, y, b: 0.5 * (x[0] - b) ** 2 + 0.5 * y[0] ** 2, lambda x, y, b: b * (y[0] - x[0]) ** 2)
    method = moreau(0.1, 0.1, 0.1, 1.0, 1.0)
    seen = []

    def batches(k):
        seen.append(k)
        return float(k), 1.0

    half = solve(problem, zero(), zero(), method, steps=3, batches=batches)
    seen.clear()
    solve(problem, half.x, half.y, method, steps=2, batches=batches, state=half.state)
    assert sorted(set(seen)) == [3, 4]


def test_a_pair_of_iterables_serves_as_batches():
    problem = Bilevel(lambda x, y, b: 0.5 * (x[0] - b) ** 2 + 0.5 * y[0] ** 2, lambda x, y, b: b * (y[0] - x[0]) ** 2)
    found = solve(problem, zero(), zero(), moreau(0.1, 0.1, 0.1, 1.0, 1.0), steps=5, batches=([1.0, 2.0], [1.0]))
    other = solve(
        problem, zero(), zero(), moreau(0.1, 0.1, 0.1, 1.0, 1.0), steps=5, batches=lambda k: (1.0 + k % 2, 1.0)
    )
    assert torch.equal(found.x[0], other.x[0])


def interrupting(problem, calls):
    """The problem, with a Ctrl-C at a call of F."""
    seen = [0]

    def F(x, y, batch):
        seen[0] += 1
        if seen[0] == calls:
            raise KeyboardInterrupt
        return problem.F(x, y, batch)

    return Bilevel(F, problem.f)


@pytest.mark.parametrize("calls", [10, 300, 800])
@pytest.mark.parametrize("method", [None, moreau(0.2, 0.2, 0.2, 2.0, 5.0, p=0.0)])
def test_an_interrupt_keeps_the_iterate(calls, method):
    """Within the steps, the removal of the bias and the second-order phases."""
    start = [tensor([2.0, -1.0])]
    problem = Bilevel(
        lambda x, y, b: ((x[0] - 1) ** 4).sum() + 0.5 * (y[0] ** 2).sum(),
        lambda x, y, b: (0.25 * y[0] ** 4 + 0.5 * y[0] ** 2 - x[0] * y[0]).sum(),
    )
    found = solve(interrupting(problem, calls), start, start, method, debias=method is not None, steps=100)
    assert found.status in ("stopped", "solved")
    assert found.status == "stopped" or calls > 100
    assert all(torch.isfinite(t).all() for t in (*found.x, *found.y))


@pytest.mark.parametrize("last", [3, 45, 90])
def test_watch_stops_the_steps_and_the_removal_of_the_bias(last):
    seen = []

    def watch(k, x, y, info):
        seen.append(k)
        return k == last

    method = moreau(0.5, 0.3, 0.3, gamma=2.0, c=5.0, p=0.0)
    found = solve(quadratic(), zero(), zero(), method, steps=40, debias=True, tolerance=1e-15, watch=watch)
    assert found.status == "stopped" and seen == list(range(last + 1)) and found.steps == last + 1


def test_watch_stops_the_polish():
    method = moreau(0.5, 0.3, 0.3, gamma=2.0, c=5.0, p=0.0)
    spread = torch.logspace(0, 4, 6, dtype=torch.float64)
    problem = Bilevel(lambda x, y, b: (x[0] ** 2).sum(), lambda x, y, b: 0.5 * (spread * (y[0] - x[0]) ** 2).sum())
    start = [torch.ones(6, dtype=torch.float64)]
    method = moreau(1e-5, 1e-5, 1e-5, gamma=2.0, c=5.0)
    found = solve(problem, zero(), start, method, steps=2, polish=True, watch=lambda k, x, y, info: k == 4)
    assert found.status == "stopped"


def test_evaluations_are_counted_for_every_method():
    calls = [0]

    def counting(function):
        def call(x, y, batch):
            calls[0] += 1
            return function(x, y, batch)

        return call

    problem = Bilevel(counting(quadratic().F), counting(quadratic().f))
    found = solve(problem, zero(), zero(), moreau(0.1, 0.1, 0.1, 1.0, 1.0, order="lagged"), steps=20, tolerance=0)
    assert found.evaluations == calls[0] >= 60


@pytest.mark.parametrize("steps", [0, -1])
def test_a_number_of_steps_that_is_not_positive_is_refused(steps):
    with pytest.raises(ValueError, match="steps"):
        solve(quadratic(), zero(), zero(), steps=steps)


def test_dicts_of_tensors_come_back_as_dicts():
    problem = Bilevel(
        lambda x, y, b: 0.5 * (x["weight"] - 1) ** 2 + 0.5 * y["a"] ** 2,
        lambda x, y, b: 0.5 * y["a"] ** 2 - x["weight"] * y["a"] + 0.5 * (y["b"] - 2 * x["weight"]) ** 2,
    )
    start = {"a": tensor(0.0), "b": tensor(0.0)}
    for method in (None, moreau()):
        found = solve(problem, {"weight": tensor(0.0)}, start, method, steps=500)
        assert float(found.x["weight"]) == pytest.approx(0.5, abs=1e-2)
        assert float(found.y["b"]) == pytest.approx(1.0, abs=2e-2)


def test_a_rule_with_its_own_scale_needs_a_step_size():
    for given in ({"update_x": adam()}, {"update_y": adam()}, {"update_theta": adam()}):
        with pytest.raises(ValueError, match="own scale"):
            moreau(**given)


def test_a_lower_level_linear_in_y_is_refused_in_a_sentence():
    problem = Bilevel(lambda x, y, b: (x[0] - 1) ** 2 + (y[0] - 1) ** 2, lambda x, y, b: x[0] * y[0])
    with pytest.raises(ValueError, match="No curvature"):
        solve(problem, [tensor(0.3)], zero(), moreau())
    assert not solve(problem, [tensor(0.3)], zero(), steps=50).converged


def test_a_first_step_that_leaves_the_domain_is_taken_back():
    """f has no curvature in x at y = 0, so that the first alpha is 24,000; e^x overflows there."""
    problem = Bilevel(lambda x, y, b: 0.5 * (y[0] - 0.01) ** 2, lambda x, y, b: 0.5 * x[0].exp() * y[0] ** 2 - y[0])
    found = solve(problem, [tensor(-1.0)], zero(), moreau(), steps=300)
    assert found.status != "diverged" and -1 < float(found.x[0]) < 6

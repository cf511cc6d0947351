"""Group lasso data and the searches that know no gradients."""

import pytest
import torch

from nas_moreau.bilevel import lower_solution, moreau, solve
from nas_moreau.problems.group_lasso import (
    generate,
    grid_search,
    group_lasso,
    level_of_zero,
    orthogonal_case,
    random_search,
    tpe_search,
)


def test_data_are_seeded_and_have_the_noise_asked_for():
    first, again, other = generate(12, 3, 50, seed=4), generate(12, 3, 50, seed=4), generate(12, 3, 50, seed=5)
    assert first.train.A.equal(again.train.A) and not first.train.A.equal(other.train.A)
    assert first.group_of.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    truth = torch.tensor([1.0, 2, 3, 4] * 3, dtype=torch.float64)
    signal = first.test.A @ truth
    assert float(signal.norm() / (first.test.b - signal).norm()) == pytest.approx(2.0)


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="divide the features"):
        generate(10, 3)


def test_the_level_above_which_y_is_zero():
    case = group_lasso(n=24, seed=1)
    top = level_of_zero(case.data)
    for factor, is_zero in ((1.001, True), (0.98, False)):
        x = [torch.full_like(case.x[0], factor * top)]
        y = lower_solution(case.problem, x, case.y).point[0]
        assert bool((y == 0).all()) == is_zero


def test_searches_solve_the_lower_level_and_keep_the_best():
    case = group_lasso(n=24, seed=1)
    grid = grid_search(case, 6)
    values = []
    for i in range(6):
        x = [torch.full_like(case.x[0], level_of_zero(case.data) * 1e-3 ** (i / 5))]
        values.append(float(case.problem.F(x, lower_solution(case.problem, x, case.y).point, None)))
    assert grid.tried == 6 and grid.objective == pytest.approx(min(values), rel=1e-5)
    found = random_search(case, 5, seed=2)
    assert found.tried == 5 and found.objective == pytest.approx(random_search(case, 5, seed=2).objective)


def test_tpe():
    pytest.importorskip("optuna")
    found = tpe_search(group_lasso(n=24, seed=1), 3)
    assert found.tried == 3 and found.objective > 0


def test_moreau_beats_the_grid():
    case = group_lasso(n=24, seed=1)
    found = solve(case.problem, case.x, case.y, moreau(), steps=600, polish=True)
    assert float(case.problem.F(found.x, found.y, None)) < grid_search(case, 20).objective


def test_moreau_finds_the_closed_form():
    case = orthogonal_case()
    assert case.error(solve(case.problem, case.x, case.y, moreau(), steps=600).x) < 1e-3
    assert case.error(solve(case.problem, case.x, case.y, moreau(), steps=600, debias=True).x) < 1e-6

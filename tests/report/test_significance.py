"""Permutation test, Kendall's tau and relative improvement against values by hand (and scipy where it is installed)."""

import math
import random
import statistics
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_moreau.report import significance
from nas_moreau.report.significance import kendall_tau, permutation_p_value, relative_improvement, runs_needed

VALUES = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=7)


def test_p_values_by_hand():
    # {1,2,3} and {4,5,6}: of the 20 ways only this one and its mirror differ by 3
    assert permutation_p_value([1, 2, 3], [4, 5, 6]) == 2 / 20
    # {1,4} and {2,3}: both means are 2.5, every way is as extreme
    assert permutation_p_value([1, 4], [2, 3]) == 1.0
    # {0} and {1,2}: differences 1.5, 0 and 1.5
    assert permutation_p_value([0], [1, 2]) == 2 / 3
    assert permutation_p_value([5, 5], [5, 5, 5]) == 1.0
    assert permutation_p_value([], [1.0]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_give_no_statistic(bad):
    assert permutation_p_value([1.0, bad], [2.0, 3.0]) is None
    assert runs_needed([1.0, bad], [2.0, 3.0]) is None
    assert kendall_tau([1.0, bad, 2.0], [1.0, 2.0, 3.0]) is None


@given(VALUES, VALUES)
def test_p_value_is_symmetric_and_does_not_see_shifts_or_order(a, b):
    p = permutation_p_value(a, b)
    assert 0 < p <= 1
    assert permutation_p_value(b, a) == pytest.approx(p)
    assert permutation_p_value([-v for v in reversed(a)], [-v for v in b]) == pytest.approx(p)
    assert permutation_p_value([v + 0.1 for v in a], [v + 0.1 for v in b]) == pytest.approx(p)


def test_many_values_are_drawn_at_random_and_near_the_exact_ones(monkeypatch):
    a, b = [0.1, 0.5, 0.9, 1.4, 2.2], [1.0, 1.3, 2.0, 2.4, 3.1]
    exact = permutation_p_value(a, b)
    monkeypatch.setattr(significance, "EXACT", 0)
    drawn = permutation_p_value(a, b)
    assert drawn == permutation_p_value(a, b)
    # 4 standard errors of 20,000 draws
    assert abs(drawn - exact) < 4 * math.sqrt(exact * (1 - exact) / significance.DRAWS)


def test_runs_needed_by_hand():
    # (1.960 + .842)^2 = 7.849; variances .5 and .5; difference 1, then 2: 7.849 and 1.96 runs; 4 and 4 give 2/70
    assert runs_needed([0, 1], [1, 2]) == 8
    assert runs_needed([0, 1], [2, 3]) == 4
    assert runs_needed([0, 0], [5, 5]) == 4
    assert runs_needed([0, 0], [5, 5], level=0.2) == 3
    assert runs_needed([0], [1, 2]) is None
    assert runs_needed([0, 1], [1, 0]) is None


def test_that_many_runs_find_the_difference_as_often_as_they_should():
    draw = random.Random(1)
    count = runs_needed([-1, 1], [0, 2])  # standard deviation sqrt(2), difference 1
    spread, found = math.sqrt(2), 0
    for _ in range(150):
        a, b = ([draw.gauss(middle, spread) for _ in range(count)] for middle in (0, 1))
        error = math.sqrt((statistics.variance(a) + statistics.variance(b)) / count)
        found += abs(statistics.fmean(b) - statistics.fmean(a)) > 1.97 * error
    assert 0.68 < found / 150 < 0.92  # four standard errors around .8


def test_tau_by_hand():
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # pairs: (1,2) tied in a, (1,3) and (2,3) concordant: 2 / sqrt(2 * 3)
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))
    assert kendall_tau([1, 1], [1, 2]) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_tau_is_what_counting_pairs_gives(pairs):
    a, b = zip(*pairs)
    n = len(pairs)
    signs = [(a[i] > a[j]) - (a[i] < a[j]) for i in range(n) for j in range(i)]
    others = [(b[i] > b[j]) - (b[i] < b[j]) for i in range(n) for j in range(i)]
    scale = math.sqrt(sum(s != 0 for s in signs) * sum(s != 0 for s in others))
    found = kendall_tau(a, b)
    assert found is None if not scale else found == pytest.approx(sum(s * t for s, t in zip(signs, others)) / scale)


def test_tau_and_p_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = [3.0, 1.0, 1.0, 7.0, 2.0, 2.0, 9.0], [1.0, 1.0, 4.0, 5.0, 2.0, 3.0, 3.0]
    assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)

    def difference(x, y, axis):
        return x.mean(axis) - y.mean(axis)

    found = stats.permutation_test((a[:3], b[:4]), difference, permutation_type="independent", vectorized=True)
    # scipy doubles the smaller tail; by symmetric counting both tails are counted as they are
    values = [*a[:3], *b[:4]]
    limit = abs(sum(values[:3]) / 3 - sum(values[3:]) / 4) - 1e-9
    ways = {tuple(sorted(order[:3])) for order in permutations(range(7))}
    extreme = sum(
        abs(sum(values[i] for i in way) / 3 - sum(values[i] for i in range(7) if i not in way) / 4) >= limit
        for way in ways
    )
    assert permutation_p_value(a[:3], b[:4]) == pytest.approx(extreme / len(ways))
    assert found.pvalue >= extreme / len(ways) / 2


def test_relative_improvement_by_hand():
    assert relative_improvement(0.99, 0.90) == pytest.approx(10)
    assert relative_improvement(0.45, 0.90) == pytest.approx(-50)

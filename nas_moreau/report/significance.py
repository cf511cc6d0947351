"""Statistics of comparisons: permutation test, runs needed, rank correlation, and which group is best, in words."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from nas_moreau.report.format import mean_and_spread, p_value

EXACT = 200_000
"""Largest number of ways to divide the values that are all counted (a second or so)."""
LEVEL = 0.05
"""p-values below it are more than chance, in the texts of pages."""
DRAWS = 20_000
"""Random ways that are drawn beyond that: the standard error of a p-value of .05 is .0015."""


def permutation_p_value(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Returns the two-sided p-value of the difference of two means under permutations of the values.

    The share of all ways to divide the values into groups of these sizes whose means differ at least as much as the
    given ones (Fisher's permutation test). Exact up to 200,000 ways; beyond that 20,000 random ones, the given one
    counted among them (Phipson & Smyth, 2010). None where a group is empty or holds a number that is not finite.

    Example:
        >>> permutation_p_value([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])  # two of the 20 ways are as extreme
        0.1
    """
    if not a or not b or not all(map(math.isfinite, (*a, *b))):
        return None
    pooled, size, total = [*a, *b], len(a), math.fsum([*a, *b])

    def difference(chosen: Sequence[float]) -> float:
        part = math.fsum(chosen)
        return abs(part / size - (total - part) / (len(pooled) - size))

    # rounding must not make a way less extreme than itself
    limit = difference(a) - 1e-12 * max(1.0, *map(abs, pooled))
    ways = math.comb(len(pooled), size)
    if ways <= EXACT:
        return sum(difference(chosen) >= limit for chosen in itertools.combinations(pooled, size)) / ways
    draw = random.Random(0)
    as_extreme = sum(difference(draw.sample(pooled, size)) >= limit for _ in range(DRAWS))
    return (as_extreme + 1) / (DRAWS + 1)


def runs_needed(a: Sequence[float], b: Sequence[float], level: float = 0.05, power: float = 0.8) -> int | None:
    """Returns how many runs on each side would show the difference of means that was seen, if it is the true one.

    The usual normal approximation for two groups of equal size, n = (z_{1 - level/2} + z_power)^2 (s_a^2 + s_b^2) / d^2
    (Cohen, 1988); s^2 are the sample variances, d is the difference. At least as many as the permutation test needs to
    get below the level at all: 4 on each side for .05. None where a side has a single run, the means are equal or a
    number is not finite. The estimate is as uncertain as the standard deviations that it is made of.

    Args:
        a: The figures of one side.
        b: Those of the other.
        level: Two-sided level of the test.
        power: Probability that the test then finds the difference.

    Example:
        >>> runs_needed([1.0, 3.0], [2.0, 4.0])  # variances 2 and 2, difference 1
        32
    """
    if min(len(a), len(b)) < 2 or not all(map(math.isfinite, (*a, *b))) or statistics.fmean(a) == statistics.fmean(b):
        return None
    normal = statistics.NormalDist()
    scale = (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)) ** 2
    variance, difference = statistics.variance(a) + statistics.variance(b), statistics.fmean(a) - statistics.fmean(b)
    return max(_least(level), math.ceil(scale * variance / difference**2))


def _least(level: float) -> int:
    """Returns the number of runs on each side with which the permutation test can get below a level."""
    return next(n for n in itertools.count(2) if 2 / math.comb(2 * n, n) < level)


def runs_for_certainty(a: Sequence[float], b: Sequence[float]) -> int | None:
    """Returns how many runs on each side may show that two means differ by more than chance.

    None where the given ones show it already, or are equal. With a single run on one side nothing is known of the
    spread: then as many as the permutation test needs at least.
    """
    p = permutation_p_value(a, b)
    if p is None or p < LEVEL:
        return None
    return _least(LEVEL) if min(len(a), len(b)) == 1 else runs_needed(a, b)


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Returns Kendall's tau-b of two equally long sequences, -1..1.

    None where one of them has a single value, or one that is not finite.
    (concordant - discordant) / sqrt((pairs - ties in a) (pairs - ties in b)) (Kendall, 1945).

    Example:
        >>> round(kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]), 3)  # 5 pairs agree, 1 does not
        0.667
    """
    if not all(map(math.isfinite, (*a, *b))):
        return None
    x, y = (np.sign(np.subtract.outer(v, v)) for v in (np.asarray(a, float), np.asarray(b, float)))
    scale = math.sqrt((x * x).sum()) * math.sqrt((y * y).sum())
    return float((x * y).sum() / scale) if scale else None


def relative_improvement(accuracy: float, random_mean: float) -> float:
    """Returns the relative improvement over random cells in per cent (Yang et al., ICLR 2020)."""
    return 100 * (accuracy - random_mean) / random_mean


def ranking(what: str, groups: Mapping[str, Sequence[float]]) -> list[str]:
    """Returns which group has the best mean, and whether it can be distinguished from the next one.

    Args:
        what: The figure ("test accuracy after retraining").
        groups: Name -> fractions of its runs; at least one group, none of them empty.
    """
    (best, values), *others = sorted(groups.items(), key=lambda group: -statistics.fmean(group[1]))
    if not others:
        seeds = f"{len(values)} seeds, mean ± standard deviation" if len(values) > 1 else "one run"
        return [f"{best} reaches {mean_and_spread(values)} {what} ({seeds})."]
    second, theirs = others[0]
    p = permutation_p_value(values, theirs)
    if min(len(values), len(theirs)) == 1:
        certainty = "with a single run on one side, chance is not ruled out."
    elif p is not None and p < LEVEL:
        certainty = f"p {p_value(p)} by a permutation test: more than chance."
    else:
        needed = runs_needed(values, theirs)
        more = f"; to show a difference of this size takes about {needed:,} runs of each" if needed else ""
        certainty = f"p {p_value(p)} by a permutation test: chance is not ruled out{more}."
    behind = 100 * (statistics.fmean(values) - statistics.fmean(theirs))
    return [
        f"The best mean {what} is that of {best}: {mean_and_spread(values)} (n = {len(values)}).",
        f"{second} follows {behind:.2f} points behind; {certainty}",
    ]

"""Cells that are one network: against the literal evaluation of every cell, and the figures made of them."""

import math
import random
from itertools import product

import pytest

from nas_moreau.compare.nas_bench_table import BenchmarkTable
from nas_moreau.compare.twins import retraining, twins

OPERATIONS = ("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")
SCALARS = {
    "none": lambda v: 0.0,
    "skip_connect": lambda v: v,
    "avg_pool_3x3": lambda v: math.sin(3 * v),  # 0 at 0, as the pool of nothing
    "nor_conv_1x1": lambda v: math.cos(2 * v),  # not 0 at 0, as a BatchNorm's bias
    "nor_conv_3x3": lambda v: math.exp(-v) + 0.7,
}


def arch(choice):
    """The string of six operations, in the order 0-1, 0-2, 1-2, 0-3, 1-3, 2-3."""
    a, b, c, d, e, f = choice
    return f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"


def value(choice, start):
    a, b, c, d, e, f = (SCALARS[name] for name in choice)
    one = a(start)
    two = b(start) + c(one)
    return d(start) + e(one) + f(two)


def test_twins_are_the_cells_of_equal_value():
    draw = random.Random(0)
    choices = list(product(OPERATIONS[:4], repeat=6)) + [tuple(draw.choices(OPERATIONS, k=6)) for _ in range(2000)]
    by_value = {}
    for choice in dict.fromkeys(choices):
        by_value.setdefault(round(value(choice, 0.37), 9), set()).add(arch(choice))
    found = {frozenset(group) for group in twins(dict.fromkeys(map(arch, choices)))}
    assert found == {frozenset(group) for group in by_value.values() if len(group) > 1}
    assert len(found) > 100


def test_the_noise_is_that_of_the_twins_among_the_best_cells():
    skip, conv, none = "skip_connect", "nor_conv_3x3", "none"
    pair = [(conv, none, none, none, skip, none), (none, conv, none, none, none, skip)]  # 3x3 of the input, both
    worse = [(skip, none, none, none, conv, none), (none, skip, none, none, none, conv)]
    others = [(conv, conv, one, two, conv, conv) for one in OPERATIONS for two in OPERATIONS]
    others += [(one, conv, conv, two, conv, conv) for one in OPERATIONS for two in OPERATIONS]
    accuracies = {pair[0]: 94.0, pair[1]: 93.6, worse[0]: 93.9, worse[1]: 93.9}
    accuracies |= {choice: 30.0 + i for i, choice in enumerate(dict.fromkeys(others))}
    cells = {arch(choice): (accuracy,) for choice, accuracy in accuracies.items()}
    found = retraining(BenchmarkTable("t", ("acc",), cells), "acc")
    # all four are one function: mean 93.85, variance (.15^2 + .25^2 + 2 * .05^2) / 3 = .03
    assert found.noise == pytest.approx(math.sqrt(2 * 0.03) / 100)
    assert found.near_best == pytest.approx(0.94 - found.noise)


def test_a_table_without_twins_tells_nothing_of_noise():
    cells = {arch((one, *["nor_conv_3x3"] * 5)): (90.0 + i,) for i, one in enumerate(OPERATIONS)}
    assert retraining(BenchmarkTable("t", ("acc",), cells), "acc") is None

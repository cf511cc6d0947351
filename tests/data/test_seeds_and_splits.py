"""Seeds are pure functions of their purpose; splits are disjoint, complete, stratified and seeded."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_moreau.data import epoch_order, generator_for, seed_for, stratified_split
from nas_moreau.errors import InputError

HALVES = {"weights": 0.45, "architecture": 0.45, "held_out": 0.1}


def test_seed_is_the_first_63_bits_of_sha256():
    digest = hashlib.sha256(b"(3, 'augment', 1, 2)").hexdigest()
    assert seed_for(3, "augment", 1, 2) == int(digest[:16], 16) // 2


def test_seeds_differ_by_each_argument():
    keys = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 0), (0, "a', 1"), (-1, "a")]
    assert len({seed_for(*key) for key in keys}) == len(keys)
    assert all(0 <= seed_for(*key) < 2**63 for key in keys)


def test_generator_is_fresh_each_time():
    first, second = (torch.rand(4, generator=generator_for(5, "x", 7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(4, generator=generator_for(5, "x", 8)))


def test_split_of_balanced_classes_is_exact():
    labels = torch.arange(1000) % 10
    parts = stratified_split(labels, HALVES, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {
        "weights": 450,
        "architecture": 450,
        "held_out": 100,
    }
    for name, part in parts.items():
        assert torch.bincount(labels[part], minlength=10).tolist() == [round(100 * HALVES[name])] * 10


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_split_covers_all_once_and_is_stratified(counts, weights, seed):
    labels = torch.cat([torch.full((count,), i) for i, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=generator_for(seed, "test"))]
    fractions = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    try:
        parts = stratified_split(labels, fractions, seed)
    except InputError:
        # Only refused when some part's share of all samples is below one.
        assert min(fractions.values()) * len(labels) < 1 + 1e-6
        return
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(len(labels)))
    for name, part in parts.items():
        assert part.dtype == torch.int64
        assert part.tolist() == sorted(part.tolist())
        assert abs(len(part) - fractions[name] * len(labels)) <= 1 + 1e-6
        for label, count in enumerate(counts):
            assert abs(int((labels[part] == label).sum()) - fractions[name] * count) < 1 + 1e-6


def test_many_small_classes_still_reach_the_small_part():
    # 3 images a class: rounding each class alone would never give anything to a tenth.
    labels = torch.arange(20).repeat_interleave(3)
    assert len(stratified_split(labels, HALVES, 0)["held_out"]) == 6


def test_split_depends_on_the_seed_alone():
    labels = torch.arange(200) % 4
    first, again, other = (stratified_split(labels, HALVES, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in HALVES)
    assert not torch.equal(first["held_out"], other["held_out"])


def test_fraction_zero_is_an_empty_part():
    parts = stratified_split(torch.arange(10) % 2, {"a": 1.0, "b": 0.0}, 0)
    assert (len(parts["a"]), len(parts["b"])) == (10, 0)
    assert parts["b"].dtype == torch.int64


@pytest.mark.parametrize(
    "fractions", [{}, {"a": 0.5}, {"a": 0.7, "b": 0.4}, {"a": 1.5, "b": -0.5}, {"a": float("nan"), "b": 1.0}]
)
def test_fractions_that_are_no_split_are_refused(fractions):
    with pytest.raises(InputError, match="1"):
        stratified_split(torch.arange(10), fractions, 0)


def test_an_empty_part_is_refused():
    with pytest.raises(InputError, match="'held_out'"):
        stratified_split(torch.zeros(4, dtype=torch.int64), HALVES, 0)


def test_epoch_order_permutes_the_indices():
    indices = torch.tensor([5, 7, 11, 13, 17, 19])
    orders = [epoch_order(indices, 0, "weights", epoch) for epoch in range(6)]
    assert all(order.sort().values.tolist() == indices.tolist() for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) > 3
    assert torch.equal(orders[2], epoch_order(indices, 0, "weights", 2))
    assert any(not torch.equal(epoch_order(indices, 0, "other", epoch), orders[epoch]) for epoch in range(6))


def test_package_hands_names_on_lazily():
    # A name is loaded when it is asked for: the package alone brings in neither torch nor Pillow.
    script = "import sys, nas_moreau.data as d; assert 'torch' not in sys.modules and 'load_data' in dir(d)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    import nas_moreau.data as package

    assert all(callable(getattr(package, name)) for name in package.__all__)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        package.absent  # noqa: B018

"""Several processes compute what one computes: a search of 20 steps, others and retrainings of a few, in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import launching
import training

pytestmark = pytest.mark.slow
TOLERANCE = 1e-10
LOCAL = ("search, local norms", "retraining, local norms")
OF_FOUR = ("search", "search, local norms", "search, synchronised norms", "retraining")
PAIRS = [(2, name) for name in training.CASES] + [(4, name) for name in OF_FOUR]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Number of processes -> for each rank its numbers by case."""
    folder = tmp_path_factory.mktemp("equality")
    results = {1: [training.in_double_precision(list(training.CASES))]}
    for processes, cases in ((2, training.CASES), (4, OF_FOUR)):
        script = str(Path(training.__file__))
        code, _, messages = launching.torchrun(processes, [script, str(folder), ";".join(cases)])
        assert code == 0, messages
        results[processes] = [
            torch.load(folder / f"{processes}-{rank}.pt", weights_only=True) for rank in range(processes)
        ]
    return results


def difference(a, b):
    return max((s - t).abs().max().item() for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize(("processes", "case"), PAIRS)
def test_all_processes_hold_the_same_bytes(found, processes, case):
    first, *others = (rank[case] for rank in found[processes])
    assert len(others) == processes - 1
    for other in others:
        for name, tensors in first.items():
            assert all(torch.equal(s, t) for s, t in zip(tensors, other[name], strict=True)), name


@pytest.mark.parametrize(("processes", "case"), [pair for pair in PAIRS if pair[1] not in LOCAL])
def test_several_processes_equal_one(found, processes, case):
    one, several = found[1][0][case], found[processes][0][case]
    for name in ("alphas", "weights", "buffers", "averages"):
        if one.get(name):
            assert difference(one[name], several[name]) < TOLERANCE, name
    # losses, norms of directions and counts of right answers: what metrics.csv shows
    assert difference(one["sums"], several["sums"]) < 1e-8


@pytest.mark.parametrize(("processes", "case"), [pair for pair in PAIRS if pair[1] in LOCAL])
def test_local_norms_make_the_difference_that_synchronised_ones_close(found, processes, case):
    assert difference(found[1][0][case]["weights"], found[processes][0][case]["weights"]) > 1e-3


def test_the_steps_moved_what_is_compared(found):
    start = training.build_search(training.configuration(), training.images(), torch.device("cpu")).posed
    assert difference(start.x, [t.float() for t in found[1][0]["search"]["alphas"]]) > 0.01


def test_a_batch_in_parts_is_the_batch(found):
    whole, parts = (found[1][0][name]["weights"] for name in ("retraining", "retraining in parts"))
    assert difference(whole, parts) < TOLERANCE

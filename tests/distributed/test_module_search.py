"""A search in a module on two processes: all ranks find the same, and what one process finds if no norm is local."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import launching
import module_search

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    code, _, messages = launching.torchrun(2, [str(Path(module_search.__file__)), str(folder)])
    assert code == 0, messages
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def difference(a, b):
    return max((s - t).abs().max().item() for s, t in zip(a["tensors"], b["tensors"], strict=True))


def test_ranks_hold_the_same_bytes(ranks):
    first, second = ranks
    assert set(first) == {*module_search.CASES, "again", "compared"}
    for name, found in first.items():
        assert (found["choices"], found["weights"]) == (second[name]["choices"], second[name]["weights"]), name
        assert difference(found, second[name]) == 0, name
    assert first["again"] == {**first["plain"], "tensors": first["again"]["tensors"]}


def test_two_processes_find_what_one_does(ranks, tmp_path):
    alone = module_search.run(tmp_path)
    for name, found in alone.items():
        assert found["choices"] == ranks[0][name]["choices"], name
        if name == "norms":  # each process normalises by its own shard, as the documentation describes
            assert difference(found, ranks[0][name]) > 1e-6
        else:
            assert difference(found, ranks[0][name]) < 1e-5, name

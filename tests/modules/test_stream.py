"""Batches of a part: those of a step alone, and fetched ahead by the worker processes of a DataLoader."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, TensorDataset, get_worker_info

from nas_moreau import Hook, InputError, search_module
from nas_moreau.config import make_config
from nas_moreau.modules.stream import module_data


class Noisy(Dataset):
    """Rows with noise from two global generators, and whether a worker process fetched them."""

    def __init__(self, count=40, bad=None):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number == self.bad:
            raise OSError(f"sample {number} cannot be read")
        noise = torch.randn(4) + float(np.random.rand())
        return {"x": number + noise, "label": number % 2, "ahead": float(get_worker_info() is not None)}


def parts(data):
    return module_data(data, None, None, make_config({}, "a test"), torch.device("cpu"))


def without_process(batch):
    return {name: tensor for name, tensor in batch.items() if name != "ahead"}


@pytest.mark.parametrize("order", [{"shuffle": True}, {"sampler": torch.utils.data.SubsetRandomSampler(range(30))}])
def test_worker_processes_fetch_the_same_batches(order):
    alone, ahead = (parts(DataLoader(Noisy(), 4, num_workers=n, **order)) for n in (0, 2))
    steps = [0, 1, 2, 3, 4, 9, 10, 2, 3]  # past the end of a pass, forth and back
    drawn = torch.random.get_rng_state()
    for step in steps:
        want, got = alone.lower.batch(step), ahead.lower.batch(step)
        assert got["ahead"].all() and not want["ahead"].any() and not ahead.lower.at(step)["ahead"].any()
        torch.testing.assert_close(without_process(got), without_process(want), rtol=0, atol=0)
        torch.testing.assert_close(without_process(ahead.lower.at(step)), without_process(want), rtol=0, atol=0)
    for (want, n), (got, m) in zip(alone.held_out.all(), ahead.held_out.all(), strict=True):
        assert n == m and got["ahead"].all()
        torch.testing.assert_close(without_process(got), without_process(want), rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert multiprocessing.active_children()
    ahead.close()
    assert not multiprocessing.active_children()


def test_workers_may_be_new_processes():
    rows = TensorDataset(torch.arange(40.0), torch.arange(40))
    started = {"num_workers": 1, "multiprocessing_context": "spawn"}
    alone, ahead = (parts(DataLoader(rows, 4, shuffle=True, **more)).lower for more in ({}, started))
    for step in range(3):
        torch.testing.assert_close(ahead.batch(step), alone.batch(step), rtol=0, atol=0)
    ahead.close()


def fails(samples):
    raise ValueError("no batch of these")


def test_no_worker_outlives_the_search(make_net, loss):
    seen = []
    hook = Hook(on_step=lambda job, info: seen.append(len(multiprocessing.active_children())))
    loader = DataLoader(Noisy(), 4, num_workers=1)
    found = search_module(make_net(), loss, loader, steps=3, hooks=[hook])
    assert seen == [2, 2, 2]  # one for each level
    found.compare_random(1, seeds=1)
    assert not multiprocessing.active_children()


def test_what_fails_in_a_worker_ends_the_search_as_it_would_here(make_net, loss):
    loader = DataLoader(Noisy(bad=39), 4, num_workers=1)
    with pytest.raises(OSError, match="sample 39 cannot be read"):
        search_module(make_net(), loss, loader, steps=20)
    gc.collect()  # the frames of the error
    assert not multiprocessing.active_children()
    part = parts(DataLoader(Noisy(), 4, num_workers=1, collate_fn=fails)).lower
    with pytest.raises(InputError, match="no batch of these"):
        part.batch(0)
    part.close()


def test_batches_of_a_sampler_that_divides_among_processes_are_shuffled_as_others_are():
    sampler = DistributedSampler(Noisy(), num_replicas=2, rank=1)
    found = parts(DataLoader(Noisy(), batch_sampler=BatchSampler(sampler, 4, False)))
    plain = parts(DataLoader(Noisy(), 4, shuffle=True))
    assert found.lower.numbers == plain.lower.numbers and found.digest == plain.digest
    assert torch.equal(found.lower.batch(3)["x"], plain.lower.batch(3)["x"])


PROGRAM = """
import sys
import torch
from torch.utils.data import DataLoader
from test_stream import Noisy
from nas_moreau import Choice, Hook, search_module
net = torch.nn.Sequential(Choice({"tanh": torch.nn.Tanh(), "relu": torch.nn.ReLU()}), torch.nn.Linear(4, 2))
def loss(net, batch):
    return torch.nn.functional.cross_entropy(net(batch["x"]), batch["label"])
hook = Hook(on_step=lambda job, info: print("step", flush=True))
search_module(net, loss, DataLoader(Noisy(), 4, num_workers=1), steps=10**6, output=sys.argv[1], hooks=[hook])
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
def test_an_interrupt_of_the_whole_group_saves_the_state(tmp_path):
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run")]
    child = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths}, start_new_session=True, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        while "step" not in child.stdout.readline():
            assert child.poll() is None
        time.sleep(0.2)
        os.killpg(child.pid, signal.SIGINT)
        errors = child.communicate(timeout=60)[1]
    finally:
        child.kill()
    assert "Interrupted" in errors and "DataLoader worker" not in errors
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()

"""Which samples the parts of the data hold: those that a sampler draws and no others; and what a resume compares."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from nas_moreau import Choice, InputError, search_module
from nas_moreau.config import make_config
from nas_moreau.modules.samples import open_samples
from nas_moreau.modules.stream import module_data


@pytest.fixture
def rows():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, x[:, :1].tanh())


def parts_of(train, validation=None):
    found = module_data(train, validation, 8, make_config({}, "a test"), torch.device("cpu"))
    return [set(stream.numbers) for stream in (found.lower, found.upper, found.held_out)], found


class Endless(Sampler):
    def __iter__(self):
        return itertools.cycle(range(20))


class Repeating(Sampler):
    """Draws the numbers below 20 with replacement."""

    def __iter__(self):
        return iter(torch.randint(20, (20,)).tolist())


SUBSETS = {
    "a random order of a subset": lambda data: DataLoader(data, 8, sampler=SubsetRandomSampler(range(20))),
    "a list of numbers": lambda data: DataLoader(data, 8, sampler=list(range(20))),
    "a shorter source": lambda data: DataLoader(data, 8, sampler=RandomSampler(range(20))),
    "weights of 0": lambda data: DataLoader(data, 8, sampler=WeightedRandomSampler([1.0] * 20 + [0.0] * 40, 60)),
    "numbers without an end": lambda data: DataLoader(data, 8, sampler=Endless()),
    "numbers that repeat": lambda data: DataLoader(data, 8, sampler=Repeating()),
    "batches": lambda data: DataLoader(data, batch_sampler=BatchSampler(SubsetRandomSampler(range(20)), 8, False)),
}


@pytest.mark.parametrize("kind", SUBSETS)
def test_samples_that_a_sampler_never_draws_are_in_no_part(kind, rows):
    """As in the code of DARTS: two loaders of one dataset, whose samplers divide it."""
    loader, rest = SUBSETS[kind](rows), DataLoader(rows, 8, sampler=SubsetRandomSampler(range(20, 60)))
    parts, _ = parts_of(loader)
    assert set.union(*parts) == set(range(20)) and sum(map(len, parts)) == 20
    (lower, upper, held_out), found = parts_of(loader, rest)
    assert lower == set(range(20)) and upper | held_out == set(range(20, 60)) and not upper & held_out
    for step in range(6):
        x, _ = found.lower.batch(step)
        drawn = {row for row in range(60) if (rows.tensors[0][row] == x).all(-1).any()}
        assert drawn and drawn <= lower


WRONG = {
    "the same loader twice": lambda data: [DataLoader(data, 8, shuffle=True)] * 2,
    "the same tensors twice": lambda data: [data.tensors, tuple(t.clone() for t in data.tensors)],
    "samplers that overlap": lambda data: [
        DataLoader(data, sampler=range(40)),
        DataLoader(data, sampler=range(30, 60)),
    ],
    "a sampler that draws nothing": lambda data: [DataLoader(data, 8, sampler=SubsetRandomSampler([])), None],
    "batches that are none": lambda data: [DataLoader(data, batch_sampler=[]), None],
    "a sampler of names": lambda data: [DataLoader(data, 8, sampler=["a", "b", "c"]), None],
    "a sampler beyond the end": lambda data: [DataLoader(data, 8, sampler=range(100)), None],
}


@pytest.mark.parametrize("kind", WRONG)
def test_parts_that_cannot_be_kept_apart_are_refused(kind, rows):
    with pytest.raises(InputError):
        parts_of(*WRONG[kind](rows))


class Own(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, number):
        return torch.as_tensor(self.x[number]), 1.0


HOLDERS = {
    "tensors": lambda x: TensorDataset(x),
    "a subset": lambda x: Subset(TensorDataset(x), range(9)),
    "several": lambda x: ConcatDataset([TensorDataset(x), TensorDataset(x[:3])]),
    "a list": lambda x: [(row, 1.0) for row in x],
    "arrays": lambda x: Own(x.numpy()),
    "a loader": lambda x: DataLoader(Own(x), 4),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_what_a_dataset_holds_is_known_by_content(kind):
    """So that a search is not resumed with other samples of the same number and form."""
    x = torch.arange(40.0).reshape(10, 4)
    other = x.clone()
    other[2, 1] = -1
    same, again, changed = (open_samples(HOLDERS[kind](t), "train").digest for t in (x, x.clone(), other))
    assert same == again != changed


def test_a_large_file_of_numbers_is_not_read_as_a_whole(tmp_path):
    path = tmp_path / "tokens.bin"
    path.write_bytes(b"")
    with open(path, "r+b") as file:
        file.truncate(2**29)  # zeros that take no room
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    assert open_samples(Own(tokens), "train").digest


def test_a_search_is_not_resumed_with_another_dataset(rows, tmp_path):
    net = nn.Sequential(nn.Linear(4, 3), Choice({"tanh": nn.Tanh(), "relu": nn.ReLU()}), nn.Linear(3, 1))
    settings = dict(steps=2, device="cpu", output=tmp_path / "run")

    def loss(net, batch):
        return (net(batch[0]) - batch[1]).square().mean()

    search_module(net, loss, rows, **settings)
    other = TensorDataset(rows.tensors[0].flip(0), rows.tensors[1])
    with pytest.raises(InputError):
        search_module(net, loss, other, resume=True, **settings)
    assert search_module(net, loss, rows, resume=True, **settings).choices

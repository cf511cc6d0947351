"""A small module with two decisions, its data and its loss."""

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau import Choice


class Net(nn.Module):
    """Dict in, dict out: a normalised hidden layer, an activation that stands in two places, and a branch."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.acts = nn.ModuleList(
            Choice({"relu": nn.ReLU(), "tanh": nn.Tanh(), "same": nn.Identity()}, name="act") for _ in range(2)
        )
        self.branch = Choice({"linear": nn.Linear(6, 6), "skip": nn.Identity()})
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        hidden = self.acts[0](self.norm(self.first(x)))
        return {"logits": self.last(self.acts[1](self.branch(hidden)))}


def cross_entropy(net, batch):
    return f.cross_entropy(net(batch["x"])["logits"], batch["label"])


@pytest.fixture
def make_net():
    def make(seed=0):
        torch.manual_seed(seed)
        return Net()

    return make


@pytest.fixture
def loss():
    return cross_entropy


@pytest.fixture
def samples():
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(90, 4, generator=draw)
    return {"x": x, "label": (x[:, 0] * x[:, 1] > 0).long()}

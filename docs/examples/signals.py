"""A 1-D convolutional classifier of generated time series: kernels, activations and the width of a head as choices.

python docs/examples/signals.py
nas-moreau search --import docs/examples/signals.py --module make_model --steps 400
"""

import math

import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau import Choice, search_module
from nas_moreau.modules import Width, zero

CLASSES, LENGTH = 4, 64


def series(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns series (count, 1, 64) and labels: how often, and how, a noisy wave rises and falls."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, CLASSES, (count,), generator=draw)
    time = torch.linspace(0, 1, LENGTH)
    phase = 2 * math.pi * torch.rand(count, 1, generator=draw)
    speed = 3.0 + 2.0 * (label % 2)[:, None] + torch.rand(count, 1, generator=draw)
    wave = torch.sin(2 * math.pi * speed * time + phase)
    wave = torch.where((label >= 2)[:, None], wave.sign() * 0.7, wave)
    return (wave + 0.9 * torch.randn(count, LENGTH, generator=draw))[:, None], label


def block(channels: int) -> nn.Module:
    """Returns a residual block whose convolution and activation are to be found."""

    def conv(size: int, dilation: int = 1) -> nn.Module:
        padding = dilation * (size - 1) // 2
        return nn.Conv1d(channels, channels, size, padding=padding, dilation=dilation, bias=False)

    options = {"conv3": conv(3), "conv9": conv(9), "dilated": conv(5, 4), "zero": zero()}
    act = Choice({"relu": nn.ReLU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}, name="act")
    return nn.Sequential(Choice(options), nn.BatchNorm1d(channels), act)


class Classifier(nn.Module):
    """Two blocks, each followed by pooling, and a head of variable width. All activations are one decision."""

    def __init__(self, channels: int = 12):
        super().__init__()
        self.stem = nn.Conv1d(1, channels, 3, padding=1)
        self.blocks = nn.ModuleList(block(channels) for _ in range(2))
        head = [nn.Linear(channels, 32), nn.ReLU(), nn.Linear(32, CLASSES)]
        self.head = Choice(Width(head, [4, 16, 32]), name="head")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        x = self.stem(x)
        for part in self.blocks:
            x = f.max_pool1d(x + part(x), 2)
        return self.head(x.mean(-1))


def make_model() -> nn.Module:
    """Returns the module to search in."""
    return Classifier()


def loss(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Returns the cross-entropy."""
    return f.cross_entropy(net(batch[0]), batch[1])


def metric(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Returns the accuracy."""
    return (net(batch[0]).argmax(-1) == batch[1]).float().mean()


def train(count: int = 1500) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the training data."""
    return series(count, 0)


def validation(count: int = 1500) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the validation data: for the choices, and held out."""
    return series(count, 1)


def main(steps: int = 400, count: int = 1500, seed: int = 0, **more: object):
    """Searches and returns what was found."""
    torch.manual_seed(seed)
    data = train(count), validation(count)
    keywords = {"metric": metric, "derive": {"rule": "trained"}, **more}
    return search_module(make_model(), loss, *data, steps=steps, seed=seed, **keywords)


if __name__ == "__main__":
    found = main()
    print(found)
    print(found.compare_random(8))

"""A U-Net-like segmentation of generated shapes: the block of each level and its depth as choices.

The masks come with the generator; samples are dicts, and the loss is the user's: cross-entropy and Dice.

    python docs/examples/unet.py
    nas-moreau search --import docs/examples/unet.py --module make_model --steps 300 --max-parameters 12000
"""

import torch
from torch import nn
from torch.nn import functional as f
from torch.utils.data import DataLoader, Dataset

from nas_moreau import Choice, search_module
from nas_moreau.modules import Depth

SIZE = 24


class Shapes(Dataset):
    """Noisy pictures with a disc and a rectangle; the mask is 1 in the disc and nowhere else."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        y, x, top, left = (int(torch.randint(4, SIZE - 8, (), generator=draw)) for _ in range(4))
        radius, width = 3 + 3 * torch.rand(2, generator=draw)
        disc = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
        box = (rows >= top) & (rows < top + 2 * width) & (columns >= left) & (columns < left + width)
        image = 0.8 * (disc | box).float() + 0.7 * torch.randn(SIZE, SIZE, generator=draw)
        return {"image": image[None], "mask": disc.long()}


def block(inputs: int, outputs: int) -> nn.Module:
    """Returns a convolution of a kind to be found, then normalisation and activation."""
    options = {
        "conv3": nn.Conv2d(inputs, outputs, 3, padding=1),
        "conv5": nn.Conv2d(inputs, outputs, 5, padding=2),
        "dilated": nn.Conv2d(inputs, outputs, 3, padding=2, dilation=2),
        "separable": nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs), nn.Conv2d(inputs, outputs, 1)
        ),
    }
    return nn.Sequential(Choice(options), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Two levels down and up again, with skip connections; the bottom is a chain of one to three blocks."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.down = nn.ModuleList([block(1, channels), block(channels, 2 * channels)])
        bottom = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(3)]
        self.bottom = Choice(Depth(bottom), name="bottom")
        self.up = nn.ModuleList([block(4 * channels, channels), block(2 * channels, channels)])
        self.out = nn.Conv2d(channels, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits (n, 2, height, width)."""
        first = self.down[0](x)
        second = self.down[1](f.max_pool2d(first, 2))
        x = self.bottom(f.max_pool2d(second, 2))
        x = self.up[0](torch.cat([f.interpolate(x, scale_factor=2.0), second], 1))
        x = self.up[1](torch.cat([f.interpolate(x, scale_factor=2.0), first], 1))
        return self.out(x)


def make_model() -> nn.Module:
    """Returns the module to search in."""
    return UNet()


def dice(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the overlap of predicted and true discs, 0 to 1."""
    inside = logits.softmax(1)[:, 1]
    return (2 * (inside * mask).sum() + 1) / (inside.sum() + mask.sum() + 1)


def loss(net: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns cross-entropy plus one minus Dice."""
    logits = net(batch["image"])
    return f.cross_entropy(logits, batch["mask"]) + 1 - dice(logits, batch["mask"])


def metric(net: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns Dice."""
    return dice(net(batch["image"]), batch["mask"])


def train(count: int = 800, batch_size: int = 16) -> DataLoader:
    """Returns the training data."""
    return DataLoader(Shapes(count, 0), batch_size=batch_size, shuffle=True)


def main(steps: int = 300, count: int = 800, seed: int = 0, **more: object):
    """Searches and returns what was found; the validation part is taken from the training data."""
    torch.manual_seed(seed)
    keywords = {"metric": metric, "derive": {"rule": "trained"}, **more}
    return search_module(make_model(), loss, train(count), steps=steps, seed=seed, **keywords)


if __name__ == "__main__":
    found = main()
    print(found)
    print(found.compare_random(8))

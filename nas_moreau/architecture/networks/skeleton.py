"""The fixed part of a network around its cells: stem, order and sizes of the cells, heads.

Two skeletons exist, told apart by the cells they hold:

    normal, reduce   DARTS (Liu et al., ICLR 2019): a cell reads the two cells before it; `reduce` cells halve the image
    cell             NAS-Bench-201 (Dong & Yang, ICLR 2020): three stages of `layers` cells with residual blocks between

Supernets and derived networks share this file, so their parameters bear the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from nas_moreau.architecture.networks.checkpointing import RunCell, run_checkpointed
from nas_moreau.architecture.networks.operations import HalvedPair, Norm
from nas_moreau.architecture.spaces.sizes import STEM_MULTIPLIER, reduction_places
from nas_moreau.errors import InputError

# (cell name, channels, halves the image, preprocessing of its inputs) -> the cell
MakeCell = Callable[[str, int, bool, nn.ModuleList], nn.Module]


class Assembled(Protocol):
    """What `add_skeleton` makes of a module, and what `run_cells` runs."""

    stem: nn.Sequential
    cells: nn.ModuleList


AUXILIARY_CHANNELS = (128, 768)


def relu_conv_norm(channels_in: int, channels_out: int, kernel: int, stride: int, norm: Norm) -> nn.Sequential:
    """Returns ReLU, convolution without bias, norm."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, norm(channels_out))


class ResidualBlock(nn.Module):
    """Two ReLU-conv3x3-norm, the first of stride 2, beside average pooling and 1x1 convolution: between two stages."""

    def __init__(self, channels_in: int, channels_out: int, norm: Norm):
        super().__init__()
        self.first = relu_conv_norm(channels_in, channels_out, 3, 2, norm)
        self.second = relu_conv_norm(channels_out, channels_out, 3, 1, norm)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (n, channels_out, h/2, w/2) of x (n, channels_in, h, w)."""
        halved = f.avg_pool2d(x, 2, 2, ceil_mode=True)
        return self.shortcut(halved) + self.second(self.first(x))


class AuxiliaryHead(nn.Module):
    """A second classifier on a middle feature map: the published one at 8x8, alike for any other size of the map."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        narrow, wide = AUXILIARY_CHANNELS
        self.features = nn.Sequential(
            nn.Conv2d(channels, narrow, 1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, wide, 2, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(wide, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (n, num_classes) of a feature map (n, channels, h, w)."""
        x = f.relu(x)
        # 5x5 windows three apart turn 8x8 into 2x2, as published; other sizes are brought to 2x2 by adaptive pooling
        x = f.avg_pool2d(x, 5, 3) if x.shape[-2:] == (8, 8) else f.adaptive_avg_pool2d(x, 2)
        return self.classifier(self.features(x).flatten(1))


def add_skeleton(
    module: nn.Module,
    cell_names: Sequence[str],
    widths: dict[str, int],
    channels: int,
    layers: int,
    num_classes: int,
    in_channels: int,
    norm: Norm,
    make_cell: MakeCell,
) -> list[int]:
    """Gives `module` its `stem`, `cells`, `head_norm` (NAS-Bench-201) and `classifier`.

    Args:
        module: Takes the parts as attributes.
        cell_names: ("normal", "reduce") or ("cell",).
        widths: Cell name -> how many nodes' outputs it concatenates.
        channels: Channels of the first cell's nodes.
        layers: Cells in all (DARTS) or cells a stage (NAS-Bench-201).
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
        norm: Makes the BatchNorm of the cells' preprocessing.
        make_cell: Builds one cell.

    Returns:
        The channels of every cell's output.

    Raises:
        InputError: A size that is not at least 1.
    """
    sizes = {"channels": channels, "layers": layers, "num_classes": num_classes, "in_channels": in_channels}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name == "num_classes" else 1):
            raise InputError(f"{name} is {value!r}, which is no size of a network.", f"Give {name} a positive integer.")
    module.cells = cells = nn.ModuleList()
    wide = channels if "cell" in cell_names else STEM_MULTIPLIER * channels
    module.stem = nn.Sequential(nn.Conv2d(in_channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide))
    if "cell" in cell_names:
        outputs = _nas_bench_201(cells, channels, layers, make_cell)
        module.head_norm = nn.Sequential(nn.BatchNorm2d(outputs[-1]), nn.ReLU())
    else:
        outputs = _darts(cells, wide, widths, channels, layers, norm, make_cell)
    module.classifier = nn.Linear(outputs[-1], num_classes) if num_classes else nn.Identity()
    return outputs


def _darts(
    cells: nn.ModuleList,
    stem: int,
    widths: dict[str, int],
    channels: int,
    layers: int,
    norm: Norm,
    make_cell: MakeCell,
) -> list[int]:
    """Adds the cells behind a stem of `stem` channels; returns the channels of every cell's output."""
    before_last, last, outputs, halved_before = stem, stem, [], False
    for layer in range(layers):
        halves = layer in reduction_places(layers)
        name = "reduce" if halves else "normal"
        channels *= 2 if halves else 1
        if halved_before:  # the older input is still twice as large: halve it
            older = nn.Sequential(nn.ReLU(), HalvedPair(before_last, channels), norm(channels))
        else:
            older = relu_conv_norm(before_last, channels, 1, 1, norm)
        preprocess = nn.ModuleList([older, relu_conv_norm(last, channels, 1, 1, norm)])
        cells.append(make_cell(name, channels, halves, preprocess))
        before_last, last, halved_before = last, channels * widths[name], halves
        outputs.append(last)
    return outputs


def _nas_bench_201(cells: nn.ModuleList, channels: int, layers: int, make_cell: MakeCell) -> list[int]:
    """Adds three stages of cells; returns the channels of every cell's output."""
    outputs = []
    for stage in range(3):
        if stage:
            cells.append(ResidualBlock(channels, 2 * channels, nn.BatchNorm2d))
            channels *= 2
            outputs.append(channels)
        for _ in range(layers):
            cells.append(make_cell("cell", channels, False, nn.ModuleList()))
            outputs.append(channels)
    return outputs


def check_images(images: Tensor, module: Assembled) -> None:
    """Raises InputError when images (n, channels, height, width) do not fit the stem or vanish before the last cell."""
    first: Any = module.stem[0]
    expected = first.in_channels
    if images.ndim != 4 or images.shape[1] != expected:
        raise InputError(
            f"The network takes images of shape (n, {expected}, height, width), not {tuple(images.shape)}.",
            "Give in_channels the images' number of channels.",
        )
    halvings = sum(isinstance(cell, ResidualBlock) or getattr(cell, "halves", False) for cell in module.cells)
    smallest = 2 ** (halvings + 1)
    if min(images.shape[-2:]) < smallest:
        raise InputError(
            f"Images of {images.shape[-2]}x{images.shape[-1]} pixels are too small for a network that halves them "
            f"{halvings} times.",
            f"Use images of at least {smallest}x{smallest} pixels (data.image_size resizes them).",
        )


def run_cells(module: Assembled, images: Tensor, run_cell: RunCell, count: int | None = None) -> list[Tensor]:
    """Returns the output of the stem and of every cell, oldest first.

    Args:
        module: Has been through `add_skeleton`. Where it has a true `checkpointing`, cells keep their inputs alone.
        images: (n, channels, height, width), float.
        run_cell: Applies one cell to its inputs.
        count: Run only so many cells.
    """
    if isinstance(images, Tensor):  # a symbolic trace hands in something without a shape
        check_images(images, module)
    maps = [module.stem(images)]
    darts, kept_short = not hasattr(module, "head_norm"), getattr(module, "checkpointing", False)
    for cell in module.cells[:count]:
        if isinstance(cell, ResidualBlock):
            maps.append(cell(maps[-1]))
        else:
            inputs = [maps[-2] if len(maps) > 1 else maps[-1], maps[-1]] if darts else [maps[-1]]
            maps.append(run_checkpointed(cell, run_cell, inputs) if kept_short else run_cell(cell, inputs))
    return maps


def pool_features(module: Assembled, x: Tensor) -> Tensor:
    """Returns the (n, features) vector before the classifier from the last cell's output."""
    if hasattr(module, "head_norm"):
        x = module.head_norm(x)
    return torch.mean(x, (2, 3))

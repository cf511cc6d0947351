"""Builds and runs the network around the cells from the parts of its skeleton.

Supernets and derived networks share this file, so their parameters have the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from nas_moreau.architecture.networks.checkpointing import RunCell, run_checkpointed
from nas_moreau.architecture.networks.operations import HalvedPair, Norm
from nas_moreau.architecture.spaces.skeletons import NetworkPart, Skeleton, reductions
from nas_moreau.errors import InputError, unknown

MakeCell = Callable[[NetworkPart, nn.ModuleList], nn.Module]
"""(the cell's part, preprocessing of its inputs) -> the cell."""
BuildBlock = Callable[[int, int, int], nn.Module]
"""(input channels, output channels, stride) -> a fixed block or a stem."""
AUXILIARY_CHANNELS = (128, 768)
LARGEST = {"channels": 65_536, "layers": 10_000, "num_classes": 1_000_000, "in_channels": 65_536}
"""Sizes beyond which no network is built: a forged file must not exhaust the memory."""


@dataclass(frozen=True)
class NetworkSize:
    """Sizes of a network.

    Args:
        channels: Channels of the first cell's nodes.
        layers: Number of cells, in the unit of the skeleton (`layers_unit`).
        num_classes: Outputs of the classifier; 0 for the pooled features.
        in_channels: Channels of the images.

    Raises:
        InputError: A size is not a positive integer (num_classes: not an integer from 0 on), or beyond `LARGEST`.
    """

    channels: int
    layers: int
    num_classes: int = 10
    in_channels: int = 3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            smallest = 0 if name == "num_classes" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise InputError(f"{name} is {value!r}, not a size of a network.", f"Give {name} a positive integer.")
            if value > LARGEST[name]:
                raise InputError(f"{name} is {value:,}, more than {LARGEST[name]:,}.", f"Give {name} a smaller number.")


class Frame(NamedTuple):
    """The modules of a network.

    Attributes:
        parts: Their description; parts[0] is the stem, parts[i + 1] is cells[i].
        cells: Cells and fixed blocks.
        stem: Reads the images.
        head_norm: Stands before the pooling; None where the skeleton has none.
        classifier: The identity where there are no classes.
    """

    parts: tuple[NetworkPart, ...]
    cells: nn.ModuleList
    stem: nn.Module
    head_norm: nn.Sequential | None
    classifier: Any


class Framed(Protocol):
    """A module that holds the fields of a frame, as `run_cells` runs them."""

    parts: tuple[NetworkPart, ...]
    cells: nn.ModuleList
    stem: nn.Module
    in_channels: int


# --- fixed blocks ----------------------------------------------------------------------------------------------------


def relu_conv_norm(channels_in: int, channels_out: int, kernel: int, stride: int, norm: Norm) -> nn.Sequential:
    """Returns ReLU, convolution without bias, norm."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, norm(channels_out))


def _stem(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """Convolution 3x3 and norm."""
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


class ResidualBlock(nn.Module):
    """Two ReLU-conv3x3-norm, the first of stride 2, beside average pooling and 1x1 convolution: between two stages."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 2):
        super().__init__()
        assert stride == 2, "its shortcut halves"
        self.first = relu_conv_norm(channels_in, channels_out, 3, 2, nn.BatchNorm2d)
        self.second = relu_conv_norm(channels_out, channels_out, 3, 1, nn.BatchNorm2d)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (n, channels_out, h/2, w/2) of x (n, channels_in, h, w)."""
        halved = f.avg_pool2d(x, 2, 2, ceil_mode=True)
        return self.shortcut(halved) + self.second(self.first(x))


class AuxiliaryHead(nn.Module):
    """A second classifier on a middle feature map: the published one at 8x8, the same for any other size of the map."""

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


BLOCKS: dict[str, BuildBlock] = {"stem": _stem, "residual": ResidualBlock}
BUILT_IN_BLOCKS = tuple(BLOCKS)


def register_block(name: str) -> Callable[[BuildBlock], BuildBlock]:
    """Makes a fixed block or a stem known by name, so that the layout of a skeleton can use it; a decorator.

    The decorated function `(input channels, output channels, stride) -> nn.Module` returns a module that maps
    (n, input channels, h, w) to (n, output channels, h/stride, w/stride).

    Raises:
        InputError: The name is taken.
    """
    if name in BLOCKS:
        raise InputError(f"A block named '{name}' exists already.", "Choose another name.")

    def register(build: BuildBlock) -> BuildBlock:
        BLOCKS[name] = build
        return build

    return register


def _block(name: str, channels_in: int, part: NetworkPart) -> nn.Module:
    if name not in BLOCKS:
        raise unknown("block of a skeleton", name, BLOCKS)
    return BLOCKS[name](channels_in, part.outputs, part.stride)


# --- building and running --------------------------------------------------------------------------------------------


def build_frame(
    skeleton: Skeleton, parts: Sequence[NetworkPart], size: NetworkSize, norm: Norm, make_cell: MakeCell
) -> Frame:
    """Returns the modules of a network.

    Args:
        skeleton: Whether inputs are preprocessed and the head is normalised.
        parts: From `skeleton.parts`.
        size: Classes and channels of the images.
        norm: Makes the BatchNorm of the cells' preprocessing.
        make_cell: Builds one cell.

    Raises:
        InputError: A block is unknown.
    """
    stem, cells, scales = _block(parts[0].name, size.in_channels, parts[0]), nn.ModuleList(), reductions(parts)
    for part in parts[1:]:
        if part.kind == "block":
            cells.append(_block(part.name, parts[part.reads[0]].outputs, part))
            continue
        preprocess = nn.ModuleList()
        for number in part.reads if skeleton.preprocesses else ():
            outputs = parts[number].outputs
            if scales[number] < scales[part.reads[-1]]:  # an older input is still twice as large: halve it
                pair = HalvedPair(outputs, part.channels)
                preprocess.append(nn.Sequential(nn.ReLU(), pair, norm(part.channels)))
            else:
                preprocess.append(relu_conv_norm(outputs, part.channels, 1, 1, norm))
        cells.append(make_cell(part, preprocess))
    features = parts[-1].outputs
    head_norm = nn.Sequential(nn.BatchNorm2d(features), nn.ReLU()) if skeleton.head_norm else None
    classifier = nn.Linear(features, size.num_classes) if size.num_classes else nn.Identity()
    return Frame(tuple(parts), cells, stem, head_norm, classifier)


def check_images(images: Tensor, module: Framed) -> None:
    """Raises InputError when images (n, channels, height, width) do not fit the stem or vanish before the last cell."""
    expected = module.in_channels
    if images.ndim != 4 or images.shape[1] != expected:
        raise InputError(
            f"The network takes images of shape (n, {expected}, height, width), not {tuple(images.shape)}.",
            _cure_of_shape(images, expected),
        )
    if not images.is_floating_point():
        raise InputError(
            f"The network takes floating-point images, not {str(images.dtype).removeprefix('torch.')}.",
            "Scale and normalise them as in training: ((images.float() / 255) - mean) / std.",
        )
    reduction = max(reductions(module.parts))
    smallest = 2 * reduction
    if min(images.shape[-2:]) < smallest:
        raise InputError(
            f"Images of {images.shape[-2]}x{images.shape[-1]} pixels are too small for a network that divides their "
            f"height and width by {reduction}.",
            f"Use images of at least {smallest}x{smallest} pixels (data.image_size resizes them).",
        )


def _cure_of_shape(images: Tensor, channels: int) -> str:
    """Returns the line that gives images the shape that the network takes, if their channels are elsewhere."""
    shape = images.shape
    if len(shape) == 4 and shape[3] == channels:
        return "The channels come last; give images.permute(0, 3, 1, 2)."
    if len(shape) == 3 and shape[0] == channels:
        return "It is one image; give image[None]."
    if len(shape) == 3 and shape[2] == channels:
        return "It is one image, channels last; give image.permute(2, 0, 1)[None]."
    if channels == 1 and len(shape) in (2, 3):
        return "The axis of the channel is missing; give " + (
            "image[None, None]." if len(shape) == 2 else "images[:, None]."
        )
    return "Give the network's in_channels (of timm's create_model: in_chans) the images' number of channels."


def run_cells(module: Framed, images: Tensor, run_cell: RunCell, count: int | None = None) -> list[Tensor]:
    """Returns the output of the stem and of every cell, oldest first.

    Args:
        module: Holds the fields of a frame. With a true attribute `checkpointing`, cells keep only their inputs for the
            backward pass.
        images: (n, channels, height, width), float.
        run_cell: Applies one cell to its inputs.
        count: Number of cells and blocks to run; all by default.
    """
    if isinstance(images, Tensor):  # a symbolic trace hands in something without a shape
        check_images(images, module)
    maps, kept_short = [module.stem(images)], getattr(module, "checkpointing", False)
    for part, cell in zip(module.parts[1:], module.cells[:count]):
        inputs = [maps[number] for number in part.reads]
        if part.kind == "block":
            maps.append(cell(*inputs))
        else:
            maps.append(run_checkpointed(cell, run_cell, inputs) if kept_short else run_cell(cell, inputs))
    return maps


def pool_features(head_norm: nn.Module | None, x: Tensor) -> Tensor:
    """Returns the (n, features) vector before the classifier from the last cell's output."""
    return torch.mean(x if head_norm is None else head_norm(x), (2, 3))

"""The network of a found cell, complete in this one file: it needs torch and nothing else.

from model import load, normalise
network = load("model.safetensors")                # the weights in the same folder
logits = network(normalise(pixels))                # pixels: uint8 (n, channels, height, width)
label = CLASSES[logits[0].argmax()]
"""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as f

# --- exported values ---
CELLS = {
    "cell": {"edges": [["skip_connect", 0, 1], ["nor_conv_3x3", 0, 2], ["nor_conv_1x1", 1, 3]], "concat": [3]},
}
STRUCTURE = {
    "preprocess": False,
    "head_norm": True,
    "parts": [
        ["stem", 4, 4, 1, []],
        ["cell", 4, 4, 1, [0]],
        ["residual", 8, 8, 2, [1]],
        ["cell", 8, 8, 1, [2]],
    ],
}
IN_CHANNELS = 3
CLASSES = ["no", "yes"]
IMAGE_SIZE = (32, 32)  # height, width it was trained with; others work too
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # of each channel, pixels scaled to 0..1
# --- end of exported values ---


class HalvedPair(nn.Module):
    """Two 1x1 convolutions of stride 2, the second shifted by one pixel, side by side."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.even = nn.Conv2d(channels_in, channels_out // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out - channels_out // 2, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a map of half the height and width."""
        height, width = x.shape[-2:]
        shifted = f.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        return torch.cat((self.even(x), self.odd(shifted)), 1)


class Operation(nn.Module):
    """What an edge does: `before` (ReLU, a pool, or nothing), then `body`, then `norm`, where there are any."""

    def __init__(
        self, before: Callable[[Tensor], Tensor], body: nn.Module | None = None, norm: nn.Module | None = None
    ):
        super().__init__()
        self.before, self.body, self.norm = before, body, norm

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the edge sends on of x (n, channels, height, width)."""
        x = self.before(x)
        x = x if self.body is None else self.body(x)
        return x if self.norm is None else self.norm(x)


def depthwise(c: int, kernel: int, stride: int, dilation: int = 1) -> nn.Conv2d:
    """Returns a convolution of each of `c` channels on its own."""
    return nn.Conv2d(c, c, kernel, stride, dilation * (kernel - 1) // 2, dilation, groups=c, bias=False)


def pointwise(c: int) -> nn.Conv2d:
    """Returns a 1x1 convolution of `c` channels."""
    return nn.Conv2d(c, c, 1, bias=False)


def build_operation(name: str, c: int, stride: int) -> Operation:
    """Returns the operation of that name for `c` channels."""
    if name == "skip_connect" and stride == 1:
        return Operation(nn.Identity())
    if name in ("max_pool_3x3", "avg_pool_3x3"):
        pool = nn.MaxPool2d(3, stride, 1) if name[0] == "m" else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        return Operation(pool)
    body: nn.Module
    if name == "skip_connect":
        body = HalvedPair(c, c)
    elif name.startswith("sep_conv"):
        k = int(name[-1])
        first = [depthwise(c, k, stride), pointwise(c), nn.BatchNorm2d(c)]
        body = nn.Sequential(*first, nn.ReLU(), depthwise(c, k, 1), pointwise(c))
    elif name.startswith("dil_conv"):
        body = nn.Sequential(depthwise(c, int(name[-1]), stride, dilation=2), pointwise(c))
    elif name.startswith("nor_conv"):
        k = int(name[-1])
        body = nn.Conv2d(c, c, k, stride, k // 2, bias=False)
    else:  # conv_7x1_1x7, conv_3x1_1x3
        k = int(name[5])
        row = nn.Conv2d(c, c, (1, k), (1, stride), (0, k // 2), bias=False)
        body = nn.Sequential(row, nn.Conv2d(c, c, (k, 1), (stride, 1), (k // 2, 0), bias=False))
    return Operation(f.relu, body, nn.BatchNorm2d(c))


class Cell(nn.Module):
    """Nodes that each sum their edges; the output concatenates some of them."""

    def __init__(
        self,
        edges: list[tuple[str, int, int]],
        concat: list[int],
        inputs: int,
        channels: int,
        halves: bool,
        preprocess: Sequence[nn.Module],
    ):
        super().__init__()
        self.halves, self.concat, self.preprocess = halves, concat, nn.ModuleList(preprocess)
        self.last_node = max([*concat, *(target for _, _, target in edges)])
        kept = sorted((e for e in edges if e[0] != "none"), key=lambda e: (e[2], e[1], e[0]))
        self.places = [(source, target) for _, source, target in kept]
        self.operations = nn.ModuleList(
            build_operation(name, channels, 2 if halves and source < inputs else 1) for name, source, _ in kept
        )

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Returns the output of a cell that reads these inputs."""
        states = [module(x) for module, x in zip(self.preprocess, inputs)] if len(self.preprocess) else list(inputs)
        for node in range(len(states), self.last_node + 1):
            total = None
            for (source, target), operation in zip(self.places, self.operations):
                if target == node:
                    x = operation(states[source])
                    total = x if total is None else total + x
            if total is None:  # a node without edges is zero
                total = torch.zeros_like(states[0][:, :, ::2, ::2] if self.halves else states[0])
            states.append(total)
        return states[self.concat[0]] if len(self.concat) == 1 else torch.cat([states[i] for i in self.concat], 1)


def relu_conv_norm(channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Returns ReLU, convolution without bias, norm."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels_out))


class ResidualBlock(nn.Module):
    """Halves the image between two stages."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.first = relu_conv_norm(channels_in, channels_out, 3, 2)
        self.second = relu_conv_norm(channels_out, channels_out, 3, 1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a map of half the height and width."""
        return self.shortcut(f.avg_pool2d(x, 2, 2, ceil_mode=True)) + self.second(self.first(x))


class Network(nn.Module):
    """Images (n, channels, height, width) -> logits (n, classes).

    `structure`: the stem, the cells and the residual blocks as they run (name, channels of the nodes, channels of the
    output, stride, numbers of the parts that it reads), whether the inputs of cells are preprocessed, and whether a
    norm stands before the pooling.
    """

    def __init__(self, cells: dict[str, Any], structure: dict[str, Any], in_channels: int, num_classes: int):
        super().__init__()
        parts = structure["parts"]
        self.cells, self.reads = nn.ModuleList(), [reads for *_, reads in parts]
        _, _, wide, stride, _ = parts[0]
        conv = nn.Conv2d(in_channels, wide, 3, stride, padding=1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(wide))
        outputs, scales = [wide], [stride]
        for name, channels, wide, stride, reads in parts[1:]:
            scales.append(stride * scales[reads[-1]])
            if name in cells:
                edges, concat = cells[name]["edges"], cells[name]["concat"]
                preprocess = [
                    nn.Sequential(nn.ReLU(), HalvedPair(outputs[i], channels), nn.BatchNorm2d(channels))
                    if scales[i] < scales[reads[-1]]  # an older input that is still twice as large
                    else relu_conv_norm(outputs[i], channels)
                    for i in (reads if structure["preprocess"] else ())
                ]
                self.cells.append(Cell(edges, concat, len(reads), channels, stride == 2, preprocess))
            else:
                self.cells.append(ResidualBlock(outputs[reads[0]], wide))
            outputs.append(wide)
        self.head_norm = nn.Sequential(nn.BatchNorm2d(wide), nn.ReLU()) if structure["head_norm"] else None
        self.classifier = nn.Linear(wide, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (n, classes)."""
        maps = [self.stem(images)]
        for reads, cell in zip(self.reads[1:], self.cells):
            inputs = [maps[i] for i in reads]
            maps.append(cell(inputs[0]) if isinstance(cell, ResidualBlock) else cell(inputs))
        last = maps[-1] if self.head_norm is None else self.head_norm(maps[-1])
        return self.classifier(torch.mean(last, (2, 3)))

    def __prepare_scriptable__(self) -> nn.Module:
        """Returns what `torch.jit.script` compiles: the same without loops over cells."""
        return fx.symbolic_trace(self)


def normalise(pixels: Tensor) -> Tensor:
    """Returns what the network takes, float32, of uint8 pixels (n, channels, height, width)."""
    mean, std = (torch.tensor(v, device=pixels.device).reshape(1, -1, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file: eight bytes of length, a JSON header, then the numbers."""
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    types |= {"I64": torch.int64}
    data = bytearray(Path(path).read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        kind = types[entry["dtype"]]
        count = (end - begin) // kind.itemsize
        # an offset need not be a multiple of the item's size: a copy is
        piece = bytearray(data[8 + length + begin : 8 + length + end])
        flat = torch.frombuffer(piece, dtype=kind, count=count) if count else torch.empty(0, dtype=kind, device="cpu")
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def load(weights: str | Path | None = None) -> Network:
    """Returns the network in evaluation mode with the weights of a file (default: the one beside this file)."""
    network = Network(CELLS, STRUCTURE, IN_CHANNELS, len(CLASSES))
    network.load_state_dict(read_safetensors(weights or Path(__file__).with_name("model.safetensors")))
    return network.eval()

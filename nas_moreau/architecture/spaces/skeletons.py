"""Skeletons: the fixed network around the cells of a search space, as a list of parts. Imports no torch.

A skeleton says which cells are to be found and lays out the parts of a network: stem, cells, fixed blocks. That list is
the only description of a network's structure: `networks.skeleton` builds modules from it, drawings and costs read sizes
from it, and an exported model.py carries it. Two skeletons are built in:

    darts          Liu et al., ICLR 2019: a cell reads the two cells before it; `reduce` cells halve the image
    nas_bench_201  Dong & Yang, ICLR 2020: three stages of `layers` cells with residual blocks between them

`register_skeleton` adds one, from a user's file too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nas_moreau.errors import InputError, unknown


class NetworkPart(NamedTuple):
    """A part of a network; parts run in the order of their list.

    Attributes:
        name: Name of the cell or of the block that is built here.
        kind: "stem" (the first part, which reads the images), "cell", or "block" (fixed, reads one part).
        channels: Channels of the nodes of a cell; of the output otherwise.
        outputs: Channels of its output.
        stride: The height and width of its output are those of its inputs divided by this, rounded up.
        reads: Numbers of the parts whose outputs are its inputs, the newest last.
    """

    name: str
    kind: Literal["stem", "cell", "block"]
    channels: int
    outputs: int
    stride: int
    reads: tuple[int, ...]


Layout = Callable[[Mapping[str, int], int, int], Sequence[NetworkPart]]
"""(cell name -> number of nodes that it concatenates, channels, layers) -> the parts of the network."""


@dataclass(frozen=True)
class Skeleton:
    """A kind of network around cells.

    Args:
        name: The value of `skeleton` in the file of a search space.
        cells: Names of the cells to be found, in the order in which genotypes hold them.
        inputs: Number of input states of a cell.
        layout: Lays out the parts. `channels` are those of the first cell's nodes.
        published_sizes: Channels and layers that networks are published with (CIFAR-10).
        layers_unit: What `layers` counts, for people: "cells" or "cells a stage".
        concatenates: A cell's output is the concatenation of nodes; otherwise its last node alone.
        preprocesses: Every input of a cell is brought to the channels (and size) of its nodes by ReLU, 1x1 convolution
            and norm; otherwise inputs have the right shape.
        pools_have_norm: Supernets put a BatchNorm after each pool.
        head_norm: BatchNorm and ReLU stand before the global pooling.
        auxiliary_place: layers -> number (from 0) of the cell or block after which an auxiliary head can stand; None
            if the skeleton has none.
        judged: Cells that count for the verdict on collapse; by default all.
        constants: Keys of a space's file that may state what the skeleton fixes, with their only value.
    """

    name: str
    cells: tuple[str, ...]
    inputs: int
    layout: Layout
    published_sizes: tuple[int, int]
    layers_unit: str = "cells"
    concatenates: bool = True
    preprocesses: bool = True
    pools_have_norm: bool = True
    head_norm: bool = False
    auxiliary_place: Callable[[int], int] | None = None
    judged: tuple[str, ...] | None = None
    constants: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Callable[[str], Skeleton], tuple[str]]:
        return named_skeleton, (self.name,)  # copies and pickles are the registered one

    def parts(self, widths: Mapping[str, int], channels: int, layers: int) -> tuple[NetworkPart, ...]:
        """Returns the parts of a network, the stem first.

        Args:
            widths: Cell name -> number of nodes that it concatenates.
            channels: Channels of the first cell's nodes.
            layers: Number of cells, in the unit `layers_unit`.

        Raises:
            InputError: The layout is not a network.
        """
        parts = tuple(self.layout(widths, channels, layers))
        if problems := _layout_problems(self, widths, parts):
            raise InputError(f"The skeleton '{self.name}' has an invalid layout: {problems[0]}.", "Correct its layout.")
        return parts

    def halves(self, cell: str) -> bool:
        """Returns whether the cells of that name have stride 2 in networks of the published size."""
        parts = self.parts(dict.fromkeys(self.cells, 1), 1, self.published_sizes[1])
        return any(part.stride > 1 for part in parts if part.name == cell)


def _layout_problems(skeleton: Skeleton, widths: Mapping[str, int], parts: Sequence[NetworkPart]) -> list[str]:
    if not parts or parts[0].kind != "stem" or any(part.kind == "stem" for part in parts[1:]):
        return ["it does not begin with its only stem"]
    problems, scales = [], reductions(parts)
    for i, part in enumerate(parts[1:], 1):
        where = f"part {i} ({part.name})"
        if any(not 0 <= number < i for number in part.reads):
            problems.append(f"{where} reads a part that is not before it")
        elif len(part.reads) != (skeleton.inputs if part.kind == "cell" else 1):
            problems.append(f"{where} reads {len(part.reads)} parts")
        elif part.kind == "cell" and part.name not in skeleton.cells:
            problems.append(f"{where} is not one of its cells")
        elif part.kind == "cell" and part.outputs != part.channels * widths[part.name]:
            problems.append(f"{where} has {part.outputs} outputs, not {part.channels} a node")
        elif part.kind == "cell" and part.stride not in (1, 2):
            problems.append(f"{where} has stride {part.stride}")
        elif part.kind == "cell":
            newest = scales[part.reads[-1]]
            for number in part.reads:
                if skeleton.preprocesses and scales[number] in (newest, newest // 2):
                    continue
                if scales[number] != newest or parts[number].outputs != part.channels:
                    problems.append(f"{where} cannot read part {number}: it has another shape")
    return problems


def reductions(parts: Sequence[NetworkPart]) -> list[int]:
    """Returns for every part by how much its output is smaller than the image, 1 at full size."""
    found: list[int] = []
    for part in parts:
        found.append(part.stride * (found[part.reads[-1]] if part.reads and max(part.reads) < len(found) else 1))
    return found


def resolutions(parts: Sequence[NetworkPart], image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns (height, width) of the output of every part for images of that (height, width)."""
    found: list[tuple[int, int]] = []
    for part in parts:
        height, width = found[part.reads[-1]] if part.reads else image_size
        found.append((-(-height // part.stride), -(-width // part.stride)))
    return found


# --- the registry ----------------------------------------------------------------------------------------------------

SKELETONS: dict[str, Skeleton] = {}


def register_skeleton(skeleton: Skeleton) -> Skeleton:
    """Makes a skeleton known by its name, so that the file of a search space can name it; returns it.

    Raises:
        InputError: The name is taken, or it has no cells.
    """
    if skeleton.name in SKELETONS:
        raise InputError(f"A skeleton named '{skeleton.name}' exists already.", "Choose another name.")
    if not skeleton.cells or len(set(skeleton.cells)) < len(skeleton.cells) or skeleton.inputs < 1:
        raise InputError(
            f"The skeleton '{skeleton.name}' has no cells, equal names of cells, or cells without input.",
            "Correct `cells` and `inputs`.",
        )
    SKELETONS[skeleton.name] = skeleton
    return skeleton


def named_skeleton(name: str) -> Skeleton:
    """Returns the skeleton of that name.

    Raises:
        InputError: There is none.
    """
    if name not in SKELETONS:
        raise unknown("skeleton", name, SKELETONS)
    return SKELETONS[name]


def skeletons_with(cells: Iterable[str]) -> list[Skeleton]:
    """Returns the skeletons that have just these cells, in any order; the built-in ones first."""
    names = set(cells)
    return [skeleton for skeleton in SKELETONS.values() if set(skeleton.cells) == names]


# --- the built-in skeletons ------------------------------------------------------------------------------------------


def _darts_layout(widths: Mapping[str, int], channels: int, layers: int) -> list[NetworkPart]:
    """A stem three times as wide as the first cell, then `layers` cells; two of them reduce."""
    parts = [NetworkPart("stem", "stem", 3 * channels, 3 * channels, 1, ())]
    for layer in range(layers):
        halves = layer in (layers // 3, 2 * layers // 3)
        name, channels = ("reduce", 2 * channels) if halves else ("normal", channels)
        reads = (max(layer - 1, 0), layer)
        parts.append(NetworkPart(name, "cell", channels, channels * widths[name], 2 if halves else 1, reads))
    return parts


def _nas_bench_201_layout(widths: Mapping[str, int], channels: int, layers: int) -> list[NetworkPart]:
    """Three stages of `layers` cells, with a residual block of stride 2 and twice the channels between them."""
    parts = [NetworkPart("stem", "stem", channels, channels, 1, ())]
    for stage in range(3):
        if stage:
            channels *= 2
            parts.append(NetworkPart("residual", "block", channels, channels, 2, (len(parts) - 1,)))
        for _ in range(layers):
            parts.append(NetworkPart("cell", "cell", channels, channels * widths["cell"], 1, (len(parts) - 1,)))
    return parts


DARTS = register_skeleton(
    Skeleton(
        name="darts",
        cells=("normal", "reduce"),
        inputs=2,
        layout=_darts_layout,
        published_sizes=(36, 20),
        auxiliary_place=lambda layers: 2 * layers // 3,
        judged=("normal",),
        constants=(("reduction", ("1/3", "2/3")),),
    )
)
NAS_BENCH_201 = register_skeleton(
    Skeleton(
        name="nas_bench_201",
        cells=("cell",),
        inputs=1,
        layout=_nas_bench_201_layout,
        published_sizes=(16, 5),
        layers_unit="cells a stage",
        concatenates=False,
        preprocesses=False,
        pools_have_norm=False,
        head_norm=True,
    )
)
IMPLIED = {frozenset(skeleton.cells): skeleton for skeleton in (DARTS, NAS_BENCH_201)}
"""Set of cell names -> the skeleton of a genotype without the key `skeleton`."""

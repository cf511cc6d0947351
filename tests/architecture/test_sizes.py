"""Sizes of a network's parts are those of the network itself."""

from __future__ import annotations

import pytest
import torch

from nas_moreau.architecture import Genotype, Network, load_genotype
from nas_moreau.architecture.spaces.sizes import network_parts

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"


@pytest.mark.parametrize("name, layers, size", [
    ("DARTS_V2", 1, (16, 16)), ("DARTS_V2", 2, (16, 12)), ("DARTS_V2", 3, (15, 9)), ("DARTS_V2", 8, (8, 8)),
    ("NASNet", 4, (17, 8)), ("AmoebaNet", 3, (8, 8)), (CELL, 1, (16, 16)), (CELL, 2, (15, 9)),
])  # fmt: skip
def test_parts_have_the_sizes_of_the_network(name, layers, size):
    genotype = Genotype.parse(name) if name == CELL else load_genotype(name)
    network = Network(genotype, 4, layers).eval()
    with torch.no_grad():
        maps = network.forward_maps(torch.zeros(1, 3, *size))
    parts = network_parts(genotype, 4, layers, size)
    assert [part[1:] for part in parts] == [tuple(found.shape[1:]) for found in maps]
    halving = {"reduce", "residual"}
    assert [part.name in halving for part in parts[1:]] == [
        getattr(cell, "halves", True) for cell in network.cells
    ]  # a residual block halves always

"""Expected multiply-adds against the mean over all cells of a tiny space, each counted as a whole network."""

import itertools
import math

import pytest
import torch

from nas_moreau.architecture import Genotype, Network, load_space, multiply_adds
from nas_moreau.architecture.networks.costs import added_costs, expected_cost, relative_costs
from nas_moreau.architecture.networks.latency import operation_latencies
from nas_moreau.architecture.spaces.genotype import Cell
from nas_moreau.errors import InputError

SIZE = (3, 8, 8)
SPACE = """\
name: tiny
skeleton: darts
nodes: 1
operations: [{operations}]
edges: all
concat: [2]
reduction: [1/3, 2/3]
derivation: {{rule: top_edges, edges_per_node: 2, exclude: [none]}}
"""


def space_of(tmp_path, operations):
    file = tmp_path / "tiny.yaml"
    file.write_text(SPACE.format(operations=operations))
    return load_space(str(file))


def build(genotype):
    return Network(genotype, 4, 3, 5)


def drawn(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(space.alpha_shape, generator=generator, dtype=torch.float64) for _ in space.cells]


def test_it_is_the_mean_over_all_cells(tmp_path):
    space = space_of(tmp_path, "none, skip_connect, sep_conv_3x3")
    alphas = drawn(space)
    shares = [torch.softmax(logits, -1) for logits in alphas]
    places = [(i, edge) for i in range(len(space.cells)) for edge in range(len(space.edges))]
    found = []  # (probability, multiply-adds) of every assignment of operations to the edges of both cells
    for choice in itertools.product(range(len(space.operations)), repeat=len(places)):
        edges = [[] for _ in space.cells]
        for (cell, edge), k in zip(places, choice):
            edges[cell].append((space.operations[k], *space.edges[edge]))
        cells = {name: Cell(tuple(edges[i]), space.concat) for i, name in enumerate(space.cells)}
        with torch.device("meta"):
            network = build(Genotype(space.name, cells))
        chance = math.prod(shares[cell][edge, k].item() for (cell, edge), k in zip(places, choice))
        found.append((chance, multiply_adds(network, SIZE)))
    least, most = (rule(macs for _, macs in found) for rule in (min, max))
    mean = math.fsum(chance * (macs - least) for chance, macs in found) / (most - least)
    assert len(found) == 81 and most > least and 0.05 < mean < 0.95
    assert expected_cost(
        alphas, relative_costs(space, added_costs(space, build, SIZE, "macs"), "macs")
    ).item() == pytest.approx(mean, rel=1e-12)


def test_its_gradient_is_that_of_differences(tmp_path):
    space = space_of(tmp_path, "none, skip_connect, max_pool_3x3, sep_conv_3x3, dil_conv_5x5")
    costs = relative_costs(space, added_costs(space, build, SIZE, "macs"), "macs")
    alphas = [logits.requires_grad_() for logits in drawn(space, 1)]
    assert torch.autograd.gradcheck(lambda *x: expected_cost(x, costs), alphas)
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(expected_cost(alphas, costs), alphas))


def test_it_is_one_for_the_dearest_and_zero_for_nothing(tmp_path):
    space = space_of(tmp_path, "none, sep_conv_3x3")
    costs = relative_costs(space, added_costs(space, build, SIZE, "macs"), "macs")
    for k, value in ((0, 0.0), (1, 1.0)):
        logits = torch.full(space.alpha_shape, -1e4, dtype=torch.float64)
        logits[:, k] = 0.0
        assert expected_cost([logits, logits], costs).item() == pytest.approx(value, abs=1e-12)


def test_a_space_of_free_operations_is_refused(tmp_path):
    space = space_of(tmp_path, "none, max_pool_3x3, avg_pool_3x3")
    with pytest.raises(InputError, match="nothing to penalise"):
        relative_costs(space, added_costs(space, build, SIZE, "macs"), "macs")


def test_latencies_are_those_of_the_operations_in_all_cells(tmp_path):
    """Every candidate of every edge has one; `none` takes no time, and a convolution more than an identity."""
    space = space_of(tmp_path, "none, skip_connect, sep_conv_3x3")
    found = operation_latencies(space, build, SIZE, torch.device("cpu"), rounds=5)
    assert set(found) == {
        (cell, edge, name) for cell in space.cells for edge in range(len(space.edges)) for name in space.operations
    }
    assert all(ms == 0 for (_, _, name), ms in found.items() if name == "none")
    assert all(found[c, e, "sep_conv_3x3"] > found[c, e, "skip_connect"] for c, e, _ in found if c == "normal")

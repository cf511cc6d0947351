"""The best genotype within a budget against all genotypes there are, and the costs against whole networks."""

import itertools
import math
import random

import pytest
import torch

from nas_moreau.architecture import Network, derive, load_space, multiply_adds, parameter_count
from nas_moreau.architecture.networks.budget import Budget
from nas_moreau.architecture.networks.costs import network_costs
from nas_moreau.architecture.spaces.alpha_table import AlphaTable
from nas_moreau.errors import InputError


def build(layers):
    return lambda genotype: Network(genotype, 4, layers, 5)


def drawn(space, seed):
    generator = torch.Generator().manual_seed(seed)
    return {cell: torch.randn(space.alpha_shape, generator=generator) for cell in space.cells}


@pytest.mark.parametrize("name, layers", [("toy", 3), ("darts", 5), ("nas_bench_201", 1), ("robust_darts_s2", 4)])
def test_costs_add_up_to_the_whole_network(name, layers):
    space, rng = load_space(name), random.Random(0)
    base, added = network_costs(space, build(layers), (3, 16, 16))
    for _ in range(3):
        genotype = space.random_genotype(rng)
        with torch.device("meta"):
            network = build(layers)(genotype)
        used = [
            added[cell, space.edges.index((a, b)), operation]
            for cell, content in genotype.cells.items()
            for operation, a, b in content.edges
        ]
        assert base[0] + sum(cost[0] for cost in used) == parameter_count(network)
        assert base[1] + sum(cost[1] for cost in used) == multiply_adds(network, (3, 16, 16))


def every_cell(space, rows, cell, added):
    """(score, parameters, macs) of every cell that the rule of the space can produce."""
    nodes = []
    for node in range(space.inputs, space.inputs + space.nodes):
        into = [i for i, (_, target) in enumerate(space.edges) if target == node]
        count = space.derivation.edges_per_node or len(into)
        options = []
        for edges in itertools.combinations(into, min(count, len(into))):
            for names in itertools.product(space.choices, repeat=len(edges)):
                score = sum(math.log(rows[i].weights[n]) for i, n in zip(edges, names))
                costs = [added[cell, i, n] for i, n in zip(edges, names)]
                options.append((score, sum(c[0] for c in costs), sum(c[1] for c in costs)))
        nodes.append(options)
    return [tuple(map(sum, zip(*combination))) for combination in itertools.product(*nodes)]


@pytest.mark.parametrize("name, layers, seed", [("toy", 3, 0), ("toy", 2, 1), ("nas_bench_201", 1, 2)])
def test_it_is_the_best_of_all_that_fit(name, layers, seed):
    space = load_space(name)
    weights = AlphaTable.from_logits(space, drawn(space, seed))
    base, added = network_costs(space, build(layers), (3, 16, 16))
    cells = [every_cell(space, weights.cells[cell], cell, added) for cell in space.cells]
    whole = [tuple(map(sum, zip((0, *base), *parts))) for parts in itertools.product(*cells)]
    assert len(whole) == space.size()
    free = max(whole)
    for share in (0.3, 0.6, 0.9):
        limits = [int(base[i] + share * (free[i + 1] - base[i])) for i in (0, 1)]
        for most, macs in ((limits[0], None), (None, limits[1]), tuple(limits)):
            found = Budget(space, base, added, most, macs).best(weights)
            fitting = [w for w in whole if w[1] <= (most or math.inf) and w[2] <= (macs or math.inf)]
            assert found.exact and found.score == pytest.approx(max(fitting)[0], abs=1e-9)
            with torch.device("meta"):
                network = build(layers)(found.genotype)
            assert found.parameters == parameter_count(network) <= (most or math.inf)
            assert found.macs == multiply_adds(network, (3, 16, 16)) <= (macs or math.inf)
            space.check(found.genotype)


@pytest.mark.parametrize("name", ["toy", "darts", "nas_bench_201"])
def test_without_a_limit_it_is_the_spaces_own_rule(name):
    space = load_space(name)
    alphas = drawn(space, 5)
    costs = network_costs(space, build(3), (3, 16, 16))
    assert Budget(space, *costs).best(AlphaTable.from_logits(space, alphas)).genotype == derive(space, alphas)


def test_a_beam_says_that_it_is_not_exact():
    space = load_space("toy")
    weights = AlphaTable.from_logits(space, drawn(space, 3))
    base, added = network_costs(space, build(3), (3, 16, 16))
    limit = base[0] + 400
    whole, beam = (Budget(space, base, added, limit).best(weights, width) for width in (20_000, 1))
    assert whole.exact and not beam.exact and beam.score <= whole.score


def test_a_budget_that_nothing_fits_is_refused_with_the_least_that_would():
    space = load_space("toy")
    base, added = network_costs(space, build(3), (3, 16, 16))
    with pytest.raises(InputError, match=f"the least is {base[0]:,} parameters"):
        Budget(space, base, added, base[0] - 1).best(AlphaTable.from_logits(space, drawn(space, 0)))

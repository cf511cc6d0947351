"""Spaces whose edges have candidates of their own: RobustDARTS S1, and one where their number differs."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from nas_moreau.architecture import (
    AlphaTable,
    Genotype,
    LiteralSupernet,
    Network,
    Supernet,
    derive,
    explain,
    load_space,
    multiply_adds,
    parameter_count,
)
from nas_moreau.architecture.networks.budget import Budget
from nas_moreau.architecture.networks.costs import added_costs, expected_cost, relative_costs
from nas_moreau.architecture.networks.literal import matching_state
from nas_moreau.architecture.spaces.derivation import edge_normalised
from nas_moreau.architecture.spaces.neighbours import neighbours
from nas_moreau.drawing.cell import draw_genotype
from nas_moreau.drawing.heat_map import draw_heat_map
from nas_moreau.errors import InputError
from nas_moreau.search.mixture_scores import one_hot

RAGGED = """\
name: ragged
skeleton: darts
nodes: 2
operations:
  normal:
    0-2: [sep_conv_3x3, skip_connect]
    1-2: [none, max_pool_3x3, skip_connect, sep_conv_3x3]
    0-3: [dil_conv_3x3]
    1-3: [none, sep_conv_3x3, skip_connect]
    2-3: [avg_pool_3x3, skip_connect, noise]
  reduce: [none, skip_connect, avg_pool_3x3]
derivation: {rule: top_edges, edges_per_node: 2, exclude: [none]}
"""
DETERMINISTIC = RAGGED.replace("noise", "sep_conv_5x5")


@pytest.fixture
def load(tmp_path):
    def load(text=DETERMINISTIC):
        (tmp_path / "space.yaml").write_text(text)
        return load_space(tmp_path / "space.yaml")

    return load


@pytest.fixture(params=["robust_darts_s1", "ragged"])
def space(request, load):
    return load() if request.param == "ragged" else load_space(request.param)


def drawn(space, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return {cell: scale * torch.randn(space.alpha_shape, generator=draw, dtype=torch.float64) for cell in space.cells}


def pair(space, seed=0, **how):
    """A supernet in float64 with alphas far from uniform, and the literal one with its weights."""
    torch.manual_seed(seed)
    shared = Supernet(space, 4, 3, num_classes=5, **how).double()
    how.pop("kernels", None)
    literal = LiteralSupernet(space, 4, 3, num_classes=5, **how).double()
    with torch.no_grad():
        for logits in shared.alphas.values():
            logits.normal_()
    literal.load_state_dict(matching_state(literal, shared.state_dict()))
    return shared, literal


# --- the file --------------------------------------------------------------------------------------------------------


def test_robust_darts_s1_has_the_published_lists():
    space = load_space("robust_darts_s1")
    assert space.alpha_shape == (14, 2) and not space.ragged
    assert space.candidates("normal", space.edges.index((0, 4))) == ("max_pool_3x3", "skip_connect")
    assert space.candidates("reduce", space.edges.index((0, 4))) == ("max_pool_3x3", "avg_pool_3x3")
    assert space.candidates("normal", 13) == ("dil_conv_3x3", "dil_conv_5x5")
    # 1 * 3 * 6 * 10 ways to keep two edges of each node, two operations on each of eight edges; two cells
    assert space.size() == (180 * 2**8) ** 2


@pytest.mark.parametrize(
    "change, said",
    [
        (("reduce: [none, skip_connect, avg_pool_3x3]", ""), "operations.reduce is missing"),
        (("    2-3: [avg_pool_3x3, skip_connect, noise]\n", ""), "operations.normal.2-3 is None"),
        (("2-3: [avg", "3-2: [avg"), "'3-2'"),
        (("0-3: [dil_conv_3x3]", "0-3: dil_conv_3x3"), "operations.normal.0-3 is 'dil_conv_3x3'"),
        (("0-3: [dil_conv_3x3]", "0-3: []"), "edge 0-3 of cell normal"),
        (("0-3: [dil_conv_3x3]", "0-3: [none]"), "edge 0-3 of cell normal"),
        (("0-3: [dil_conv_3x3]", "0-3: [noise, noise]"), "edge 0-3 of cell normal"),
        (("exclude: [none]", "exclude: [dil_conv_3x3]"), "edge 0-3 of cell normal"),
        (("dil_conv_3x3", "dil_conv3x3"), "did you mean 'dil_conv_3x3'?"),
        (("  reduce:", "  reduced:"), "'reduced'"),
    ],
)
def test_mistakes_in_the_lists_are_named(change, said, load):
    with pytest.raises(InputError) as caught:
        load(RAGGED.replace(*change))
    assert said in caught.value.cause


def test_a_list_for_a_cell_stands_for_all_its_edges(load):
    space = load()
    assert space.ragged and space.alpha_shape == (5, 4)
    assert {space.candidates("reduce", i) for i in range(5)} == {("none", "skip_connect", "avg_pool_3x3")}
    assert space.operations == (
        "sep_conv_3x3",
        "skip_connect",
        "none",
        "max_pool_3x3",
        "dil_conv_3x3",
        "avg_pool_3x3",
        "sep_conv_5x5",
    )
    with pytest.raises(InputError, match="in the order"):
        replace(space, operations=space.operations[::-1])


def test_two_spaces_that_differ_in_a_list_have_different_digests(load):
    assert load().digest() != load(DETERMINISTIC.replace("[dil_conv_3x3]", "[dil_conv_5x5]")).digest()


# --- derivation ------------------------------------------------------------------------------------------------------


def test_the_softmax_is_over_the_candidates_of_the_edge(space):
    logits = drawn(space)
    table = AlphaTable.from_logits(space, logits)
    for cell, rows in table.cells.items():
        for i, row in enumerate(rows):
            names = space.candidates(cell, i)
            assert tuple(row.weights) == names
            wanted = torch.softmax(logits[cell][i, : len(names)], 0)
            assert list(row.weights.values()) == pytest.approx(wanted.tolist(), rel=1e-12)
    # logits of unused columns mean nothing
    changed = {cell: rows.clone() for cell, rows in logits.items()}
    for cell, rows in changed.items():
        for i in range(len(rows)):
            rows[i, len(space.candidates(cell, i)) :] = 50.0
    assert AlphaTable.from_logits(space, changed) == table
    assert AlphaTable.from_rows(table.to_rows(3)) == {3: table}
    assert AlphaTable.from_dict(space, json.loads(json.dumps(table.to_dict()))) == table
    assert math.fsum(w for row in edge_normalised(space, table).cells["normal"][2:5] for w in row.weights.values()) > 0


def test_derivation_keeps_to_the_candidates(space):
    for seed in range(20):
        genotype = derive(space, drawn(space, seed))
        space.check(genotype)
        rows = explain(space, drawn(space, seed))
        kept = {(row["cell"], row["operation"], row["edge"]) for row in rows if row["kept"]}
        edges = {(name, op, f"{a}-{b}") for name, cell in genotype.cells.items() for op, a, b in cell.edges}
        assert kept == edges
    one = next(row for row in explain(space, drawn(space)) if row["edge"] == "0-3")
    assert (one["runner_up"] is None) == (space.name == "ragged")


def test_the_first_of_equal_candidates_is_taken_in_the_order_of_the_list(load):
    space = load()
    zeros = {cell: torch.zeros(space.alpha_shape) for cell in space.cells}
    edges = derive(space, zeros).cells["normal"].edges
    # all weights of an edge are 1/n: edge 0-3 has one candidate, of 1-3 and 2-3 the lower one stays
    assert edges == (("sep_conv_3x3", 0, 2), ("max_pool_3x3", 1, 2), ("dil_conv_3x3", 0, 3), ("sep_conv_3x3", 1, 3))


def every_genotype(space):
    """All genotypes that derivation can produce, by brute force."""
    cells = []
    for cell in space.cells:
        nodes = []
        for into in space.incoming():
            kept = itertools.combinations(into, min(2, len(into)))
            nodes.append(
                [
                    tuple((name, *space.edges[i]) for name, i in zip(names, edges))
                    for edges in kept
                    for names in itertools.product(*(space.edge_choices(cell, i) for i in edges))
                ]
            )
        cells.append([tuple(itertools.chain(*parts)) for parts in itertools.product(*nodes)])
    return cells


def test_size_and_random_genotypes(load):
    space = load()
    cells = every_genotype(space)
    assert space.size() == math.prod(map(len, cells))
    rng, draws = random.Random(0), 4000
    counts = Counter(space.random_genotype(rng).cells["normal"].edges for _ in range(draws))
    assert set(counts) <= set(cells[0])
    # uniform over all cells, not over sets of edges first: five deviations of a chi-square
    expected, d = draws / len(cells[0]), len(cells[0]) - 1
    assert sum((counts[cell] - expected) ** 2 / expected for cell in cells[0]) < d + 5 * math.sqrt(2 * d)


def test_neighbours_keep_to_the_candidates(space):
    genotype = space.random_genotype(random.Random(1))
    found = neighbours(space, genotype)
    wanted = sum(
        len([name for name in space.edge_choices(cell, space.edges.index((a, b))) if name not in (op, "none")])
        for cell, content in genotype.cells.items()
        for op, a, b in content.edges
    )
    assert len({n.genotype for n in found}) == len(found) == wanted
    for neighbour in found:
        space.check(neighbour.genotype)


def test_a_genotype_with_another_edges_operation_is_refused():
    space = load_space("robust_darts_s1")
    data = derive(space, AlphaTable.uniform(space)).to_dict()
    data["cells"]["normal"]["edges"][0][0] = "sep_conv_3x3"  # a candidate of other edges
    with pytest.raises(InputError, match="edge 0-2"):
        space.check(Genotype.from_json(data))


def test_a_budget_chooses_among_the_candidates(load):
    space = load()

    def build(genotype):
        return Network(genotype, 4, 3, 5)

    free = Budget.measure(space, build, (3, 8, 8)).best(AlphaTable.from_logits(space, drawn(space)))
    assert free.genotype == derive(space, drawn(space))
    limit = free.parameters - 1
    found = Budget.measure(space, build, (3, 8, 8), limit).best(AlphaTable.from_logits(space, drawn(space)))
    space.check(found.genotype)
    network = build(found.genotype)
    assert parameter_count(network) == found.parameters <= limit and multiply_adds(network, (3, 8, 8)) == found.macs


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["portable", "auto"])
@pytest.mark.parametrize("partial", [1, 2])
def test_the_supernet_equals_the_literal_one(space, kernels, partial):
    shared, literal = pair(space, kernels=kernels, partial_channels=partial)
    images = torch.randn((2, 3, 9, 8), dtype=torch.float64)
    found, wanted = shared(images), literal(images)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    grads = torch.autograd.grad(found.square().sum(), list(shared.alphas.values()))
    others = torch.autograd.grad(wanted.square().sum(), list(literal.alphas.values()))
    torch.testing.assert_close(grads, others, rtol=1e-8, atol=1e-12)
    for cell, grad in zip(space.cells, grads):
        for edge in range(len(space.edges)):
            assert not grad[edge, len(space.candidates(cell, edge)) :].any()


def test_a_one_hot_supernet_equals_the_derived_network():
    """Without pools, which have a norm in the supernet and none in the network."""
    space, rng = load_space("robust_darts_s1"), random.Random(0)
    lists = tuple(
        tuple(tuple(name for name in names if "pool" not in name) or ("sep_conv_3x3",) for names in rows)
        for rows in space.edge_operations
    )
    names = tuple(dict.fromkeys(name for rows in lists for row in rows for name in row))
    space = replace(space, operations=names, edge_operations=lists)
    genotype = space.random_genotype(rng)
    torch.manual_seed(0)
    supernet = Supernet(space, 4, 3, num_classes=5).double().train()
    network = Network(genotype, 4, 3, num_classes=5).double().train()
    state = supernet.state_dict()
    for key, value in network.state_dict().items():
        parts = key.split(".")
        if ".operations." in key:
            cell, (place, operation) = network.cells[int(parts[1])], (int(parts[3]), None)
            edge, operation = space.edges.index(cell.places[place]), cell.operations[place].name
            key = ".".join([*parts[:3], str(edge), operation, *parts[4:]])
        if key in state:
            value.copy_(state[key])
    images = torch.randn((2, 3, 8, 8), dtype=torch.float64)
    mixture, active = one_hot(space, genotype, supernet.classifier.weight).by_cell(space)
    torch.testing.assert_close(supernet(images, mixture, active), network(images), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(supernet(images, mixture), network(images), rtol=1e-9, atol=1e-12)


def test_expected_multiply_adds_count_the_candidates_alone(load):
    space = load()
    costs = relative_costs(
        space, added_costs(space, lambda genotype: Network(genotype, 4, 3, 5), (3, 8, 8), "macs"), "macs"
    )
    supernet = Supernet(space, 4, 3)
    with torch.no_grad():
        supernet.alphas["normal"].fill_(3.0)
    found = expected_cost(supernet.operation_logits(list(supernet.alphas.values())), costs)
    table = AlphaTable.from_logits(space, supernet.alphas)
    wanted = math.fsum(
        weight * costs[cell][i, k].item()
        for cell, rows in table.cells.items()
        for i, row in enumerate(rows)
        for k, weight in enumerate(row.weights.values())
    )
    assert found.item() == pytest.approx(wanted, rel=1e-5)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_drawings_show_the_weights_of_the_candidates(space):
    table = AlphaTable.from_logits(space, drawn(space))
    genotype = derive(space, table)
    svg = draw_genotype(genotype, table)
    operation, a, b = genotype.cells["normal"].edges[0]
    weight = table.cells["normal"][space.edges.index((a, b))].weights[operation]
    assert f"{100 * weight:.0f} %" in svg
    assert draw_heat_map(table.cells["normal"], genotype.cells["normal"].edges).std() > 5

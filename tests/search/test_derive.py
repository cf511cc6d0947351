"""The rules of derivation that measure: selection and perturbation against literal evaluations; what a run records."""

import itertools
import math
import random

import pytest
import torch
from torch.nn import functional as f

from nas_moreau.architecture import AlphaTable, Genotype, Supernet, derive, load_space
from nas_moreau.architecture.networks.literal import LiteralSupernet, matching_state
from nas_moreau.architecture.networks.skeleton import pool_features, run_cells
from nas_moreau.architecture.spaces.derivation import edge_normalised
from nas_moreau.architecture.spaces.neighbours import neighbours
from nas_moreau.data import Augment, Images, Part, seed_for
from nas_moreau.errors import InputError
from nas_moreau.runs.history import Stage
from nas_moreau.search.derive import derive_ensemble, derive_run
from nas_moreau.search.perturbation import perturb
from nas_moreau.search.selection import select
from nas_moreau.search.stage import search

TOY = {
    "version": 1,
    "space": "toy",
    "cells": {
        "normal": {
            "edges": [["skip_connect", 0, 2], ["sep_conv_3x3", 1, 2], ["max_pool_3x3", 1, 3], ["skip_connect", 2, 3]],
            "concat": [2, 3],
        },
        "reduce": {
            "edges": [["max_pool_3x3", 0, 2], ["max_pool_3x3", 1, 2], ["sep_conv_3x3", 0, 3], ["skip_connect", 2, 3]],
            "concat": [2, 3],
        },
    },
}


def images_of(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 3)


def trained_pair(name, layers, seed=0):
    """A supernet in float64 with alphas far from uniform, the literal one with its weights, and a part of 24 images."""
    torch.manual_seed(seed)
    space = load_space(name)
    supernet = Supernet(space, 2, layers, 3).double()
    with torch.no_grad():
        for logits in supernet.alphas.values():
            logits.normal_()
    literal = LiteralSupernet(space, 2, layers, 3).double()
    literal.load_state_dict(matching_state(literal, supernet.state_dict()))
    part = Part(images_of(60), torch.arange(0, 48, 2), Augment((0.5,) * 3, (0.25,) * 3))
    return space, supernet, literal, part


def literal_loss(literal, part, mixture):
    """The loss on all images as one batch, from modules of its own for every operation."""
    batch = part.images.take(part.indices)
    maps = run_cells(
        literal, part.augment(batch.pixels).double(), lambda cell, inputs: cell(inputs, mixture[cell.name])
    )
    with torch.no_grad():
        return f.cross_entropy(literal.classifier(pool_features(literal.head_norm, maps[-1])), batch.labels).item()


def literal_one_hot(space, genotype):
    mixture = {}
    for name, cell in genotype.cells.items():
        mixture[name] = torch.zeros(space.alpha_shape, dtype=torch.float64)
        for operation, a, b in cell.edges:
            mixture[name][space.edges.index((a, b)), space.operations.index(operation)] = 1
    return mixture


def test_all_neighbours_of_a_toy_cell():
    space, genotype = load_space("toy"), Genotype.from_json(TOY)
    by_hand = [
        ("normal", (0, 2), "max_pool_3x3"),
        ("normal", (0, 2), "sep_conv_3x3"),
        ("normal", (1, 2), "skip_connect"),
        ("normal", (1, 2), "max_pool_3x3"),
        ("normal", (1, 3), "skip_connect"),
        ("normal", (1, 3), "sep_conv_3x3"),
        ("normal", (2, 3), "max_pool_3x3"),
        ("normal", (2, 3), "sep_conv_3x3"),
        ("reduce", (0, 2), "skip_connect"),
        ("reduce", (0, 2), "sep_conv_3x3"),
        ("reduce", (1, 2), "skip_connect"),
        ("reduce", (1, 2), "sep_conv_3x3"),
        ("reduce", (0, 3), "skip_connect"),
        ("reduce", (0, 3), "max_pool_3x3"),
        ("reduce", (2, 3), "max_pool_3x3"),
        ("reduce", (2, 3), "sep_conv_3x3"),
    ]
    found = neighbours(space, genotype)
    assert [(n.cell, n.edge, n.operation) for n in found] == by_hand
    for neighbour in found:
        space.check(neighbour.genotype)
        before = [edge for cell in genotype.cells.values() for edge in cell.edges]
        after = [edge for cell in neighbour.genotype.cells.values() for edge in cell.edges]
        (changed,) = [(a, b) for a, b in zip(before, after) if a != b]
        assert changed == ((neighbour.former, *neighbour.edge), (neighbour.operation, *neighbour.edge))


@pytest.mark.parametrize("name, edges, choices", [("darts", 16, 7), ("robust_darts_s4", 16, 2)])
def test_neighbours_are_as_many_as_edges_times_other_operations(name, edges, choices):
    space = load_space(name)
    found = neighbours(space, space.random_genotype(random.Random(0)))
    assert len({n.genotype for n in found}) == len(found) == edges * (choices - 1)


def test_none_is_replaced_and_never_put_in():
    cell = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|none~1|avg_pool_3x3~2|"
    found = neighbours(load_space("nas_bench_201"), Genotype.parse(cell))
    assert len(found) == 4 * 3 + 2 * 4
    assert not any(neighbour.operation == "none" for neighbour in found)


@pytest.mark.parametrize("name, layers", [("toy", 3), ("nas_bench_201", 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_selection_is_the_least_literal_loss(name, layers, seed):
    space, supernet, literal, part = trained_pair(name, layers, seed)
    state = {key: value.clone() for key, value in supernet.state_dict().items()}
    start = derive(space, supernet.alphas)
    genotype, record = select(space, supernet, start, part)
    cells = [start, *(neighbour.genotype for neighbour in neighbours(space, start))]
    losses = [literal_loss(literal, part, literal_one_hot(space, cell)) for cell in cells]
    assert [row["loss"] for row in record["candidates"]] == pytest.approx(losses, rel=1e-9)
    assert genotype == cells[losses.index(min(losses))]
    assert record["chosen"]["digest"] == genotype.digest() and record["moved"] == (genotype != start)
    # measuring leaves no trace
    assert all(torch.equal(value, state[key]) for key, value in supernet.state_dict().items()) and supernet.training


def test_selection_keeps_to_what_is_allowed():
    space, supernet, _, part = trained_pair("toy", 2)
    start = derive(space, supernet.alphas)
    genotype, record = select(space, supernet, start, part, allowed=lambda cell: False)
    assert genotype == start and len(record["candidates"]) == 1


@pytest.mark.parametrize("name, layers", [("toy", 3), ("nas_bench_201", 1)])
def test_perturbation_is_the_literal_loop(name, layers):
    space, supernet, literal, part = trained_pair(name, layers, seed=4)
    weights = AlphaTable.from_logits(space, supernet.alphas)
    genotype, record = perturb(space, supernet, weights, part, seed=7)

    mixture = {cell: torch.tensor(rows, dtype=torch.float64) for cell, rows in weights.to_dict()["alphas"].items()}
    draw = random.Random(seed_for(7, "order of perturbation"))
    places = list(itertools.product(space.cells, range(len(space.edges))))
    chosen = {}
    for cell, edge in draw.sample(places, len(places)):
        losses = {}
        for k, operation in enumerate(space.operations):
            if operation != "none":
                cut = {c: table.clone() for c, table in mixture.items()}
                cut[cell][edge, k] = 0
                losses[operation] = literal_loss(literal, part, cut)
        chosen[cell, edge] = max(losses, key=losses.get)
        mixture[cell][edge] = torch.tensor([float(o == chosen[cell, edge]) for o in space.operations])
        decision = record["decisions"][len(chosen) - 1]
        assert decision["loss_without"] == pytest.approx(losses, rel=1e-9)
    removed = set()
    if name == "toy":  # node 3 has three edges and keeps two, so the one that is missed least goes; node 2 keeps both
        for cell, node in draw.sample([(c, n) for c in space.cells for n in (2, 3)], 4):
            if node == 3:
                losses = {}
                for edge in (2, 3, 4):
                    cut = {c: table.clone() for c, table in mixture.items()}
                    cut[cell][edge] = 0
                    losses[edge] = literal_loss(literal, part, cut)
                gone = min(losses, key=losses.get)
                removed.add((cell, gone))
                mixture[cell][gone] = 0
    expected = {(c, chosen[c, e], *space.edges[e]) for c, e in chosen if (c, e) not in removed}
    assert {(c, *edge) for c, content in genotype.cells.items() for edge in content.edges} == expected
    space.check(genotype)


def test_edge_normalisation_compares_the_edges_of_a_node():
    space = load_space("toy")
    alphas = {"normal": [[0.0] * 4 for _ in range(5)], "reduce": [[0.0] * 4 for _ in range(5)]}
    # on edge 0-3 all logits are large and nearly equal, on the others one operation stands out by a little
    alphas["normal"][2] = [5.0, 5.0, 5.1, 5.0]
    alphas["normal"][3] = [0.0, 1.0, 0.0, 0.0]
    alphas["normal"][4] = [0.0, 0.0, 2.0, 0.0]

    def normalised(alphas):
        return edge_normalised(space, AlphaTable.from_logits(space, alphas)).to_dict()["alphas"]["normal"]

    table = normalised(alphas)
    assert [math.fsum(w for i in into for w in table[i]) for into in ((0, 1), (2, 3, 4))] == pytest.approx([1, 1])
    total = 3 * math.exp(5) + math.exp(5.1) + 3 + math.e + 3 + math.exp(2)
    assert table[2][2] == pytest.approx(math.exp(5.1) / total)
    assert {(a, b) for _, a, b in derive(space, alphas).cells["normal"].edges if b == 3} == {(1, 3), (2, 3)}
    with_edges = normalised(alphas | {"edge_normal": [0.0, 0.0, -9.0, 0.0, 0.0]})
    assert with_edges[2][2] / with_edges[4][2] == pytest.approx(math.exp(5.1 - 9 - 2))


# --- in a run --------------------------------------------------------------------------------------------------------

SETTINGS = ["search.epochs=1", "search.method=darts1", "retrain.layers=2"]
SETTINGS += [f"derive.trained.{word}" for word in ("candidates=3", "steps=4", "channels=2", "batch_size=8")]


@pytest.fixture
def tiny(tiny_config):
    return lambda *overrides: tiny_config(*SETTINGS, *overrides)


@pytest.mark.parametrize("rule", ["space", "edge-normalised", "perturbation", "selection", "trained"])
def test_a_run_records_its_rule_and_derive_repeats_it(rule, tmp_path, tiny, tiny_data):
    config = tiny(f"derive.rule={rule}")
    result = search(config, tmp_path / "a", data=tiny_data).to_dict()
    assert Genotype.from_json((tmp_path / "a" / "genotype.json").read_text()).digest() == result["digest"]
    assert result["derived_by"]["rule"] == rule and ("before_rule" in result) == (rule != "space")
    again = derive_run(tmp_path / "a", config, tiny_data).to_dict()
    assert again == {key: result[key] for key in again}
    plain = derive_run(tmp_path / "a", tiny()).genotype
    before = result.get("before_rule", result)
    assert plain.digest() == before["digest"] == Genotype.from_json(before["genotype"]).digest()
    if rule == "selection":
        assert result["derived_by"]["split"] == "held_out" and result["derived_by"]["note"]
        assert result["derived_by"]["images"] == 6  # a tenth of 60
    if rule == "perturbation":
        assert result["derived_by"]["split"] == "architecture" and result["derived_by"]["images"] == 27


def test_the_files_of_a_search_with_edge_weights_give_its_cell(tmp_path, tiny, tiny_data):
    """Edge weights decide which edges stay, so they must be in alphas.csv and in result.json."""
    sizes = ["search.channels=4", "search.partial_channels=2", "search.epochs=2"]
    config = tiny("search.method=darts1+pc", "search.alphas.init_scale=3.0", *sizes)
    result = search(config, tmp_path, data=tiny_data).to_dict()
    space = load_space("toy")
    assert derive(space, AlphaTable.from_dict(space, result)).digest() == result["digest"]
    assert derive(space, Stage(tmp_path).final_alphas).digest() == result["digest"]
    plain = AlphaTable.from_dict(space, result).without_edge_weights()
    assert derive(space, plain).digest() != result["digest"]


def test_a_budget_holds_in_the_run_and_for_the_neighbours(tmp_path, tiny, tiny_data):
    free = search(tiny("derive.rule=selection"), tmp_path / "a", data=tiny_data).to_dict()
    small = search(tiny("derive.rule=selection", "derive.max_parameters=700"), tmp_path / "b", data=tiny_data).to_dict()
    budget = small["derived_by"]["budget"]
    assert budget["parameters"] <= 700 and budget["exact"]
    assert len(small["derived_by"]["candidates"]) < len(free["derived_by"]["candidates"])
    with pytest.raises(InputError, match="fits in 10 parameters"):
        search(tiny("derive.max_parameters=10"), tmp_path / "c", data=tiny_data)
    assert not (tmp_path / "c").exists()


def test_an_ensemble_is_the_mean_of_softmax_weights(tmp_path, tiny, tiny_data):
    runs = [tmp_path / str(seed) for seed in range(2)]
    tables = []
    for seed, run in enumerate(runs):
        result = search(tiny(f"seed={seed}", "search.alphas.lr=1.0"), run, data=tiny_data).to_dict()
        tables.append(result["alphas"])
    mean = {c: (torch.tensor(tables[0][c]) + torch.tensor(tables[1][c])) / 2 for c in ("normal", "reduce")}
    found = derive_ensemble(runs, tiny())
    assert found.genotype == derive(load_space("toy"), {c: m.log() for c, m in mean.items()})
    assert found.derived_by["rule"] == "space" and found.derived_by["runs"] == [str(run) for run in runs]
    with pytest.raises(InputError, match="selection"):
        derive_ensemble(runs, tiny("derive.rule=selection"))


@pytest.mark.parametrize("kernels", ["portable", "auto"])
def test_a_cell_of_nothing_is_measured_too(kernels):
    """All `none`: the network is a constant, its loss that of the classifier's bias."""
    space = load_space("nas_bench_201")
    torch.manual_seed(0)
    supernet = Supernet(space, 4, 1, 3, kernels=kernels)
    nothing = Genotype.parse("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    part = Part(images_of(60), torch.arange(60), Augment((0.5,) * 3, (0.25,) * 3))
    _, record = select(space, supernet, nothing, part)
    losses = [row["loss"] for row in record["candidates"]]
    assert len(losses) == 1 + 6 * 4 and all(math.isfinite(loss) for loss in losses)

"""The table of softmax weights: one softmax, to files and back without loss, what each edge prefers."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from nas_moreau.architecture import AlphaTable, derive, load_space
from nas_moreau.architecture.networks.partial_cell import edge_weights
from nas_moreau.architecture.spaces.alpha_table import EdgeWeights
from nas_moreau.architecture.spaces.derivation import edge_normalised
from nas_moreau.errors import InputError
from nas_moreau.runs.tables import EpochTable, read_table

NAMES = ["toy", "darts", "nas_bench_201", "robust_darts_s3"]


def drawn(space, with_edges=False, scale=3.0, seed=0):
    draw = random.Random(seed)
    alphas = {name: [[draw.gauss(0, scale) for _ in space.operations] for _ in space.edges] for name in space.cells}
    if with_edges:
        alphas |= {f"edge_{name}": [draw.gauss(0, 1) for _ in space.edges] for name in space.cells}
    return alphas


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_softmax_of_the_logits(name):
    space = load_space(name)
    alphas = drawn(space, with_edges=True)
    table = AlphaTable.from_logits(space, alphas)
    for cell, rows in table.cells.items():
        wanted = torch.softmax(torch.tensor(alphas[cell], dtype=torch.float64), -1)
        assert [row.edge for row in rows] == list(space.edges)
        assert [list(row.weights) for row in rows] == [list(space.operations)] * len(rows)
        found = torch.tensor([list(row.weights.values()) for row in rows], dtype=torch.float64)
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
        shares = edge_weights(space, torch.tensor(alphas[f"edge_{cell}"], dtype=torch.float64))
        assert [row.edge_weight for row in rows] == pytest.approx(shares.tolist(), rel=1e-14)
        row = rows[-1]
        assert row.strength(space.operations[0]) == row.edge_weight * row.weights[space.operations[0]]


def test_strongest_operation_and_margin():
    row = EdgeWeights((0, 2), {"none": 0.5, "skip_connect": 0.125, "max_pool_3x3": 0.25, "sep_conv_3x3": 0.125})
    assert row.ranked() == ["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3"]  # ties keep their order
    assert row.ranked(("none",))[0] == "max_pool_3x3"
    assert (row.margin(), row.margin(("none",))) == (0.25, 0.125)
    assert row.margin(("none", "skip_connect", "max_pool_3x3")) is None
    assert row.margin(("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3")) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_edges", [False, True])
def test_files_give_back_the_same_table_and_the_same_genotype(name, with_edges, tmp_path):
    space = load_space(name)
    tables = [AlphaTable.from_logits(space, drawn(space, with_edges, seed=seed)) for seed in range(3)]
    file = EpochTable(tmp_path / "alphas.csv")
    for epoch, table in enumerate(tables):
        file.append(table.to_rows(epoch))
    read = AlphaTable.from_rows(read_table(tmp_path / "alphas.csv"))
    assert read == dict(enumerate(tables))
    for table in tables:
        data = json.loads(json.dumps(table.to_dict()))
        assert ("edge_weights" in data) == table.has_edge_weights == with_edges
        assert AlphaTable.from_dict(space, data | {"method": "moreau"}) == table
    for epoch, table in enumerate(tables):
        read[epoch].check(space)
        assert derive(space, read[epoch]) == derive(space, drawn(space, with_edges, seed=epoch)) == derive(space, table)


def test_a_weight_that_vanished_stays_zero():
    """exp(-800) is 0 in double precision: files and derivation take it as it is."""
    space = load_space("nas_bench_201")
    table = AlphaTable.from_logits(space, {"cell": [[0.0, -800.0, -800.0, -800.0, -800.0]] * 6})
    assert list(table.cells["cell"][0].weights.values()) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert AlphaTable.from_rows(table.to_rows(0))[0] == table
    assert {edge[0] for edge in derive(space, table).cells["cell"].edges} == {"none"}


def test_the_mean_is_that_of_the_softmax_weights():
    space = load_space("toy")
    tables = [AlphaTable.from_logits(space, drawn(space, with_edges=True, seed=seed)) for seed in range(3)]
    mean = AlphaTable.mean(tables)
    for i in range(len(space.edges)):
        row, rows = mean.cells["reduce"][i], [table.cells["reduce"][i] for table in tables]
        for name, weight in row.weights.items():
            assert weight == pytest.approx(math.fsum(r.weights[name] for r in rows) / 3, rel=1e-14)
        assert row.edge_weight == pytest.approx(math.fsum(r.edge_weight for r in rows) / 3, rel=1e-14)
    without = [table.without_edge_weights() for table in tables]
    assert not AlphaTable.mean(without).has_edge_weights
    assert AlphaTable.mean(without[:1]) == without[0]
    plain = tables[0].without_edge_weights()
    assert plain == AlphaTable.from_logits(space, {c: drawn(space, with_edges=True)[c] for c in space.cells})


def test_a_uniform_table():
    space = load_space("nas_bench_201")
    assert {w for row in AlphaTable.uniform(space).cells["cell"] for w in row.weights.values()} == {0.2}


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[0].pop("weight"),
        lambda rows: rows[0].update(weight="x"),
        lambda rows: rows[0].update(epoch=None),
        lambda rows: rows[0].update(edge="02"),
        lambda rows: rows[0].update(edge=2),
    ],
)
def test_damaged_rows_are_refused(change):
    rows = AlphaTable.uniform(load_space("toy")).to_rows(4)
    change(rows)
    with pytest.raises(InputError):
        AlphaTable.from_rows(rows)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"alphas": None},
        {"alphas": []},
        {"alphas": {"normal": [[0.25] * 4] * 5}},
        {"alphas": {"normal": [[0.25] * 4] * 5, "reduce": [[0.25] * 4] * 4}},
        {"alphas": {"normal": [[0.25] * 4] * 5, "reduce": [[0.25] * 4] * 5}, "edge_weights": {"cell": [1.0]}},
        {"alphas": {"normal": [[0.25] * 4] * 5, "reduce": [[0.25] * 4] * 5}, "edge_weights": {"normal": [1.0]}},
    ],
)
def test_what_is_no_table_of_the_space_is_refused(data):
    with pytest.raises(InputError):
        AlphaTable.from_dict(load_space("toy"), data)


@pytest.mark.parametrize("other", ["toy", "robust_darts_s2", "nas_bench_201"])
def test_a_table_of_another_space_is_refused(other):
    with pytest.raises(InputError):
        derive(load_space("darts"), AlphaTable.uniform(load_space(other)))


def test_edges_are_normalised_from_logits_alone():
    space = load_space("toy")
    table = AlphaTable.from_logits(space, drawn(space))
    weights = edge_normalised(space, table).cells["normal"]
    assert math.fsum(w for row in weights[2:] for w in row.weights.values()) == pytest.approx(1)
    with pytest.raises(InputError):
        edge_normalised(space, AlphaTable.from_rows(table.to_rows(0))[0])

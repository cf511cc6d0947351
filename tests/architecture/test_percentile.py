"""Percentiles of DARTS cells: both models against literal code, which cells have none, the script that fits them."""

from __future__ import annotations

import csv
import gzip
import json
import random
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nas_moreau.architecture import Cell, Genotype, Network, load_genotype, load_space, parameter_count
from nas_moreau.architecture.spaces import percentile as module
from nas_moreau.architecture.spaces.percentile import (
    COEFFICIENTS,
    OPERATIONS,
    Percentile,
    agreement,
    among_size,
    coefficients,
    features,
    leaf,
    limit,
    percentile,
    percentile_of,
    predict,
    why_no_percentile,
)

SPACE = load_space("darts")
SCRIPT = Path(__file__).parents[2] / "scripts" / "fit_percentile.py"


def random_cells(count, seed=0):
    rng = random.Random(seed)
    cells = (SPACE.random_genotype(rng) for _ in range(2 * count))
    return [cell for cell in cells if why_no_percentile(cell) is None][:count]


def darts(normal, reduce=None, space="darts", concat=(2, 3, 4, 5)):
    """ "sk 0, sk 1 ; ..." with full names; the reduction cell is that of DARTS_V1 by default."""
    edges = [
        (pair.split()[0], int(pair.split()[1]), node)
        for node, group in enumerate(normal.split(";"), 2)
        for pair in group.split(",")
    ]
    other = load_genotype("DARTS_V1").cells["reduce"] if reduce is None else reduce
    return Genotype(space, {"normal": Cell(tuple(edges), concat), "reduce": other})


# --- the models ---


def test_features_of_a_cell_by_hand():
    # node 2 reads 0 and 1, node 3 reads 0 and 2, node 4 reads 2 and 3, node 5 reads 1 and 4
    found = features(
        darts(
            "sep_conv_3x3 0, skip_connect 1 ; sep_conv_3x3 0, max_pool_3x3 2 ; dil_conv_5x5 2, sep_conv_3x3 3 ; "
            "avg_pool_3x3 1, sep_conv_5x5 4"
        )
    )
    normal = {name.removeprefix("normal "): value for name, value in found.items() if name.startswith("normal ")}
    edges = {name for name, value in normal.items() if "-" in name and value}
    assert edges == {
        "0-2 sep_conv_3x3",
        "1-2 skip_connect",
        "0-3 sep_conv_3x3",
        "2-3 max_pool_3x3",
        "2-4 dil_conv_5x5",
        "3-4 sep_conv_3x3",
        "1-5 avg_pool_3x3",
        "4-5 sep_conv_5x5",
    }
    assert [normal[name] for name in OPERATIONS] == [1, 1, 1, 3, 1, 0, 1]
    assert [normal[f"{name} from an input"] for name in OPERATIONS] == [0, 1, 1, 2, 0, 0, 0]
    assert (normal["edges from 0"], normal["edges from 1"]) == (2, 2)
    assert normal["longest path"] == 4  # 0 2 3 4 5
    assert normal["sum of longest paths"] == 1 + 2 + 3 + 4
    assert normal["sum of shortest paths"] == 1 + 1 + 2 + 1
    assert normal["sum of mean paths"] == 1 + 1.5 + 2.25 + 2.125
    assert len(normal) == 14 * 7 + 7 + 7 + 2 + 4 and len(found) == 2 * len(normal)


def test_both_models_equal_literal_code():
    model = coefficients()

    def walk(tree, values):
        if isinstance(tree, list):
            number, threshold, low, high = tree
            return walk(high, values) if values[model["features"][number]] > threshold else walk(low, values)
        return tree

    for genotype in random_cells(20):
        values = features(genotype)
        assert list(values) == model["features"]
        ridge = model["ridge"]["intercept"]
        for name, weight in zip(model["features"], model["ridge"]["coefficients"]):
            ridge += weight * values[name]
        trees = model["trees"]["intercept"]
        for tree in model["trees"]["trees"]:
            trees += walk(tree, values)
        expected = {"ridge": ridge, "trees": trees}
        assert predict(values, model) == pytest.approx(expected, abs=1e-9)
        found = percentile(genotype)
        for name, value in expected.items():  # the quantiles are 0, 0.1, ... 100 %
            quantiles = model["quantiles"][name]
            below = sum(quantile <= value for quantile in quantiles)
            assert 100 * (below - 1) / 1000 - 1e-9 <= getattr(found, name) <= 100 * below / 1000 + 1e-9


def test_trees_are_read_by_strict_comparison():
    tree = [1, 0.5, [0, 2.5, 1.0, 2.0], 3.0]
    assert [leaf(tree, row) for row in ([2, 0], [3, 0.5], [3, 1])] == [1.0, 2.0, 3.0]


def test_a_percentile_is_the_inverse_of_the_quantiles():
    quantiles = [1.0, 2.0, 2.0, 4.0, 8.0]
    assert [percentile_of(value, quantiles) for value in (0.9, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0)] == [
        0.0,
        0.0,
        12.5,
        50.0,
        62.5,
        75.0,
        87.5,
        100.0,
        100.0,
    ]
    for name in ("ridge", "trees"):
        shipped = coefficients()["quantiles"][name]
        assert len(shipped) == 1001 and shipped == sorted(shipped)
        found = [percentile_of(value, shipped) for value in np.linspace(shipped[0] - 1, shipped[-1] + 1, 500)]
        assert found == sorted(found) and found[0] == 0 and found[-1] == 100


def test_random_cells_have_fifty_on_average():
    found = [percentile(genotype) for genotype in random_cells(200, seed=1)]
    for name in ("ridge", "trees", "mean"):  # the standard error is 2
        assert statistics.fmean(getattr(one, name) for one in found) == pytest.approx(50, abs=7)
    # two models of one thing: they agree, though not entirely
    assert 2 < statistics.fmean(one.disagreement for one in found) < 12


@pytest.mark.parametrize(
    ("name", "ridge", "trees"),
    [
        ("PC_DARTS_cifar", 100, 100),
        ("PDARTS", 100, 100),
        ("DrNAS_cifar10", 100, 100),
        ("DARTS_V1", 100, 96),
        ("DARTS_V2", 99, 97),
    ],
)
def test_published_cells_are_among_the_best(name, ridge, trees):
    found = percentile(load_genotype(name))
    assert (found.ridge, found.trees) == pytest.approx((ridge, trees), abs=1)
    assert found.mean == (found.ridge + found.trees) / 2 and found.disagreement == abs(found.ridge - found.trees)


def test_the_order_of_edges_does_not_matter():
    rng = random.Random(2)
    for genotype in random_cells(10, seed=3):
        cells = {
            name: Cell(tuple(rng.sample(cell.edges, len(cell.edges))), cell.concat)
            for name, cell in genotype.cells.items()
        }
        assert percentile(Genotype("darts", cells)) == percentile(genotype)


def test_a_percentile_survives_json():
    found = percentile(load_genotype("MEHA"))
    data = json.loads(json.dumps(found.to_dict()))
    assert Percentile.from_dict(data) == found
    assert list(data) == ["mean", "ridge", "trees", "of_size", "parameters", "tau", "n", "disagreement"]
    assert data["tau"] == agreement()["real"]["mean"] and data["n"] == 64


# --- among random cells of the same size ---


def test_parameters_are_those_of_the_published_network():
    with torch.device("meta"):
        for genotype in [*random_cells(8, seed=6), load_genotype("PC_DARTS_cifar")]:
            network = Network(genotype, channels=36, layers=20, auxiliary=False)
            assert percentile(genotype).parameters == parameter_count(network)


def test_random_cells_of_every_size_have_fifty_on_average():
    found = sorted((one.parameters, one.of_size, one.mean) for one in map(percentile, random_cells(600, seed=7)))
    thirds = [found[:200], found[200:400], found[400:]]
    for third in thirds:  # the standard error is 2
        assert statistics.fmean(of_size for _, of_size, _ in third if of_size is not None) == pytest.approx(50, abs=8)
    # among all random cells the large ones are better
    assert statistics.fmean(mean for *_, mean in thirds[2]) > statistics.fmean(mean for *_, mean in thirds[0]) + 25


def test_percentiles_of_a_size_are_interpolated():
    sizes = {"first": 100, "step": 10, "quantiles": [[0.0, 50.0, 100.0], [0.0, 25.0, 100.0]]}
    found = [among_size(25.0, size, sizes) for size in (99, 100, 105, 110, 111)]
    assert found == [None, 25.0, 37.5, 50.0, None]


def test_a_cell_larger_than_nearly_all_random_ones_has_none_of_its_size():
    whole = " ; ".join(["sep_conv_5x5 0, sep_conv_5x5 1"] * 4)
    cell = darts(whole).cells["normal"]
    found = percentile(Genotype("darts", {"normal": cell, "reduce": cell}))
    assert found.of_size is None and found.parameters > 4.8e6
    assert Percentile.from_dict(found.to_dict()) == found and "its size" in str(found)


# --- which cells have one ---


@pytest.mark.parametrize("skips", range(9))
def test_collapsed_cells_have_none(skips):
    pairs = [(2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1), (5, 0), (5, 1)]
    edges = [("skip_connect" if i < skips else "sep_conv_3x3", a, b) for i, (b, a) in enumerate(pairs)]
    genotype = darts(
        " ; ".join(", ".join(f"{o} {a}" for o, a, b in edges if b == node) for node in range(2, 6)),
    )
    assert (percentile(genotype) is None) == (skips > 4)
    assert (why_no_percentile(genotype) is None) == (skips <= 4)
    assert skips <= 4 or "collapsed" in why_no_percentile(genotype)


def test_cells_that_the_models_never_saw_have_none():
    whole = "sep_conv_3x3 0, sep_conv_3x3 1 ; sep_conv_3x3 0, sep_conv_3x3 1 ; sep_conv_3x3 0, sep_conv_3x3 1"
    last = " ; sep_conv_3x3 0, sep_conv_3x3 1"
    assert why_no_percentile(darts(whole + last)) is None
    others = [
        darts(whole, concat=(2, 3, 4)),  # three nodes
        darts(whole + last + last, concat=(2, 3, 4, 5)),  # five
        darts(whole + last, concat=(3, 4, 5)),
        darts(whole + " ; sep_conv_3x3 0, sep_conv_3x3 0"),  # an edge twice
        darts(whole + " ; sep_conv_3x3 0"),
        darts(whole + " ; sep_conv_3x3 0, sep_conv_7x7 1"),
        darts(whole + " ; sep_conv_3x3 0, noise 1", space="robust_darts_s4"),
        darts(whole + " ; sep_conv_3x3 0, none 1"),
        load_genotype("NASNet"),
        load_genotype("AmoebaNet"),
        load_space("toy").random_genotype(random.Random(0)),
        load_space("nas_bench_201").random_genotype(random.Random(0)),
    ]
    reasons = [why_no_percentile(genotype) for genotype in others]
    assert all(reasons) and [percentile(genotype) for genotype in others] == [None] * len(others)
    assert "noise" in reasons[6] and "sep_conv_7x7" in reasons[5] and "nas_bench_201" in reasons[-1]


@pytest.mark.parametrize("name", ["robust_darts_s1", "robust_darts_s2", "robust_darts_s3"])
def test_subsets_of_the_space_have_percentiles(name):
    cell = load_space(name).random_genotype(random.Random(1))
    same = Genotype("darts", cell.cells)
    assert percentile(cell) is not None and percentile(cell) == percentile(same)


# --- the file and the script ---


def test_the_file_is_small_and_says_where_it_is_from():
    model = coefficients()
    assert COEFFICIENTS.stat().st_size < 150_000
    assert set(model["provenance"]) == {
        "surrogate",
        "licence",
        "real",
        "command",
        "date",
        "penalty",
        "random_cells",
    }
    assert model["agreement"]["cross_validated"]["n"] == 1218
    assert min(model["agreement"]["cross_validated"][name] for name in ("ridge", "trees", "mean")) > 0.75
    assert set(model["agreement"]) == {"cross_validated", "xnas_search", "sgas_search", "published", "real"}
    assert f"{model['agreement']['real']['mean']:.2f}" in limit() and "64" in limit()


@pytest.fixture(scope="module")
def script(script_of):
    return script_of("fit_percentile")


def test_ridge_solves_its_normal_equations(script):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(30, 4)) * [1, 2, 3, 0], draw.normal(size=30)
    b, w = script.fit_ridge(x, y, 5.0)
    penalty = 5.0 * x.var(0)
    assert w[3] == 0  # a constant feature has no coefficient
    assert np.allclose(-x.T @ (y - b - x @ w) + penalty * w, 0, atol=1e-9)
    assert np.isclose((y - b - x @ w).sum(), 0)


def test_boosting_finds_an_interaction_of_two_features(script):
    draw = np.random.default_rng(1)
    x = draw.integers(0, 2, (300, 5)).astype(float)
    y = 1.0 + x[:, 1] * x[:, 3]
    model = script.boost(x, y, 60)
    *_, last = script.staged(model, x)
    assert np.abs(last - y).max() < 0.05
    row = [leaf(tree, x[0]) for tree in model.trees]
    assert model.intercept + sum(row) == pytest.approx(last[0])


def test_the_script_fits_a_tiny_table(script, tmp_path, monkeypatch, capsys):
    cells, path, output = random_cells(100, seed=5), tmp_path / "table.csv.gz", tmp_path / "fitted.json"

    def truth(genotype):
        return 90 + 0.3 * sum(operation == "sep_conv_3x3" for operation, _, _ in genotype.cells["normal"].edges)

    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["genotype", "source", "kind", "accuracy"])
        for i, genotype in enumerate(cells):
            pairs = {
                name: [[operation, a] for operation, a, _ in sorted(cell.edges, key=lambda edge: edge[2])]
                for name, cell in genotype.cells.items()
            }
            kind = ("made_up", "surrogate") if i < 75 else ("trained", "real")
            table.writerow([json.dumps(pairs), *kind, truth(genotype)])
    monkeypatch.setattr(script, "TREES", (10, 30))
    monkeypatch.setattr(script, "PENALTIES", (10.0, 100.0))
    monkeypatch.setattr(script, "SMALLEST_GROUP", 10)
    monkeypatch.setattr(sys, "argv", ["fit_percentile.py", str(path), "--output", str(output), "--random", "100"])
    script.main()
    printed = capsys.readouterr().out
    fitted = json.loads(output.read_text())
    assert set(fitted) == {"provenance", "agreement", "features", "ridge", "trees", "quantiles", "sizes"}
    assert fitted["agreement"]["trained"]["n"] == fitted["agreement"]["real"]["n"] == 25
    assert "trained (n = 25)" in printed and "cross_validated (n = 75)" in printed
    assert fitted["agreement"]["real"]["ridge"] > 0.6 and fitted["agreement"]["real"]["trees"] > 0.6

    monkeypatch.setattr(module, "COEFFICIENTS", output)
    coefficients.cache_clear()
    try:
        best, worst = max(cells, key=truth), min(cells, key=truth)
        assert percentile(best).mean > 80 > 20 > percentile(worst).mean
        of_size = [found for cell in sorted(cells, key=truth) if (found := percentile(cell).of_size) is not None]
        assert len(of_size) > 80 and statistics.fmean(of_size[-20:]) > 60 > 40 > statistics.fmean(of_size[:20])
    finally:
        coefficients.cache_clear()


# --- where it is shown ---


def test_show_and_list_print_percentiles(capsys):
    from nas_moreau.cli import main

    assert main(["show", "DARTS_V2"]) == 0
    out = capsys.readouterr().out
    assert str(percentile(load_genotype("DARTS_V2"))) in out and limit() in out
    assert main(["show", "DARTS_V2", "--json"]) == 0
    assert Genotype.from_json(capsys.readouterr().out) == load_genotype("DARTS_V2")
    assert main(["show", "NASNet"]) == 0
    assert why_no_percentile(load_genotype("NASNet")) in capsys.readouterr().out
    assert main(["list", "cells"]) == 0
    assert limit() in capsys.readouterr().err
    assert main(["list", "cells", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    keys = ("percentile", "by ridge", "by trees", "of its size")
    assert [rows["DARTS_V2"][key] for key in keys] == [98, 99, 97, 97]
    assert rows["NASNet"]["percentile"] == "-"


def test_results_of_searches_have_percentiles():
    from nas_moreau.search.rules import Derived

    found, collapsed = load_genotype("DARTS_V2"), load_genotype("DARTS_V1")
    normal = collapsed.cells["normal"]
    edges = tuple(("skip_connect", a, b) for _, a, b in normal.edges)
    collapsed = Genotype("darts", collapsed.cells | {"normal": Cell(edges, normal.concat)})
    data = json.loads(json.dumps(Derived(found, {"rule": "selection"}, collapsed).to_dict()))
    assert Percentile.from_dict(data["percentile"]) == percentile(found)
    assert "percentile" not in data["before_rule"]
    again = Derived.from_dict(data)
    assert (again.genotype, again.before) == (found, collapsed)


def test_alternatives_have_percentiles():
    from nas_moreau.report.choices import alternative_lines, alternatives, percentile_lines

    genotype = load_genotype("DARTS_V2")
    row = {"cell": "normal", "edge": "0-2", "operation": "sep_conv_3x3", "runner_up": "max_pool_3x3"}
    (found,) = alternatives(genotype, [row | {"margin": 0.01, "kept": True}])
    expected = percentile(Genotype.from_json(found["genotype"])).mean
    assert found["percentile"] == expected < percentile(genotype).mean
    assert f"percentile {expected:.0f}" in alternative_lines([found])[1]
    assert limit() in percentile_lines(genotype)[1]

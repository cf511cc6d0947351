"""Derivation: published golden results, an independent oracle, ties, edge weights, refusals, explanations."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_moreau.architecture.spaces.derivation import derive, explain
from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.space import Derivation, SearchSpace, load_space
from nas_moreau.errors import InputError


def zeros(space: SearchSpace) -> dict:
    rows, columns = space.alpha_shape
    return {name: [[0.0] * columns for _ in range(rows)] for name in space.cells}


def into(genotype: Genotype, cell: str, node: int) -> list[tuple[str, int]]:
    return [(op, source) for op, source, target in genotype.cells[cell].edges if target == node]


def test_equal_alphas_give_max_pools_from_both_inputs():
    genotype = derive(load_space("darts"), zeros(load_space("darts")))
    for cell, node in itertools.product(("normal", "reduce"), (2, 3, 4, 5)):
        assert into(genotype, cell, node) == [("max_pool_3x3", 0), ("max_pool_3x3", 1)]


def test_none_takes_its_share_of_the_softmax_and_is_never_chosen():
    """Golden: `none` at 5 everywhere in normal, the skip of edge 4 (from 2 to 3) at 4."""
    space = load_space("darts")
    alphas = zeros(space)
    for row in alphas["normal"]:
        row[0] = 5.0
    assert space.edges[4] == (2, 3) and space.operations[3] == "skip_connect"
    alphas["normal"][4][3] = 4.0
    genotype = derive(space, alphas)
    assert into(genotype, "normal", 3) == [("skip_connect", 2), ("max_pool_3x3", 0)]
    for node in (2, 4, 5):
        assert into(genotype, "normal", node) == [("max_pool_3x3", 0), ("max_pool_3x3", 1)]


def test_an_edge_with_much_none_loses_to_one_with_little():
    """Both edges prefer sep_conv by the same logit, but on edge 0-3 `none` takes most of the weight."""
    space = load_space("toy")
    alphas = zeros(space)
    conv = space.operations.index("sep_conv_3x3")
    for i in (2, 3, 4):
        alphas["normal"][i][conv] = 2.0
    alphas["normal"][2][0] = 6.0
    assert into(derive(space, alphas), "normal", 3) == [("sep_conv_3x3", 1), ("sep_conv_3x3", 2)]


def test_nas_bench_201_takes_the_largest_everywhere_and_keeps_none():
    space = load_space("nas_bench_201")
    alphas = {"cell": [[0.0] * 5 for _ in range(6)]}
    alphas["cell"][1][3], alphas["cell"][5][1], alphas["cell"][3][0] = 1.0, 0.5, 9.0
    genotype = derive(space, alphas)
    assert genotype.to_nas_bench_201() == "|none~0|+|nor_conv_3x3~0|none~1|+|none~0|none~1|skip_connect~2|"
    space.check(genotype)


def test_a_space_without_none_may_choose_its_first_operation():
    space = load_space("robust_darts_s4")
    assert {edge[0] for edge in derive(space, zeros(space)).cells["normal"].edges} == {"noise"}


def test_edges_with_the_same_logits_in_another_order_tie_exactly():
    """A plain left-to-right sum differs in the last bit between the two orders and would prefer the higher edge."""
    space = load_space("darts")
    logits = [0.1, 0.7, 1.3, -0.4, 0.2, 0.05, -1.1, 0.6]
    for order in itertools.islice(itertools.permutations(logits), 0, 40320, 997):
        alphas = zeros(space)
        alphas["normal"][2], alphas["normal"][3], alphas["normal"][4] = logits, list(order), logits
        best = max(order[1:])
        if best == 1.3:
            assert [source for _, source in into(derive(space, alphas), "normal", 3)] == [0, 1]


def oracle(space: SearchSpace, alphas: dict) -> Genotype:
    """Tries every set of edges of every node and keeps the best by (weights, then lowest edges), in exact fractions."""
    from fractions import Fraction

    cells = {}
    for name in space.cells:
        edges = []
        for node in range(space.inputs, space.inputs + space.nodes):
            candidates = {}
            places = [i for i, (_, b) in enumerate(space.edges) if b == node]
            shares = {i: Fraction(1) for i in places}
            if f"edge_{name}" in alphas:
                whole = sum(Fraction(math.exp(alphas[f"edge_{name}"][i])) for i in places)
                shares = {i: Fraction(math.exp(alphas[f"edge_{name}"][i])) / whole for i in places}
            for i in places:
                powers = [Fraction(math.exp(a)) for a in alphas[name][i]]
                weights = [shares[i] * p / sum(powers) for p in powers]
                allowed = [
                    (-w, k) for k, w in enumerate(weights) if space.operations[k] not in space.derivation.exclude
                ]
                candidates[i] = min(allowed)
            count = space.derivation.edges_per_node or len(places)
            subsets = itertools.combinations(places, min(count, len(places)))
            best = min(subsets, key=lambda chosen: (sorted(candidates[i][0] for i in chosen), chosen))
            edges += [[space.operations[candidates[i][1]], *space.edges[i]] for i in best]
        cells[name] = {"edges": edges, "concat": list(space.concat)}
    return Genotype.from_json({"version": 1, "space": space.name, "cells": cells})


@st.composite
def spaces_and_alphas(draw):
    space = load_space(draw(st.sampled_from(["toy", "darts", "nas_bench_201", "robust_darts_s3"])))
    if space.skeleton.name == "darts" and draw(st.booleans()):
        kept = draw(st.integers(1, 3))
        exclude = draw(st.sampled_from([(), space.derivation.exclude]))
        space = replace(space, derivation=Derivation("top_edges", kept, exclude))
    rows, columns = space.alpha_shape
    # few values: ties are frequent; those that differ do so by far more than rounding
    value = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0])
    alphas = {
        name: draw(st.lists(st.lists(value, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
        for name in space.cells
    }
    if draw(st.booleans()):
        for name in space.cells:
            # -2 and 3 against 0: whatever a softmax over edges weighs, no product of weights comes near another
            alphas[f"edge_{name}"] = draw(st.lists(st.sampled_from([-2.0, 0.0, 3.0]), min_size=rows, max_size=rows))
    return space, alphas


@settings(derandomize=True, max_examples=150, deadline=None)
@given(spaces_and_alphas())
def test_derivation_equals_the_oracle(case):
    space, alphas = case
    genotype = derive(space, alphas)
    assert genotype == oracle(space, alphas)
    space.check(genotype)


def test_edge_weights_decide_which_edges_stay_and_not_which_operation():
    space = load_space("darts")
    alphas = zeros(space)
    alphas["normal"][2][5] = 1.0  # 0-3 is the strongest without edge weights
    assert into(derive(space, alphas), "normal", 3) == [("sep_conv_5x5", 0), ("max_pool_3x3", 1)]
    alphas["edge_normal"] = [0.0] * 14
    alphas["edge_normal"][2] = -9.0
    genotype = derive(space, alphas)
    assert into(genotype, "normal", 3) == [("max_pool_3x3", 1), ("max_pool_3x3", 2)]
    assert into(genotype, "normal", 4) == into(genotype, "reduce", 3) == [("max_pool_3x3", 0), ("max_pool_3x3", 1)]


def test_the_softmax_over_edges_is_one_for_each_node():
    """A common shift of a node's edge logits changes nothing, however large against the other nodes'."""
    space = load_space("toy")
    torch.manual_seed(0)
    alphas = {name: torch.randn(space.alpha_shape) for name in space.cells}
    edges = torch.randn(5)
    shifted = edges.clone()
    shifted[2:] += 8
    first, second = (derive(space, {**alphas, "edge_normal": e, "edge_reduce": edges}) for e in (edges, shifted))
    assert first == second


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_arrays_lists_and_parameters_are_the_same(dtype):
    space = load_space("darts")
    torch.manual_seed(1)
    tensors = {name: torch.randn(space.alpha_shape).to(dtype) for name in space.cells}
    expected = derive(space, {name: t.tolist() for name, t in tensors.items()})
    assert derive(space, tensors) == expected
    assert derive(space, {name: t.double().numpy() for name, t in tensors.items()}) == expected
    assert derive(space, torch.nn.ParameterDict(tensors)) == expected
    rows = {name: [tuple(numpy.float64(v) for v in row.tolist()) for row in t] for name, t in tensors.items()}
    assert derive(space, rows) == expected


def test_huge_logits_do_not_overflow():
    space = load_space("toy")
    alphas = zeros(space)
    alphas["normal"][0] = [-1e300, 1e308, 0.0, 0.0]
    assert into(derive(space, alphas), "normal", 2)[0] == ("skip_connect", 0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.pop("reduce"), "'reduce'"),
        (lambda a: a.update(normall=1), "'normall'"),
        (lambda a: a.update(edge_cell=[0]), "'edge_cell'"),
        (lambda a: a.update(normal=None), "None where 5"),
        (lambda a: a.update(normal=3.0), "3.0 where 5"),
        (lambda a: a["normal"].pop(), "4 entries where 5"),
        (lambda a: a["normal"][1].append(0.0), "5 entries where 4"),
        (lambda a: a["normal"].__setitem__(0, 1.0), "1.0 where 4"),
        (lambda a: a["normal"][4].__setitem__(3, math.nan), "nan"),
        (lambda a: a["reduce"][0].__setitem__(0, math.inf), "inf"),
        (lambda a: a["reduce"][0].__setitem__(0, "x"), "'x'"),
        (lambda a: a["reduce"][0].__setitem__(0, 10**400), "a huge integer"),
        (lambda a: a["reduce"][0].__setitem__(0, [0.0]), "a list"),
        (lambda a: a.update(edge_normal=[0.0] * 4), "'edge_normal' have 4 entries"),
        (lambda a: a.update(edge_normal=[0.0] * 4 + [-math.inf]), "-inf"),
        (lambda a: a.update(edge_normal=[[0.0]] * 5), "'edge_normal' hold a list"),
    ],
)
def test_bad_alphas_are_refused(change, message):
    space = load_space("toy")
    alphas = zeros(space)
    change(alphas)
    with pytest.raises(InputError) as caught:
        derive(space, alphas)
    assert message in caught.value.cause and caught.value.cure
    with pytest.raises(InputError):
        explain(space, alphas)


def test_explanations_have_the_numbers_behind_each_choice():
    space = load_space("toy")
    alphas = zeros(space)
    # operations none, skip, pool, sep: logits of log 4, log 1, log 2, log 3 have the weights .4, .1, .2, .3
    alphas["normal"][3] = [math.log(4), math.log(1), math.log(2), math.log(3)]
    rows = explain(space, alphas)
    assert len(rows) == 10
    row = next(r for r in rows if r["cell"] == "normal" and r["edge"] == "1-3")
    assert (row["operation"], row["runner_up"], row["kept"]) == ("sep_conv_3x3", "max_pool_3x3", True)
    assert row["weight"] == pytest.approx(0.3)
    assert row["margin"] == pytest.approx(0.1)
    assert row["excluded_weight"] == pytest.approx(0.4)
    # 1-3 leads with .3; 0-3 and 2-3 tie at .25, and the lower edge stays
    assert [r["kept"] for r in rows if r["cell"] == "normal"] == [True, True, True, True, False]


@settings(derandomize=True, max_examples=40, deadline=None)
@given(spaces_and_alphas())
def test_explanations_agree_with_the_derivation(case):
    space, alphas = case
    genotype = derive(space, alphas)
    rows = explain(space, alphas)
    for name in space.cells:
        mine = [row for row in rows if row["cell"] == name]
        assert [row["edge"] for row in mine] == [f"{a}-{b}" for a, b in space.edges]
        kept = {(row["operation"], *map(int, row["edge"].split("-"))) for row in mine if row["kept"]}
        assert kept == set(genotype.cells[name].edges)
        assert all(row["margin"] is None or row["margin"] >= 0 for row in mine)


def test_a_single_choice_has_no_runner_up():
    space = replace(load_space("toy"), operations=("none", "skip_connect"))
    assert {(r["runner_up"], r["margin"]) for r in explain(space, zeros(space))} == {(None, None)}

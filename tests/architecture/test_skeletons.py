"""Skeletons: parts are those of the network itself, a third skeleton goes all the way, mistakes are refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from nas_moreau.architecture import (
    Genotype,
    LiteralSupernet,
    Network,
    NetworkPart,
    Skeleton,
    Supernet,
    derive,
    load_genotype,
    load_space,
    register_block,
    register_skeleton,
)
from nas_moreau.architecture.networks.literal import matching_state
from nas_moreau.architecture.networks.skeleton import BLOCKS
from nas_moreau.architecture.spaces.skeletons import DARTS, NAS_BENCH_201, SKELETONS, reductions, resolutions
from nas_moreau.errors import InputError

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"


@pytest.mark.parametrize(
    "name, layers, size",
    [
        ("DARTS_V2", 1, (16, 16)),
        ("DARTS_V2", 2, (16, 12)),
        ("DARTS_V2", 3, (15, 9)),
        ("DARTS_V2", 8, (8, 8)),
        ("NASNet", 4, (17, 8)),
        ("AmoebaNet", 3, (8, 8)),
        (CELL, 1, (16, 16)),
        (CELL, 2, (15, 9)),
    ],
)
def test_parts_have_the_sizes_of_the_network(name, layers, size):
    genotype = Genotype.parse(name) if name == CELL else load_genotype(name)
    network = Network(genotype, 4, layers).eval()
    with torch.no_grad():
        maps = network.forward_maps(torch.zeros(1, 3, *size))
    parts = genotype.network_parts(4, layers)
    found = [(part.outputs, *side) for part, side in zip(parts, resolutions(parts, size))]
    assert found == [tuple(tensor.shape[1:]) for tensor in maps]
    assert network.num_features == parts[-1].outputs


@pytest.mark.parametrize(
    "layers, places", [(8, [2, 5]), (20, [6, 13]), (5, [1, 3]), (3, [1, 2]), (2, [0, 1]), (1, [0])]
)
def test_darts_reduces_after_one_and_two_thirds(layers, places):
    parts = DARTS.parts({"normal": 4, "reduce": 4}, 16, layers)[1:]
    assert [i for i, part in enumerate(parts) if part.name == "reduce"] == places
    assert [i for i, part in enumerate(parts) if part.stride == 2] == places
    assert [part.reads for part in parts[:3]] == [(0, 0), (0, 1), (1, 2)][:layers]


def test_nas_bench_201_has_three_stages():
    parts = NAS_BENCH_201.parts({"cell": 1}, 16, 5)
    assert [part.name for part in parts] == (["stem"] + ["cell"] * 5 + (["residual"] + ["cell"] * 5) * 2)
    assert [part.outputs for part in parts if part.kind == "block"] == [32, 64]
    assert max(reductions(parts)) == 4


@pytest.mark.parametrize("skeleton, halves", [(DARTS, {"reduce"}), (NAS_BENCH_201, set())])
def test_which_cells_halve(skeleton, halves):
    assert {name for name in skeleton.cells if skeleton.halves(name)} == halves


# --- a third one -----------------------------------------------------------------------------------------------------


def pyramid_layout(widths, channels, layers):
    """Every second cell is a `down` cell, behind a block that widens; a cell reads the part before it."""
    parts = [NetworkPart("stem", "stem", channels, channels, 1, ())]
    for i in range(layers):
        name, stride = ("down", 2) if i % 2 else ("flat", 1)
        parts.append(NetworkPart("widen", "block", 2 * channels, 2 * channels, 1, (len(parts) - 1,)))
        outputs = channels * widths[name]
        parts.append(NetworkPart(name, "cell", channels, outputs, stride, (len(parts) - 1,)))
    return parts


PYRAMID = Skeleton(
    "pyramid",
    cells=("flat", "down"),
    inputs=1,
    layout=pyramid_layout,
    published_sizes=(8, 4),
    layers_unit="levels",
    auxiliary_place=lambda layers: 2,
    head_norm=True,
)
SPACE = """\
name: pyramid_space
skeleton: pyramid
nodes: 2
operations: [none, skip_connect, max_pool_3x3, sep_conv_3x3]
derivation: {rule: top_edges, edges_per_node: 1, exclude: [none]}
"""


@pytest.fixture
def space(tmp_path, monkeypatch):
    monkeypatch.setitem(SKELETONS, "pyramid", PYRAMID)
    monkeypatch.setitem(BLOCKS, "widen", lambda inputs, outputs, stride: nn.Conv2d(inputs, outputs, 1, stride))
    (tmp_path / "pyramid.yaml").write_text(SPACE)
    return load_space(tmp_path / "pyramid.yaml")


def test_the_third_skeleton_has_a_supernet_that_equals_the_literal_one(space):
    torch.manual_seed(0)
    shared = Supernet(space, 4, 3, num_classes=5).double()
    literal = LiteralSupernet(space, 4, 3, num_classes=5).double()
    with torch.no_grad():
        for logits in shared.alphas.values():
            logits.normal_()
    literal.load_state_dict(matching_state(literal, shared.state_dict()))
    images = torch.randn((2, 3, 9, 8), dtype=torch.float64)
    torch.testing.assert_close(shared(images), literal(images), rtol=1e-9, atol=1e-12)
    assert [part.name for part in shared.parts[1:]] == ["widen", "flat", "widen", "down", "widen", "flat"]


def test_its_genotypes_go_to_json_and_back_and_name_it(space):
    torch.manual_seed(0)
    genotype = derive(space, Supernet(space, 4, 3).alphas)
    assert list(genotype.cells) == ["flat", "down"] and genotype.skeleton == PYRAMID
    data = json.loads(genotype.to_json())
    assert data["skeleton"] == "pyramid"
    again = Genotype.parse(genotype.to_json())
    assert again == genotype and again.digest() == genotype.digest() and again.skeleton == PYRAMID
    assert Genotype("pyramid_space", genotype.cells) == genotype  # the only skeleton with these cells
    space.check(genotype)
    for _ in range(5):
        space.check(space.random_genotype(random.Random(0)))


def test_its_network_has_the_parts_and_the_auxiliary_head_that_it_says(space):
    genotype = space.random_genotype(random.Random(0))
    network = Network(genotype, 4, 3, num_classes=5, auxiliary=True)
    logits, auxiliary = network(torch.randn(2, 3, 16, 16))
    assert logits.shape == auxiliary.shape == (2, 5)
    maps = network.forward_maps(torch.randn(2, 3, 16, 16))
    assert [tuple(x.shape[2:]) for x in maps] == resolutions(network.parts, (16, 16))
    with pytest.raises(InputError, match="auxiliary head"):
        Network(Genotype.parse(CELL), 4, 1, auxiliary=True)


def test_two_skeletons_with_the_same_cells_are_told_apart_by_the_genotype(space, monkeypatch):
    other = replace(PYRAMID, name="other", head_norm=False)
    monkeypatch.setitem(SKELETONS, "other", other)
    genotype = space.random_genotype(random.Random(0))
    with pytest.raises(InputError, match="Several skeletons"):
        Genotype("pyramid_space", genotype.cells)
    assert Genotype("pyramid_space", genotype.cells, other) != genotype
    assert Genotype.from_json(genotype.to_json()).skeleton == PYRAMID
    with pytest.raises(InputError, match="skeleton"):
        space.check(Genotype("pyramid_space", genotype.cells, other))


def test_a_skeleton_with_the_cells_of_darts_is_named_in_the_genotype(monkeypatch):
    wide = replace(DARTS, name="wide_darts")
    monkeypatch.setitem(SKELETONS, "wide_darts", wide)
    cells = load_genotype("DARTS_V2").cells
    assert "skeleton" not in Genotype("darts", cells).to_dict()
    found = Genotype("darts", cells, wide)
    assert found != Genotype("darts", cells) and Genotype.from_json(found.to_json()) == found
    # cells alone stand for the built-in one, whatever else is registered
    assert Genotype("darts", cells).skeleton == DARTS


@pytest.mark.parametrize(
    "change",
    [
        {"name": "darts"},
        {"cells": ()},
        {"cells": ("a", "a")},
        {"inputs": 0},
    ],
)
def test_what_cannot_be_registered_is_refused(change):
    before = dict(SKELETONS)
    with pytest.raises(InputError):
        register_skeleton(replace(PYRAMID, **change))
    assert before == SKELETONS
    with pytest.raises(InputError):
        register_block("residual")


@pytest.mark.parametrize(
    "parts, said",
    [
        ([], "stem"),
        ([("flat", "cell", 4, 8, 1, (0,))], "stem"),
        ([("stem", "stem", 4, 4, 1, ()), ("flat", "cell", 4, 8, 1, (1,))], "before"),
        ([("stem", "stem", 4, 4, 1, ()), ("flat", "cell", 4, 8, 1, (0, 0))], "reads 2"),
        ([("stem", "stem", 4, 4, 1, ()), ("steep", "cell", 4, 8, 1, (0,))], "not one of its cells"),
        ([("stem", "stem", 4, 4, 1, ()), ("flat", "cell", 4, 4, 1, (0,))], "outputs"),
        ([("stem", "stem", 4, 4, 1, ()), ("flat", "cell", 4, 8, 3, (0,))], "stride"),
        ([("stem", "stem", 6, 6, 1, ()), ("flat", "cell", 4, 8, 1, (0,))], "shape"),
    ],
)
def test_a_layout_that_is_no_network_is_refused(parts, said):
    bad = replace(PYRAMID, layout=lambda *sizes: [NetworkPart(*part) for part in parts], preprocesses=False)
    with pytest.raises(InputError, match=said):
        bad.parts({"flat": 2, "down": 2}, 4, 1)


def test_unknown_skeletons_and_blocks_name_the_nearest(space, monkeypatch):
    data = json.loads(space.random_genotype(random.Random(0)).to_json()) | {"skeleton": "pyramids"}
    with pytest.raises(InputError) as caught:
        Genotype.from_json(data)
    assert "pyramid" in caught.value.cure
    with pytest.raises(InputError) as caught:
        Genotype("a", {"left": space.random_genotype(random.Random(0)).cells["flat"]})
    assert "--import" in caught.value.cure
    monkeypatch.delitem(BLOCKS, "widen")
    with pytest.raises(InputError, match="widen"):
        Supernet(space, 4, 3)

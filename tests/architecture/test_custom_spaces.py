"""A space with edges and outputs of one's own goes all the way: supernet, derivation, network."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from nas_moreau.architecture import Genotype, LiteralSupernet, Network, Supernet, derive, load_space
from nas_moreau.architecture.networks.literal import matching_state

TEXT = """\
name: sparse
skeleton: darts
nodes: 3
operations: [none, skip_connect, max_pool_3x3, sep_conv_3x3]
edges: [[1, 2], [0, 3], [2, 3], [0, 4], [1, 4], [3, 4]]
concat: [3, 4]
derivation: {rule: top_edges, edges_per_node: 2, exclude: [none]}
"""


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "sparse.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return load_space(path)


def test_the_shared_supernet_has_these_edges_and_no_others(space):
    torch.manual_seed(0)
    shared = Supernet(space, 4, 3, num_classes=5).double()
    literal = LiteralSupernet(space, 4, 3, num_classes=5).double()
    with torch.no_grad():
        for logits in shared.alphas.values():
            assert logits.shape == (6, 4)
            logits.normal_()
    literal.load_state_dict(matching_state(literal, shared.state_dict()))
    images = torch.randn((2, 3, 8, 8), dtype=torch.float64)
    outputs, expected = shared(images), literal(images)
    torch.testing.assert_close(outputs, expected, rtol=1e-9, atol=1e-12)
    grads = torch.autograd.grad(outputs.square().sum(), list(shared.alphas.values()))
    wanted = torch.autograd.grad(expected.square().sum(), list(literal.alphas.values()))
    torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-12)


def test_what_is_derived_belongs_to_the_space_and_runs(space):
    supernet = Supernet(space, 4, 3)
    genotype = derive(space, supernet.alphas)
    space.check(genotype)
    assert [edge[2] for edge in genotype.cells["normal"].edges] == [2, 3, 3, 4, 4]
    assert Network(genotype, 4, 3)(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_equal_genotypes_give_networks_that_share_one_state_dict():
    genotype = load_space("darts").random_genotype(random.Random(5))
    turned = replace(
        genotype, cells={n: c._replace(edges=c.edges[::-1], concat=c.concat[::-1]) for n, c in genotype.cells.items()}
    )
    assert turned == genotype and turned.cells != genotype.cells
    torch.manual_seed(0)
    first, second = Network(genotype, 4, 3).eval(), Network(turned, 4, 3).eval()
    second.load_state_dict(first.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(first(images), second(images))


def test_nodes_without_edges_are_zero():
    text = (
        "Genotype(normal=[[('skip_connect', 0)], [], [('sep_conv_3x3', 3), ('skip_connect', 2)]], "
        "normal_concat=[3, 4], "
        "reduce=[[('max_pool_3x3', 1)], []], reduce_concat=[2, 3])"
    )
    network = Network(Genotype.parse(text), 4, 3)
    maps = network.forward_maps(torch.randn(2, 3, 9, 9))
    assert all(m.isfinite().all() for m in maps)
    assert torch.equal(maps[1][:, :4], torch.zeros_like(maps[1][:, :4]))  # node 3 of the first, normal cell
    assert torch.equal(maps[2][:, 8:], torch.zeros_like(maps[2][:, 8:]))  # node 3 of the second, reduction cell

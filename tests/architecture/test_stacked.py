"""Wide operations over all edges of a state against the literal cell, and the put-together weight gradient."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as f

from nas_moreau.architecture import SearchSpace
from nas_moreau.architecture.networks.depthwise import depthwise
from nas_moreau.architecture.networks.literal import LiteralCell
from nas_moreau.architecture.networks.mixed_cell import MixedCell
from nas_moreau.architecture.spaces.skeletons import NetworkPart, named_skeleton
from nas_moreau.architecture.spaces.space import Derivation

OPERATIONS = [
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_3x1_1x3",
    "nor_conv_1x1",
    "nor_conv_3x3",
]


def pair_of_cells(operations, nodes, channels, halves, skeleton, seed):
    around = named_skeleton(skeleton)
    inputs = around.inputs
    every = [(a, b) for b in range(inputs, inputs + nodes) for a in range(b)]
    draw = random.Random(seed)
    # every node keeps one incoming edge at least
    kept = [e for e in every if e[0] == 0 or draw.random() < 0.8]
    concat = (inputs + nodes - 1,)
    space = SearchSpace("test", around, nodes, ("none", *operations), tuple(kept), concat, Derivation("all_edges"))
    part = NetworkPart(space.cells[0], "cell", channels, channels, 2 if halves else 1, tuple(range(inputs)))
    torch.manual_seed(seed)
    wide = MixedCell(space, part, nn.ModuleList(), kernels="portable").double()
    literal = LiteralCell(space, part, nn.ModuleList()).double()
    state = wide.state_dict()
    for name, value in literal.state_dict().items():
        if name in state:
            value.copy_(state[name])
    return space, wide, literal


def outcome(cell, names, states, mixture):
    inputs = [x.clone().requires_grad_() for x in states]
    weights = mixture.clone().requires_grad_()
    out = cell(inputs, weights)
    direction = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape).cos()
    parameters = dict(cell.named_parameters())
    wanted = [*inputs, weights, *(parameters[n] for n in names)]
    return [out, *torch.autograd.grad((out * direction).sum(), wanted, materialize_grads=True)]


def test_random_spaces_equal_the_literal_cell_with_gradients_and_statistics():
    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(
        st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=4, unique=True),
        st.integers(1, 3),
        st.sampled_from([2, 3, 5, 8]),
        st.booleans(),
        st.integers(1, 3),
        st.integers(4, 9),
        st.integers(4, 9),
        st.booleans(),
        st.sampled_from(["darts", "nas_bench_201"]),
        st.integers(0, 1000),
    )
    def check(operations, nodes, channels, halves, n, height, width, last, skeleton, seed):
        halves = halves and skeleton == "darts"
        space, wide, literal = pair_of_cells(operations, nodes, channels, halves, skeleton, seed)
        names = [name for name, _ in wide.named_parameters()]
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            states = [
                torch.randn((n, channels, height, width), dtype=torch.float64, generator=generator)
                for _ in range(space.inputs)
            ]
            if last:
                states = [x.to(memory_format=torch.channels_last) for x in states]
            mixture = torch.rand(space.alpha_shape, dtype=torch.float64, generator=generator)
            results = [outcome(cell, names, states, mixture) for cell in (wide, literal)]
            for what, a, b in zip(
                ["output", *(f"state {i}" for i in range(space.inputs)), "mixture", *names], *results
            ):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda text, w=what: f"{w}: {text}")
        state = wide.state_dict()
        for name, value in literal.state_dict().items():
            if name in state and "running" in name:
                torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-12)
        wide.eval(), literal.eval()
        for name in ("running_mean", "running_var"):  # the literal's pools have statistics of their own
            for theirs, ours in zip(_pool_norms(literal), _pool_norms_by_edge(wide), strict=True):
                getattr(theirs, name).copy_(getattr(ours, name))
        torch.testing.assert_close(wide(states, mixture), literal(states, mixture), rtol=1e-9, atol=1e-11)

    check()


POOLS = ("max_pool_3x3", "avg_pool_3x3")


def _pool_norms(literal):
    found = [candidates[name].norm for candidates in literal.operations for name in POOLS if name in candidates]
    return [norm for norm in found if norm is not None]


def _pool_norms_by_edge(cell):
    found = [cell.operation(e, name).norm for e in range(len(cell.places)) for name in POOLS if name in cell.names[e]]
    return [norm for norm in found if norm is not None]


def test_hooks_on_a_convolution_are_called():
    _, wide, _ = pair_of_cells(["sep_conv_3x3"], 2, 4, False, "darts", 0)
    states = [torch.randn(2, 4, 6, 6, dtype=torch.float64) for _ in range(2)]
    mixture = torch.rand(len(wide.places), 2, dtype=torch.float64)
    before, seen = wide(states, mixture), []
    wide.operations[0]["sep_conv_3x3"].body[0].register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(wide(states, mixture), before, rtol=1e-10, atol=1e-12)
    assert seen == [1]


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(6, 6), (5, 7), (2, 3)])
def test_the_weight_gradient_by_columns_is_the_librarys(size, stride, sides):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, *sides), dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn((3, 1, size, size), dtype=torch.float64, generator=generator).requires_grad_()
    expected = f.conv2d(x, weight, None, stride, size // 2, 1, 3)
    found = depthwise(x, weight, stride)
    assert torch.equal(found, expected)
    direction = torch.randn(found.shape, dtype=torch.float64, generator=generator)
    for a, b in zip(*(torch.autograd.grad((y * direction).sum(), [x, weight]) for y in (found, expected))):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    # and it has second derivatives
    assert torch.autograd.gradgradcheck(lambda a, w: depthwise(a, w, stride), (x, weight))

"""The cases of test_triton_depthwise.py that Triton's interpreter computes, in a process in which it is on."""

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau.architecture import SearchSpace
from nas_moreau.architecture.networks import stacked
from nas_moreau.architecture.networks.literal import LiteralCell
from nas_moreau.architecture.networks.mixed_cell import MixedCell
from nas_moreau.architecture.spaces.skeletons import NetworkPart, named_skeleton
from nas_moreau.architecture.spaces.space import Derivation
from nas_moreau.kernels.depthwise import depthwise


def with_gradients(convolution, x, weight, stride, dilation):
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    y = convolution(*leaves, stride, dilation)
    direction = torch.linspace(-3, 4, y.numel(), dtype=torch.float64).cos().reshape(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, direction)]


def library(x, weight, stride, dilation):
    return f.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation, len(weight))


CASES = [
    # n, channels, height, width, kernel, stride, dilation
    (2, 16, 6, 6, 3, 1, 1),
    (2, 16, 5, 6, 5, 1, 1),
    (1, 6, 7, 9, 5, 2, 1),  # odd sides, channels that fill no program
    (2, 24, 6, 5, 3, 2, 1),
    (1, 40, 5, 4, 3, 1, 2),
    (1, 16, 7, 5, 5, 2, 2),
    (1, 1, 1, 3, 5, 1, 1),  # an image smaller than the kernel
    (5, 2, 13, 17, 3, 1, 1),  # several programs share the pixels
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients_are_those_of_torch(case):
    n, channels, height, width, k, stride, dilation = case
    torch.manual_seed(0)
    x = torch.randn(n, channels, height, width, dtype=torch.float64)
    weight = torch.randn(channels, 1, k, k, dtype=torch.float64)
    found = with_gradients(depthwise, x, weight, stride, dilation)
    for a, b in zip(found, with_gradients(library, x, weight, stride, dilation)):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_other_types_are_summed_in_float32(dtype, allowed):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, 6, 6), torch.randn(16, 1, 3, 3)
    exact = with_gradients(library, x.to(dtype).double(), weight.to(dtype).double(), 1, 1)
    for a, b in zip(with_gradients(depthwise, x.to(dtype), weight.to(dtype), 1, 1), exact):
        assert a.dtype == dtype and (a.double() - b).norm() < allowed * b.norm()


@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives_are_those_of_torch(stride):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2, 3, 4, dtype=torch.float64), torch.randn(2, 1, 3, 3, dtype=torch.float64)

    def second(convolution):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        first = torch.autograd.grad(convolution(*leaves, stride, 1).cos().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)

    for a, b in zip(second(depthwise), second(library)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_gradients_that_nobody_needs_are_not_computed():
    x, weight = torch.randn(1, 4, 4, 4), torch.randn(4, 1, 3, 3, requires_grad=True)
    (alone,) = torch.autograd.grad(depthwise(x, weight).sum(), [weight])
    torch.testing.assert_close(alone, torch.autograd.grad(library(x, weight, 1, 1).sum(), [weight])[0])


@pytest.mark.parametrize("stride", [1, 2])
def test_a_cell_with_them_equals_the_literal_cell(monkeypatch, stride):
    names = ("sep_conv_3x3", "dil_conv_5x5", "skip_connect")
    space = SearchSpace(
        "test", named_skeleton("darts"), 1, ("none", *names), ((0, 2), (1, 2)), (2,), Derivation("all_edges")
    )
    part = NetworkPart("normal", "cell", 4, 4, stride, (0, 1))
    torch.manual_seed(1)
    cell = MixedCell(space, part, nn.ModuleList(), kernels="portable").double()
    literal = LiteralCell(space, part, nn.ModuleList()).double()
    literal.load_state_dict(cell.state_dict(), strict=False)
    states, mixture = torch.randn(2, 2, 4, 6, 6, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    calls = []

    def own(x, weight, stride=1, dilation=1):
        calls.append(x.shape)
        return depthwise(x, weight, stride, dilation)

    def outcome(module):
        leaves = [states.clone().requires_grad_(), mixture.clone().requires_grad_()]
        y = module(list(leaves[0].unbind()), leaves[1])
        shared = [dict(module.named_parameters())[name] for name, _ in cell.named_parameters()]
        return [y, *torch.autograd.grad(y.cos().sum(), [*leaves, *shared], materialize_grads=True)]

    expected = outcome(literal)
    monkeypatch.setattr(stacked, "depthwise", own)
    for a, b in zip(outcome(cell), expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert calls

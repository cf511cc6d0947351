"""The native cell operator against the literal cell, operation by operation and in random spaces."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas_moreau.architecture import Genotype, Network, SearchSpace, Supernet, load_space, published_cell
from nas_moreau.architecture.networks.literal import LiteralCell, LiteralSupernet, matching_state
from nas_moreau.architecture.networks.mixed_cell import MixedCell
from nas_moreau.architecture.spaces.skeletons import NetworkPart, named_skeleton
from nas_moreau.architecture.spaces.space import Derivation
from nas_moreau.kernels import cell as kernel
from nas_moreau.kernels.cell import Branch, cell_numbers

pytestmark = pytest.mark.skipif(not kernel.available(), reason="no native operators on this machine")

OPERATIONS = [
    "none",
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "nor_conv_1x1",
    "nor_conv_3x3",
]


def make_space(operations, nodes, concat, skeleton="darts"):
    around = named_skeleton(skeleton)
    edges = tuple((a, b) for b in range(around.inputs, around.inputs + nodes) for a in range(b))
    return SearchSpace("test", around, nodes, tuple(operations), edges, tuple(concat), Derivation("all_edges"))


def part_of(space, channels, halves):
    reads = tuple(range(space.inputs))
    return NetworkPart(space.cells[0], "cell", channels, channels * len(space.concat), 2 if halves else 1, reads)


def cells(space, channels, halves, seed=0):
    torch.manual_seed(seed)
    shared = MixedCell(space, part_of(space, channels, halves), nn.ModuleList(), kernels="native").double()
    literal = LiteralCell(space, part_of(space, channels, halves), nn.ModuleList()).double()
    state = shared.state_dict()
    for name, value in literal.state_dict().items():
        if name in state:
            value.copy_(state[name])
    assert shared.native is not None
    return shared, literal


def compare(shared, literal, states, mixture, rtol=1e-9, atol=1e-11):
    """Outputs and the gradients of states, mixture and weights, for one random direction."""
    names = [name for name, _ in shared.named_parameters()]
    found, wanted = [], []
    for cell, results in ((shared, found), (literal, wanted)):
        inputs = [x.clone().requires_grad_() for x in states]
        weights = mixture.clone().requires_grad_()
        out = cell(inputs, weights)
        direction = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
        parameters = dict(cell.named_parameters())
        grads = torch.autograd.grad(
            (out * direction).sum(), [*inputs, weights, *(parameters[n] for n in names)], materialize_grads=True
        )
        results += [out, *grads]
    for what, a, b in zip(["output", *(f"state {i}" for i in range(len(states))), "mixture", *names], found, wanted):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda text, w=what: f"{w}: {text}")


def test_random_spaces_equal_the_literal_cell_with_gradients_and_statistics():
    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(
        st.lists(st.sampled_from(OPERATIONS[1:]), min_size=1, max_size=4, unique=True),
        st.integers(1, 3),
        st.integers(2, 9),
        st.booleans(),
        st.integers(1, 3),
        st.integers(4, 9),
        st.integers(4, 9),
        st.sampled_from(["darts", "nas_bench_201"]),
        st.integers(0, 1000),
    )
    def check(operations, nodes, channels, halves, n, height, width, skeleton, seed):
        halves = halves and skeleton == "darts"
        inputs = 2 if skeleton == "darts" else 1
        chosen = [inputs + nodes - 1]
        if skeleton == "darts":
            chosen = random.Random(seed).sample(range(2, 2 + nodes), random.Random(seed).randint(1, nodes))
        space = make_space(["none", *operations], nodes, sorted(chosen), skeleton)
        shared, literal = cells(space, channels, halves, seed)
        for step in range(3):
            generator = torch.Generator().manual_seed(seed + step)
            states = [
                torch.randn((n, channels, height, width), dtype=torch.float64, generator=generator) + 0.3
                for _ in range(inputs)
            ]
            mixture = torch.rand(space.alpha_shape, dtype=torch.float64, generator=generator)
            compare(shared, literal, states, mixture)
        state = shared.state_dict()
        for name, value in literal.state_dict().items():
            if name in state and "running" in name:
                torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-12)

    check()


@pytest.mark.parametrize("operation", OPERATIONS[1:])
@pytest.mark.parametrize("halves", [False, True])
def test_gradients_agree_with_finite_differences(operation, halves):
    space = make_space([operation], 1, [2])
    shared, _ = cells(space, 2, halves, seed=3)
    plan = shared.native
    weights = [conv.weight.detach().requires_grad_() for conv in plan.convolutions]
    generator = torch.Generator().manual_seed(5)
    states = [torch.randn((2, 2, 4, 5), dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    mixture = torch.rand(2, dtype=torch.float64, generator=generator).requires_grad_()

    def run(first, second, mix, *convolutions):
        return kernel.mixed_cell([first, second], mix, list(convolutions), [], None, None, plan.numbers)[0]

    assert torch.autograd.gradcheck(run, (*states, mixture, *weights), eps=1e-6, atol=1e-6, nondet_tol=0.0)


def affine_plan():
    """A cell of two nodes with affine norms: a separable convolution, a pool, a 1x1 convolution, an identity."""
    branches = [
        Branch(kernel.DOUBLE, 0, 2, 0, 3, 1, 0, 0, 0),
        Branch(kernel.SKIP, 1, 2, 1),
        Branch(kernel.AVERAGE, 1, 3, 2, 3, 1, 4, -1, 1),
        Branch(kernel.POINT, 2, 3, 3, 1, 1, 4, 2, 2),
    ]
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 1, 3, 3), (3, 3, 1, 1)] * 2 + [(3, 3, 1, 1)]
    weights = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    affine = [torch.rand(3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(6)]
    states = [torch.randn((2, 3, 4, 4), dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    keep = torch.tensor([[True, False], [True, True], [False, True]])
    mixture = torch.tensor([1.25, 1.0, 1.25, 1.25], dtype=torch.float64, requires_grad=True)
    return states, mixture, weights, affine, keep, cell_numbers(2, 3, False, 3, [0, 1], branches)


def test_affine_norms_and_dropped_samples_agree_with_finite_differences():
    states, mixture, weights, affine, keep, numbers = affine_plan()

    def run(first, second, mix, *rest):
        return kernel.mixed_cell([first, second], mix, list(rest[:5]), list(rest[5:]), keep, None, numbers)[0]

    assert torch.autograd.gradcheck(run, (*states, mixture, *weights, *affine), eps=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_operators_obey_the_rules_of_torch_library():
    states, mixture, weights, affine, keep, numbers = affine_plan()
    arguments = (states, mixture, weights, affine, keep, None, numbers)
    torch.library.opcheck(torch.ops.nas_moreau.mixed_cell.default, arguments)
    outputs = torch.ops.nas_moreau.mixed_cell(*arguments)
    for wanted in (True, False):
        detached = [[x.detach() for x in group] for group in (states, weights, affine)]
        torch.library.opcheck(
            torch.ops.nas_moreau.mixed_cell_backward.default,
            (
                torch.ones_like(outputs[0]),
                detached[0],
                mixture.detach(),
                detached[1],
                detached[2],
                keep,
                *(x.detach() for x in outputs),
                numbers,
                wanted,
            ),
        )


@pytest.mark.parametrize("channels", [8, 16, 20, 32, 36])
@pytest.mark.parametrize("halves", [False, True])
def test_single_precision_is_as_good_as_the_portable_path(channels, halves):
    operations = ["skip_connect", "sep_conv_3x3", "dil_conv_5x5", "max_pool_3x3", "nor_conv_3x3"]
    space = make_space(operations, 2, [2, 3])
    native, literal = cells(space, channels, halves)
    portable = MixedCell(space, part_of(space, channels, halves), nn.ModuleList(), kernels="portable")
    portable.load_state_dict(native.state_dict())
    states = [torch.randn(2, channels, 8, 8) for _ in range(2)]
    mixture = torch.rand(space.alpha_shape)
    expected = literal([x.double() for x in states], mixture.double())
    errors = [
        (cell.float()(states, mixture).double() - expected).abs().max().item() for cell in (native, portable.float())
    ]
    assert errors[0] < max(3 * errors[1], 2e-5)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_a_large_mean_with_a_tiny_spread_costs_no_more_digits_than_an_ordinary_norm():
    # nor_conv_1x1 on 100 + 0.01 * noise: ordinary float32 BatchNorm is the yardstick
    space = make_space(["nor_conv_1x1"], 1, [2])
    native, literal = cells(space, 8, False)
    states = [100 + 0.01 * torch.randn(8, 8, 8, 8) for _ in range(2)]
    mixture = torch.ones(space.alpha_shape)
    exact = literal([x.double() for x in states], mixture.double())
    ordinary = literal.float()(states, mixture).double()
    assert relative(native.float()(states, mixture).double(), exact) < 3 * relative(ordinary, exact)


def test_weights_that_cancel_correlated_channels_get_their_variance_from_the_output():
    # two nearly equal channels subtracted: var(z) is 1e-8 of what the covariance adds up
    space = make_space(["nor_conv_1x1"], 1, [2])
    native, literal = cells(space, 2, False)
    difference = torch.tensor([[1.0, -1.0], [0.5, 0.5]])[:, :, None, None]
    for cell in (native, literal):
        for conv in (m for m in cell.modules() if isinstance(m, nn.Conv2d)):
            conv.weight.data.copy_(difference)
    common = torch.rand(4, 1, 8, 8) + 1
    states = [torch.cat([common, common + 1e-3 * torch.rand(4, 1, 8, 8)], 1) for _ in range(2)]
    mixture = torch.ones(space.alpha_shape)
    exact = literal([x.double() for x in states], mixture.double())
    ordinary = literal.float()(states, mixture).double()
    assert relative(native.float()(states, mixture).double(), exact) < max(3 * relative(ordinary, exact), 1e-4)


def test_results_do_not_depend_on_the_number_of_threads():
    space = make_space(OPERATIONS, 2, [2, 3])
    native, _ = cells(space, 4, False)
    states = [torch.randn(5, 4, 6, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    mixture = torch.rand(space.alpha_shape, dtype=torch.float64)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = native(states, mixture)
            results.append([out, *torch.autograd.grad(out.square().sum(), [*states, *native.parameters()])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_the_gradient_of_the_alphas_alone_is_the_same():
    torch.manual_seed(0)
    supernet = Supernet(load_space("darts"), 4, 2, num_classes=5, kernels="native").double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    alphas = list(supernet.alphas.values())
    every = torch.autograd.grad(supernet(images).square().sum(), [*alphas, *supernet.weights()], allow_unused=True)
    for weight in supernet.weights():
        weight.requires_grad_(False)
    for a, b in zip(torch.autograd.grad(supernet(images).square().sum(), alphas, allow_unused=True), every):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


def test_a_supernet_in_evaluation_mode_uses_the_running_statistics():
    torch.manual_seed(0)
    supernet = Supernet(load_space("darts"), 4, 2, num_classes=5).double()
    literal = LiteralSupernet(load_space("darts"), 4, 2, num_classes=5).double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    supernet(images)
    literal.load_state_dict(matching_state(literal, supernet.state_dict()))
    supernet.eval(), literal.eval()
    with torch.no_grad():
        native = supernet(images)
        torch.testing.assert_close(native, literal(images), rtol=1e-10, atol=1e-12)
    images.requires_grad_()  # with a gradient the portable path takes over
    torch.testing.assert_close(supernet(images).detach(), native, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["DARTS_V2", "NASNet", "MEHA"])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_derived_networks_run_the_same_natively(name, rate):
    networks = []
    for kernels in ("portable", "native"):
        torch.manual_seed(0)
        network = Network(published_cell(name), 4, 3, num_classes=5, drop_path=rate, kernels=kernels).double()
        for parameter in network.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 1, 0.3)
        networks.append(network)
    assert all(cell.native is not None for cell in networks[1].cells)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    results = []
    for network in networks:
        torch.manual_seed(1)  # the same draws of drop-path
        out = network(images)
        grads = torch.autograd.grad(out.square().sum(), list(network.parameters()), allow_unused=True)
        statistics = [b.double() for b in network.buffers()]
        network.eval()
        with torch.no_grad():
            results.append([out, network(images), *statistics, *(g for g in grads if g is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-10)


def test_a_cell_with_an_unknown_operation_stays_portable():
    genotype = published_cell("AmoebaNet")
    network = Network(genotype, 4, 3, num_classes=5, kernels="native")
    assert [cell.native is None for cell in network.cells] == [cell.halves for cell in network.cells]
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    assert isinstance(genotype, Genotype)

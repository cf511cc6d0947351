"""The shared supernet against the literal one, and against the network that its one-hot mixture stands for."""

import random

import pytest
import torch
from torch.nn import functional as f

from nas_moreau.architecture import Network, Supernet, load_space
from nas_moreau.architecture.networks.literal import LiteralSupernet, matching_state
from nas_moreau.errors import InputError

SPACES = {"toy": 3, "darts": 3, "nas_bench_201": 1, "robust_darts_s3": 3}


def pair(name, channels=4, layers=None, seed=0, partial_channels=1):
    """The two supernets in float64 with equal weights and alphas that are far from uniform."""
    torch.manual_seed(seed)
    space = load_space(name)
    layers = SPACES[name] if layers is None else layers
    shared = Supernet(space, channels, layers, num_classes=5, partial_channels=partial_channels).double()
    literal = LiteralSupernet(space, channels, layers, num_classes=5, partial_channels=partial_channels).double()
    with torch.no_grad():
        for logits in shared.alphas.values():
            logits.normal_()
    literal.load_state_dict(matching_state(literal, shared.state_dict()))
    return shared, literal


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("size", [(8, 8), (11, 14)])
def test_outputs_gradients_and_statistics_equal_the_literal_supernet(name, size):
    assert_equal_functions(*pair(name), size)


@pytest.mark.parametrize(
    "name, channels, share, size",
    [
        ("toy", 8, 4, (8, 8)),
        ("toy", 6, 3, (11, 14)),
        ("nas_bench_201", 8, 4, (8, 8)),
        ("robust_darts_s2", 8, 2, (11, 14)),
    ],
)
def test_partial_channels_with_edge_weights_equal_the_literal_ones(name, channels, share, size):
    shared, literal = pair(name, channels, SPACES.get(name, 3), partial_channels=share)
    assert_equal_functions(shared, literal, size)
    shared.train()
    images = torch.randn((3, 3, *size), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    grads = torch.autograd.grad(shared(images).square().sum(), list(shared.alphas.values()))
    assert len(grads) == 2 * len(shared.space.cells) and all(grad.abs().max() > 0 for grad in grads)


def assert_equal_functions(shared, literal, size):
    names = [n.replace(".mixed.", ".") for n, _ in shared.named_parameters()]
    assert names == [n for n, _ in literal.named_parameters()]
    labels = torch.tensor([0, 3, 4])
    for step in range(2):
        images = torch.randn((3, 3, *size), dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        outputs, expected = shared(images), literal(images)
        torch.testing.assert_close(outputs, expected, rtol=1e-9, atol=1e-12)
        grads = torch.autograd.grad(f.cross_entropy(outputs, labels), list(shared.parameters()))
        wanted = torch.autograd.grad(f.cross_entropy(expected, labels), list(literal.parameters()))
        for (parameter, _), a, b in zip(shared.named_parameters(), grads, wanted):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=lambda text, p=parameter: f"{p}: {text}")
    statistics = literal.state_dict()
    for key, value in matching_state(literal, shared.state_dict()).items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(statistics[key], value, rtol=1e-9, atol=1e-12)
    shared.eval(), literal.eval()
    torch.testing.assert_close(shared(images), literal(images), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name, channels, layers, share, count",
    [
        ("darts", 16, 8, 1, 1_930_618),
        ("darts", 8, 5, 1, 394_210),
        ("darts", 4, 3, 1, 72_854),
        ("darts", 16, 8, 4, 299_578),
    ],
)
def test_weights_without_alphas_have_the_published_count(name, channels, layers, share, count):
    with torch.device("meta"):
        supernet = Supernet(load_space(name), channels, layers, partial_channels=share)
    assert sum(p.numel() for p in supernet.weights()) == count


def test_alphas_are_small_logits_of_the_published_shape():
    torch.manual_seed(0)
    supernet = Supernet(load_space("darts"), 4, 3)
    assert {name: tuple(p.shape) for name, p in supernet.alphas.items()} == {"normal": (14, 8), "reduce": (14, 8)}
    spread = torch.cat([p.detach().flatten() for p in supernet.alphas.values()]).std().item()
    assert 5e-4 < spread < 2e-3
    assert not any(p is q for p in supernet.weights() for q in supernet.alphas.values())
    assert len(supernet.weights()) + 2 == len(list(supernet.parameters()))


def one_hot(space, genotype):
    """The mixture that keeps the genotype's edges and puts every other edge on `none`."""
    mixture = {}
    for name in space.cells:
        table = torch.zeros(space.alpha_shape, dtype=torch.float64)
        kept = {(a, b): op for op, a, b in genotype.cells[name].edges}
        for row, edge in enumerate(space.edges):
            if (operation := kept.get(edge, "none")) != "none" or "none" in space.operations:
                table[row, space.operations.index(operation)] = 1
        mixture[name] = table
    return mixture


@pytest.mark.parametrize("name", ["toy", "darts", "nas_bench_201"])
@pytest.mark.parametrize("seed", range(4))
def test_one_hot_supernet_equals_the_derived_network(name, seed):
    space = load_space(name)
    rng = random.Random(seed)
    genotype = space.random_genotype(rng)
    # DARTS puts a norm after pools in the supernet and none in the network, so genotypes without pools are compared
    while space.skeleton.name == "darts" and any(
        "pool" in op for cell in genotype.cells.values() for op, _, _ in cell.edges
    ):
        genotype = space.random_genotype(rng)
    supernet, _ = pair(name, seed=seed)
    network = Network(genotype, 4, SPACES[name], num_classes=5).double()
    state = supernet.state_dict()
    for key, value in network.state_dict().items():
        if not key.startswith("cells.") or ".operations." not in key:
            if key in state:
                value.copy_(state[key])
            continue
        _, cell, _, index, *rest = key.split(".")
        derived = network.cells[int(cell)]
        edge, operation = derived.places[int(index)], derived.operations[int(index)].name
        source = f"cells.{cell}.operations.{space.edges.index(edge)}.{operation}.{'.'.join(rest)}"
        if source in state:
            value.copy_(state[source])
    images = torch.randn((3, 3, 16, 16), dtype=torch.float64)
    expected = network(images)
    torch.testing.assert_close(supernet(images, one_hot(space, genotype)), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["toy", "darts", "nas_bench_201", "robust_darts_s3"])
@pytest.mark.parametrize("kernels", ["portable", "auto"])
def test_only_active_candidates_are_computed(name, kernels):
    """The mixture with zeros in place of what is inactive gives the same outputs and gradients, at more work."""
    (first, second), space = (pair(name, seed=3)[0] for _ in range(2)), load_space(name)
    for cell in second.cells:
        cell.kernels = kernels
    draw = torch.Generator().manual_seed(1)
    keep = {cell: torch.rand(space.alpha_shape, generator=draw) < 0.4 for cell in space.cells}
    for table in keep.values():
        table[0] = False  # a node may be left with nothing
        if space.inputs == 2:
            table[1] = False
    active = {cell: [table[i].nonzero().flatten().tolist() for i in range(len(table))] for cell, table in keep.items()}
    images = torch.randn((3, 3, 9, 12), dtype=torch.float64, generator=draw)
    masked = {cell: weights * keep[cell] for cell, weights in first.mixture().items()}
    before = {key: value.clone() for key, value in second.named_buffers()}
    expected, found = first(images, masked), second(images, active=active)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    grads = torch.autograd.grad(found.logsumexp(-1).sum(), list(second.parameters()), materialize_grads=True)
    wanted = torch.autograd.grad(expected.logsumexp(-1).sum(), list(first.parameters()))
    for a, b in zip(grads, wanted):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    idle = [key for key, value in second.named_buffers() if key.endswith("running_var") and value.equal(before[key])]
    own = [n for n in space.operations if n.split("_")[0] not in ("none", "max", "avg")]
    some = own[-1]
    for edge, chosen in enumerate(active[space.cells[0]]):
        here = [key for key in idle if key.startswith(f"cells.0.operations.{edge}.{some}.")]
        assert bool(here) != (space.operations.index(some) in chosen)


def test_a_node_without_candidates_gets_what_passes_by():
    """One-hot on nothing: the first quarter of a state's channels is zero before the shuffle."""
    space = load_space("nas_bench_201")
    supernet, _ = pair("nas_bench_201", 8, partial_channels=4)
    images = torch.randn((3, 3, 8, 8), dtype=torch.float64)
    nothing = {"cell": torch.zeros(space.alpha_shape, dtype=torch.float64)}
    empty = {"cell": [()] * len(space.edges)}
    torch.testing.assert_close(supernet(images, nothing, empty), supernet(images, nothing), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channels, share", [(6, 4), (4, 4), (4, 0), (4, -1)])
def test_channels_that_cannot_be_shared_out_are_refused(channels, share):
    with pytest.raises(InputError, match="channels"):
        Supernet(load_space("toy"), channels, 3, partial_channels=share)

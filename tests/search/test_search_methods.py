"""The search methods that mix operations otherwise than by softmax, each against a literal account of it in float64."""

import json
import random
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional as f

from nas_moreau.architecture import Network, Supernet, derive, load_space, multiply_adds
from nas_moreau.architecture.networks.costs import expected_cost
from nas_moreau.architecture.networks.literal import LiteralSupernet, matching_state
from nas_moreau.architecture.networks.skeleton import pool_features, run_cells
from nas_moreau.cli import main
from nas_moreau.config import load_config
from nas_moreau.data import Augment, Images, Part, seed_for
from nas_moreau.errors import InputError
from nas_moreau.runs.tables import read_table
from nas_moreau.search import mixing
from nas_moreau.search.build import build_search
from nas_moreau.search.methods import parse_method
from nas_moreau.search.mixing import best_of_many, dirichlet_weights, gumbel_paths, register_mixing, uniform_path
from nas_moreau.search.stage import cell_search, search
from nas_moreau.search.supernet_problem import Batch, supernet_problem
from nas_moreau.training.signals import StopRequest, StopTraining

SPACES = {"toy": 3, "nas_bench_201": 1}


def setting(name, mix, seed=0):
    """A supernet in float64, its literal counterpart, the search's problem and a batch."""
    space = load_space(name)
    torch.manual_seed(seed)
    supernet = Supernet(space, 4, SPACES[name], num_classes=3).double()
    with torch.no_grad():
        for logits in supernet.alphas.values():
            logits.normal_()
    literal = LiteralSupernet(space, 4, SPACES[name], num_classes=3).double()
    literal.load_state_dict(matching_state(literal, supernet.state_dict()))
    draw = torch.Generator().manual_seed(seed + 1)
    images = torch.randn((4, 3, 8, 8), dtype=torch.float64, generator=draw)
    return supernet, literal, supernet_problem(supernet, mix=mix), Batch(images, torch.tensor([0, 1, 2, 1]), 0.5, 7)


def literal_loss(literal, batch, mixture):
    """The loss of the literal supernet with given mixing weights by cell name."""
    maps = run_cells(literal, batch.images, lambda cell, inputs: cell(inputs, mixture[cell.name]))
    return f.cross_entropy(literal.classifier(pool_features(literal.head_norm, maps[-1])), batch.labels)


# --- gdas ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_gdas_draws_one_hot_weights_and_passes_the_soft_gradient_of_what_was_drawn(name):
    supernet, literal, made, batch = setting(name, gumbel_paths)
    x = [t.clone().requires_grad_() for t in made.x]
    value, _ = made.problem.F(x, made.y, batch)
    grads = torch.autograd.grad(value, x)

    # the published estimator, spelled out: hard = one-hot - soft.detach() + soft, and of a sum over the operations only
    # the drawn one's term is kept
    generator = torch.Generator().manual_seed(batch.seed)
    mixture, leaves = {}, [t.clone().requires_grad_() for t in made.x]
    for cell, logits in zip(supernet.space.cells, leaves):
        gumbel = -torch.empty(logits.shape, dtype=torch.float64).exponential_(generator=generator).log()
        probabilities = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
        temperature = 10 - 9.9 * 0.5
        powers = torch.exp((torch.log(probabilities) + gumbel) / temperature)
        soft = powers / powers.sum(-1, keepdim=True)
        drawn = (torch.log(probabilities) + gumbel).argmax(-1)
        one_hot = torch.eye(logits.shape[-1], dtype=torch.float64)[drawn]
        mixture[cell] = (one_hot - soft.detach() + soft) * one_hot
    expected = literal_loss(literal, batch, mixture)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
    for a, b in zip(grads, torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
        assert b.abs().max() > 1e-4

    # forward, it is the network of the drawn operations
    one_hots = {cell: table.detach().round() for cell, table in mixture.items()}
    assert all(table.sum(-1).eq(1).all() and set(table.unique().tolist()) == {0, 1} for table in one_hots.values())
    torch.testing.assert_close(value.detach(), literal_loss(literal, batch, one_hots), rtol=1e-10, atol=0)


def test_gdas_draws_as_often_as_the_softmax_says():
    space = load_space("nas_bench_201")
    logits = torch.randn(space.alpha_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n = 4000
    counts = sum(
        gumbel_paths(space, [logits], Batch(None, None, 1.0, seed)).weights[0].detach().round() for seed in range(n)
    )
    probabilities = torch.softmax(logits, -1)
    deviation = (probabilities * (1 - probabilities) / n).sqrt()
    assert ((counts / n - probabilities).abs() < 4 * deviation).all()


def test_gdas_grows_cold():
    space = load_space("toy")
    logits = [torch.zeros(space.alpha_shape, dtype=torch.float64) for _ in space.cells]

    def slope(progress):
        x = [t.clone().requires_grad_() for t in logits]
        weights = gumbel_paths(space, x, Batch(None, None, progress, 3)).weights
        coefficients = torch.randn(space.alpha_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        grads = torch.autograd.grad(sum((w * coefficients).sum() for w in weights), x)
        return sum(g.abs().sum() for g in grads)

    # at temperature 10 the relaxation is nearly linear with slope 1 / 10; it steepens, and at .1 most draws are settled
    assert slope(0.0) < slope(0.5)


# --- drnas -----------------------------------------------------------------------------------------------------------


def test_drnas_draws_and_their_gradients_have_the_means_of_the_dirichlet():
    """Against closed forms: E w = b / s, E w^2 = b (b + 1) / (s (s + 1)) with b = elu(alpha) + 1 and s its sum."""
    space, n = load_space("nas_bench_201"), 20_000
    logits = torch.randn(space.alpha_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[0, :2] = torch.tensor([2.0, -3.0])
    factors = torch.randn(space.alpha_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = logits.requires_grad_()
    b = torch.where(x > 0, x + 1, torch.exp(x))
    s = b.sum(-1, keepdim=True)
    exact = torch.autograd.grad((factors * (b / s + b * (b + 1) / (s * (s + 1)))).sum(), x)[0]
    # n copies of every edge in one draw
    copies = x.detach().expand(n, -1, -1).contiguous().requires_grad_()
    (w,) = dirichlet_weights(space, [copies], Batch(None, None, 0.0, 3)).weights
    grads = torch.autograd.grad((factors * (w + w**2)).sum(), copies)[0]
    for found, expected in ((w.detach(), (b / s).detach()), (grads, exact)):
        deviation = found.std(0) / n**0.5
        assert ((found.mean(0) - expected).abs() < 4.5 * deviation).all()
    torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:-1], dtype=torch.float64))


def test_drnas_mixes_with_its_draws_and_leaves_the_global_generator_alone():
    supernet, literal, made, batch = setting("toy", dirichlet_weights)
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    value, _ = made.problem.F(made.x, made.y, batch)
    assert torch.equal(torch.rand(3), expected_next)
    drawn = dirichlet_weights(supernet.space, made.x, batch).weights
    again = literal_loss(literal, batch, dict(zip(supernet.space.cells, drawn)))
    torch.testing.assert_close(value, again.detach(), rtol=1e-10, atol=0)
    other = dirichlet_weights(supernet.space, made.x, batch._replace(seed=8)).weights
    assert not any(torch.equal(a, b) for a, b in zip(drawn, other))


@pytest.mark.parametrize("level", [-60.0, 60.0])
def test_drnas_stays_finite_for_extreme_alphas(level):
    space = load_space("nas_bench_201")
    x = torch.zeros(space.alpha_shape)
    x[:, 0], x[:, 1] = level, -level
    x.requires_grad_()
    for seed in range(20):
        (w,) = dirichlet_weights(space, [x], Batch(None, None, 0.0, seed)).weights
        (grad,) = torch.autograd.grad((w**2).sum(), x)
        assert w.isfinite().all() and grad.isfinite().all()


# --- rsws ------------------------------------------------------------------------------------------------------------


def test_the_choice_of_rsws_is_given_up_when_a_signal_has_arrived():
    supernet = Supernet(load_space("toy"), 4, 3, num_classes=3)
    images = Images(torch.zeros((8, 3, 8, 8), dtype=torch.uint8), torch.arange(8) % 3)
    stop = StopRequest()
    stop.received = signal.SIGTERM
    with pytest.raises(StopTraining):
        best_of_many(
            supernet.space,
            supernet,
            Part(images, torch.arange(8), Augment((0.5,) * 3, (0.25,) * 3)),
            3,
            False,
            stop.check,
        )


@pytest.mark.parametrize("name", [*SPACES, "robust_darts_s2"])
def test_rsws_chooses_the_lowest_loss_and_the_alphas_stand_for_it(name, monkeypatch, make_data):
    space = load_space(name)
    torch.manual_seed(0)
    supernet = Supernet(space, 4, SPACES.get(name, 3), num_classes=3)
    images = make_data(40, seed=1).train
    part = Part(images, torch.arange(8, 40), Augment((0.5,) * 3, (0.25,) * 3))
    monkeypatch.setattr(mixing, "GENOTYPES", 6)
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    alphas, note = best_of_many(space, supernet, part, 3)
    assert all(torch.equal(value, before[key]) for key, value in supernet.state_dict().items())

    draws = random.Random(seed_for(3, "genotypes at the end of rsws"))
    drawn = [space.random_genotype(draws) for _ in range(6)]
    x = part.augment(images.pixels[8:])
    losses = []
    for genotype in drawn:
        mixture = {cell: torch.zeros(space.alpha_shape) for cell in space.cells}
        for cell, found in genotype.cells.items():
            for operation, source, target in found.edges:
                mixture[cell][space.edges.index((source, target)), space.operations.index(operation)] = 1
        losses.append(f.cross_entropy(supernet(x, mixture), images.labels[8:]).item())
    best = min(range(6), key=losses.__getitem__)
    assert len(set(losses)) > 1 and f"{losses[best]:.4f}" in note and "of 6 genotypes" in note
    assert derive(space, dict(zip(space.cells, alphas))) == drawn[best]


def test_rsws_trains_uniform_paths_and_nothing_else():
    space, n = load_space("nas_bench_201"), 3000
    like = torch.zeros(space.alpha_shape)
    counts = torch.zeros(space.alpha_shape)
    for seed in range(n):
        mixing = uniform_path(space, [like], Batch(None, None, 0.0, seed))
        counts += mixing.weights[0]
        assert mixing.active == [[(k,) for k in mixing.weights[0].argmax(-1).tolist()]]
    share = 1 / len(space.operations)
    assert ((counts / n - share).abs() < 4 * (share * (1 - share) / n) ** 0.5).all()


# --- yours -----------------------------------------------------------------------------------------------------------


def test_a_mixing_of_your_own_takes_the_additions(tmp_path, capsys, registrations_forgotten):
    (tmp_path / "my_methods.py").write_text(
        "import torch\n"
        "from nas_moreau import Mixing, register_mixing\n"
        "@register_mixing('test-sigmoid')\n"
        "def sigmoids(space, alphas, batch):\n"
        "    return Mixing([torch.sigmoid(logits) for logits in alphas])\n"
    )
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    words = [
        "search",
        "--import",
        tmp_path / "my_methods.py",
        "search.method=test-sigmoid+beta+pc",
        "--data",
        f"npz:{tmp_path / 'data.npz'}",
        "--output",
        tmp_path / "out",
        "--json",
        "space=toy",
        "search.channels=4",
        "search.partial_channels=2",
        "search.layers=3",
        "search.epochs=1",
        "search.steps_per_epoch=1",
        "search.batch_size=4",
        "search.augment.crop=1",
    ]
    with registrations_forgotten():
        assert main([str(word) for word in words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["method"] == "test-sigmoid+beta+pc" and set(result["edge_weights"]) == {"normal", "reduce"}


def test_names_of_mixings_are_checked(registrations_forgotten):
    with registrations_forgotten():
        for name in ("gdas", "random", "a+b"):
            with pytest.raises(InputError):
                register_mixing(name)(uniform_path)
        register_mixing("darts1")(uniform_path)
        with pytest.raises(InputError, match="darts1"):
            parse_method("moreau")
    with registrations_forgotten():
        register_mixing("mine", method="darts9")(uniform_path)
        with pytest.raises(InputError, match="darts9"):
            parse_method("mine")


PENALISED = [
    "space=toy",
    "search.channels=2",
    "search.layers=3",
    "search.epochs=2",
    "search.steps_per_epoch=4",
    "search.batch_size=4",
    "search.augment.crop=1",
    "search.alphas.lr=0.1",
    "search.alphas.lr_min=0.1",
    "logging.tensorboard=false",
]


@pytest.mark.parametrize("method", ["moreau", "moreau+pc", "darts1", "darts2"])
def test_a_penalty_on_multiply_adds_brings_cheaper_cells(method, tmp_path, tiny_data):
    wider = ["search.channels=4", "search.partial_channels=2"] if "+pc" in method else []
    macs, expected = {}, {}
    for weight in (0, 1000):
        words = [*PENALISED, *wider, f"search.method={method}", f"search.penalty.macs={weight}"]
        folder = tmp_path / str(weight)
        result = search(load_config(overrides=words), folder, data=tiny_data)
        network = Network(result.genotype, 4, 3, 3)
        macs[weight] = multiply_adds(network, (3, 8, 8))
        column = [row.get("expected_macs") for row in read_table(folder / "metrics.csv")]
        expected[weight] = column
    assert macs[1000] < macs[0]
    assert expected[0] == [None, None] and float(expected[1000][1]) < float(expected[1000][0]) < 0.25


@pytest.mark.parametrize("method", ["random", "rsws", "gdas", "drnas+beta"])
def test_methods_that_draw_refuse_a_penalty_on_multiply_adds(method, tmp_path):
    config = load_config(overrides=[*PENALISED, f"search.method={method}", "search.penalty.macs=1"])
    with pytest.raises(InputError, match=r"search\.penalty"):
        search(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_penalties_of_each_kind_are_added_to_the_upper_loss(tiny_config, tiny_data):
    """F with all three penalties minus F without, against the expected costs by hand, and f without any."""
    weights = {"parameters": 0.5, "macs": 2.0, "ms": 3.0}
    keys = [f"search.penalty.{kind}={weight}" for kind, weight in weights.items()]
    plain, charged = (
        build_search(tiny_config("search.method=darts1", "search.layers=3", *more), tiny_data, torch.device("cpu"))
        for more in ((), keys)
    )
    assert plain.costs == {} and set(charged.costs) == set(weights)
    upper, lower = plain.batches(0)
    x, y = plain.posed.x, plain.posed.y
    logits = plain.supernet.operation_logits(x)
    expected = sum(weight * expected_cost(logits, charged.costs[kind]) for kind, weight in weights.items())
    difference = charged.posed.problem.F(x, y, upper)[0] - plain.posed.problem.F(x, y, upper)[0]
    torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-5)
    assert charged.posed.problem.f(x, y, lower)[0] == plain.posed.problem.f(x, y, lower)[0]
    assert all(0 < expected_cost(logits, shares) < 1 for shares in charged.costs.values())


def test_a_resumed_search_keeps_the_latencies_that_it_measured_first(tiny_config, tiny_data):
    config = tiny_config("search.method=darts1", "search.layers=3", "search.penalty.ms=1")
    first, second = (cell_search(build_search(config, tiny_data, torch.device("cpu"))) for _ in range(2))
    second.load_state_dict(first.state_dict())
    (upper, _), x, y = first.setup.batches(0), first.x, first.y
    assert first.setup.posed.problem.F(x, y, upper)[0] == second.setup.posed.problem.F(x, y, upper)[0]

"""Restarts of a search: each against the method run by hand, their mean, and resuming in any of them."""

import signal

import pytest
import torch
from torch import nn

from nas_moreau import Choice, Hook, InputError, search_module
from nas_moreau.architecture import AlphaTable, derive, load_space
from nas_moreau.bilevel.simplex_steps import mean_logits
from nas_moreau.modules import pareto
from nas_moreau.runs import load_checkpoint
from nas_moreau.search import search
from nas_moreau.search.derive import derive_run
from nas_moreau.search.methods import build_method
from nas_moreau.search.stage import plan_search
from nas_moreau.training.signals import Interrupted

THREE = (
    "search.restarts=3",
    "search.epochs=2",
    "search.alphas.lr=0.3",
    "search.alphas.lr_min=0.1",
    "logging.tensorboard=false",
)
STEPS = 4
"""Of each: two epochs of two steps."""


def ends_of_restarts(kept, steps=STEPS):
    def keep(job, row):
        if job.counters.step % steps == 0:
            kept.append([tensor.clone() for tensor in job.x])

    return Hook(on_epoch=keep)


def test_the_mean_is_that_of_the_softmax_weights_of_each_group():
    groups = [[[0, 1], [3, 4, 5]]]
    several = [[torch.tensor([[0.0, 2.0, 7.0], [1.0, -1.0, 3.0]])], [torch.tensor([[1.0, 0.0, 9.0], [0.0, 40.0, 0.0]])]]
    (mean,) = mean_logits(several, groups)
    for row in groups[0]:
        expected = torch.stack([torch.softmax(tensor.flatten()[row], -1) for (tensor,) in several]).mean(0)
        torch.testing.assert_close(torch.softmax(mean.flatten()[row], -1), expected)
    assert mean[0, 2] == 8.0
    (mean,) = mean_logits(several)
    expected = torch.stack([torch.softmax(tensor, -1) for (tensor,) in several]).mean(0)
    torch.testing.assert_close(torch.softmax(mean, -1), expected)


@pytest.mark.parametrize("method", ["moreau", "darts1+pc", "drnas", "moreau mirror"])
def test_the_cell_is_that_of_the_mean_weights(method, tiny_config, tiny_data, tmp_path):
    method, *rule = method.split()
    more = [f"search.alphas.rule={name}" for name in rule]
    config = tiny_config(
        *THREE, f"search.method={method}", "search.channels=4", "search.partial_channels=2", *more, "retrain.channels=4"
    )
    kept = []
    found = search(config, tmp_path, data=tiny_data, hooks=[ends_of_restarts(kept)])
    assert len(kept) == 3 and found.steps == 3 * STEPS
    stored = load_checkpoint(tmp_path / "checkpoints")[0]
    space, names = load_space("toy"), list(stored["alphas"])
    mean = AlphaTable.mean([AlphaTable.from_logits(space, dict(zip(names, tensors))) for tensors in kept])
    for cell, rows in found.alphas.cells.items():
        for row, expected in zip(rows, mean.cells[cell], strict=True):
            assert row.weights == pytest.approx(expected.weights, rel=1e-4)
            assert row.edge_weight == (expected.edge_weight and pytest.approx(expected.edge_weight, rel=1e-4))
    assert found.genotype == derive(space, found.alphas) == derive_run(tmp_path, config).genotype
    assert any((a - b).abs().max() > 0.05 for a, b in zip(kept[0], kept[1]))


def test_a_restart_is_the_method_from_other_weights(tiny_config, tiny_data, tmp_path):
    config, kept, weights = tiny_config(*THREE, "search.method=moreau+beta"), [], []

    def keep(job, row):
        weights.append([tensor.clone() for tensor in job.y])

    search(config, tmp_path, data=tiny_data, hooks=[ends_of_restarts(kept), Hook(on_epoch=keep)])
    setup = plan_search(config, tiny_data).setup
    first = [tensor.clone() for tensor in setup.posed.y]
    x, y = setup.restart(1)
    assert any(not torch.equal(a, b) for a, b in zip(first, y))
    assert all(buffer.eq(buffer.flatten()[0]).all() for buffer in setup.buffers() if buffer.is_floating_point())
    method, _ = build_method(config.search, setup.epoch_steps, setup.alpha_groups())
    state = method.init(setup.posed.problem, x, y)
    for step in range(STEPS, 2 * STEPS):
        upper, lower = setup.batches(step)
        assert upper.progress == (step - STEPS) / STEPS
        x, y, state, _ = method.step(setup.posed.problem, x, y, state, upper_batch=upper, lower_batch=lower)
    for a, b in zip([*x, *y], [*kept[1], *weights[3]]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


GUARDED = (*THREE, "search.guard=best")


@pytest.fixture(scope="module")
def guarded(tiny_config, tiny_data, tmp_path_factory):
    """The folder of a search that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    search(tiny_config(*GUARDED), folder, data=tiny_data)
    return folder


@pytest.mark.parametrize("where", [STEPS - 1, STEPS, STEPS + 1, 2 * STEPS, "in an evaluation"])
def test_a_stopped_search_ends_as_one_that_was_not(where, guarded, tiny_config, tiny_data, stop_at, tmp_path):
    config = tiny_config(*GUARDED)

    def stop(job, name, samples, seconds):
        if job.counters.step == 2 * STEPS and name == "held_out":
            signal.raise_signal(signal.SIGTERM)

    hook = Hook(on_evaluate=stop) if where == "in an evaluation" else stop_at(where)
    with pytest.raises(Interrupted):
        search(config, tmp_path / "parts", data=tiny_data, hooks=[hook])
    search(config, tmp_path / "parts", resume=True, data=tiny_data)
    whole, parts = (load_checkpoint(folder / "checkpoints")[0] for folder in (guarded, tmp_path / "parts"))
    assert len(whole["ended"]) == len(parts["ended"]) == 2
    for key in ("x", "y"):
        assert all(torch.equal(a, b) for a, b in zip(whole[key], parts[key], strict=True))
    for name in ("alphas.csv", "genotype.json"):
        assert (guarded / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_more_restarts_may_follow_and_longer_ones_may_not(tiny_config, tiny_data, tmp_path):
    whole, two = tiny_config(*THREE), tiny_config(*THREE, "search.restarts=2")
    search(whole, tmp_path / "whole", data=tiny_data)
    search(two, tmp_path / "parts", data=tiny_data)
    with pytest.raises(InputError, match=r"search\.restarts"):
        search(tiny_config(*THREE, "search.epochs=3"), tmp_path / "parts", resume=True, data=tiny_data)
    search(whole, tmp_path / "parts", resume=True, data=tiny_data)
    for name in ("alphas.csv", "genotype.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    with pytest.raises(InputError, match="restarts"):
        search(two, tmp_path / "parts", resume=True, data=tiny_data)


def test_one_search_is_as_it_was(tiny_config, tiny_data, tmp_path):
    kept = []
    search(tiny_config(*THREE[1:]), tmp_path, data=tiny_data, hooks=[ends_of_restarts(kept)])
    stored = load_checkpoint(tmp_path / "checkpoints")[0]
    assert all(torch.equal(a, b) for a, b in zip(stored["alphas"].values(), kept[-1])) and "ended" not in stored


def test_a_method_that_learns_no_alphas_trains_its_weights_on(tiny_config, tiny_data, tmp_path):
    results = [
        search(tiny_config("search.method=rsws", *more), tmp_path / more[0], data=tiny_data)
        for more in (["search.epochs=6"], ["search.epochs=2", "search.restarts=3"])
    ]
    assert results[0].steps == results[1].steps == 3 * STEPS


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.act = Choice({"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()})

    def forward(self, x):
        return self.act(self.first(x)).sum(-1)


def error(net, batch):
    return ((net(batch[0]) - batch[1]) ** 2).mean()


def test_choices_in_a_module_begin_from_the_weights_it_came_with(tmp_path):
    torch.manual_seed(0)
    module, x = Small(), torch.randn(64, 3)
    kept, settings = [], {"alphas": {"lr": 0.3, "lr_min": 0.3}, "restarts": 2}

    found = search_module(
        module,
        error,
        (x, x.tanh().sum(-1)),
        steps=5,
        batch_size=8,
        search=settings,
        output=tmp_path / "run",
        hooks=[ends_of_restarts(kept, 5)],
    )
    assert len(kept) == 2 and found.result.steps == 10
    expected = torch.stack([torch.softmax(tensors[0][0], -1) for tensors in kept]).mean(0).tolist()
    assert list(found.weights["act"].values()) == pytest.approx(expected, rel=1e-4)
    _, weights = found.setup.restart(1)
    for tensor, own in zip(weights, (p for name, p in module.named_parameters() if "alphas" not in name)):
        assert torch.equal(tensor, own)
    assert found.compare_random(1, seeds=1).steps == 5
    with pytest.raises(InputError, match="restarts"):
        pareto(module, error, (x, x.sum(-1)), steps=5, search=settings)

"""The mean of late alphas: against a literal mean, resumed exactly, in cells and in modules."""

import signal

import pytest
import torch
from torch import nn

from nas_moreau import Choice, Hook, search_module
from nas_moreau.architecture import AlphaTable, derive, load_space
from nas_moreau.runs import load_checkpoint
from nas_moreau.search import search
from nas_moreau.search.derive import derive_run
from nas_moreau.training.signals import Interrupted

AVERAGE = ("search.alphas.average=true", "search.alphas.lr=0.3", "search.alphas.lr_min=0.3", "search.epochs=5")


def ends_of_epochs(kept):
    return Hook(on_epoch=lambda job, row: kept.append([tensor.clone() for tensor in job.x]))


def means_of(kept):
    return [torch.stack(tensors).double().mean(0) for tensors in zip(*kept[len(kept) // 2 :])]


@pytest.mark.parametrize("method", ["moreau", "darts1+pc", "drnas"])
def test_the_cell_is_that_of_the_mean_over_the_later_half_of_the_epochs(method, tiny_config, tiny_data, tmp_path):
    config = tiny_config(*AVERAGE, f"search.method={method}", "search.channels=4", "search.partial_channels=2")
    kept = []
    found = search(config, tmp_path, data=tiny_data, hooks=[ends_of_epochs(kept)])
    space, means = load_space("toy"), means_of(kept)
    stored = load_checkpoint(tmp_path / "checkpoints")[0]
    for name, mean in zip(stored["alphas"], means):
        torch.testing.assert_close(stored["alphas"][name].double(), mean, rtol=1e-5, atol=1e-6)
    assert any((tensor - mean).abs().max() > 0.05 for tensor, mean in zip(stored["x"], means))
    table = AlphaTable.from_logits(space, dict(zip(stored["alphas"], means)))
    for cell, rows in table.cells.items():
        for row, own in zip(rows, found.alphas.cells[cell]):
            assert own.weights == pytest.approx(row.weights, rel=1e-4)
    assert found.genotype == derive(space, found.alphas) == derive_run(tmp_path, config).genotype


def test_without_the_setting_the_last_alphas_count(tiny_config, tiny_data, tmp_path):
    kept = []
    search(tiny_config(*AVERAGE[1:]), tmp_path, data=tiny_data, hooks=[ends_of_epochs(kept)])
    stored = load_checkpoint(tmp_path / "checkpoints")[0]
    assert all(torch.equal(a, b) for a, b in zip(stored["alphas"].values(), kept[-1])) and "mean" not in stored


@pytest.mark.parametrize("guard", ["off", "best"])
@pytest.mark.parametrize("where", ["between steps", "in an evaluation"])
def test_a_stopped_search_counts_every_epoch_once(where, guard, tiny_config, tiny_data, stop_at, tmp_path):
    config = tiny_config(*AVERAGE, f"search.guard={guard}")
    search(config, tmp_path / "whole", data=tiny_data)

    def stop(job, name, samples, seconds):
        if job.counters.epochs == 3 and name == "held_out":
            signal.raise_signal(signal.SIGTERM)

    hook = stop_at(7) if where == "between steps" else Hook(on_evaluate=stop)
    with pytest.raises(Interrupted):
        search(config, tmp_path / "parts", data=tiny_data, hooks=[hook])
    search(config, tmp_path / "parts", resume=True, data=tiny_data)
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoints")[0] for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole["mean"], parts["mean"]))
    assert (tmp_path / "whole" / "alphas.csv").read_bytes() == (tmp_path / "parts" / "alphas.csv").read_bytes()


def test_methods_that_learn_no_alphas_are_left_as_they_are(tiny_config, tiny_data, tmp_path):
    results = [
        search(tiny_config("search.method=rsws", *more), tmp_path / str(len(more)), data=tiny_data)
        for more in (AVERAGE[1:], AVERAGE)
    ]
    assert results[0].genotype == results[1].genotype and results[0].alphas == results[1].alphas


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.act = Choice({"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()})

    def forward(self, x):
        return self.act(self.first(x)).sum(-1)


def test_choices_in_a_module_count_the_mean_as_well(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    kept, settings = [], {"alphas": {"lr": 0.3, "lr_min": 0.3, "average": True}}
    found = search_module(
        Small(),
        lambda net, batch: ((net(batch[0]) - batch[1]) ** 2).mean(),
        (x, x.tanh().sum(-1)),
        steps=5,
        batch_size=8,
        search=settings,
        output=tmp_path / "run",
        hooks=[ends_of_epochs(kept)],
    )
    assert len(kept) == 5
    expected = torch.softmax(means_of(kept)[0][0], -1).tolist()
    assert list(found.weights["act"].values()) == pytest.approx(expected, rel=1e-4)

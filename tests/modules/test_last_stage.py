"""The last stage of a search in a module: which choices are trained, how they are compared, and how it resumes."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau import Choice, InputError, search_module
from nas_moreau.data import seed_for
from nas_moreau.modules import zero
from nas_moreau.modules.last_stage import draw_picks
from nas_moreau.modules.result import ModuleResult
from nas_moreau.modules.training import plain_network, train_plain
from nas_moreau.training.signals import Interrupted

LAST = {"rule": "trained", "trained": {"candidates": 4, "steps": 8}}


def test_it_is_successive_halving_by_hand(make_net, loss, samples):
    found = search_module(make_net(), loss, samples, steps=4, batch_size=8, derive=LAST)
    setup, table = found.setup, found.setup.alpha_table(found.setup.posed.x)
    data = replace(setup.data, upper=setup.data.lower, held_out=setup.data.upper)
    seed = seed_for(0, "last stage")

    def trained(picks, steps):
        network = plain_network(setup, picks, fresh=True)
        torch.manual_seed(seed)
        return train_plain(network, replace(setup, data=data), steps, seed)["loss"]

    record = found.result.last_stage
    assert [(entry["steps"], len(entry["candidates"])) for entry in record["rounds"]] == [(4, 4), (8, 2)]
    for entry in record["rounds"]:
        losses = [row["loss"] for row in entry["candidates"]]
        assert losses == sorted(losses)
        for row in entry["candidates"]:
            assert trained(found.picks(row["choices"]), entry["steps"]) == row["loss"]
    first, second = (entry["candidates"] for entry in record["rounds"])
    kept = [row["choices"] for row in first[:2]]
    assert all(row["choices"] in kept for row in second) and found.choices == second[0]["choices"]
    assert record["samples"] == len(setup.data.upper.numbers)
    assert record["first"] in [row["choices"] for row in first]
    assert record["moved"] == (found.choices != record["first"])
    assert set(table.cells) == set(found.choices)


class Needs(nn.Module):
    """Only one pair of options fits the data."""

    def __init__(self):
        super().__init__()
        self.branch = Choice({"nothing": zero(), "linear": nn.Linear(3, 3)}, name="branch")
        self.act = Choice({"zero": zero(), "same": nn.Identity()}, name="act")

    def forward(self, x):
        return self.act(self.branch(x)).sum(-1)


def test_it_finds_what_one_step_of_search_cannot_know():
    x = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    data = x, x.sum(-1)

    def needs():
        torch.manual_seed(0)
        return Needs()

    def error(net, batch):
        return f.mse_loss(net(batch[0]), batch[1])

    rates = {"weights": {"lr": 0.1, "lr_min": 0.01}}
    plain = search_module(needs(), error, data, steps=1, search=rates)
    last = {"rule": "trained", "trained": {"candidates": 4, "steps": 40}}
    found = search_module(needs(), error, data, steps=1, derive=last, search=rates)
    assert found.choices == {"branch": "linear", "act": "same"}
    assert found.weights == plain.weights and found.result.last_stage["first"] == plain.choices
    again = ModuleResult.from_dict(json.loads(json.dumps(found.result.to_dict())))
    assert again == found.result and again.verdict.startswith("trained")
    assert plain.verdict.startswith("undecided")


def test_the_candidates_are_distinct_and_keep_the_limits(make_net, loss, samples):
    found = search_module(make_net(), loss, samples, steps=2, batch_size=8)
    table = found.setup.alpha_table(found.setup.posed.x)
    drawn = draw_picks(found.priced, table, 40, seed=1)
    assert len({tuple(picks.items()) for picks in drawn}) == len(drawn) == 6
    assert drawn == draw_picks(found.priced, table, 40, seed=1) and drawn[0] == found.priced.pick(table)
    most = found.costs({"branch": "skip"})["parameters"]
    limited = search_module(make_net(), loss, samples, steps=2, batch_size=8, max_parameters=most, derive=LAST)
    rows = limited.result.last_stage["rounds"][0]["candidates"]
    assert len(rows) == 3 and all(row["choices"]["branch"] == "skip" for row in rows)


def test_choices_that_differ_only_in_what_is_not_there_are_one(samples):
    inner = Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="inner")
    net = nn.Sequential(Choice({"deep": nn.Sequential(nn.Linear(4, 4), inner), "skip": nn.Identity()}, name="outer"))

    def size(net, batch):
        return net(batch).square().mean() + sum(p.sum() for p in net.parameters())

    net.append(nn.Linear(4, 1))
    found = search_module(net, size, samples["x"], steps=1)
    picks = draw_picks(found.priced, found.setup.alpha_table(found.setup.posed.x), 40, seed=0)
    assert sorted((p["outer"], p["inner"]) if p["outer"] == 0 else (1,) for p in picks) == [(0, 0), (0, 1), (1,)]


@pytest.mark.parametrize("calls", [3, 20])
def test_a_signal_in_it_loses_no_training(make_net, samples, tmp_path, calls):
    after = []

    def loss(net, batch):
        if after and next(after[0]) == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return f.cross_entropy(net(batch["x"])["logits"], batch["label"])

    keywords = {"steps": 4, "batch_size": 8, "derive": LAST, "output": tmp_path / "run"}
    whole = search_module(make_net(), loss, samples, **{**keywords, "output": tmp_path / "whole"})

    class Begin:
        def __getattr__(self, event):
            return None

        def on_epoch(self, job, row):
            if job.counters.step == 4:
                after.append(iter(range(10_000)))

    with pytest.raises(Interrupted, match="saved in"):
        search_module(make_net(), loss, samples, **keywords, hooks=[Begin()])
    after.clear()
    kept = json.loads((tmp_path / "run/trained.json").read_text()) if (tmp_path / "run/trained.json").exists() else {}
    found = search_module(make_net(), loss, samples, **keywords, resume=True)
    assert found.result.last_stage == whole.result.last_stage and found.choices == whole.choices
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert page.count("act=") >= 4  # a row for each candidate
    for name in ("choices.json", "alphas.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    trained = json.loads((tmp_path / "run/trained.json").read_text())
    assert kept.items() <= trained.items() and (calls < 20 or kept)


def test_what_diverges_is_the_worst(samples):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.act = nn.Linear(4, 1), Choice({"same": nn.Identity(), "root": Root()}, name="act")

        def forward(self, x):
            return self.act(self.line(x))

    class Root(nn.Module):
        def forward(self, x):
            return x if not torch.is_grad_enabled() or searching else (x - x.detach()).sqrt()

    searching = [True]

    def loss(net, batch):
        return net(batch).square().mean()

    class Ends:
        def __getattr__(self, event):
            return None

        def on_epoch(self, job, row):
            if job.counters.step == 2:
                searching.clear()

    last = {"rule": "trained", "trained": {"candidates": 2, "steps": 3}}
    found = search_module(Net(), loss, samples["x"], steps=2, derive=last, hooks=[Ends()])
    assert found.choices == {"act": "same"}
    assert [row["loss"] is None for row in found.result.last_stage["rounds"][-1]["candidates"]] == [False, True]


@pytest.mark.parametrize(
    ("derive", "method"),
    [
        ({"rule": "perturbation"}, "moreau"),
        ({"rule": "trained", "images": 10}, "moreau"),
        ({"rule": "trained", "trained": {"channels": 4}}, "moreau"),
        ({"trained": {"candidates": 4}}, "moreau"),
        ({"rule": "trained", "trained": {"candidates": 0}}, "moreau"),
        ({"rule": "trained"}, "random"),
    ],
)
def test_what_has_no_meaning_is_refused(make_net, loss, samples, derive, method):
    with pytest.raises(InputError, match=r"derive|candidates|weights|rule"):
        search_module(make_net(), loss, samples, steps=2, method=method, derive=derive)


def test_keys_about_cells_are_refused(make_net, loss, samples):
    with pytest.raises(InputError, match="layers"):
        search_module(make_net(), loss, samples, steps=2, search={"layers": 4})

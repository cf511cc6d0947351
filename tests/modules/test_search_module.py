"""The search inside a module: literal steps, exact resume, every kind of data, and what is refused."""

import json
import math
import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from nas_moreau import Choice, Hook, InputError, search_module
from nas_moreau.modules import Depth, Width
from nas_moreau.modules.search import module_config
from nas_moreau.modules.setup import build_module_search
from nas_moreau.modules.stream import module_data
from nas_moreau.search.methods import build_method
from nas_moreau.training.signals import Interrupted, NonFinite

FEW = dict(steps=6, batch_size=8, search={"alphas": {"lr": 0.05, "lr_min": 0.05}})


def bytes_of(folder):
    rows = [row.rsplit(",", 1)[0] for row in (folder / "metrics.csv").read_text().splitlines()]
    return rows, (folder / "alphas.csv").read_bytes(), (folder / "choices.json").read_bytes()


def state_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_same(a, b):
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


# --- the same numbers as by hand ---


class Quadratic(nn.Module):
    """w times a mixture of factors 1 and 3."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -0.5], dtype=torch.float64))
        self.factor = Choice({"one": nn.Identity(), "negative": nn.Hardtanh(-0.3, 0.3)})

    def forward(self, x):
        return (self.factor(self.w * x)).sum(-1)


def squares(net, batch):
    return ((net(batch[0]) - batch[1]) ** 2).mean()


@pytest.mark.parametrize("method", ["moreau", "moreau+beta", "darts1", "darts2", "joint", "lower-only"])
def test_steps_are_those_of_the_method_on_functions_written_by_hand(method):
    x = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = (x, x.sum(-1))
    config = module_config(4, method, 0, "cpu", FEW.get("s", {}))
    parts = module_data(data, None, 8, config, torch.device("cpu"))
    setup = build_module_search(Quadratic(), squares, parts, config, 4, None)

    def mixed(alphas, y, batch):
        weights = torch.softmax(alphas[0], -1)[0]
        hidden = y[0] * batch.data[0]
        out = (weights[0] * hidden + weights[1] * hidden.clamp(-0.3, 0.3)).sum(-1)
        return ((out - batch.data[1]) ** 2).mean()

    def upper(alphas, y, batch):
        added = config.search.beta * batch.progress * torch.logsumexp(alphas[0], -1).mean()
        return mixed(alphas, y, batch) + (added if "beta" in method else 0.0)

    from nas_moreau import Bilevel

    written = Bilevel(upper, mixed)
    stepping, _ = build_method(config.search, setup.epoch_steps)
    found, by_hand = ([list(setup.posed.x), list(setup.posed.y)] for _ in range(2))
    states = [stepping.init(problem, *found) for problem in (setup.posed.problem, written)]
    for step in range(4):
        upper_batch, lower_batch = setup.batches(step)
        for place, problem in ((found, setup.posed.problem), (by_hand, written)):
            k = int(place is by_hand)
            place[0], place[1], states[k], _ = stepping.step(problem, *place, states[k], upper_batch, lower_batch)
    for a, b in zip([*found[0], *found[1]], [*by_hand[0], *by_hand[1]]):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert not torch.equal(found[1][0], setup.posed.y[0])


@pytest.mark.parametrize("method", ["moreau+beta", "darts1", "drnas", "gdas"])
def test_the_right_option_is_found(method):
    """Only one of the options is the function that made the data, and nothing else in the module is trained."""

    class OnlyScaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.act = Choice({"tanh": nn.Tanh(), "square": Square(), "sin": Sine()})

        def forward(self, x):
            return self.scale * self.act(x)

    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(1))
    found = search_module(OnlyScaled(), squares_of, (x, torch.sin(3 * x)), steps=150, method=method, batch_size=32)
    assert found.choices == {"act": "sin"} and found.margin > 0
    assert found.result.one_hot["loss"] < 0.2


class Square(nn.Module):
    def forward(self, x):
        return x**2


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(3 * x)


def squares_of(net, batch):
    return ((net(batch[0]) - batch[1]) ** 2).mean()


# --- what stays, and what comes out ---


def test_the_module_stays_as_it_is_and_the_network_is_plain(make_net, loss, samples):
    net = make_net()
    before = state_of(net)
    found = search_module(net, loss, samples, **FEW)
    assert_same(state_of(net), before)
    assert set(found.choices) == {"act", "branch"} and found.verdict
    assert found.weights["act"].keys() == {"relu", "tanh", "same"}
    network = found.network()
    assert not [p for p in network.modules() if type(p).__module__.startswith("nas_moreau")]
    assert isinstance(network.acts[0], type(network.acts[1]))
    names = set(network.state_dict())
    assert "first.weight" in names and not [name for name in names if "alphas" in name or "candidates" in name]
    # the same numbers as the search's own module with these options alone
    picks = {name: found.setup.places.options[name].index(option) for name, option in found.choices.items()}
    x = samples["x"][:5]
    from nas_moreau.modules.choice import mixed_by

    with mixed_by(found.setup.places, found.setup.one_hot(picks)), torch.no_grad():
        own = found.setup.whole.module.eval()(x)["logits"]
    torch.testing.assert_close(network(x)["logits"], own)


def test_fresh_is_the_weights_that_the_module_came_with(make_net, loss, samples):
    net = make_net()
    found = search_module(net, loss, samples, **FEW)
    fresh = found.network(fresh=True).state_dict()
    for name, value in net.state_dict().items():
        if name in fresh:
            assert torch.equal(fresh[name], value), name
    assert not torch.equal(found.network().state_dict()["first.weight"], fresh["first.weight"])
    other = found.network(choices={"branch": "skip", "act": "same"})
    assert isinstance(other.branch, nn.Identity) and isinstance(other.acts[1], nn.Identity)
    for wrong in ({"banch": "skip"}, {"branch": "skp"}):
        with pytest.raises(InputError, match="Did you mean"):
            found.network(choices=wrong)


def test_pretrained_statistics_are_part_of_the_fresh_network_and_a_loss_may_have_weights(make_net, samples):
    net = make_net()
    net.norm.running_mean += 3.0

    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, net, batch):
            return nn.functional.cross_entropy(net(batch["x"])["logits"] / self.temperature, batch["label"])

    loss = Tempered()
    found = search_module(net, loss, samples, **FEW)
    assert found.network(fresh=True).norm.running_mean.tolist() == [3.0] * 6
    assert found.setup.whole.loss.temperature != 1.0 == loss.temperature
    before = found.setup.whole.loss.temperature.clone()
    assert len(found.compare_random(1, steps=2, seeds=1).rows) == 2
    assert found.setup.whole.loss.temperature == before


def test_frozen_parameters_stay_and_statistics_of_the_upper_level_do_not_move(make_net, loss, samples):
    net = make_net()
    net.first.requires_grad_(False)
    found = search_module(net, loss, samples, **FEW)
    assert torch.equal(found.network().first.weight, net.first.weight)
    posed, setup = found.setup.posed, found.setup
    moved = {name: b.clone() for name, b in setup.named_buffers().items()}
    upper, lower = setup.batches(0)
    posed.problem.F(posed.x, posed.y, upper)
    posed.problem.at_theta(posed.x, posed.y, lower)
    assert all(torch.equal(moved[name], b) for name, b in setup.named_buffers().items())
    posed.problem.f(posed.x, posed.y, lower)
    assert not torch.equal(moved["module.norm.running_mean"], setup.named_buffers()["module.norm.running_mean"])


@pytest.mark.parametrize("method", ["moreau", "joint", "darts2", "drnas+beta", "gdas", "moreau-auto", "random"])
def test_methods_that_have_a_meaning(make_net, loss, samples, method, tmp_path):
    found = search_module(make_net(), loss, samples, method=method, output=tmp_path / "a", **FEW)
    assert json.loads((tmp_path / "a" / "choices.json").read_text())["choices"] == found.choices
    assert found.network()(samples["x"])["logits"].shape == (90, 2)
    again = search_module(make_net(), loss, samples, method=method, output=tmp_path / "a", resume=True, **FEW)
    assert again.to_dict() == found.to_dict()
    assert_same(state_of(again.network()), state_of(found.network()))


def test_a_metric_is_reported(make_net, loss, samples, tmp_path):
    def accuracy(net, batch):
        return (net(batch["x"])["logits"].argmax(-1) == batch["label"]).float().mean()

    found = search_module(make_net(), loss, samples, metric=accuracy, output=tmp_path / "a", **FEW)
    assert 0 <= found.result.one_hot["metric"] <= 1
    assert "held_out_metric,one_hot_metric" in (tmp_path / "a" / "metrics.csv").read_text()


# --- exact resume ---


class Augmented(Dataset):
    """Samples with noise from all three global generators."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples["x"])

    def __getitem__(self, i):
        import random

        import numpy as np

        noise = torch.randn(4) + random.random() + float(np.random.rand())
        return {"x": self.samples["x"][i] + 0.1 * noise, "label": self.samples["label"][i]}


class WithDropout(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.drop = net, nn.Dropout(0.2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen = self.seen + 1.0  # a buffer that is assigned anew at each call
        return self.net(self.drop(x) + 0.01 * self.seen)


def test_a_loss_that_reads_all_parameters_reads_the_present_alphas(make_net, loss, samples):
    """Adding a number to all logits leaves their softmax: what changes is the penalty."""

    def penalised(net, batch):
        return loss(net, batch) + 0.1 * sum(p.square().sum() for p in net.parameters())

    found = search_module(make_net(), penalised, samples, steps=2, batch_size=8)
    setup = found.setup
    (batch, _), (x, y) = setup.batches(0), (setup.posed.x, setup.posed.y)
    before, after = (setup.posed.problem.F([t + more for t in x], y, batch)[0] for more in (0.0, 1.0))
    places = {name: len(choices) for name, choices in setup.places.by_name.items()}
    expected = sum(n * ((t + 1).square() - t.square()).sum() for t, n in zip(x, places.values()))
    assert sorted(places.values()) == [1, 2]
    torch.testing.assert_close(after - before, 0.1 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("at", "rule", "workers"), [(1, "momentum", 0), (4, "adamw", 2)])
def test_a_run_that_was_stopped_continues_to_the_same_bytes(make_net, loss, samples, tmp_path, at, rule, workers):
    def start(name, resume=False, seed=0, hooks=()):
        fetching = workers if hooks else 0  # worker processes change no number
        data = DataLoader(Augmented(samples), batch_size=8, shuffle=True, num_workers=fetching)
        net, place = WithDropout(make_net(seed)), tmp_path / name

        def penalised(net, batch):  # reads the alphas too
            return loss(net, batch) + 1e-3 * sum(p.square().sum() for p in net.parameters())

        more = {"checkpoint": {"every_steps": 1}, "search": {"weights": {"rule": rule}}}
        return search_module(net, penalised, data, steps=6, output=place, resume=resume, hooks=hooks, **more)

    def stop(job, info):
        if job.counters.step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = start("whole")
    with pytest.raises(Interrupted):
        start("parts", hooks=[Hook(on_step=stop)])
    # the module of the second process has other initial weights: those of the run count
    found = start("parts", resume=True, seed=5)
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")
    assert_same(state_of(found.network()), state_of(whole.network()))
    assert_same(state_of(found.network(fresh=True)), state_of(whole.network(fresh=True)))
    assert found.network().seen.item() == 6.0 and found.network(fresh=True).seen.item() == 0.0


def test_another_module_or_other_data_are_refused(make_net, loss, samples, tmp_path):
    search_module(make_net(), loss, samples, output=tmp_path / "a", **FEW)
    other = {**samples, "label": 1 - samples["label"]}
    with pytest.raises(InputError, match="another data"):
        search_module(make_net(), loss, other, output=tmp_path / "a", resume=True, **FEW)
    net = make_net()
    net.last = nn.Linear(6, 3)
    with pytest.raises(InputError, match="another module"):
        search_module(net, loss, samples, output=tmp_path / "a", resume=True, **FEW)
    with pytest.raises(InputError, match="already holds"):
        search_module(make_net(), loss, samples, output=tmp_path / "a", **FEW)


def test_a_number_that_is_not_finite_ends_the_search(make_net, loss, samples):
    def poisoned(net, batch):
        value = loss(net, batch)
        return value * float("inf") if calls.append(0) or len(calls) > 10 else value

    calls = []
    with pytest.raises(NonFinite, match="not finite"):
        search_module(make_net(), poisoned, samples, **FEW)
    assert len(calls) < 15


# --- kinds of data ---


def in_pairs(net, batch):
    x, label = batch
    return nn.functional.cross_entropy(net(x)["logits"], label)


def as_list(samples):
    return [(x, int(y)) for x, y in zip(samples["x"], samples["label"])]


KINDS = {
    "a tuple of tensors": lambda s: (s["x"], s["label"]),
    "a tuple of arrays": lambda s: (s["x"].numpy(), s["label"].numpy()),
    "a TensorDataset": lambda s: TensorDataset(s["x"], s["label"]),
    "a list of samples": as_list,
    "a DataLoader": lambda s: DataLoader(TensorDataset(s["x"], s["label"]), batch_size=16, drop_last=True),
    "a DataLoader with a collate_fn": lambda s: DataLoader(
        as_list(s),
        batch_size=16,
        collate_fn=lambda rows: (torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])),
    ),
    "a weighted sampler": lambda s: DataLoader(
        TensorDataset(s["x"], s["label"]), batch_size=16, sampler=WeightedRandomSampler([1.0] * 90, 90)
    ),
    "batches of the user": lambda s: DataLoader(
        TensorDataset(s["x"], s["label"]), batch_sampler=[list(range(i, i + 10)) for i in range(0, 90, 10)]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_data(make_net, samples, kind):
    data = KINDS[kind](samples)
    a, b = (search_module(make_net(), in_pairs, data, steps=4) for _ in range(2))
    assert_same(state_of(a.network()), state_of(b.network()))
    others = (samples["x"] + 0.1, samples["label"])
    with_validation = search_module(make_net(), in_pairs, data, others, steps=4)
    parts = with_validation.setup.data
    assert len(parts.lower.numbers) == 90 and len(parts.upper.numbers) + len(parts.held_out.numbers) == 90
    assert not set(parts.upper.numbers) & set(parts.held_out.numbers)


def test_the_parts_of_the_training_data_are_disjoint(make_net, loss, samples):
    data = search_module(make_net(), loss, samples, **FEW).setup.data
    parts = [set(stream.numbers) for stream in (data.lower, data.upper, data.held_out)]
    assert sum(map(len, parts)) == 90 == len(set.union(*parts))
    assert [len(part) for part in parts] == [40, 41, 9] or [len(part) for part in parts] == [41, 40, 9]


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_layers(layer):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = Choice({"small": layer(3, 4, batch_first=True), "other": layer(3, 4, batch_first=True)})
            self.head = nn.LazyLinear(2)

        def forward(self, x):
            return {"logits": self.head(self.rnn(x)[0][:, -1])}

    x = torch.randn(30, 5, 3)
    found = search_module(Tagger(), in_pairs, (x, (x.sum((1, 2)) > 0).long()), steps=3, batch_size=4)
    moved = found.network().rnn.weight_ih_l0 - found.network(fresh=True).rnn.weight_ih_l0
    assert moved.abs().max() > 0


def test_widths_and_depths_are_searched():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.width = Choice(Width([nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)], [2, 8]))
            self.depth = Choice(Depth([nn.Linear(4, 4) for _ in range(3)], [1, 3]))

        def forward(self, x):
            return {"logits": self.depth(self.width(x))[:, :2]}

    x = torch.randn(40, 4)
    found = search_module(Mixer(), in_pairs, (x, (x[:, 0] > 0).long()), steps=4, batch_size=8)
    plain = found.network()
    assert len(plain.depth) == int(found.choices["depth"])
    assert plain.width[0].out_features == int(found.choices["width"])


# --- wrong uses ---


class Around(nn.Module):
    """A linear layer, a part, and a linear layer."""

    def __init__(self, part, called=True):
        super().__init__()
        self.first, self.part, self.last, self.called = nn.Linear(4, 6), part, nn.Linear(6, 2), called

    def forward(self, x):
        x = self.first(x)
        return {"logits": self.last(self.part(x) if self.called else x)}


class Hidden(nn.Module):
    def __init__(self, choice):
        super().__init__()
        self.first, self.parts = nn.Linear(4, 2), [choice]
        self.other = Choice({"a": nn.ReLU(), "b": nn.Tanh()})

    def forward(self, x):
        return {"logits": self.parts[0](self.other(self.first(x)))}


class Integers(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        return torch.full((2,), self.n)


def acts(**more):
    return Choice({"relu": nn.ReLU(), **more}, name="mine")


def around(**more):
    return lambda: Around(acts(**more))


class Stream(IterableDataset):
    def __iter__(self):
        yield 1


X, Y = torch.randn(30, 4), torch.randint(0, 2, (30,))
PAIR = (X, Y)
NET = around(tanh=nn.Tanh())
# name -> (module, loss, data, keywords, what the sentence names)
WRONG = {
    "another shape": (
        around(wide=nn.Linear(6, 7)),
        in_pairs,
        PAIR,
        {},
        ["'wide'", "'mine'", r"\(14, 7\)", r"\(14, 6\)"],
    ),
    "a tuple": (around(pair=nn.LSTM(6, 6)), in_pairs, PAIR, {}, ["'pair'", "'mine'", "tuple"]),
    "an option that fails": (around(bad=nn.Linear(5, 6)), in_pairs, PAIR, {}, ["'bad'", "'mine'"]),
    "in place": (
        lambda: Around(Choice({"relu": nn.ReLU(inplace=True), "b": nn.Tanh()}, name="mine")),
        in_pairs,
        PAIR,
        {},
        ["'relu'", "'mine'", "in place"],
    ),
    "never called": (lambda: Around(acts(b=nn.Tanh()), called=False), in_pairs, PAIR, {}, ["'mine'", "never called"]),
    "not registered": (lambda: Hidden(acts(b=nn.Tanh())), in_pairs, PAIR, {}, ["'mine'", "submodule"]),
    "different integers": (
        lambda: Around(Choice({"a": Integers(1), "b": Integers(2)}, name="mine")),
        in_pairs,
        PAIR,
        {},
        ["'mine'", "integers"],
    ),
    "no choice": (lambda: Around(nn.ReLU()), in_pairs, PAIR, {}, ["no Choice"]),
    "a class": (lambda: Around, in_pairs, PAIR, {}, ["nn.Module"]),
    "two names": (
        lambda: nn.Sequential(acts(b=nn.Tanh()), acts(c=nn.Tanh())),
        in_pairs,
        PAIR,
        {},
        ["'mine'", "different options"],
    ),
    "no loss": (NET, None, PAIR, {}, ["loss", "function"]),
    "a loss of tensors": (NET, lambda net, b: net(b[0])["logits"], PAIR, {}, ["scalar", "mean"]),
    "a loss of a number": (NET, lambda net, b: 1.0, PAIR, {}, ["not a tensor"]),
    "a loss of integers": (NET, lambda net, b: torch.tensor(1), PAIR, {}, ["gradient"]),
    "a loss without the module": (
        NET,
        lambda net, b: net(b[0])["logits"].mean().detach(),
        PAIR,
        {},
        ["depend on the module"],
    ),
    "a loss that is NaN": (NET, lambda net, b: net(b[0])["logits"].mean() * float("nan"), PAIR, {}, ["nan"]),
    "a loss that fails": (NET, lambda net, b: net(b["image"]), PAIR, {}, ["loss fails", r"\(14, 4\)"]),
    "a loss of one argument": (NET, lambda net: net, PAIR, {}, ["loss fails", "module, batch"]),
    "a metric of tensors": (
        NET,
        in_pairs,
        PAIR,
        {"metric": lambda net, b: net(b[0])["logits"]},
        ["metric"],
    ),
    "no data": (NET, in_pairs, (X[:0], Y[:0]), {}, ["train", "empty"]),
    "an empty list": (NET, in_pairs, [], {}, ["train", "empty"]),
    "two samples": (NET, in_pairs, (X[:2], Y[:2]), {}, ["2 train samples"]),
    "rows that differ": (NET, in_pairs, (X, Y[:7]), {}, ["7 and 30"]),
    "one validation sample": (NET, in_pairs, PAIR, {"validation": (X[:1], Y[:1])}, ["validation"]),
    "an iterable": (NET, in_pairs, Stream(), {}, ["IterableDataset"]),
    "an iterable in a loader": (NET, in_pairs, DataLoader(Stream(), batch_size=2), {}, ["IterableDataset"]),
    "a loader without batches": (
        NET,
        in_pairs,
        DataLoader(TensorDataset(X, Y), batch_size=None),
        {},
        ["no batches"],
    ),
    "a number": (NET, in_pairs, 7, {}, ["train", "Dataset"]),
    "a path": (NET, in_pairs, "data", {}, ["train", "Dataset"]),
    "samples of several sizes": (
        NET,
        in_pairs,
        [(torch.zeros(n % 3 + 1), 0) for n in range(30)],
        {},
        ["collate_fn"],
    ),
    "no steps": (NET, in_pairs, PAIR, {"steps": 0}, ["steps"]),
    "steps that are no number": (NET, in_pairs, PAIR, {"steps": 2.5}, ["steps"]),
    "a batch size of 0": (NET, in_pairs, PAIR, {"batch_size": 0}, ["batch_size"]),
    "an unknown method": (NET, in_pairs, PAIR, {"method": "moro"}, ["Did you mean 'moreau'"]),
    "a method for cells": (NET, in_pairs, PAIR, {"method": "rsws"}, ["search space"]),
    "partial channels": (NET, in_pairs, PAIR, {"method": "moreau+pc"}, ["channels of cells"]),
    "published constants": (NET, in_pairs, PAIR, {"method": "moreau-paper"}, ["constants"]),
    "an unknown argument": (NET, in_pairs, PAIR, {"serach": {}}, ["serach"]),
    "an unknown key": (NET, in_pairs, PAIR, {"search": {"weights": {"rate": 1}}}, ["search.weights.rate"]),
    "an unknown device": (NET, in_pairs, PAIR, {"device": "tpu9"}, ["tpu9"]),
    "resume without a folder": (NET, in_pairs, PAIR, {"resume": True}, ["output="]),
    "float16": (NET, in_pairs, PAIR, {"performance": {"precision": "float16"}}, ["float16"]),
    "nothing to train": (
        lambda: Around(acts(b=nn.Tanh())).requires_grad_(False),
        in_pairs,
        PAIR,
        {},
        ["parameters", "depend"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_uses_end_in_one_sentence(name, tmp_path):
    make, function, data, keywords, named = WRONG[name]
    keywords = {"steps": 2, **keywords}
    with pytest.raises(InputError) as caught:
        search_module(make(), function, data, **keywords)
    for text in named:
        assert caught.match(text)
    assert caught.value.cure and caught.value.cause.count(". ") == 0


@pytest.mark.parametrize("steps", [3, 11, 15, 40])
def test_learning_rates_reach_their_ends_whatever_the_number_of_steps(make_net, loss, samples, steps):
    settings = dict(steps=steps, batch_size=4, search={"weights": {"lr": 0.1, "lr_min": 0.0}}, device="cpu")
    rates = []
    search_module(
        make_net(), loss, samples, hooks=[Hook(on_epoch=lambda job, row: rates.append(row["weights_lr"]))], **settings
    )
    last = len(rates) - 1
    assert rates[0] == 0.1 and rates[last] == pytest.approx(0.05 * (1 + math.cos(math.pi * last / (last + 1))))

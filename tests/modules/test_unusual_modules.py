"""Modules as people write them: Choices in plain lists, masks of -inf, assigned buffers, outputs of own types."""

import copy
import math
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nas_moreau import Choice, InputError, search_module


def act(name=None):
    return Choice({"tanh": nn.Tanh(), "relu": nn.ReLU()}, name)


def squared(net, batch):
    return (net(batch[0]) - batch[1]).square().mean()


@pytest.fixture
def rows():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :1].tanh()


def around(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, 1))


class Listed(nn.Module):
    """Its forward goes by plain containers and a bound method, beside the registered modules."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.again, self.last = nn.Linear(4, 6), act(), act(), nn.Linear(6, 1)
        self.order = [self.first, ("act", self.act), {"own": self.order_itself}]
        self.order.append(self.order)
        self.bound = self.again.forward

    def order_itself(self):
        return self.order

    def forward(self, x):
        return self.last(self.bound(self.order[1][1](self.order[0](x))))


def test_a_found_network_has_no_choice_in_plain_containers_either(rows):
    found = search_module(Listed(), squared, rows, steps=2, device="cpu")
    functions = {"tanh": torch.tanh, "relu": torch.relu}
    for option in functions:
        network = found.network(choices={"act": option})
        expected = network.last(functions[found.choices["again"]](functions[option](network.first(rows[0]))))
        torch.testing.assert_close(network(rows[0]), expected, rtol=0, atol=0)
        assert not isinstance(network.order[1][1], Choice)
        torch.testing.assert_close(copy.deepcopy(network)(rows[0]), expected, rtol=0, atol=0)


class Masked(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, 6), act, nn.Linear(6, 1)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        hidden = self.act(self.first(x + self.mask.softmax(-1).sum()))
        if self.training:
            self.mean.lerp_(hidden.detach().mean(0), 0.1)
        return self.last(hidden - self.mean)


def test_a_mask_of_infinities_is_no_fault_and_stays(rows):
    found = search_module(Masked(act()), squared, rows, steps=3, device="cpu")
    assert torch.equal(found.network().mask, torch.full((4, 4), -torch.inf).triu(1))
    assert found.network().mean.abs().sum() > 0


class Assigning(nn.Module):
    """Assigns a new tensor to its buffer at every call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return x - self.mean


def test_options_that_assign_their_buffers_are_compared_with_random_ones(rows):
    net = around(Choice({"centred": Assigning(), "tanh": nn.Tanh()}))
    found = search_module(net, squared, rows, steps=3, device="cpu")
    others = {"centred": {"1": "centred"}}
    rows = found.compare_random(1, steps=2, seeds=1, others=others).rows
    assert all(row.loss < torch.inf for row in rows)


class Own:
    def __init__(self, value):
        self.value = value


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return Own(self.inner(x))


class Unwrapping(nn.Module):
    def forward(self, given):
        return given.value


def test_outputs_without_a_weighted_sum_are_refused(rows):
    net = around(Choice({"tanh": Wrapped(nn.Tanh()), "relu": Wrapped(nn.ReLU())}), Unwrapping(), act())
    with pytest.raises(InputError, match=r"'relu'.*Own"):
        search_module(net, squared, rows, steps=2, device="cpu")


class WithGraph(nn.Module):
    """Hands an object on that it was given."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, pair):
        return self.inner(pair[0]), pair[1]


class Paired(nn.Module):
    def __init__(self):
        super().__init__()
        self.graph, self.last = Own(None), nn.Linear(4, 1)
        self.act = Choice({"tanh": WithGraph(nn.Tanh()), "relu": WithGraph(nn.ReLU())})

    def forward(self, x):
        return self.last(self.act((x, self.graph))[0])


def test_an_object_that_all_options_hand_on_is_accepted(rows):
    assert search_module(Paired(), squared, rows, steps=2, device="cpu").choices


def test_the_place_of_a_choice_is_not_the_name_of_another(rows):
    net = nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 6), act(name="1"), nn.Linear(6, 1))
    with pytest.raises(InputError, match="'1'"):
        search_module(net, squared, rows, steps=2, device="cpu")


class Decaying(nn.Module):
    """A loss that holds a layer of the module."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, net, batch):
        return squared(net, batch) + self.layer.weight.square().sum()


def test_a_loss_that_holds_parameters_of_the_module_is_refused(rows):
    net = around(act())
    with pytest.raises(InputError, match=r"'0\.weight'"):
        search_module(net, Decaying(net[0]), rows, steps=2, device="cpu")


def test_a_held_out_sample_that_is_nan_does_not_lose_the_search(rows, tmp_path):
    validation = tuple(tensor[:2].clone() + 0.1 for tensor in rows)
    validation[1][:] = torch.nan
    keywords = dict(steps=3, device="cpu", output=tmp_path / "run", method="lower-only")
    net = around(act())
    first = search_module(net, squared, rows, validation, **keywords)
    again = search_module(net, squared, rows, validation, resume=True, **keywords)
    assert first.choices == again.choices and math.isnan(again.result.held_out["loss"])


class Leaving(nn.Module):
    """Keeps a hidden layer with its graph in a plain attribute, as heads of auxiliary losses do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last, self.hidden = nn.Linear(4, 6), act(), nn.Linear(6, 1), []

    def forward(self, x):
        hidden = self.act(self.first(x))
        if self.training:
            self.hidden = [{"hidden": hidden}]
        return self.last(hidden)


def test_tensors_of_a_graph_in_plain_attributes_do_not_end_a_search(rows):
    net = Leaving()
    net(rows[0])
    found = search_module(net, squared, rows, steps=2, device="cpu", max_parameters=100)
    network = found.network()
    assert network(rows[0]).shape == (60, 1) and found.costs()["parameters"] == 37
    assert found.compare_random(1, steps=1, seeds=1).rows


WRONG_METRICS = {
    "fails": lambda net, batch: batch["nothing"],
    "a text": lambda net, batch: "good",
    "many numbers": lambda net, batch: net(batch[0]),
}


@pytest.mark.parametrize("kind", WRONG_METRICS)
def test_a_wrong_metric_is_refused_before_the_search(kind, rows, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(InputError, match="metric"):
        search_module(around(act()), squared, rows, steps=50, metric=WRONG_METRICS[kind], output=output)
    assert not output.exists()


def test_names_are_texts_that_files_can_hold(rows, tmp_path):
    names = ["a\nb", "=cmd|' /C calc'!A1", "<script>", 'ä,"ö"', "..", "x" * 300]
    net = around(Choice({name: nn.Tanh() for name in names}, name="=1,\n<b>"))
    keywords = dict(steps=2, device="cpu", output=tmp_path / "run")
    first, again = (search_module(net, squared, rows, resume=resume, **keywords) for resume in (False, True))
    assert (first.choices, first.weights) == (again.choices, again.weights)
    for wrong in ("\udcff", " ", "", 3):
        with pytest.raises(InputError, match="named"):
            Choice({wrong: nn.Tanh(), "relu": nn.ReLU()})


def test_a_place_is_named_as_the_module_names_it(rows):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            inner = Choice({"a": nn.Sequential(nn.Linear(6, 6), act()), "b": nn.Tanh()})
            self.candidates = nn.ModuleList([nn.Linear(4, 6), inner, nn.Linear(6, 1)])

        def forward(self, x):
            for part in self.candidates:
                x = part(x)
            return x

    choices = search_module(Holder(), squared, rows, steps=2, device="cpu").choices
    assert list(choices) == ["candidates.1", "candidates.1.0.1"]


class Again(nn.Module):
    """Runs a part of itself again in the backward pass."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return checkpoint(self.part, x, use_reentrant=False)


class Beside(nn.Module):
    """Reads a parameter from a plain list."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.own = [self.layer.weight]

    def forward(self, x):
        return nn.functional.linear(x, self.own[0])


MISREADING = {
    "recomputed layers": lambda: around(Again(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))), act()),
    "a recomputed choice": lambda: around(Again(act())),
    "a list": lambda: around(Beside(), act()),
    "in an option": lambda: around(Choice({"list": Beside(), "tanh": nn.Tanh()})),
}


@pytest.mark.parametrize("kind", MISREADING)
def test_a_module_that_reads_other_weights_than_it_is_handed_is_refused(kind, rows):
    """Their gradients would be wrong without an error."""
    with pytest.raises(InputError, match="activation checkpointing"):
        search_module(MISREADING[kind](), squared, rows, steps=2, device="cpu")


def test_the_check_of_handed_weights_leaves_everything_as_it_was(rows):
    net = around(nn.BatchNorm1d(6), nn.Dropout(0.5), Choice({"linear": nn.Linear(6, 6), "tanh": nn.Tanh()}))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random, found = torch.get_rng_state(), search_module(net, squared, rows, steps=1, device="cpu", method="random")
    assert torch.equal(random, torch.get_rng_state())
    fresh = found.network(fresh=True, choices={"3": "linear"}).state_dict()
    own = found.setup.whole.module.state_dict()
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in before.items() if "alphas" not in name)
    assert torch.equal(fresh["0.weight"], before["0.weight"]) and not fresh["1.num_batches_tracked"]


def test_validation_data_that_the_loss_cannot_take_are_refused_at_once(rows):
    with pytest.raises(InputError, match="loss fails"):
        search_module(around(act()), squared, rows, (rows[0][:, :3], rows[1]), steps=2, device="cpu")


class Twice(nn.Module):
    """One block in two places of the module."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.first, self.blocks, self.act, self.last = (
            nn.Linear(4, 6),
            nn.ModuleList([block] * 2),
            act(),
            nn.Linear(6, 1),
        )

    def forward(self, x):
        for part in (self.first, *self.blocks, self.act, self.last):
            x = part(x)
        return x


def test_a_block_in_two_places_keeps_its_parameters(rows):
    found = search_module(Twice(), squared, rows, steps=3, device="cpu")
    for network in (found.network(), found.setup.whole.module):
        parts = [part for part in network.modules() if not isinstance(part, Choice)]
        assert all(isinstance(p, nn.Parameter) for part in parts for p in part.parameters(recurse=False))
    assert len({id(p) for p in found.network().parameters()}) == 8


def test_a_choice_with_hooks_is_refused(rows):
    """A found network has the option in its place, without them."""
    choice = act()
    choice.register_forward_hook(lambda module, given, output: 2 * output)
    with pytest.raises(InputError, match="hooks"):
        search_module(around(choice), squared, rows, steps=2, device="cpu")


class Named(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return defaultdict(list, {"x": self.inner(x)})


def test_outputs_may_be_dicts_with_defaults(rows):
    class Reading(nn.Module):
        def forward(self, found):
            return found["x"] + len(found["more"])

    net = around(Choice({"tanh": Named(nn.Tanh()), "relu": Named(nn.ReLU())}), Reading())
    assert search_module(net, squared, rows, steps=2, device="cpu").choices


def test_a_metric_that_is_nan_is_the_worst(rows):
    def metric(net, batch):
        return math.nan

    found = search_module(around(act()), squared, rows, steps=2, device="cpu", batch_size=8, metric=metric)
    assert math.isnan(found.result.held_out["metric"])
    comparison = found.compare_random(1, steps=1, seeds=1)
    assert comparison.mean("found") == -math.inf and comparison.p() is None

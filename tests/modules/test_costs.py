"""Costs of choices: exact counts, limits against all choices, penalties by hand, the table as a file."""

import itertools
import json

import pytest
import torch
from torch import nn

from nas_moreau import Choice, InputError, search_module
from nas_moreau.modules import Depth, Width
from nas_moreau.modules.check import Call
from nas_moreau.modules.cost_table import Costs, CostTable, OptionCost
from nas_moreau.modules.costs import count_macs
from nas_moreau.modules.limits import Limited

FEW = dict(steps=2, batch_size=4)


class Priced(nn.Module):
    """Choices of different costs, one within an option of another, one name in two places."""

    def __init__(self):
        super().__init__()
        inner = Choice({"narrow": nn.Conv1d(6, 6, 1), "wide": nn.Conv1d(6, 6, 5, padding=2)}, name="inner")
        block = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), inner)
        # a Choice that only the deepest of the depths holds
        last = Choice({"linear": nn.Linear(6, 6), "none": nn.Identity()}, name="last")
        self.first = nn.Conv1d(2, 6, 3)
        self.body = Choice({"block": block, "skip": nn.Identity()}, name="body")
        self.acts = nn.ModuleList(Choice({"relu": nn.ReLU(), "prelu": nn.PReLU(6)}, name="act") for _ in range(2))
        self.width = Choice(Width([nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)], [2, 8]), name="width")
        self.depth = Choice(Depth([*(nn.Linear(6, 6) for _ in range(2)), last], [1, 3]), name="depth")

    def forward(self, x):
        hidden = self.acts[1](self.body(self.acts[0](self.first(x))))
        return self.depth(self.width(hidden.mean(-1)))


def squares(net, batch):
    return (net(batch) ** 2).mean()


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    return search_module(Priced(), squares, torch.randn(40, 2, 20), **FEW)


def every(found):
    known = found.setup.places.options
    for picks in itertools.product(*known.values()):
        yield dict(zip(known, picks))


def test_counts_are_those_of_the_network(found):
    call = type(found.setup.checked.call)((torch.zeros(1, 2, 20),), {})
    for choices in every(found):
        network, costs = found.network(choices=choices), found.costs(choices)
        assert costs["parameters"] == sum(p.numel() for p in network.parameters()), choices
        assert costs["macs"] == count_macs(network, call), choices
        assert costs["ms"] > 0
    # by hand: first 2*6*3 + 6, block 6*6*3 + 6, wide 6*6*5 + 6, two PReLU of 6, width and depth
    largest = found.costs(
        {"body": "block", "inner": "wide", "act": "prelu", "width": "8", "depth": "3", "last": "linear"}
    )
    assert largest["parameters"] == 42 + 114 + 186 + 12 + (56 + 54) + 3 * 42
    assert largest["macs"] == 36 * 18 + 108 * 18 + 180 * 18 + 2 * 48 + 3 * 36


def table_of(found, **ms):
    """The table with latencies by hand."""
    table, places = found.cost_table, found.setup.places
    options = {
        path: [OptionCost(c.parameters, c.macs, ms[places.paths[path]][k]) for k, c in enumerate(costs)]
        for path, costs in table.options.items()
    }
    return CostTable(OptionCost(table.base.parameters, table.base.macs, 1.0), options, "by hand")


MS = dict(body=(3.0, 0.0), inner=(1.0, 2.0), act=(0.1, 0.4), width=(0.5, 2.0), depth=(1.0, 3.0), last=(0.5, 0.0))


def test_latencies_add_up_and_an_inner_choice_counts_only_where_it_is(found):
    costs = Costs(table_of(found, **MS), found.setup.places)

    def ms(**choices):
        return costs.of(found.picks(choices))["ms"]

    small = ms(body="block", inner="wide", act="relu", width="2", depth="1", last="linear")
    assert small == pytest.approx(1 + 3 + 2 + 2 * 0.1 + 0.5 + 1)
    large = ms(body="skip", inner="wide", act="prelu", width="8", depth="3", last="linear")
    assert large == pytest.approx(1 + 2 * 0.4 + 2 + 3 + 0.5)


def test_the_expected_cost_is_the_mean_over_all_choices(found):
    costs, names = Costs(table_of(found, **MS), found.setup.places), found.setup.places.options
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: torch.softmax(torch.randn(len(o), generator=draw, dtype=torch.float64), -1) for name, o in names.items()
    }
    mean = 0.0
    for choices in every(found):
        picks = found.picks(choices)
        share = torch.stack([weights[name][k] for name, k in picks.items()]).prod()
        mean += share * (costs.of(picks)["ms"] - 1.0)
    largest = 3 + 2 + 2 * 0.4 + 2 + 3 + 0.5
    torch.testing.assert_close(costs.expected(weights, "ms"), mean / largest)


@pytest.mark.parametrize("limits", [{"ms": 6.0}, {"parameters": 300}, {"macs": 5000, "ms": 7.0}, {"ms": 100.0}])
def test_limited_choices_are_the_best_of_all(found, limits):
    limited, setup = Limited(Costs(table_of(found, **MS), found.setup.places), limits), found.setup
    x = [torch.randn(1, len(o), generator=torch.Generator().manual_seed(3)) for o in setup.places.options.values()]
    table = setup.alpha_table(x)

    def score(choices):
        return sum(torch.log(torch.tensor(table.cells[n][0].weights[o])).item() for n, o in choices.items())

    allowed = [choices for choices in every(found) if limited.keeps(found.picks(choices))]
    picked = limited.pick(table)
    assert limited.keeps(picked)
    best = {name: setup.places.options[name][k] for name, k in picked.items()}
    assert score(best) == pytest.approx(max(map(score, allowed)))


def test_a_search_keeps_its_limit_and_its_random_choices_too(tmp_path):
    keep, data = dict(max_parameters=330, max_macs=5000, **FEW), torch.randn(40, 2, 20)
    for method in ("moreau+beta", "random"):
        found = search_module(Priced(), squares, data, method=method, output=tmp_path / method, **keep)
        assert sum(p.numel() for p in found.network().parameters()) <= 330
        assert found.result.costs["parameters"] <= 330 and found.result.limits == {"parameters": 330, "macs": 5000}
    rows = found.compare_random(4, steps=1, seeds=1).rows
    assert all(found.costs(row.choices)["macs"] <= 5000 for row in rows)
    assert "expected_ms" in (tmp_path / "moreau+beta" / "metrics.csv").read_text()
    assert "Chosen within limits" in (tmp_path / "moreau+beta" / "report.html").read_text()


def test_a_penalty_is_added_to_the_upper_loss_alone(found):
    table = table_of(found, **MS)
    plain, charged = (
        search_module(Priced(), squares, torch.randn(40, 2, 20), costs=table, penalty=p, **FEW).setup
        for p in (None, {"ms": 0.5, "macs": 0.25})
    )
    charged.posed.y[:] = plain.posed.y
    batch, x, y = plain.batches(0), plain.posed.x, plain.posed.y
    costs = Costs(table, plain.places)
    weights = {name: torch.softmax(rows, -1)[0] for name, rows in zip(plain.places.by_name, x)}
    expected = 0.5 * costs.expected(weights, "ms") + 0.25 * costs.expected(weights, "macs")
    difference = charged.posed.problem.F(x, y, batch[0])[0] - plain.posed.problem.F(x, y, batch[0])[0]
    torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-6)
    assert charged.posed.problem.f(x, y, batch[1])[0] == plain.posed.problem.f(x, y, batch[1])[0]


@pytest.mark.parametrize("penalty", [{"ms": 50.0}, lambda weights: 50 * weights["width"][1]])
def test_a_large_penalty_finds_the_cheap_option(found, penalty):
    cheap = search_module(
        Priced(), squares, torch.randn(40, 2, 20), costs=table_of(found, **MS), penalty=penalty, steps=30, batch_size=4
    )
    assert cheap.choices["width"] == "2"


def test_the_table_is_a_file_that_a_resumed_run_reads_again(tmp_path, found):
    path = tmp_path / "costs.json"
    found.cost_table.save(path)
    assert CostTable.load(path) == found.cost_table
    output = tmp_path / "run"
    data = torch.randn(40, 2, 20)
    first = search_module(Priced(), squares, data, penalty={"ms": 0.1}, output=output, **FEW)
    assert json.loads((output / "costs.json").read_text()) == first.cost_table.to_dict()
    again = search_module(Priced(), squares, data, penalty={"ms": 0.1}, output=output, resume=True, **FEW)
    assert again.cost_table == first.cost_table


WRONG = {
    "a limit that nothing keeps": ({"max_parameters": 10}, "the least is about"),
    "a limit of 0": ({"max_ms": 0}, "positive"),
    "a limit that is a text": ({"max_macs": "many"}, "positive"),
    "an unknown cost": ({"penalty": {"msec": 1.0}}, "Did you mean 'ms'"),
    "a negative penalty": ({"penalty": {"ms": -1.0}}, "at least 0"),
    "a penalty that is a number": ({"penalty": 3.0}, "function"),
    "a penalty that returns a number": ({"penalty": lambda weights: 1.0}, "scalar"),
    "a table that is not there": ({"costs": "nowhere.json"}, "Measure again"),
    "a table of another module": ({"costs": CostTable(OptionCost(0, 0, 0.0), {}, "")}, "other Choices"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_costs_end_in_one_sentence(name):
    keywords, cure = WRONG[name]
    with pytest.raises(InputError, match=cure):
        search_module(Priced(), squares, torch.randn(40, 2, 20), **keywords, **FEW)


class Shared(nn.Module):
    """A layer that is also an option, one layer in two places of a decision, and a loss that calls the module twice."""

    def __init__(self):
        super().__init__()
        self.layer, both = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again = Choice({"layer": self.layer, "same": nn.Identity()})
        self.twice = nn.ModuleList(Choice({"both": both, "same": nn.Identity()}, name="twice") for _ in range(2))
        self.kinds = nn.ModuleDict(
            {
                "outer": Choice({"none": nn.Identity(), "act": Choice({"relu": nn.ReLU(), "prelu": nn.PReLU(6)})}),
                "wide": Choice(Width([nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)], [2, 8])),
            }
        )

    def forward(self, x):
        for part in (self.layer, self.again, *self.twice, *self.kinds.values()):
            x = part(x)
        return x


def apart(net, batch):
    return (net(batch) - net(batch + 0.1) + net(batch - 0.1)).square().mean()


def test_shared_parameters_and_a_loss_with_several_calls_are_counted_as_in_one_call_of_the_module():
    found = search_module(Shared(), apart, torch.randn(40, 6), device="cpu", **FEW)
    call = type(found.setup.checked.call)((torch.zeros(1, 6),), {})
    for choices in every(found):
        network, costs = found.network(choices=choices), found.costs(choices)
        assert costs["parameters"] == sum(p.numel() for p in network.parameters()), choices
        assert costs["macs"] == count_macs(network, call) and costs["ms"] > 0, choices


@pytest.mark.parametrize("kind", ["ms", "macs", "parameters"])
def test_the_weighing_of_a_front_goes_from_the_cheapest_to_the_dearest_module(kind, found):
    costs = Costs(table_of(found, **MS), found.setup.places)
    all_costs = [costs.of(found.picks(choices))[kind] - getattr(costs.table.base, kind) for choices in every(found)]
    assert costs.extremes(kind) == pytest.approx((min(all_costs), max(all_costs)))
    relative, names = costs.between(kind), found.setup.places.options
    for extreme, expected in ((min, 0.0), (max, 1.0)):
        picks = found.picks(extreme(every(found), key=lambda choices: costs.of(found.picks(choices))[kind]))
        weights = {name: torch.eye(len(names[name]))[k] for name, k in picks.items()}
        assert float(relative(weights)) == pytest.approx(expected, abs=1e-6)


def act_of(**options):
    return nn.Sequential(nn.Linear(2, 3), Choice(options), nn.Linear(3, 1))


def test_a_measured_table_is_of_the_options_and_sizes_that_it_was_measured_on(tmp_path):
    data = torch.randn(30, 2)
    table = search_module(act_of(a=nn.Linear(3, 3), b=nn.ReLU()), squares, data, **FEW).cost_table
    table.save(tmp_path / "costs.json")
    others = act_of(b=nn.ReLU(), a=nn.Linear(3, 3)), act_of(a=nn.Linear(3, 3, bias=False), b=nn.ReLU())
    for other in others:
        with pytest.raises(InputError, match="Measure again"):
            search_module(other, squares, data, costs=tmp_path / "costs.json", max_ms=100, **FEW)


def test_a_resumed_search_keeps_its_costs(tmp_path):
    net, data = act_of(a=nn.Linear(3, 3), b=nn.ReLU()), torch.randn(30, 2)
    keywords = dict(penalty={"parameters": 0.1}, output=tmp_path / "run", **FEW)
    table = search_module(net, squares, data, **keywords).cost_table
    assert search_module(net, squares, data, costs=table, resume=True, **keywords).choices
    dearer = CostTable(table.base, {p: [OptionCost(9, 9, 9.0) for _ in c] for p, c in table.options.items()}, "by hand")
    with pytest.raises(InputError, match="Leave costs out"):
        search_module(net, squares, data, costs=dearer, resume=True, **keywords)


X = torch.zeros(1, 10, 8)
COUNTS = {
    "linear": (nn.Linear(8, 3), (X,), 10 * 24),
    "lstm": (nn.LSTM(8, 16, 2, bidirectional=True, batch_first=True), (X,), 10 * 4 * 16 * 2 * ((8 + 16) + (32 + 16))),
    "gru": (nn.GRU(8, 16, batch_first=True), (X,), 10 * 3 * 16 * 24),
    "attention": (nn.functional.scaled_dot_product_attention, (X[None], X[None], X[None]), 2 * 10 * 10 * 8),
    "encoder": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (X,), 4 * 10 * 64 + 2 * 800 + 2 * 10 * 128),
    "bilinear": (nn.Bilinear(4, 5, 6), (torch.zeros(3, 4), torch.zeros(3, 5)), 3 * 6 * 20),
    "vectors": (lambda x: torch.dot(x, x) + torch.mv(torch.zeros(3, 8), x).sum(), (X[0, 0],), 8 + 24),
}


@pytest.mark.parametrize("name", COUNTS)
def test_multiply_adds_by_hand(name):
    class Calling(nn.Module):
        def forward(self, *given):
            return function(*given)

    function, given, expected = COUNTS[name]
    module = function if isinstance(function, nn.Module) else Calling()
    assert count_macs(module.eval(), Call(given, {})) == expected


DAMAGED = {
    "a text": lambda data: data["base"].update(ms="fast"),
    "a number that is none": lambda data: data["base"].update(ms=float("nan")),
    "a negative number": lambda data: data["base"].update(parameters=-3),
    "nothing": lambda data: data["base"].update(macs=None),
    "no names": lambda data: data.pop("names"),
    "an option without a number": lambda data: next(iter(data["options"].values()))[0].pop("ms"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_table_is_refused(kind, found, tmp_path):
    path, data = tmp_path / "costs.json", json.loads(json.dumps(found.cost_table.to_dict()))
    DAMAGED[kind](data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="Measure again"):
        CostTable.load(path)

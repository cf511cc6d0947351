"""A front of quality against cost: its geometry against closed forms, and a whole run, interrupted and resumed."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau import Choice, search_module
from nas_moreau.errors import InputError
from nas_moreau.modules import Front, pareto
from nas_moreau.modules.front import Point
from nas_moreau.modules.front_page import render_front
from nas_moreau.training.loop import Hook
from nas_moreau.training.signals import NonFinite


def front_of(pairs, kind="front", more=()):
    points = [Point(kind, i, {"a": str(i)}, cost, loss) for i, (cost, loss) in enumerate(pairs)]
    return Front("macs", (*points, *more), 1, 1, {})


def test_what_nothing_beats_the_knee_and_the_hypervolume():
    front = front_of([(1, 4), (2, 2), (4, 1), (3, 3), (5, 1), (2, math.inf)])
    assert [(point.cost, point.loss) for point in front.best()] == [(1, 4), (2, 2), (4, 1)]
    assert (front.knee.cost, front.knee.loss) == (2, 2)
    # box 1..5.4 by 1..4.3; dominated: 4.4 x .3 + 3.4 x 2 + 1.4 x 1
    assert front.hypervolume() == pytest.approx(9.52 / 14.52)
    other = front_of([(1, 4), (2, 2)], more=[Point("random", 0, {}, 0.0, 0.0)])
    assert other.hypervolume("random") == pytest.approx(1)
    assert 0 < other.hypervolume() < 0.5
    assert front_of([(1, 4), (2, 2)]).knee.cost == 2  # two points alone have no knee
    assert front_of([(3, 3), (3, 3)]).hypervolume() == 0 and front_of([(3, 3)]).knee.cost == 3
    with pytest.raises(ValueError):
        front_of([(1, math.nan)]).knee  # noqa: B018


def test_a_metric_takes_the_place_of_the_loss():
    points = (Point("front", 0, {}, 1.0, 0.1, metric=0.5), Point("front", 1, {}, 2.0, 0.2, metric=0.9))
    assert [point.number for point in Front("ms", points, 1, 1, {}).best()] == [0, 1]


class Net(nn.Module):
    """A hidden layer that is linear and cheap, or wide and dear; the data need the wide one."""

    def __init__(self):
        super().__init__()
        wide = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        self.body = Choice({"linear": nn.Linear(2, 2), "wide": wide}, name="body")
        self.tail = Choice({"same": nn.Identity(), "linear": nn.Linear(2, 2)}, name="tail")

    def forward(self, x):
        return self.tail(self.body(x))


def loss(net, batch):
    return f.cross_entropy(net(batch[0]), batch[1])


@pytest.fixture
def given():
    torch.manual_seed(0)
    x = torch.randn(200, 2)
    return Net(), loss, (x, (x[:, 0] * x[:, 1] > 0).long())


SETTINGS = {
    "points": 2,
    "cost": "parameters",
    "method": "moreau",
    "search": {"alphas": {"lr": 0.1}, "weights": {"lr": 0.1}},
}


@pytest.mark.slow
def test_weighing_the_cost_more_finds_cheaper_choices(given):
    front = pareto(*given, steps=100, compare=True, **SETTINGS)
    cheap, dear = sorted(front.of("front"), key=lambda point: -point.share)
    assert cheap.cost < dear.cost and dear.choices["body"] == "wide" and dear.loss < cheap.loss
    assert len(front.of("random")) == len(front.of("single")) == 2
    assert front.steps == 100 and front.start_steps == 100
    assert 0 <= front.hypervolume("single") <= 1 and str(front)


@pytest.mark.slow
def test_a_front_that_was_cut_ends_as_one_that_was_not(given, tmp_path, monkeypatch):
    keywords = {**SETTINGS, "checkpoint": {"every_steps": 2}, "steps": 5}
    whole = pareto(*given, output=tmp_path / "whole", **keywords)
    from nas_moreau.modules import front_search as procedure

    real, runs = procedure.module_run, []

    def cut(*args, **more):
        runs.append(1)
        hook = Hook(on_step=lambda job, info: 1 / (3 - job.counters.step))
        return real(*args, **more, hooks=[hook] if len(runs) == 2 else [])

    monkeypatch.setattr(procedure, "module_run", cut)
    with pytest.raises(ZeroDivisionError):
        pareto(*given, output=tmp_path / "cut", **keywords)
    again = pareto(*given, output=tmp_path / "cut", resume=True, **keywords)
    assert [point for point in again.points] == [point for point in whole.points]
    found, page = json.loads((tmp_path / "cut/front.json").read_text()), (tmp_path / "cut/front.html").read_text()
    assert len(found["points"]) == 2 and "<svg" in page
    alphas = [(tmp_path / name / "front-1/alphas.csv").read_bytes() for name in ("whole", "cut")]
    assert alphas[0] == alphas[1]


@pytest.mark.parametrize(
    "wrong",
    [{"points": 1}, {"cost": "euros"}, {"start": 0}, {"method": "random"}, {"method": "gdas"}, {"resume": True}],
)
def test_what_cannot_be_used_is_refused(wrong, given):
    with pytest.raises(InputError):
        pareto(*given, steps=2, **wrong)


def test_a_loss_that_is_not_positive_is_refused(given):
    net, _, data = given
    with pytest.raises(InputError, match="positive"):
        pareto(net, lambda net, batch: loss(net, batch) - 100, data, steps=2, **SETTINGS)


def test_trainings_that_diverge_are_refused_or_left_out(given):
    with pytest.raises((InputError, NonFinite)):
        pareto(*given, steps=3, **{**SETTINGS, "search": {"weights": {"lr": 1e30}}})
    some = front_of([(1, 4), (2, math.inf)])
    assert [point["loss"] for point in some.to_dict()["points"]] == [4, None] and "<svg" in render_front(some, "a")


@pytest.mark.parametrize("steps", [0, -5, 2.5, "10", True])
def test_wrong_steps_are_refused_before_anything_is_written(steps, given, tmp_path):
    with pytest.raises(InputError, match="steps"):
        pareto(*given, steps=steps, output=tmp_path / "front")
    assert not (tmp_path / "front").exists()


@pytest.mark.parametrize(
    "options", [(nn.Tanh(), nn.ReLU()), (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
)
def test_options_of_one_cost_are_refused(options, given):
    net = nn.Sequential(nn.Linear(2, 2), Choice(dict(zip("ab", options))))
    with pytest.raises(InputError, match="same parameters"):
        pareto(net, *given[1:], steps=2, cost="parameters")


def accuracy(net, batch):
    return (net(batch[0]).argmax(-1) == batch[1]).float().mean()


def test_a_front_is_continued_as_it_was_begun(given, tmp_path):
    keywords = {**SETTINGS, "steps": 2, "output": tmp_path / "front"}
    pareto(*given, **keywords)
    for changed in ({"metric": accuracy}, {"steps": 3}, {"cost": "macs"}, {"seed": 1}):
        with pytest.raises(InputError):
            pareto(*given, **{**keywords, **changed}, resume=True)
    with pytest.raises(InputError, match="not empty"):
        pareto(*given, **keywords)
    (tmp_path / "front/trained.json").write_text("{")
    with pytest.raises(InputError, match=r"trained\.json"):
        pareto(*given, **keywords, resume=True)


class Exploding(nn.Module):
    """NaN from its twentieth training step on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.layer(x) * torch.where(self.calls < 20, 1.0, math.nan)


def test_a_module_that_diverges_in_its_training_is_the_worst_and_ends_nothing(given):
    net = nn.Sequential(Choice({"boom": Exploding(), "linear": nn.Linear(2, 2)}, name="body"))
    found = search_module(net, loss, given[2], steps=1)
    others = {name: {"body": name} for name in ("boom", "linear")}
    comparison = found.compare_random(2, steps=25, seeds=2, others=others)
    assert comparison.mean("boom") == -math.inf < comparison.mean("linear") < 0
    assert 0 < comparison.p("boom") <= 1 and "not finite" in str(comparison)
    json.dumps(comparison.to_dict(), allow_nan=False)

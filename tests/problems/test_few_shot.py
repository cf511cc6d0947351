"""Tasks keep classes apart, gradients are right, heads are adapted to the minimum, a backbone is learned."""

import dataclasses
import math

import pytest
import torch

from nas_moreau.bilevel import adam, distance_over_gradients, moreau
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.bilevel.tensors import grad_y, norm, value_and_grads
from nas_moreau.data import Data, Images
from nas_moreau.errors import InputError
from nas_moreau.problems.few_shot import (
    adapt,
    backbone,
    episode_accuracies,
    features,
    few_shot_problem,
    heads,
    interval,
    loss_of,
    pools,
)
from nas_moreau.problems.step_sizes import tuned_step_sizes


def drawings(names, each=8, size=8):
    """Classes of random pictures, each with `each` noisy copies; the data's test part has a quarter of them."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randint(0, 2, (len(names), 1, size, size), generator=generator) * 150
    noise = torch.randint(0, 100, (len(names), each, 1, size, size), generator=generator)
    pixels = (plain[:, None] + noise).to(torch.uint8)
    labels = torch.arange(len(names))[:, None].expand(-1, each)
    cut = each - each // 4

    def part(a, b):
        return Images(pixels[:, a:b].flatten(0, 1).contiguous(), labels[:, a:b].flatten().contiguous())

    return Data("drawings", tuple(names), part(0, cut), part(cut, each), (0.5,), (0.3,))


LETTERS = [f"{alphabet}/{i}" for alphabet in ("Greek", "Latin", "Korean", "Sanskrit") for i in range(5)]


def test_no_alphabet_is_on_both_sides_and_no_image_is_lost():
    data = drawings(LETTERS)
    for seed in range(5):
        train, test = pools(data, seed, least=3)
        names = [{LETTERS[i].split("/")[0] for i in pool.classes} for pool in (train, test)]
        assert not names[0] & names[1] and len(names[0] | names[1]) == 4
        assert sorted([*train.classes, *test.classes]) == list(range(20)) and len(test.classes) >= 6
        # both parts of the data are used: 8 drawings a class
        assert all(len(found) == 8 for pool in (train, test) for found in pool.members)
    assert len({pools(data, seed)[1].classes for seed in range(8)}) > 1


def test_other_images_are_divided_by_class():
    train, test = pools(drawings(list("abcdefghij")), 0)
    assert len(train.classes) == 7 and len(test.classes) == 3 and not set(train.classes) & set(test.classes)


def test_episodes_are_seeded_and_support_and_query_are_apart():
    data = drawings(LETTERS)
    train, test = pools(data, 0)
    drawn, again, other = (train.draw(3, 4, 2, 3, 0, "training", k) for k in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again)) and not torch.equal(drawn.support, other.support)
    assert drawn.support.shape == (3, 8, 1, 8, 8) and drawn.query.shape == (3, 12, 1, 8, 8)
    assert drawn.support_labels[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    support, query = drawn.support.flatten(2), drawn.query.flatten(2)
    assert not (support[:, :, None] == query[:, None]).all(-1).any()
    seen = {tuple(image.flatten().tolist()) for pool in (train,) for image in pool.draw(9, 4, 2, 3, 0, "t", 0).query[0]}
    held = {tuple(image.flatten().tolist()) for image in test.draw(9, 4, 2, 3, 0, "t", 0).query[0]}
    assert not seen & held


def test_gradients_against_differences():
    data = drawings(LETTERS)
    batch = pools(data, 0)[0].draw(2, 3, 1, 2, 0, "training", 0)
    batch = batch._replace(support=batch.support.double(), query=batch.query.double())
    x, generator = backbone(1, 0, hidden=4, dtype=torch.float64), torch.Generator().manual_seed(0)
    y = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in heads(2, 3, 4, x[0])]
    u = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in [*x, *y]]
    problem, n, h = few_shot_problem(), len(x), 1e-7
    for objective in (problem.F, problem.f):
        found = value_and_grads(objective, x, y, batch)
        slope = sum(float((a * b).sum()) for a, b in zip([*found.grad_x, *found.grad_y], u))
        ahead, behind = ([t + s * h * d for t, d in zip([*x, *y], u)] for s in (1, -1))
        difference = (objective(ahead[:n], ahead[n:], batch) - objective(behind[:n], behind[n:], batch)) / (2 * h)
        assert slope == pytest.approx(float(difference), rel=1e-5)


def test_features_are_those_of_the_formula():
    x = [t + 0.1 for t in backbone(1, 0, hidden=4, dtype=torch.float64)]
    images = torch.rand(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for task, found in zip(images, features(x, images)):
        maps = task
        for kernel, scale, shift in zip(x[::3], x[1::3], x[2::3]):
            maps = torch.nn.functional.conv2d(maps, kernel, stride=2, padding=1)
            variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0, keepdim=True)
            maps = (maps - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]
            maps = maps.clamp(min=0)
        assert torch.allclose(found, maps.mean((2, 3)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("automatic", [False, True])
def test_one_pass_for_all_three_losses_changes_nothing(automatic):
    batch = pools(drawings(LETTERS), 0)[0].draw(2, 3, 1, 2, 0, "training", 0)
    batch = batch._replace(support=batch.support.double(), query=batch.query.double())
    shared = few_shot_problem()
    rule = distance_over_gradients() if automatic else adam()
    method = moreau(order="lagged", update_x=rule) if automatic else moreau(3e-3, 0.2, 0.2, 1.0, 2.0, 0.25, "lagged")
    ends = []
    for problem in (shared, dataclasses.replace(shared, at_x=None)):
        x = backbone(1, 0, hidden=4, dtype=torch.float64)
        y = heads(2, 3, 4, x[0])
        state = method.init(problem, x, y, batch, batch)
        for _ in range(4):
            x, y, state, info = method.step(problem, x, y, state, batch, batch)
        ends.append([*x, *y, *state.theta, info.F, info.f, info.f_theta, info.norms["d_x"], info.norms["d_theta"]])
    assert ends[0][0].dtype == torch.float64 and len(ends[0]) == len(ends[1])
    for a, b in zip(*ends):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_a_task_does_not_feel_the_others():
    images = torch.rand(3, 6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = backbone(1, 0, hidden=4)
    assert torch.allclose(features(x, images)[1], features(x, images[1:2])[0], atol=1e-5)


def test_adaptation_reaches_the_minimum():
    generator = torch.Generator().manual_seed(0)
    found = torch.rand(2, 6, 5, generator=generator, dtype=torch.float64)
    labels = (torch.arange(6) % 3).expand(2, -1)
    y = adapt(found, labels, 3, ridge=0.1, steps=3000)
    lower = lambda x, y, batch: loss_of(found, y, labels) + 0.05 * y[0].square().sum()  # noqa: E731
    assert float(norm(grad_y(lower, [], y))) < 1e-6


def test_interval_by_hand():
    # values 0 and 1: mean 1/2, sample standard deviation sqrt(1/2), standard error 1/2
    assert interval(torch.tensor([0.0, 1.0], dtype=torch.float64)) == pytest.approx((0.5, 1.96 * 0.5))
    assert interval(torch.full((5,), 0.25))[1] == 0
    assert interval(torch.ones(1))[0] == 1 and math.isnan(interval(torch.ones(1))[1])  # one says nothing on the spread


@pytest.mark.parametrize("name", ["moreau", "bome", "rhg", "v-pbgd"])
def test_steps_lower_the_loss_on_queries(name):
    train, _ = pools(drawings(LETTERS), 0)
    batch, info = train.draw(2, 3, 1, 3, 0, "training", 0), METHODS[name]
    method = info.build(tuned_step_sizes("few-shot", 40, info))
    problem, x = few_shot_problem(), backbone(1, 0, hidden=8)
    y = heads(2, 3, 8, x[0])
    state = method.init(problem, x, y, batch, batch)
    for _ in range(40):
        x, y, state, info = method.step(problem, x, y, state, batch, batch)
    assert float(info.F) < 0.5 * 2 * math.log(3)  # chance is log 3 for each of the two tasks
    assert episode_accuracies(x, batch).mean() > 0.8


def test_refusals():
    with pytest.raises(InputError, match="at least 2"):
        pools(drawings(list("abc")), 0, least=2)
    train, _ = pools(drawings(LETTERS), 0)
    with pytest.raises(InputError, match="9 images"):
        train.draw(1, 3, 4, 5, 0, "training", 0)

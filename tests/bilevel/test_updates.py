"""Update rules against torch.optim, step by step."""

import pytest
import torch

from nas_moreau.bilevel import (
    adam,
    adamw,
    chain,
    clip,
    distance_over_gradients,
    gradient_descent,
    momentum,
    per_tensor,
    rescale,
    sgd,
    weight_decay,
)


def trajectory(rule, gradients, start, step):
    params, state = start, rule.init(start)
    for direction in gradients:
        params, state = rule.apply(direction, step, params, state)
    return params


@pytest.mark.parametrize(
    ("rule", "optimizer", "clip"),
    [
        (gradient_descent(), lambda p: torch.optim.SGD(p, 0.1), None),
        (sgd(0.9, 3e-2), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=3e-2), None),
        (sgd(0.9, 0.01, True), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01, nesterov=True), None),
        (
            chain(clip(0.7), weight_decay(0.1), momentum(0.5)),
            lambda p: torch.optim.SGD(p, 0.1, 0.5, weight_decay=0.1),
            0.7,
        ),
        (adam((0.5, 0.99), 1e-6, 1e-2), lambda p: torch.optim.Adam(p, 0.1, (0.5, 0.99), 1e-6, 1e-2), None),
        (adamw((0.5, 0.99), 1e-6, 0.3), lambda p: torch.optim.AdamW(p, 0.1, (0.5, 0.99), 1e-6, 0.3), None),
        (chain(clip(0.7), adam((0.5, 0.99))), lambda p: torch.optim.Adam(p, 0.1, (0.5, 0.99)), 0.7),
    ],
    ids=["descent", "momentum", "nesterov", "clip", "adam", "adamw", "adam after clipping"],
)
def test_rules_equal_the_optimizers(rule, optimizer, clip):
    generator = torch.Generator().manual_seed(3)
    shapes = [(2, 3), (4,), ()]

    def draw():
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    start, gradients = draw(), [draw() for _ in range(6)]
    kept = [t.clone() for t in start]
    found = trajectory(rule, gradients, start, 0.1)
    params = [torch.nn.Parameter(t.clone()) for t in start]
    stepper = optimizer(params)
    for direction in gradients:
        for p, d in zip(params, direction):
            p.grad = d.clone()
        if clip:
            torch.nn.utils.clip_grad_norm_(params, clip)
        stepper.step()
    for mine, theirs, first, old in zip(found, params, start, kept):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-12, atol=1e-14)
        assert first.equal(old)


def test_distance_over_gradients_by_hand():
    """One tensor of two entries, r_0 = .5, gradients (3, 4), then (3, 0): x_1 = -.5 (1, 1), whose rms distance is .5,
    so r stays; then each entry moves by .5 g / sqrt(sum of g^2) = .5 * 3/sqrt(18) and 0.
    """
    rule = distance_over_gradients(0.5, 0.0)
    start = [torch.zeros(2, dtype=torch.float64)]
    gradients = [[torch.tensor([3.0, 4.0], dtype=torch.float64)], [torch.tensor([3.0, 0.0], dtype=torch.float64)]]
    found = trajectory(rule, gradients, start, 1.0)[0]
    assert found.tolist() == pytest.approx([-0.5 - 0.5 / 2**0.5, -0.5]) and rule.finds_length
    assert start[0].tolist() == [0, 0]
    # with momentum 1/2: m_1 = g_1/2, over 1 - 1/2; m_2 = (1.5, 2)/2 + (1.5, 0) over 3/4
    found = trajectory(distance_over_gradients(0.5, 0.5), gradients, start, 1.0)[0]
    assert found.tolist() == pytest.approx([-0.5 - 0.5 * 3 / 18**0.5, -0.5 - 0.5 * (1 / 0.75) / 4])


@pytest.mark.parametrize("distance", [1e-2, 1.0, 1e3])
def test_distance_over_gradients_finds_the_scale(distance):
    """|x - d| from 0 in 300 steps, for d over five decades, with the same rule."""
    rule = distance_over_gradients()
    target = torch.tensor([distance, -2 * distance], dtype=torch.float64)
    params = [torch.zeros(2, dtype=torch.float64)]
    state = rule.init(params)
    for _ in range(300):
        params, state = rule.apply([params[0] - target], 1.0, params, state)
    assert float((params[0] - target).norm()) < 0.05 * distance


def test_a_chain_gives_the_bits_of_sgd_and_shows_its_parts_by_name():
    generator = torch.Generator().manual_seed(0)
    start, gradients = [torch.randn(3, generator=generator)], [[torch.randn(3, generator=generator)] for _ in range(4)]
    rules = sgd(0.9, 3e-4, clip=0.5), chain(clip(0.5), weight_decay(3e-4), momentum(0.9))
    ends = [trajectory(rule, gradients, start, 0.1)[0] for rule in rules]
    assert torch.equal(*ends)
    rule = rules[1]
    state = rule.apply(gradients[0], 0.1, start, rule.init(start))[1]
    assert rule.part("momentum", state).factor == 0.9 and rule.part("clip", state).factor == 0.5
    length = gradients[0][0].norm()
    expected = gradients[0][0] * min(1, 0.5 / (length + 1e-6)) + 3e-4 * start[0]
    torch.testing.assert_close(rule.part("momentum", state).state[0], expected)
    assert rule.part("nesterov", state) is None and gradient_descent().part("momentum", ()) is None


def test_the_rule_that_takes_the_step_stands_last():
    assert chain(clip(1.0), distance_over_gradients()).finds_length
    for parts in [(adam(), clip(1.0)), (adam(), adam())]:
        with pytest.raises(ValueError, match="last"):
            chain(*parts)


def test_every_tensor_has_its_rule():
    params = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    rule = per_tensor(adam(), chain(rescale(0.1), momentum(0.5)))
    directions = [[torch.tensor([0.5, -1.0]), torch.tensor([2.0])] for _ in range(3)]
    found = trajectory(rule, directions, params, 0.1)
    alone = trajectory(adam(), [d[:1] for d in directions], params[:1], 0.1)
    assert torch.equal(found[0], alone[0])
    # directions .2, .3, .35
    torch.testing.assert_close(found[1], torch.tensor([3 - 0.1 * 0.85]))
    assert rule.rescales and not rule.finds_length
    with pytest.raises(ValueError, match="rules"):
        rule.init(params[:1])
    with pytest.raises(ValueError, match="length"):
        per_tensor(adam(), distance_over_gradients())
    with pytest.raises(ValueError, match="positive"):
        rescale(0.0)

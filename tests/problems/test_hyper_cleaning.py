"""Corruption is exact, the score is that of the definition, gradients are right, wrong labels are found."""

import pytest
import torch

from nas_moreau.bilevel.methods import METHODS
from nas_moreau.bilevel.tensors import value_and_grads
from nas_moreau.data import Data, Images
from nas_moreau.errors import InputError
from nas_moreau.problems.hyper_cleaning import corrupt_labels, f1_score, hyper_cleaning, two_layers
from nas_moreau.problems.step_sizes import tuned_step_sizes


def blobs(train=240, test=60, seed=0, classes=4):
    """Images of 4x4 pixels, one bright quarter for each of four classes, with noise."""
    generator = torch.Generator().manual_seed(seed)

    def part(count):
        labels = torch.arange(count) % classes
        pixels = torch.randint(0, 60, (count, 1, 4, 4), generator=generator)
        for i, label in enumerate(labels.tolist()):
            row, column = 2 * (label // 2), 2 * (label % 2)
            pixels[i, 0, row : row + 2, column : column + 2] += 120
        return Images(pixels.to(torch.uint8), labels)

    return Data("blobs", tuple("abcd"[:classes]), part(train), part(test), (0.25,), (0.25,))


def test_corruption_is_exact_and_seeded():
    labels = torch.arange(1000) % 10
    changed, where = corrupt_labels(labels, 10, 0.3, seed=1)
    assert int(where.sum()) == 300 and bool(((changed != labels) == where).all())
    assert int(changed.min()) >= 0 and int(changed.max()) <= 9
    # every other class is as likely: the shift (1 to 9) of 300 labels is spread over all nine
    assert len(torch.unique((changed - labels)[where] % 10)) == 9
    again, _ = corrupt_labels(labels, 10, 0.3, seed=1)
    other, _ = corrupt_labels(labels, 10, 0.3, seed=2)
    assert torch.equal(again, changed) and not torch.equal(other, changed)
    assert torch.equal(corrupt_labels(labels, 10, 0.0, 0)[0], labels)
    assert bool((corrupt_labels(labels, 10, 1.0, 0)[0] != labels).all())


def test_f1_by_hand():
    flagged = torch.tensor([True, True, True, False, False, False])
    corrupted = torch.tensor([True, True, False, True, True, False])
    # 2 hits of 3 flagged and 4 there: precision 2/3, recall 1/2, harmonic mean 4/7
    assert f1_score(flagged, corrupted) == pytest.approx((2 / 3, 1 / 2, 4 / 7))
    nothing = torch.zeros(6, dtype=torch.bool)
    assert f1_score(nothing, corrupted) == (0.0, 0.0, 0.0) == f1_score(nothing, nothing)


@pytest.mark.parametrize("corrupt", [0.5, 0.0])
def test_gradients_against_differences(corrupt):
    made = hyper_cleaning(blobs(40, 8), corrupt, sizes=(20, 20, 8), hidden=3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in made.x]
    y = [t + 0.1 * torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in made.y]
    assert len(x) == (1 if corrupt else 2) and len(y) == 4 * len(x)
    for objective in (made.problem.F, made.problem.f):
        found = value_and_grads(objective, x, y)
        u = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in [*x, *y]]
        slope = sum(float((a * b).sum()) for a, b in zip([*found.grad_x, *found.grad_y], u))
        h, n = 1e-6, len(x)
        ahead, behind = ([t + s * h * d for t, d in zip([*x, *y], u)] for s in (1, -1))
        difference = float(objective(ahead[:n], ahead[n:], None) - objective(behind[:n], behind[n:], None)) / (2 * h)
        assert slope == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_f_is_the_sum_that_it_says():
    made = hyper_cleaning(blobs(40, 8), 0.5, sizes=(10, 10, 8), hidden=3, ridge=0.1, dtype=torch.float64)
    x = [torch.linspace(-2, 2, 10, dtype=torch.float64)]
    fold, y = made.training[0], made.y
    total = sum(
        torch.sigmoid(x[0][i]) * -torch.log_softmax(two_layers(y, fold.images[i : i + 1]), 1)[0, fold.labels[i]]
        for i in range(10)
    )
    ridge = 0.05 * (y[0].square().sum() + y[2].square().sum())
    assert float(made.problem.f(x, y, None)) == pytest.approx(float(total / 10 + ridge))


def test_a_batch_is_the_first_samples_of_each_part():
    large = hyper_cleaning(blobs(40, 8), 0.5, sizes=(20, 20, 8), hidden=3, dtype=torch.float64)
    y = large.y
    assert float(large.problem.f(large.x, y, 20)) == float(large.problem.f(large.x, y, None))
    fold = large.training[0]
    losses = -torch.log_softmax(two_layers(y, fold.images[:7]), 1)[torch.arange(7), fold.labels[:7]]
    ridge = 1e-3 * (y[0].square().sum() + y[2].square().sum())
    assert float(large.problem.f(large.x, y, 7)) == pytest.approx(float(0.5 * losses.mean() + ridge))


def test_parts_are_disjoint_and_own_labels_are_all_judged():
    data = blobs(100, 20)
    made = hyper_cleaning(data, 0.5, sizes=(30, 30, 10))
    assert len(made.judged) == 30 == len(torch.unique(made.judged)) and len(made.test.labels) == 10
    own = hyper_cleaning(data, 0.0)
    assert sorted(own.judged.tolist()) == list(range(100)) and not own.corrupted.any()
    assert torch.equal(own.labels, data.train.labels[own.judged])
    # fewer images than asked for are divided in the same proportion
    assert len(hyper_cleaning(data, 0.5).judged) == 50


def method_of(name):
    return METHODS[name].build(tuned_step_sizes("hyper-cleaning", 80, METHODS[name]))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_finds_wrong_labels_of_a_separable_toy(name):
    made = hyper_cleaning(blobs(), 0.5, sizes=(120, 120, 60), hidden=8)
    method = method_of(name)
    x, y, state = made.x, made.y, method.init(made.problem, made.x, made.y)
    for _ in range(80):
        x, y, state, _ = method.step(made.problem, x, y, state)
    f1 = f1_score(made.weights(x) < 0.5, made.corrupted)[2]
    # F depends on x through y alone, so that neither first-order DARTS nor `joint` moves x
    if name in ("lower-only", "upper-only", "darts1", "joint"):
        assert f1 == 0 and all(torch.equal(a, b) for a, b in zip(x, made.x))
    else:
        assert f1 > {"bome": 0.8, "fixed-penalty": 0.7}.get(name, 0.9)
    if name not in ("lower-only", "darts1", "moreau-paper"):
        assert made.accuracy(y) > 0.9


def test_own_labels_a_few_of_them_wrong():
    data = blobs()
    wrong, where = corrupt_labels(data.train.labels, 4, 0.1, seed=3)
    data = Data(data.name, data.classes, Images(data.train.pixels, wrong), data.test, data.mean, data.std)
    made = hyper_cleaning(data, 0.0, hidden=8)
    method = method_of("moreau")
    x, y, state = made.x, made.y, method.init(made.problem, made.x, made.y)
    for _ in range(80):
        x, y, state, _ = method.step(made.problem, x, y, state)
    worst = torch.argsort(made.weights(x))[: int(where.sum())]
    assert float(where[made.judged[worst]].double().mean()) > 0.9 and made.accuracy(y) > 0.9


@pytest.mark.parametrize(("data", "corrupt", "words"), [(blobs(), 1.2, "rate"), (blobs(6, 4), 0.5, "too few")])
def test_refusals(data, corrupt, words):
    with pytest.raises(InputError, match=words):
        hyper_cleaning(data, corrupt, sizes=(5, 5, 5))

"""A Choice by itself: weighted sums of any structure, shared parts, and the plain module of a choice."""

import copy

import pytest
import torch
from torch import nn

from nas_moreau import Choice, InputError
from nas_moreau.modules import Depth, Width, zero
from nas_moreau.modules.choice import Mixture, WeightedSum, chosen_module, find_choices, mixed_by


class Scale(nn.Module):
    """Times a number; a second argument is added."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, added=0.0):
        return self.factor * x + added


class Structured(Scale):
    """Returns a tuple with a dict, a None and an integer."""

    def forward(self, x):
        return {"value": self.factor * x}, None, 7


def weighed(choice, *weights):
    places = find_choices(choice)
    return mixed_by(places, {name: Mixture(torch.tensor(weights)) for name in places.by_name})


def test_the_weighted_sum_by_hand():
    choice = Choice({"one": Scale(1.0), "ten": Scale(10.0)})
    choice.alphas.data = torch.tensor([0.0, torch.log(torch.tensor(3.0))])  # weights 1/4 and 3/4
    x = torch.tensor([4.0])
    assert choice(x).tolist() == pytest.approx([0.25 * 4 + 0.75 * 40])
    assert choice(x, added=1.0).tolist() == pytest.approx([32.0])  # keyword arguments go to all
    with weighed(choice, 1.0, 0.0):
        assert choice(x).tolist() == [4.0]


def test_outputs_may_be_nested():
    choice = Choice({"one": Structured(1.0), "three": Structured(3.0)})
    first, nothing, number = choice(torch.tensor(2.0))
    assert first["value"].item() == 4.0 and nothing is None and number == 7


def test_gradients_of_weights_and_options():
    """d/dw_k of sum_k w_k o_k is o_k, and d/dx is sum_k w_k factor_k."""
    choice, x = Choice({"a": Scale(2.0), "b": Scale(5.0)}), torch.tensor(3.0, requires_grad=True)
    weights = torch.tensor([0.25, 0.75], requires_grad=True)
    with mixed_by(find_choices(choice), {"choice": Mixture(weights)}):
        found = torch.autograd.grad(choice(x), [weights, x])
    assert found[0].tolist() == [6.0, 15.0] and found[1].item() == pytest.approx(4.25)


def test_only_active_options_are_computed():
    calls = []

    class Counted(Scale):
        def forward(self, x):
            calls.append(self.factor)
            return super().forward(x)

    choice = Choice({"a": Counted(1.0), "b": Counted(2.0)})
    with mixed_by(find_choices(choice), {"choice": Mixture(torch.tensor([0.0, 1.0]), (1,))}):
        assert choice(torch.tensor(1.0)).item() == 2.0
    assert calls == [2.0]


def test_zero_is_zeros_of_any_shape():
    choice = Choice({"zero": zero(), "same": nn.Identity()})
    x = torch.randn(2, 3)
    assert torch.equal(choice(x), 0.5 * x) and torch.equal(zero()(x), torch.zeros(2, 3))


@pytest.mark.parametrize("number, count", [(0, 0), (1, 1), (2, 3)])
def test_depth_is_the_first_blocks(number, count):
    blocks = [nn.Linear(4, 4) for _ in range(3)]
    choice, x = Choice(Depth(blocks, [0, 1, 3])), torch.randn(2, 4)
    outputs = [nn.Sequential(*blocks[:n])(x) for n in (0, 1, 3)]
    torch.testing.assert_close(choice(x), sum(outputs) / 3)
    torch.testing.assert_close(choice.plain(number)(x), outputs[number])
    assert len(choice.plain(number)) == count


CHAINS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 5)), (3, 5)),
    "sequence": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2, bias=False)), (3, 7, 5)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Conv2d(6, 4, 1),
        ),
        (2, 3, 5, 5),
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.Conv1d(6, 3, 1)), (2, 3, 8)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_width_is_the_chain_with_channels_cut_out(name):
    make, shape = CHAINS[name]
    chain, x = make(), torch.randn(shape)
    choice = Choice(Width(copy.deepcopy(chain), [2, 4, 6])).eval()
    for part in choice.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
    with mixed_by(find_choices(choice), {"choice": Mixture(torch.tensor([0.2, 0.3, 0.5]))}):
        mixed = choice(x)
    alone = [choice.plain(number).eval()(x) for number in range(3)]
    torch.testing.assert_close(mixed, 0.2 * alone[0] + 0.3 * alone[1] + 0.5 * alone[2])
    assert choice.plain(0)[0].weight.shape[0] == 2 and "masks" not in choice.state_dict()


def test_a_nested_choice_of_a_shared_name_becomes_plain():
    inner = [Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, name="act") for _ in range(2)]
    block = nn.Sequential(nn.Linear(3, 3), inner[0])
    net = nn.Sequential(Choice({"block": block, "skip": nn.Identity()}, name="body"), inner[1])
    places = find_choices(net)
    assert places.options == {"body": ("block", "skip"), "act": ("relu", "tanh")}
    plain = chosen_module(net, {"body": 0, "act": 1}, places)
    assert list(plain.state_dict()) == ["0.0.weight", "0.0.bias"]
    assert isinstance(plain[0][1], nn.Tanh) and isinstance(plain[1], nn.Tanh)
    assert not [part for part in plain.modules() if type(part).__module__.startswith("nas_moreau")]


def test_a_choice_that_stands_in_two_places_becomes_one_module():
    choice = Choice({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    plain = chosen_module(net := nn.ModuleDict({"x": choice, "y": choice}), {"x": 1}, find_choices(net))
    assert plain["x"] is plain["y"] and isinstance(plain["x"], nn.Linear)


def test_names_of_places_leave_out_how_a_choice_holds_its_options():
    net = nn.Sequential(Choice({"a": nn.Sequential(Choice({"c": nn.ReLU(), "d": nn.Tanh()})), "b": nn.Identity()}))
    assert list(find_choices(net).by_name) == ["0", "0.0.0"]


shared = nn.Linear(2, 2)
WRONG = {
    "one option": (lambda: Choice({"a": nn.ReLU()}), "at least two"),
    "no options": (lambda: Choice({}), "at least two"),
    "a list": (lambda: Choice([nn.ReLU(), nn.Tanh()]), "dict"),
    "a function": (lambda: Choice({"a": torch.relu, "b": nn.ReLU()}, name="act"), "Identity"),
    "a class": (lambda: Choice({"a": nn.ReLU, "b": nn.ReLU()}, name="act"), "Module"),
    "None": (lambda: Choice({"a": None, "b": nn.ReLU()}, name="act"), "Identity"),
    "a number as name of an option": (lambda: Choice({1: nn.ReLU(), "b": nn.ReLU()}), "text"),
    "an empty name": (lambda: Choice({"a": nn.ReLU(), "b": nn.Tanh()}, name=" "), "text"),
    "a number as name": (lambda: Choice({"a": nn.ReLU(), "b": nn.Tanh()}, name=3), "text"),
    "shared parameters": (lambda: Choice({"a": shared, "b": nn.Sequential(shared)}, name="act"), "Width or Depth"),
    "no depth": (lambda: Choice(Depth([nn.ReLU()], [1])), "two different"),
    "a depth beyond": (lambda: Choice(Depth([nn.ReLU()], [1, 2])), "0 to 1"),
    "a width beyond": (lambda: Choice(Width([nn.Linear(2, 4), nn.Linear(4, 2)], [2, 8])), "1 to 4"),
    "a width without the widest": (lambda: Choice(Width([nn.Linear(2, 4), nn.Linear(4, 2)], [1, 2])), "4 among"),
    "a chain of one": (lambda: Choice(Width([nn.Linear(2, 4)], [2, 4])), "another such layer"),
    "a chain that mixes": (
        lambda: Choice(Width([nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)], [2, 4])),
        "activations",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_uses_end_in_a_sentence(name):
    make, cure = WRONG[name]
    with pytest.raises(InputError, match=cure) as caught:
        make()
    if "name='act'" in name:
        assert "'act'" in caught.value.cause


def test_choices_of_one_name_have_the_same_options():
    net = nn.Sequential(
        Choice({"a": nn.ReLU(), "b": nn.Tanh()}, name="act"), Choice({"a": nn.ReLU(), "c": nn.Tanh()}, name="act")
    )
    with pytest.raises(InputError, match="'act'"):
        find_choices(net)
    with pytest.raises(InputError, match="no Choice"):
        find_choices(nn.ReLU())


def test_the_weighted_sum_has_first_and_second_derivatives():
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in ((3,), (2, 4), (2, 4), (2, 4))]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(WeightedSum.apply, tensors)
    assert torch.autograd.gradgradcheck(WeightedSum.apply, tensors)

"""Three search steps with the literal, the portable and the native supernet end at the same alphas."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as f

from nas_moreau.architecture import LiteralSupernet, Supernet, load_space
from nas_moreau.architecture.networks.literal import matching_state
from nas_moreau.bilevel import Bilevel, adam, moreau, sgd
from nas_moreau.kernels import cell as kernel

pytestmark = pytest.mark.skipif(not kernel.available(), reason="no native operators on this machine")


def search(net, names, start):
    alphas = [name for name in names if name.startswith("alphas.")]
    weights = [name for name in names if not name.startswith("alphas.")]
    buffers = dict(net.named_buffers())

    def loss(x, y, batch):
        tensors = {**dict(zip(alphas, x)), **dict(zip(weights, y)), **buffers}
        return f.cross_entropy(functional_call(net, tensors, (batch[0],)), batch[1])

    rules = {"update_x": adam((0.5, 0.999)), "update_y": sgd(0.9), "update_theta": sgd(0.9)}
    method = moreau(alpha=1e-2, beta=0.02, eta=0.02, gamma=1.0, c=0.2, order="lagged", **rules)
    problem = Bilevel(loss, loss)
    x, y = ([start[name].clone() for name in group] for group in (alphas, weights))
    state = method.init(problem, x, y)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        batches = [
            (
                torch.randn((4, 3, 8, 8), dtype=torch.float64, generator=generator),
                torch.randint(0, 5, (4,), generator=generator),
            )
            for _ in range(2)
        ]
        x, y, state, _ = method.step(problem, x, y, state, *batches)
    return x


@pytest.mark.slow
def test_three_steps_of_three_supernets_end_at_the_same_alphas():
    torch.manual_seed(0)
    space = load_space("darts")
    native = Supernet(space, 2, 3, num_classes=5, kernels="native").double()
    portable = Supernet(space, 2, 3, num_classes=5, kernels="portable").double()
    literal = LiteralSupernet(space, 2, 3, num_classes=5).double()
    literal.load_state_dict(matching_state(literal, native.state_dict()))
    start = {name: p.detach().clone() for name, p in native.named_parameters()}
    names = list(start)
    ends = [search(net, names, start) for net in (native, portable, literal)]
    first = [start[name] for name in names if name.startswith("alphas.")]
    moved = max((a - b).abs().max().item() for a, b in zip(ends[0], first))
    assert moved > 0.025
    for other in ends[1:]:
        for a, b in zip(ends[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-8)

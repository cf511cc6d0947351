"""A supernet so small and smooth that its hypergradient can be computed exactly, for `check-hypergradient`.

It is the supernet and the problem of a search except for three things, each of which would leave no exact answer:

    activations     SiLU instead of ReLU, and no max pool: no kinks
    BatchNorm       frozen at mean 0 and variance 1, the weights drawn so that signals keep their size. By the
                    statistics of the batch f would not change with the length of a convolution's weights, and a ridge
                    would have no minimiser
    ridge           lower level f + ridge/2 |y - y_0|^2: f_yy is positive definite near the minimiser. It pulls towards
                    the first weights, not to 0, where the net would be dead
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nas_moreau.architecture import Supernet
from nas_moreau.architecture.networks.operations import Operation
from nas_moreau.architecture.spaces.skeletons import DARTS
from nas_moreau.architecture.spaces.space import Derivation, SearchSpace
from nas_moreau.bilevel import Bilevel
from nas_moreau.search.supernet_problem import Batch, Mix, supernet_problem

SPACE = SearchSpace(
    name="tiny",
    skeleton=DARTS,
    nodes=1,
    operations=("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1"),
    edges=((0, 2), (1, 2)),
    concat=(2,),
    derivation=Derivation("top_edges", 2, ("none",)),
)
RIDGE = 0.5
IMAGES, CLASSES, SIDE, SIGNAL, ALPHA_SCALE = 12, 3, 8, 3.0, 0.5


class TinySupernet(NamedTuple):
    """A deterministic bilevel problem in float64, its start, and the two batches."""

    problem: Bilevel
    x: list[Tensor]
    y: list[Tensor]
    upper_batch: Batch
    lower_batch: Batch


def tiny_supernet(seed: int = 0, layers: int = 3, mix: Mix | None = None) -> TinySupernet:
    """Returns the problem: 16 alphas, 156 weights with three cells; images are class patterns with noise.

    Args:
        seed: Of weights, alphas and images.
        layers: Cells; one has no normal cell.
        mix: As for `supernet_problem`.
    """
    draw = torch.Generator(device="cpu").manual_seed(seed)
    net = Supernet(SPACE, 1, layers, CLASSES, in_channels=1, kernels="portable").double().eval()
    _smooth(net)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(_normal(draw, module.weight.shape) * (2 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    module.bias.zero_()
        for logits in net.alphas.values():
            logits.copy_(ALPHA_SCALE * _normal(draw, logits.shape))
    patterns = SIGNAL * _normal(draw, (CLASSES, 1, SIDE, SIDE))
    labels = torch.arange(IMAGES, device="cpu") % CLASSES
    upper, lower = (
        Batch(patterns[labels] + _normal(draw, (IMAGES, 1, SIDE, SIDE)), labels, progress=1.0) for _ in range(2)
    )
    made = supernet_problem(net, mix=mix)
    start = [t.clone() for t in made.y]

    def with_ridge(objective: Any) -> Any:
        def ridged(x: list[Tensor], y: list[Tensor], batch: Batch) -> tuple[Tensor, Any]:
            value, correct = objective(x, y, batch)
            return value + 0.5 * RIDGE * sum((t - s).square().sum() for t, s in zip(y, start)), correct

        return ridged

    problem = Bilevel(made.problem.F, with_ridge(made.problem.f), f_theta=with_ridge(made.problem.at_theta))
    return TinySupernet(problem, made.x, made.y, upper, lower)


def _normal(draw: torch.Generator, shape: Any) -> Tensor:
    return torch.randn(tuple(shape), generator=draw, dtype=torch.float64, device="cpu")


def _smooth(module: nn.Module) -> None:
    """Puts SiLU in the place of every ReLU."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.SiLU())
        else:
            _smooth(child)
    if isinstance(module, Operation) and module.prepare == "relu":
        module.prepare = "identity"
        module.body = nn.SiLU() if module.body is None else nn.Sequential(nn.SiLU(), module.body)
    if isinstance(module, nn.Conv2d):
        # the supernet computes equal operations together, ReLU and all, but not where somebody watches them
        module.register_forward_hook(lambda *_: None)

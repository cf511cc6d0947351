"""One search step of the published DARTS scripts on a plain supernet, as the benchmark's yardstick.

Liu et al., ICLR 2019, algorithm 1 and equations 7 and 8: full `backward()` passes, torch's optimizers, a copy of the
model for the unrolled weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau.architecture import LiteralSupernet, Supernet

RATE, MOMENTUM, WEIGHT_DECAY, CLIP = 0.025, 0.9, 3e-4, 5.0


def published_step(net: LiteralSupernet | Supernet, method: str, upper: Any, lower: Any) -> Callable[[], None]:
    """Returns a function that does one step of `darts1` or `darts2`.

    Args:
        net: Has `alphas` (a ParameterDict) and `weights()`.
        method: "darts1" (2 evaluations) or "darts2" (5).
        upper: Batch of the architecture step: `images` and `labels`.
        lower: Batch of the weight step.
    """
    alphas, weights = list(net.alphas.values()), net.weights()
    of_alphas = torch.optim.Adam(alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    of_weights = torch.optim.SGD(weights, lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def step() -> None:
        of_alphas.zero_grad()
        if method == "darts1":
            _loss(net, upper).backward()
        else:
            _unrolled_gradient(net, of_weights, upper, lower)
        of_alphas.step()
        of_weights.zero_grad()
        _loss(net, lower).backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        of_weights.step()

    return step


def _loss(net: LiteralSupernet | Supernet, batch: Any) -> torch.Tensor:
    return f.cross_entropy(net(batch.images), batch.labels)


def _unrolled_gradient(
    net: LiteralSupernet | Supernet, optimizer: torch.optim.Optimizer, upper: Any, lower: Any
) -> None:
    """Writes the second-order architecture gradient into the alphas' `.grad` (equations 7 and 8)."""
    alphas, weights = list(net.alphas.values()), net.weights()
    gradient = torch.autograd.grad(_loss(net, lower), weights, allow_unused=True, materialize_grads=True)
    unrolled = copy.deepcopy(net)
    with torch.no_grad():
        for ahead, w, g in zip(unrolled.weights(), weights, gradient):
            buffer = optimizer.state[w].get("momentum_buffer")
            momentum = 0 if buffer is None else MOMENTUM * buffer
            ahead.copy_(w - RATE * (momentum + g + WEIGHT_DECAY * w))
    _loss(unrolled, upper).backward()
    direction = [torch.zeros_like(w) if w.grad is None else w.grad for w in unrolled.weights()]
    radius = 0.01 / torch.cat([d.flatten() for d in direction]).norm()
    ends = []
    originals = [w.detach().clone() for w in weights]
    for sign in (1, -1):
        with torch.no_grad():
            for w, start, d in zip(weights, originals, direction):
                w.copy_(start + sign * radius * d)
        ends.append(torch.autograd.grad(_loss(net, lower), alphas, allow_unused=True, materialize_grads=True))
    with torch.no_grad():
        for w, start in zip(weights, originals):
            w.copy_(start)
        for alpha, ahead, plus, minus in zip(alphas, unrolled.alphas.values(), *ends):
            first = torch.zeros_like(alpha) if ahead.grad is None else ahead.grad
            alpha.grad = first - RATE * (plus - minus) / (2 * radius)

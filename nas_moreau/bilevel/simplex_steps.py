"""Update rules for weights on a simplex: mirror steps with the entropy, and projected steps.

A mirror step with the entropy is the exponentiated gradient (Kivinen and Warmuth, 1997; Beck and Teboulle, 2003), which
Li et al., ICLR 2021 ("GAEA") took for architecture weights: a+ ~ a exp(-step g). Where the weights are a softmax of
parameters, a = softmax(alpha), the gradient in alpha is d = a (g - <a, g>), so that d / a is g up to one number for
each simplex, which neither the softmax nor a projection onto the simplex sees. The step is then

    mirror        alpha+ = alpha - step d / a
    projected     a+ = P(a - step d / a), alpha+ = log a+       (step (11) of Liu et al., ICML 2024, as printed)

Below `SMALLEST` a weight's gradient cannot be read off d any more: a is taken as at least that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nas_moreau.bilevel.prox import project_simplex
from nas_moreau.bilevel.tensors import Tensors
from nas_moreau.bilevel.updates import Update

SMALLEST = 1e-6
"""Lower bound of the weights."""

Groups = Sequence[Sequence[Sequence[int]]]
"""For each tensor its simplices: the positions, in the flattened tensor, of the entries that one softmax takes."""


def exponentiated_gradient() -> Update:
    """Returns the mirror step on weights themselves: x ~ x exp(-step * direction), for every last axis.

    Example:
        >>> import torch
        >>> rule = exponentiated_gradient()
        >>> (x,), _ = rule.apply([torch.tensor([1.0, 0.0])], 1.0, [torch.tensor([0.5, 0.5])], rule.init([]))
        >>> [round(v, 4) for v in x.tolist()]  # exp(-1) : 1
        [0.2689, 0.7311]
    """

    def apply(direction: Tensors, step: float, params: Tensors, state: tuple[()]) -> tuple[Tensors, tuple[()]]:
        moved = [x.clamp(min=SMALLEST).log() - step * d for x, d in zip(params, direction)]
        return [torch.softmax(logits, -1) for logits in moved], state

    return Update(lambda params: (), apply)


def mirror(groups: Groups | None = None) -> Update:
    """Returns the mirror step on logits: params - step * direction / softmax(params).

    Args:
        groups: The entries that each softmax takes; by default every last axis. Entries outside stay as they are.
    """
    return _on_logits(lambda logits, weights, gradient, step: logits - step * gradient, groups)


def projected(groups: Groups | None = None) -> Update:
    """Returns the logits of the projected step P(a - step * direction / a), a = softmax(params).

    Args:
        groups: As for `mirror`.
    """
    project = project_simplex()

    def move(logits: Tensor, weights: Tensor, gradient: Tensor, step: float) -> Tensor:
        moved = (weights - step * gradient).masked_fill(logits.isneginf(), -torch.inf)
        return project([moved])[0].clamp(min=SMALLEST).log()

    return _on_logits(move, groups)


def mean_logits(several: Sequence[Tensors], groups: Groups | None = None) -> Tensors:
    """Returns the logits whose softmax weights are the mean of those of several logits.

    Args:
        several: Lists of tensors of the same shapes.
        groups: As for `mirror`. The means of entries outside are those of the logits.

    Example:
        >>> import torch
        >>> (mean,) = mean_logits([[torch.tensor([0.0, 0.0])], [torch.tensor([0.0, 100.0])]])
        >>> torch.softmax(mean, -1)
        tensor([0.2500, 0.7500])
    """
    found = []
    for i, tensors in enumerate(zip(*several)):
        first = tensors[0]
        flat = torch.stack([t.detach().flatten().to("cpu", torch.float64) for t in tensors])
        mean = flat.mean(0)
        for row in _rows(i, first, groups):
            weights = torch.softmax(flat[:, list(row)], -1).mean(0)
            mean[list(row)] = weights.clamp(min=torch.finfo(torch.float32).tiny).log()
        found.append(mean.view(first.shape).to(first.device, first.dtype))
    return found


def _rows(i: int, t: Tensor, groups: Groups | None) -> Sequence[Sequence[int]]:
    """Returns the positions of the entries of each softmax of the tensor i."""
    last = t.shape[-1]
    return groups[i] if groups is not None else [range(k, k + last) for k in range(0, t.numel(), last)]


def _on_logits(move: Callable[[Tensor, Tensor, Tensor, float], Tensor], groups: Groups | None) -> Update:
    """Returns the rule that moves logits by (logits, weights, gradient in the weights, step), one row a simplex.

    Simplices of different sizes are padded: logits of -inf, whose weight is 0. Nothing here waits for the device.
    """
    layouts: dict[tuple[int, torch.Size, torch.device], Tensor] = {}

    def layout(i: int, t: Tensor) -> Tensor:
        """Returns the positions (simplices, largest size); padding points behind the last entry."""
        key = i, t.shape, t.device
        if key not in layouts:
            rows = _rows(i, t, groups)
            widest = max(len(row) for row in rows)
            padded = [[*row, *[t.numel()] * (widest - len(row))] for row in rows]
            layouts[key] = torch.tensor(padded, device="cpu").to(t.device)
        return layouts[key]

    def moved(i: int, t: Tensor, d: Tensor, step: float) -> Tensor:
        positions = layout(i, t)
        flat = torch.cat([t.flatten(), t.new_full((1,), -torch.inf)])
        logits = flat[positions]
        weights = torch.softmax(logits, -1)
        gradient = torch.cat([d.flatten(), d.new_zeros(1)])[positions] / weights.clamp(min=SMALLEST)
        new = move(logits, weights, gradient, step)
        return flat.scatter(0, positions.flatten(), new.flatten())[:-1].view(t.shape)

    def apply(direction: Tensors, step: float, params: Tensors, state: tuple[()]) -> tuple[Tensors, tuple[()]]:
        return [moved(i, t, d, step) for i, (t, d) in enumerate(zip(params, direction))], state

    return Update(lambda params: (), apply)

"""Options that share parameters by design: widths of a layer, depths of a chain of blocks; and an option of zeros."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas_moreau.errors import InputError
from nas_moreau.modules.choice import Mixture, weighted_sum

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def zero() -> nn.Module:
    """Returns a module whose output is zeros of its input's shape: an option that removes a branch of a sum.

    It is one of torch's own modules, so that a found network needs nothing of this package.
    """
    return nn.Threshold(math.inf, 0.0)


class Depth(nn.Module):
    """The depths of a chain of blocks, as options of a Choice: the first n blocks, one after the other.

    All depths together cost what the deepest costs.

    Args:
        blocks: The chain; each block has one input and one output, of equal shapes.
        depths: Numbers of blocks, each an option; by default 1 to all. 0 leaves all out.

    Example:
        >>> from nas_moreau import Choice
        >>> Choice(Depth([nn.ReLU(), nn.Tanh(), nn.ReLU()], depths=[0, 1, 3])).names
        ('0', '1', '3')
    """

    def __init__(self, blocks: Sequence[nn.Module], depths: Sequence[int] | None = None):
        super().__init__()
        blocks = list(blocks)
        depths = list(range(1, len(blocks) + 1)) if depths is None else list(depths)
        if len(depths) < 2 or len(set(depths)) < len(depths) or not all(0 <= n <= len(blocks) for n in depths):
            raise InputError(
                f"The depths {depths} are not options for a chain of {len(blocks)} blocks.",
                f"Give at least two different numbers from 0 to {len(blocks)}.",
            )
        self.blocks, self.depths = nn.ModuleList(blocks), tuple(depths)
        self.names = tuple(map(str, depths))

    def outputs(self, active: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Returns the output of each depth in `active`."""
        (value,), wanted = args, [self.depths[number] for number in active]
        after = {0: value}
        for n, block in enumerate(self.blocks[: max(wanted)], 1):
            after[n] = value = block(value, **kwargs)
        return [after[n] for n in wanted]

    def mixed(self, mixture: Mixture, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the weighted sum of the outputs."""
        active = range(len(self.names)) if mixture.active is None else mixture.active
        weights = mixture.weights.unbind()
        return weighted_sum([weights[number] for number in active], self.outputs(active, args, kwargs))

    def plain(self, number: int) -> nn.Module:
        """Returns the first blocks of the chain."""
        return nn.Sequential(*self.blocks[: self.depths[number]])


class Width(nn.Module):
    """The widths of a hidden layer, as options of a Choice: masks over the channels of one wide layer.

    A wide chain is computed once, and its hidden channels are weighed by the sum of the masks of the widths. What is
    found is the chain with the other channels cut out of its weights.

    Args:
        chain: The layer that makes the channels (linear or convolution), then modules that treat each channel by
            itself (activations, batch norms, dropout, depthwise convolutions), then the layer that reads them.
        widths: Numbers of channels, each an option; the largest is that of the chain.

    Example:
        >>> from nas_moreau import Choice
        >>> chain = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        >>> Choice(Width(chain, [8, 16, 32])).plain(0)[0]
        Linear(in_features=8, out_features=8, bias=True)
    """

    masks: Tensor

    def __init__(self, chain: Sequence[nn.Module] | nn.Sequential, widths: Sequence[int]):
        super().__init__()
        first, *middle, last = list(chain) if len(list(chain)) > 1 else [nn.Identity(), nn.Identity()]
        full = _channels(first)
        if full is None or not isinstance(last, (nn.Linear, *_CONVOLUTIONS)) or getattr(last, "groups", 1) != 1:
            raise InputError(
                f"A Width cannot be made of {', '.join(type(part).__name__ for part in (first, *middle, last))}.",
                "Give a linear layer or ungrouped convolution, activations or norms, and another such layer.",
            )
        widths = list(widths)
        if len(widths) < 2 or len(set(widths)) < len(widths) or max(widths) != full or min(widths) < 1:
            raise InputError(
                f"The widths {widths} are not options for a layer of {full} channels.",
                f"Give at least two different numbers from 1 to {full}, {full} among them.",
            )
        for part in middle:
            _refuse_mixing(part, full)
        self.first, self.middle, self.last = first, nn.Sequential(*middle), last
        self.widths, self.names = tuple(widths), tuple(map(str, widths))
        masks = torch.zeros(len(widths), full, device="cpu")
        for row, width in enumerate(widths):
            masks[row, :width] = 1
        self.register_buffer("masks", masks, persistent=False)

    def _masked(self, mask: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        (value,) = args
        hidden = self.middle(self.first(value, **kwargs))
        axis = -1 if isinstance(self.last, nn.Linear) else -1 - len(self.last.kernel_size)
        shape = [1] * (-axis)
        shape[0] = len(mask)
        return self.last(hidden * mask.to(hidden.dtype).reshape(shape))

    def outputs(self, active: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Returns the output of each width in `active`."""
        return [self._masked(self.masks[number], args, kwargs) for number in active]

    def mixed(self, mixture: Mixture, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the output of the channels weighed by the sum of the masks, from one pass."""
        return self._masked(mixture.weights.to(self.masks.dtype) @ self.masks, args, kwargs)

    def plain(self, number: int) -> nn.Module:
        """Returns the chain of that width."""
        width = self.widths[number]
        full = self.masks.shape[1]
        parts = [_cut(self.first, width, outputs=True), *(_cut_middle(part, full, width) for part in self.middle)]
        return nn.Sequential(*parts, _cut(self.last, width, outputs=False))


def _channels(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, _CONVOLUTIONS) and layer.groups == 1 else None


def _refuse_mixing(part: nn.Module, full: int) -> None:
    """Raises InputError where a middle module has parameters that are not one for each channel."""
    depthwise = isinstance(part, _CONVOLUTIONS) and part.groups == part.in_channels == part.out_channels == full
    if not depthwise and not isinstance(part, _NORMS) and any(True for _ in part.parameters()):
        raise InputError(
            f"A {type(part).__name__} between the layers of a Width may mix channels, which cannot be cut out then.",
            "Use activations, batch norms, dropout or depthwise convolutions there.",
        )


def _cut(layer: nn.Module, width: int, *, outputs: bool) -> nn.Module:
    """Returns a copy of a linear layer or convolution with the first channels alone."""
    found: Any = copy.deepcopy(layer)
    axis = 0 if outputs else 1
    found.weight = _first(found.weight, width, axis)
    if outputs and found.bias is not None:
        found.bias = _first(found.bias, width, 0)
    kind = "features" if isinstance(layer, nn.Linear) else "channels"
    setattr(found, f"{'out' if outputs else 'in'}_{kind}", width)
    return found


def _cut_middle(part: nn.Module, full: int, width: int) -> nn.Module:
    found: Any = copy.deepcopy(part)
    if isinstance(part, _CONVOLUTIONS):
        found.in_channels = found.out_channels = found.groups = width
    elif isinstance(part, _NORMS):
        found.num_features = width
    for name, tensor in [*found.named_parameters(recurse=False)]:
        setattr(found, name, _first(tensor, width, 0))
    for name, buffer in [*found.named_buffers(recurse=False)]:
        if buffer.ndim and len(buffer) == full:
            found.register_buffer(name, buffer[:width].clone())
    return found


def _first(parameter: Tensor, width: int, axis: int) -> nn.Parameter:
    kept = parameter.detach().narrow(axis, 0, width).clone()
    return nn.Parameter(kept, requires_grad=parameter.requires_grad)

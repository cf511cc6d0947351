"""Parameters and multiply-adds, counted by one stated rule."""

from __future__ import annotations

import torch
from torch import nn


def parameter_count(module: nn.Module) -> int:
    """Returns the number of trainable scalars of `module`, an auxiliary head included if it has one."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def multiply_adds(module: nn.Module, input_size: tuple[int, int, int] = (3, 32, 32)) -> int:
    """Returns the multiply-adds of one image in evaluation mode: convolutions and linear layers, nothing else.

    A convolution counts kernel area * input channels a group * output elements, a linear layer its weights; norms,
    activations, pooling and biases count nothing, and neither does an auxiliary head (it does not run in evaluation).

    Args:
        module: Takes (1, *input_size); its mode and parameters are left as they were.
        input_size: (channels, height, width).
    """
    total = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += layer.weight[0].numel() * output.numel()
        elif isinstance(layer, nn.Linear):
            total += layer.weight.numel()

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    reference = next(module.parameters())
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            module(torch.zeros((1, *input_size), dtype=reference.dtype, device=reference.device))
    finally:
        for part, mode in modes:
            part.training = mode
        for hook in hooks:
            hook.remove()
    return total

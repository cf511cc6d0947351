"""The dominant eigenvalue of the Hessian of the loss in the alphas, whose rise often comes before a collapse."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as f

from nas_moreau.architecture import Supernet
from nas_moreau.architecture.networks.mixed_cell import MixedCell


def loss_of_alphas(supernet: Supernet, images: Tensor, labels: Tensor) -> Callable[[list[Tensor]], Tensor]:
    """Returns the cross-entropy as a function of the alphas, mixed by their softmax, with the supernet's own weights.

    By batch statistics; the running ones stay as they are. No beta term: it says nothing about the network.

    Args:
        supernet: In training mode.
        images: (n, channels, height, width).
        labels: (n,).
    """
    scratch = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    cells = [part for part in supernet.modules() if isinstance(part, MixedCell)]

    def loss(x: list[Tensor]) -> Tensor:
        torch.manual_seed(0)  # operations that draw (noise) draw the same every time
        alphas = {f"alphas.{name}": logits for name, logits in zip(supernet.alphas, x)}
        chosen = [cell.kernels for cell in cells]
        for cell in cells:
            cell.kernels = "portable"  # native kernels have no second derivatives
        try:
            return f.cross_entropy(functional_call(supernet, alphas | scratch, (images,)), labels)
        finally:
            for cell, kernels in zip(cells, chosen):
                cell.kernels = kernels

    return loss


def dominant_eigenvalue(loss: Callable[[list[Tensor]], Tensor], x: list[Tensor], iterations: int = 8) -> float:
    """Returns the eigenvalue of largest modulus of the Hessian of `loss` at x, by power iteration from a fixed start.

    Few iterations give its modulus from below. The loss is evaluated once; an iteration costs a second derivative.

    Args:
        loss: Twice differentiable function of tensors like x.
        x: Where.
        iterations: Of the power method.
    """
    x = [tensor.detach().requires_grad_() for tensor in x]
    gradient = torch.autograd.grad(loss(x), x, create_graph=True)
    if not any(part.requires_grad for part in gradient):
        return 0.0  # a linear function
    draw = torch.Generator(device="cpu").manual_seed(0)
    v = [torch.randn(t.shape, generator=draw, dtype=t.dtype, device="cpu").to(t.device) for t in x]
    value = 0.0
    for _ in range(iterations):
        norm = math.sqrt(sum((part.double() ** 2).sum().item() for part in v))
        if norm == 0:
            return 0.0
        v = [part / norm for part in v]
        product = torch.autograd.grad(gradient, x, v, retain_graph=True, materialize_grads=True)
        value = sum((part.double() * image.double()).sum().item() for part, image in zip(v, product))
        v = list(product)
    return value

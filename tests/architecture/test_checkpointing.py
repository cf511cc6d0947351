"""Cells computed twice and kept once: the same numbers, statistics that move once, less that is kept."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as f

from nas_moreau.architecture import Network, Supernet, load_space, published_cell
from nas_moreau.kernels.cell import available

KERNELS = ["portable", pytest.param("native", marks=pytest.mark.skipif(not available(), reason="no native operators"))]


def evaluation(net, tensors, images, labels):
    """Loss, gradients, buffers after, and the bytes kept for the backward pass."""
    inputs = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = f.cross_entropy(functional_call(net, {**inputs, **buffers}, (images,)), labels)
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return [loss, *grads, *(b.double() for b in buffers.values())], sum(kept.values())


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["darts", "nas_bench_201", "network"])
def test_checkpointed_cells_give_the_same_numbers_and_keep_less(kind, kernels):
    torch.manual_seed(0)
    if kind == "network":
        net = Network(published_cell("DARTS_V2"), 4, 3, num_classes=5, drop_path=0.3, kernels=kernels).double()
    else:
        net = Supernet(load_space(kind), 4, 2, num_classes=5, kernels=kernels).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((4, 3, 8, 8), dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 5, (4,), generator=generator)
    # tensors that are not the module's own: the second computation has to see these
    tensors = {name: p.detach() + 0.1 for name, p in net.named_parameters()}
    plain, kept = evaluation(net, tensors, images, labels)
    net.checkpointing = True
    again, kept_less = evaluation(net, tensors, images, labels)
    for a, b in zip(again, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert kept_less < 0.5 * kept

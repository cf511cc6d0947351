"""A timm model whose activations and kernels become choices, on the images that come with this package, or your own.

python docs/examples/timm_model.py
nas-moreau search --import docs/examples/timm_model.py --module make_model --steps 300 --penalty ms=0.2
"""

import timm
import torch
from torch import nn
from torch.nn import functional as f

from nas_moreau import Choice, load_data, search_module

IMAGES = "shapes"  # or "folder:DIR", "cifar10" ...


def with_choices(model: nn.Module) -> nn.Module:
    """Returns the model with a Choice for every 3x3 convolution of stride 1, and one activation for all places."""
    for path, part in list(model.named_modules()):
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        if isinstance(part, nn.ReLU):
            options = {"relu": nn.ReLU(), "silu": nn.SiLU(), "hardswish": nn.Hardswish()}
            setattr(owner, name, Choice(options, name="act"))
        elif isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) and part.stride == (1, 1) and part.groups == 1:
            inputs, outputs = part.in_channels, part.out_channels
            grouped = nn.Conv2d(inputs, outputs, 3, padding=1, groups=8, bias=False)
            point = nn.Conv2d(inputs, outputs, 1, bias=False)
            setattr(owner, name, Choice({"3x3": part, "grouped 3x3": grouped, "1x1": point}))
    return model


def make_model() -> nn.Module:
    """Returns a small residual network of timm with choices."""
    block = timm.models.resnet.BasicBlock
    sizes = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32), "num_classes": 10}
    model = timm.models.resnet.ResNet(block, stem_type="deep", stem_width=8, **sizes)
    model.maxpool = nn.Identity()
    return with_choices(model)


def loss(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Returns the cross-entropy."""
    return f.cross_entropy(net(batch[0]), batch[1])


def metric(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Returns the accuracy."""
    return (net(batch[0]).argmax(-1) == batch[1]).float().mean()


def train(count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns normalised images and labels."""
    data = load_data(IMAGES)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (data.train.pixels[:count] / 255 - mean) / std, data.train.labels[:count]


def main(steps: int = 300, count: int = 4000, seed: int = 0, **more: object):
    """Searches and returns what was found."""
    torch.manual_seed(seed)
    search = {"weights": {"rule": "adamw", "lr": 0.01, "lr_min": 0.0003, "clip": 1.0}}
    keywords = {"search": search, "metric": metric, "batch_size": 32, "derive": {"rule": "trained"}, **more}
    return search_module(make_model(), loss, train(count), steps=steps, seed=seed, **keywords)


if __name__ == "__main__":
    found = main()
    print(found)
    print(found.compare_random(8))

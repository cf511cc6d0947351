"""Shows how hard the embedded data set `shapes` is for a linear classifier, a poor and a good small network.

    python scripts/benchmark_shapes.py [--seeds 0,1,2] [--epochs 10]

All are trained on the 4,000 training images with crop and flip and scored on the 1,000 test images; the data
set's own seed is 0 throughout, the seeds below are those of initial weights, order and augmentation. `poor`
has the layers, width and training of `convnet`, with each 3x3 convolution but the first replaced by 3x3
average pooling and a 1x1 convolution.

Test accuracy, mean (min..max) of n=3 (seeds 0,1,2), 10 epochs, one thread of a busy 2-core x86 CPU, torch 2.15:
linear 24.6 % (24.3..25.2), 2 s; poor 46.1 % (45.2..47.5), 154 s; convnet 98.6 % (98.5..98.8), 148 s.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn import functional

from nas_moreau.data import Augment, Data, epoch_order, generator_for, load_data, seed_for


def block(inputs: int, outputs: int, convolution: bool) -> nn.Sequential:
    """Returns a layer that sees 3x3 pixels: by a convolution, or by pooling before a 1x1 convolution."""
    first = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    if not convolution:
        first = [nn.AvgPool2d(3, stride=1, padding=1), nn.Conv2d(inputs, outputs, 1, bias=False)]
    return nn.Sequential(*first, nn.BatchNorm2d(outputs), nn.ReLU())


def stack(convolution: bool, width: int = 16, classes: int = 10) -> nn.Sequential:
    """Returns five blocks with two poolings, and a linear layer on the global average."""
    return nn.Sequential(
        block(3, width, True),
        nn.MaxPool2d(2),
        block(width, 2 * width, convolution),
        block(2 * width, 2 * width, convolution),
        nn.MaxPool2d(2),
        block(2 * width, 4 * width, convolution),
        block(4 * width, 4 * width, convolution),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def linear(classes: int = 10) -> nn.Sequential:
    """Returns a linear classifier of the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))


MODELS = {"linear": linear, "poor": lambda: stack(False), "convnet": lambda: stack(True)}


def train_and_score(name: str, data: Data, seed: int, epochs: int, batch: int = 64) -> tuple[float, float, float]:
    """Returns training accuracy, test accuracy (fractions, without augmentation) and seconds of training."""
    torch.manual_seed(seed_for(seed, f"benchmark {name}"))
    model = MODELS[name]()
    augment = Augment(data.mean, data.std, crop=4 if name != "linear" else 0)
    indices = torch.arange(len(data.train))
    steps = epochs * (len(indices) // batch)
    peak = 0.1 if name != "linear" else 0.005
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=steps)
    started = time.perf_counter()
    model.train()
    for epoch in range(epochs):
        generator = generator_for(seed, "augment", epoch)
        order = epoch_order(indices, seed, "order", epoch)
        for chosen in order[: len(order) // batch * batch].split(batch):
            images = data.train.take(chosen)
            loss = functional.cross_entropy(model(augment(images.pixels, generator)), images.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - started
    model.eval()
    scores = []
    with torch.no_grad():
        for images in (data.train, data.test):
            right = [
                (model(augment(pixels)).argmax(1) == labels).float()
                for pixels, labels in zip(images.pixels.split(500), images.labels.split(500))
            ]
            scores.append(torch.cat(right).mean().item())
    return scores[0], scores[1], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default 0,1,2)")
    parser.add_argument("--epochs", type=int, default=10, help="of training, each model (default 10)")
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated (default all)")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    started = time.perf_counter()
    data = load_data("shapes")
    print(
        f"shapes: {len(data.train)} training and {len(data.test)} test images made in "
        f"{time.perf_counter() - started:.1f} s; {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(
        f"{'model':8}  {'parameters':>10}  {'test % (mean, min..max)':>24}  {'training %':>10}  "
        f"{'seconds':>7}  n, seeds"
    )
    for name in arguments.models.split(","):
        results = [train_and_score(name, data, seed, arguments.epochs) for seed in seeds]
        train, test, seconds = (list(column) for column in zip(*results))
        scores = f"{100 * statistics.mean(test):.1f} ({100 * min(test):.1f}..{100 * max(test):.1f})"
        size = sum(parameter.numel() for parameter in MODELS[name]().parameters())
        print(
            f"{name:8}  {size:10,}  {scores:>24}  {100 * statistics.mean(train):10.1f}  "
            f"{statistics.mean(seconds):7.1f}  n={len(seeds)}, seeds {arguments.seeds}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Few-shot learning by hyper-representation: a backbone x shared by all tasks, and one linear head y for each task.

    f(x, y) = sum over tasks of  mean loss of head y_t on the task's support images  +  ridge/2 |y_t|^2
    F(x, y) = sum over tasks of  mean loss of head y_t on the task's query images

(Franceschi et al., ICML 2018, section 5.) Features are those of a ConvNet-4: four 3x3 convolutions of stride 2 with
normalisation and ReLU, as Finn et al. (ICML 2017) use for Omniglot, and the mean over what is left of the image. Each
normalisation takes the statistics of one task's images, support and query apart, so a task's outcome does not depend
on which others are with it.

Tasks for the test come from alphabets (or classes) that no training task uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as f

from nas_moreau.bilevel import Bilevel
from nas_moreau.data import Data, Images, generator_for
from nas_moreau.errors import InputError

HIDDEN, LAYERS = 32, 4
RIDGE = 1e-2
HELD_OUT = 0.3
"""Share of the classes that the test gets, at least; whole alphabets where classes have them."""

Tensors = list[Tensor]
OfY = Callable[[Tensors], Tensor]


class Episodes(NamedTuple):
    """Tasks: images (tasks, n, channels, height, width) as floats, labels (tasks, n) from 0 to ways - 1."""

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor


class Pool:
    """The images of some classes, from which tasks are drawn.

    Args:
        images: Of all classes.
        classes: Labels of those that belong to the pool.
        mean, std: Of each channel.
        device: Where episodes are made.
    """

    def __init__(
        self,
        images: Images,
        classes: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
    ):
        self.classes = tuple(classes)
        members = [torch.nonzero(images.labels == label).flatten() for label in self.classes]
        self.members = members
        self.pixels = images.pixels.to(device)
        self.mean, self.std = (torch.tensor(v, device=device)[:, None, None] for v in (mean, std))

    def draw(self, tasks: int, ways: int, shots: int, queries: int, seed: int, purpose: str, number: int) -> Episodes:
        """Returns tasks of `ways` classes with `shots` support and `queries` query images of each class.

        They depend on (seed, purpose, number) alone. Classes with too few images are not drawn.

        Raises:
            InputError: There are fewer than `ways` classes with enough images.
        """
        usable = [i for i, found in enumerate(self.members) if len(found) >= shots + queries]
        if len(usable) < ways:
            raise InputError(
                f"Only {len(usable)} of {len(self.members)} classes for {purpose} have {shots + queries} images, and "
                f"a task needs {ways}.",
                "Use fewer --ways or --shots, or more data.",
            )
        generator = generator_for(seed, f"episodes of {purpose}", number)
        support, query = [], []
        for _ in range(tasks):
            for way in torch.randperm(len(usable), generator=generator, device="cpu")[:ways].tolist():
                own = self.members[usable[way]]
                chosen = own[torch.randperm(len(own), generator=generator, device="cpu")[: shots + queries]]
                support.append(chosen[:shots])
                query.append(chosen[shots:])
        labels = torch.arange(ways, device=self.pixels.device)

        def pack(parts: list[Tensor], each: int) -> tuple[Tensor, Tensor]:
            index = torch.cat(parts).to(self.pixels.device)
            images = (self.pixels[index].float() / 255 - self.mean) / self.std
            return images.unflatten(0, (tasks, ways * each)), labels.repeat_interleave(each).expand(tasks, -1)

        return Episodes(*pack(support, shots), *pack(query, queries))


def pools(data: Data, seed: int, device: torch.device | str = "cpu", least: int = 2) -> tuple[Pool, Pool]:
    """Returns the pools for training and test; no alphabet, and no class, is in both.

    The data's own training and test images are taken together. Class names `Alphabet/character` are divided by
    alphabet, others by class; the seed says which are held out.

    Args:
        data: Any images.
        seed: Of the division.
        device: Where episodes are made.
        least: Classes that each pool must have.

    Raises:
        InputError: There are not enough classes.
    """
    groups: dict[str, list[int]] = {}
    for label, name in enumerate(data.classes):
        groups.setdefault(name.split("/")[0] if "/" in name else name, []).append(label)
    names = sorted(groups)
    order = torch.randperm(len(names), generator=generator_for(seed, "held-out classes"), device="cpu").tolist()
    test: list[int] = []
    rest = list(order)
    while rest and len(test) < max(least, HELD_OUT * data.num_classes):
        test += groups[names[rest.pop()]]
    train = [label for i in rest for label in groups[names[i]]]
    if len(train) < least or len(test) < least:
        raise InputError(
            f"{data.num_classes} classes in {len(names)} groups cannot be divided into two parts of at least {least}.",
            "Use data with more classes, or fewer --ways.",
        )
    images = Images(torch.cat([data.train.pixels, data.test.pixels]), torch.cat([data.train.labels, data.test.labels]))
    of_train, of_test = (Pool(images, sorted(part), data.mean, data.std, device) for part in (train, test))
    return of_train, of_test


def backbone(
    channels: int, seed: int, hidden: int = HIDDEN, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Tensors:
    """Returns the start of x: for each of the four layers the kernel (He's variance), scale 1 and shift 0."""
    generator = generator_for(seed, "backbone")
    x = []
    for layer in range(LAYERS):
        inputs = channels if layer == 0 else hidden
        kernel = torch.randn(hidden, inputs, 3, 3, generator=generator, device="cpu") * math.sqrt(2 / (9 * inputs))
        x += [kernel, torch.ones(hidden, device="cpu"), torch.zeros(hidden, device="cpu")]
    return [t.to(device=device, dtype=dtype) for t in x]


def features(x: Tensors, images: Tensor) -> Tensor:
    """Returns (tasks, n, hidden) of images (tasks, n, channels, height, width)."""
    tasks, count = images.shape[:2]
    maps = images.flatten(0, 1)
    for kernel, scale, shift in zip(*[iter(x)] * 3):
        maps = f.conv2d(maps, kernel, stride=2, padding=1)
        normalised = [f.batch_norm(own, None, None, scale, shift, training=True) for own in maps.split(count)]
        maps = torch.relu(torch.cat(normalised))
    return maps.mean((2, 3)).unflatten(0, (tasks, count))


def heads(tasks: int, ways: int, hidden: int, like: Tensor) -> Tensors:
    """Returns y before anything was learned: zero matrices (tasks, hidden, ways) and biases (tasks, ways)."""
    return [like.new_zeros(tasks, hidden, ways), like.new_zeros(tasks, ways)]


def loss_of(found: Tensor, y: Tensors, labels: Tensor) -> Tensor:
    """Returns the sum over tasks of the mean cross-entropy of the heads y on features (tasks, n, hidden)."""
    logits = torch.baddbmm(y[1][:, None], found, y[0])
    return f.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.shape[1]


def few_shot_problem(ridge: float = RIDGE) -> Bilevel:
    """Returns F and f as above; the batch of both is an `Episodes`."""

    def upper(x: Tensors, y: Tensors, batch: Episodes) -> Tensor:
        return loss_of(features(x, batch.query), y, batch.query_labels)

    def lower(x: Tensors, y: Tensors, batch: Episodes) -> Tensor:
        size = y[0].square().sum()
        return loss_of(features(x, batch.support), y, batch.support_labels) + 0.5 * ridge * size

    def at_x(x: Tensors, upper_batch: Episodes, lower_batch: Episodes) -> tuple[OfY, OfY]:
        # y and theta are heads on the same features
        support, query = features(x, lower_batch.support), features(x, upper_batch.query)

        def lower_of_y(y: Tensors) -> Tensor:
            return loss_of(support, y, lower_batch.support_labels) + 0.5 * ridge * y[0].square().sum()

        return (lambda y: loss_of(query, y, upper_batch.query_labels)), lower_of_y

    return Bilevel(upper, lower, at_x=at_x)


@torch.no_grad()
def adapt(found: Tensor, labels: Tensor, ways: int, ridge: float = RIDGE, steps: int = 100) -> Tensors:
    """Returns heads after gradient steps on f from zero, at features (tasks, n, hidden) that stay as they are.

    The step of each task is 1/L with L a bound on the curvature of its loss: half the greatest eigenvalue of the mean
    of the features' outer products (with a one for the bias), plus the ridge.
    """
    tasks, count, hidden = found.shape
    wide = torch.cat([found, torch.ones_like(found[..., :1])], -1)
    target = f.one_hot(labels, ways).to(found)
    bend = torch.linalg.matrix_norm(wide, 2).square() / (2 * count) + ridge
    head = wide.new_zeros(tasks, hidden + 1, ways)
    for _ in range(steps):
        wrong = torch.softmax(wide @ head, -1) - target
        gradient = wide.transpose(1, 2) @ wrong / count
        gradient[:, :-1] += ridge * head[:, :-1]
        head = head - gradient / bend[:, None, None]
    return [head[:, :-1], head[:, -1]]


@torch.no_grad()
def episode_accuracies(x: Tensors, episodes: Episodes, ridge: float = RIDGE) -> Tensor:
    """Returns the share of query images that the adapted head of each task classifies rightly, (tasks,) float64."""
    ways = int(episodes.support_labels.max()) + 1
    y = adapt(features(x, episodes.support), episodes.support_labels, ways, ridge)
    logits: Any = torch.baddbmm(y[1][:, None], features(x, episodes.query), y[0])
    return (logits.argmax(-1) == episodes.query_labels).double().mean(1)


def interval(accuracies: Tensor) -> tuple[float, float]:
    """Returns the mean and half the width of its 95 % interval, 1.96 standard errors; NaN for a single accuracy."""
    spread = float(accuracies.std()) if len(accuracies) > 1 else math.nan
    return float(accuracies.mean()), 1.96 * spread / math.sqrt(len(accuracies))

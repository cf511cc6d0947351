"""Parts of a data set, the split of a search, and reproducible augmented batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from nas_moreau import distributed
from nas_moreau.config import Config
from nas_moreau.data.augmentation import Augment
from nas_moreau.data.images import Data, Images
from nas_moreau.data.resizing import fit_pixels
from nas_moreau.data.splitting import epoch_order, generator_for, stratified_split
from nas_moreau.distributed import Shard
from nas_moreau.errors import InputError


@dataclass(frozen=True)
class Part:
    """Some images of a set, and how they become the input of a network.

    Attributes:
        images: The whole set, on the device on which it is used.
        indices: int64 (n,), the images that belong to the part.
        augment: Called without a generator it only normalises, as evaluation does.
    """

    images: Images
    indices: Tensor
    augment: Augment

    @classmethod
    def whole(cls, images: Images, augment: Augment) -> Part:
        """Returns the part that holds all images."""
        return cls(images, torch.arange(len(images), device=images.labels.device), augment)

    def __len__(self) -> int:
        return len(self.indices)

    def shuffled(self) -> Tensor:
        """Returns the indices in a random order that depends on the part alone."""
        return epoch_order(self.indices, 0, "images that candidates are measured on", 0)

    def sample(self, count: int) -> Part:
        """Returns a random part of at most `count` images; the draw depends on the part alone."""
        return replace(self, indices=self.shuffled()[:count])


class SearchParts(NamedTuple):
    """The three disjoint parts of the training images in a search."""

    weights: Part
    architecture: Part
    held_out: Part


def search_parts(config: Config, data: Data, device: torch.device) -> SearchParts:
    """Returns the weight, architecture and held-out split of a search, at `search.image_size`, on the device.

    Raises:
        InputError: A split would be empty, or the resized images would be too large.
    """
    settings, images = config.search, data.train
    if settings.image_size is not None:
        images = replace(images, pixels=fit_pixels(images.pixels, settings.image_size))
    images = images.to(device)
    indices = stratified_split(images.labels, settings.split.model_dump(), config.seed)
    augment = Augment(data.mean, data.std, **settings.augment.model_dump())
    return SearchParts(*(Part(images, indices[name], augment) for name in SearchParts._fields))


class Batches:
    """Augmented batches of a part, reproducible at every step without the steps before it.

    The order of a pass depends on (seed, purpose, pass), the augmentation on (seed, purpose, step).

    Args:
        part: The images; at least one batch of them.
        batch_size: Images per batch. The last, smaller batch of a pass is left out.
        seed: The run's seed.
        purpose: Name of this stream of random draws.
        shard: The rows of every batch to give; None for whole batches. Draws are made for the whole batch, so they do
            not depend on the number of shards.
        channels_last: Memory layout of the images.
        setting: Key of the batch size, for messages.

    Raises:
        InputError: The part holds fewer images than one batch.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        seed: int,
        purpose: str,
        shard: Shard | None = None,
        channels_last: bool = False,
        setting: str = "batch_size",
    ):
        if len(part) < batch_size:
            raise InputError(
                f"The part '{purpose}' holds {len(part)} images, fewer than a batch of {batch_size}.",
                f"Use more images, or a smaller {setting}: {setting}={max(1, len(part) // 2 * 2)}.",
            )
        self.part, self.batch_size, self.seed, self.purpose = part, batch_size, seed, purpose
        self.shard = shard or Shard(0, batch_size, batch_size)
        self.channels_last, self.setting = channels_last, setting
        self._pass, self._order = -1, part.indices

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self.part) // self.batch_size

    def on(self, shard: Shard | None) -> Batches:
        """Returns the same batches with other rows of them given; None for whole batches."""
        return Batches(self.part, self.batch_size, self.seed, self.purpose, shard, self.channels_last, self.setting)

    def indices(self, step: int) -> Tensor:
        """Returns the indices of the images in the whole batch of a step."""
        number, place = divmod(step, len(self))
        if number != self._pass:
            self._order = epoch_order(self.part.indices, self.seed, f"order of {self.purpose}", number)
            self._pass = number
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns images (float32, augmented) and labels of a step, counted from the beginning of the run."""
        rows = slice(self.shard.start, self.shard.stop)
        batch = self.part.images.take(self.indices(step)[rows])
        height, width = batch.pixels.shape[2:]
        generator = generator_for(self.seed, f"augmentation of {self.purpose}", step)
        draws = self.part.augment.draw(self.batch_size, height, width, generator)
        images = self.part.augment.apply(batch.pixels, draws[:, rows])
        return (images.contiguous(memory_format=torch.channels_last) if self.channels_last else images), batch.labels


class RetrainImages(NamedTuple):
    """The images of a retraining.

    Attributes:
        batches: The training images in whole batches.
        shards: The parts of a batch that this process accumulates.
        validation: Training images set aside by `retrain.validation`, or None.
        test: The test images.
    """

    batches: Batches
    shards: list[Batches]
    validation: Part | None
    test: Part


def retraining_images(config: Config, data: Data) -> RetrainImages:
    """Returns the images of a retraining, on the device of the data.

    Raises:
        InputError: There are fewer images than a batch, or a batch cannot be shared evenly.
    """
    settings, size, labels = config.retrain, config.retrain.batch_size, data.train.labels
    augment = Augment(data.mean, data.std, **settings.augment.model_dump())
    indices = {"train": torch.arange(len(labels), device=labels.device)}
    if share := settings.validation:
        indices = stratified_split(labels, {"train": 1 - share, "validation": share}, config.seed)
    parts = {name: Part(data.train, found, augment) for name, found in indices.items()}
    last = config.performance.channels_last
    batches = Batches(parts["train"], size, config.seed, "retraining", channels_last=last, setting="retrain.batch_size")
    shards = [batches.on(shard) for shard in distributed.own_shards(size, settings.accumulate)]
    return RetrainImages(batches, shards, parts.get("validation"), Part.whole(data.test, augment))

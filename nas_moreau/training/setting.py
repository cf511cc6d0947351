"""What the stages share before they begin: device, threads, images, reproducible batches, memory used."""

from __future__ import annotations

import resource
import sys

import torch
from torch import Tensor
from torch.nn import functional as f

from nas_moreau import distributed
from nas_moreau.config import Config
from nas_moreau.data import Augment, Data, Images, epoch_order, generator_for, load_data, stratified_split
from nas_moreau.errors import InputError, first_line
from nas_moreau.training.performance import set_up


def pick_device(name: str) -> torch.device:
    """Returns the device of that name; "auto" is the accelerator if there is one that knows float64, else the CPU.

    Raises:
        InputError: There is no such device here, or it has no float64, in which sums are kept.
    """
    if name == "auto":
        # a build for an accelerator names it even on a machine that has none
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        try:
            return _tried(found) if found else torch.device("cpu")
        except (RuntimeError, TypeError):
            return torch.device("cpu")
    try:
        return _tried(torch.device(name))
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = first_line(error).rstrip(".")
        raise InputError(f"Device '{name}' cannot be used: {reason}.", "Use --device auto or --device cpu.") from None


def _tried(device: torch.device) -> torch.device:
    torch.empty(1, dtype=torch.float64, device=device)
    return device


def prepare(config: Config) -> torch.device:
    """Returns the device of the configuration, torch set up as its `performance` section says."""
    device = distributed.own_device(pick_device(config.device))
    set_up(config.performance, device)
    return device


def load_images(config: Config) -> Data:
    """Returns the data set of the configuration.

    Raises:
        InputError: It is missing, damaged or unknown.
    """
    data = config.data
    # not seeded by the run: runs of several seeds must see the same images
    return load_data(data.name, data.directory, data.download, data.image_size)


def resized(images: Images, size: int | None, chunk: int = 4096) -> Images:
    """Returns the images at size x size pixels (bilinear, antialiased), or as they are when size is None."""
    if size is None or tuple(images.pixels.shape[-2:]) == (size, size):
        return images
    parts = [
        f.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
        for part in images.pixels.split(chunk)
    ]
    return Images(torch.cat(parts), images.labels)


def search_images(config: Config, data: Data, device: torch.device) -> tuple[Images, dict[str, Tensor]]:
    """Returns the training images as a search sees them, and the indices of its three parts by name."""
    images = resized(data.train, config.search.image_size).to(device)
    return images, stratified_split(images.labels, config.search.split.model_dump(), config.seed)


class Batches:
    """Augmented batches of a part of the training set, reproducible at every step without what came before.

    The order of a pass depends on (seed, purpose, pass), augmentation on (seed, purpose, step): no state is carried.

    Args:
        images: The images, on the device they are used on.
        indices: Which of them belong to the part.
        batch_size: Images a batch; a last smaller batch of a pass is left out. At most the part's size.
        augment: Turns uint8 pixels and a generator into a float batch.
        seed: The run's seed.
        purpose: Tells this stream of draws from the others.
    """

    def __init__(self, images: Images, indices: Tensor, batch_size: int, augment: Augment, seed: int, purpose: str):
        if len(indices) < batch_size:
            raise InputError(
                f"The part '{purpose}' holds {len(indices)} images, fewer than a batch of {batch_size}.",
                "Use more images or a smaller batch_size.",
            )
        self.images, self.indices, self.batch_size = images, indices, batch_size
        self.augment, self.seed, self.purpose = augment, seed, purpose
        self._pass, self._order = -1, indices

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self.indices) // self.batch_size

    def at(self, step: int, channels_last: bool = False, rows: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Returns images (float) and labels of the step counted from the beginning of the run.

        With `rows` (begin and end) those of the batch alone: all draws are made for the whole batch.
        """
        number, place = divmod(step, len(self))
        if number != self._pass:
            self._order = epoch_order(self.indices, self.seed, f"order of {self.purpose}", number)
            self._pass = number
        begin, end = rows or (0, self.batch_size)
        first = place * self.batch_size
        batch = self.images.take(self._order[first + begin : first + end])
        generator = generator_for(self.seed, f"augmentation of {self.purpose}", step)
        draws = self.augment.draw(self.batch_size, *batch.pixels.shape[2:], generator)
        images = self.augment.apply(batch.pixels, draws[:, begin:end])
        return (images.contiguous(memory_format=torch.channels_last) if channels_last else images), batch.labels


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory used so far: of the allocator on an accelerator that counts, of the process elsewhere."""
    count = getattr(getattr(torch, device.type, None), "max_memory_allocated", None)
    if device.type != "cpu" and count is not None:
        return count(device)
    try:  # on Linux ru_maxrss holds what the process that started this one had used, too
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        pass
    # kilobytes elsewhere, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

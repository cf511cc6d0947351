"""From a specification such as `shapes` or `folder:DIR` to `Data`."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from nas_moreau.config import Config
from nas_moreau.data.images import Data, Loaded, channel_statistics, imbalance_notes, pixel_notes
from nas_moreau.data.parts import settle
from nas_moreau.data.resizing import POLICY, check_image_size, fit_pixels
from nas_moreau.data.sources import Request, Source, find_source
from nas_moreau.data.splitting import stratified_split
from nas_moreau.errors import InputError
from nas_moreau.text import path_of

_log = logging.getLogger(__name__)


def load_data(
    spec: str,
    directory: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    train_images: int | None = None,
) -> Data:
    """Returns the data set of a specification, on the CPU.

    Args:
        spec: A form of `nas-moreau list sources`: `shapes` (generated, needs no file), `cifar10`, `folder:DIR`, ...
        directory: Where downloaded sets are.
        download: Whether a missing set may be downloaded.
        image_size: Height and width: the shorter side is resized to it, then the centre is kept. By default images
            keep their size if they all have the same one, else they become 32 pixels (Omniglot: 28).
        seed: Seed of `shapes`, of a test part that has to be held out, and of the choice of `train_images`. Keep it
            fixed when runs are compared.
        train_images: Number of training images to use, the same share of each class; by default all.

    Returns:
        Pixels, labels, class names, and per channel mean and std: published ones if the source has them, else those
        of the training pixels. `notes` records what was assumed and done; each is logged, too (logger
        `nas_moreau.data.loading`, level INFO), which the command line prints.

    Raises:
        InputError: The specification is unknown, or files are missing, damaged or in another layout.
    """
    check_image_size(image_size)
    source, text = find_source(spec)
    place = path_of(text if source.place else str(directory))
    try:
        loaded = source.read(Request(place, image_size, seed, download))
    except PermissionError as error:
        raise InputError(f"{error.filename} may not be read.", "Change its permissions.") from error
    except MemoryError:
        raise InputError(f"There is not enough memory for {spec}.", "Use fewer or smaller images.") from None
    _check(source, loaded)
    loaded = settle(loaded, seed, spec)
    train, test, notes = loaded.train, loaded.test, loaded.notes
    assert test is not None
    files = loaded.files
    if train_images is not None and train_images != len(train):
        kept = _choose(train.labels, train_images, seed, spec)
        notes += (f"{train_images:,} of {len(train):,} training images are used (data.train_images).",)
        train = train.take(kept)
        files = tuple(files[i] for i in kept.tolist()) if files else files
    height, width = train.pixels.shape[2:]
    if image_size is not None and (height, width) != (image_size, image_size):
        train = replace(train, pixels=fit_pixels(train.pixels, image_size))
        test = replace(test, pixels=fit_pixels(test.pixels, image_size))
        notes += (f"Images are {width}x{height}: {POLICY.format(size=image_size)}.",)
    mean, std = loaded.statistics or channel_statistics(train.pixels)
    notes += (*pixel_notes(train.pixels), *imbalance_notes(train.labels, loaded.classes))
    for sentence in notes:
        _log.info("%s", sentence)
    return Data(spec, loaded.classes, train, test, mean, std, notes, files, loaded.white)


def load_images(config: Config) -> Data:
    """Returns the data set of a configuration's `data` section.

    Raises:
        InputError: As `load_data`.
    """
    data = config.data
    # not seeded by the run: runs of several seeds must use the same images
    return load_data(data.name, data.directory, data.download, data.image_size, train_images=data.train_images)


def _choose(labels: torch.Tensor, count: int, seed: int, spec: str) -> torch.Tensor:
    """Returns the indices of `count` images, the same share of each class."""
    total = len(labels)
    if not len(torch.unique(labels)) <= count <= total:
        raise InputError(
            f"data.train_images is {count:,}, and {spec} has {total:,} training images of {len(torch.unique(labels))} "
            "classes.",
            "Choose a number from that of the classes to that of the images, or leave it out.",
        )
    return stratified_split(labels, {"kept": count / total, "left": 1 - count / total}, seed)["kept"]


def _check(source: Source, loaded: object) -> None:
    """Refuses what a reader, perhaps a user's own, must not return."""
    if not isinstance(loaded, Loaded):
        reason = f"a {type(loaded).__name__}, not Loaded"
    else:
        parts = [part for part in (loaded.train, loaded.validation, loaded.test) if part is not None]
        labels = torch.cat([part.labels for part in parts])
        files = sum(len(part) for part in (loaded.train, loaded.validation) if part is not None)
        if not all(map(len, parts)):
            reason = "a part without images"
        elif len({part.pixels.shape[1:] for part in parts}) > 1:
            reason = "parts with images of different sizes"
        elif loaded.files and len(loaded.files) != files:
            reason = f"{len(loaded.files)} files for {files} images"
        elif int(labels.min()) < 0 or int(labels.max()) >= len(loaded.classes):
            reason = f"labels that are not within its {len(loaded.classes)} classes"
        else:
            return
    raise InputError(f"The data source '{source.name}' returned {reason}.", "Correct the function that reads it.")

"""From a specification such as `shapes` or `folder:DIR` to `Data`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas_moreau.config import Config
from nas_moreau.data.arrays import as_array, loaded_arrays
from nas_moreau.data.copies import copies_notes
from nas_moreau.data.images import Data, Images, Loaded, channel_statistics, imbalance_notes, pixel_notes
from nas_moreau.data.parts import settle
from nas_moreau.data.pixel_ranges import Named
from nas_moreau.data.resizing import POLICY, check_image_size, fit_pixels
from nas_moreau.data.sources import Request, Source, find_files, source_of
from nas_moreau.data.splitting import stratified_split
from nas_moreau.errors import InputError, first_line
from nas_moreau.text import is_utf8, name_text, printable

_log = logging.getLogger(__name__)
ARRAYS = "arrays"
"""Name of a data set that was given in memory."""


def load_data(
    spec: str | PathLike[str],
    directory: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    train_images: int | None = None,
) -> Data:
    """Returns the data set of a specification, on the CPU.

    Args:
        spec: A form of `nas-moreau list sources`: `shapes` (generated, needs no file), `cifar10`, `folder:DIR`, ...;
            or the path (`pathlib.Path`) of a folder of images or an .npz file.
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
    spec = spec if isinstance(spec, str) else source_of(spec)
    source, place = find_files(spec, directory, download)
    try:
        loaded = source.read(Request(place, image_size, seed, download))
    except PermissionError as error:
        raise InputError(f"{error.filename} may not be read.", "Change its permissions.") from error
    except OSError as error:
        where = printable(str(error.filename or spec))[:100]
        raise InputError(
            f"{where} cannot be read ({error.strerror or first_line(error)}).", "Check the disk and the path."
        ) from error
    except MemoryError:
        raise InputError(f"There is not enough memory for {spec}.", "Use fewer or smaller images.") from None
    _check(source, loaded)
    return _data_of(loaded, spec, image_size, seed, train_images)


def data_from_arrays(
    x_train: Any,
    y_train: Any,
    x_test: Any = None,
    y_test: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    image_size: int | None = None,
    train_images: int | None = None,
) -> Data:
    """Returns the data set of arrays in memory, by the rules for npz files.

    Args:
        x_train: Images, an array or tensor: (n, height, width), or with channels last or first; uint8, wider integers,
            floats from 0 to 1, -1 to 1 or 0 to 255, or booleans.
        y_train: Labels: integers, text, booleans or one-hot.
        x_test: Test images; without any, a tenth of the training images is held out.
        y_test: Their labels.
        class_names: Names of the classes in the order of the labels; by default the labels as text.
        image_size: As in `load_data`.
        train_images: As in `load_data`.

    Raises:
        InputError: The arrays can be read in no way, or in more than one.
    """
    check_image_size(image_size)
    given = {"train": ("x_train", x_train, "y_train", y_train), "test": ("x_test", x_test, "y_test", y_test)}
    if x_test is None and y_test is None:
        del given["test"]
    images, labels = {}, {}
    for part, (x_name, x, y_name, y) in given.items():
        images[part], labels[part] = (Named(name, as_array(name, value)) for name, value in ((x_name, x), (y_name, y)))
    names = tuple(map(str, class_names)) if class_names is not None else None
    loaded = loaded_arrays(images, labels, names, (), ARRAYS)
    loaded = replace(loaded, train=_own(loaded.train, images["train"]))
    if loaded.test is not None:
        loaded = replace(loaded, test=_own(loaded.test, images["test"]))
    return _data_of(loaded, ARRAYS, image_size, 0, train_images)


def _own(part: Images, given: Named) -> Images:
    """Returns images that the caller's later changes of an array in place do not reach."""
    shared = np.may_share_memory(part.pixels.numpy(), given.array)
    return replace(part, pixels=part.pixels.clone()) if shared else part


def _data_of(loaded: Loaded, spec: str, image_size: int | None, seed: int, train_images: int | None) -> Data:
    """Returns the data set of what a source read: all parts, at one size, with statistics."""
    loaded = settle(_with_plain_names(loaded, spec), seed, spec)
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
    notes += pixel_notes(train.pixels) or copies_notes(train, test)
    notes += imbalance_notes(train.labels, loaded.classes)
    for sentence in notes:
        _log.info("%s", sentence)
    return Data(spec, loaded.classes, train, test, mean, std, notes, files, loaded.white)


def _with_plain_names(loaded: Loaded, spec: str) -> Loaded:
    """Returns the same with class names that a UTF-8 file can hold.

    Raises:
        InputError: A name is empty, or two are equal.
    """
    classes = tuple(map(name_text, loaded.classes))
    if not all(classes) or len(set(classes)) < len(classes):
        raise InputError(
            f"The class names of {spec} are not all different texts: {', '.join(map(repr, classes[:10]))}.",
            "Give each class a different name.",
        )
    changed = [name for name, given in zip(classes, loaded.classes) if not is_utf8(given)]
    notes = [f"The class name '{name}' is not UTF-8; stray bytes are written as \\xNN." for name in changed]
    return replace(loaded, classes=classes, notes=(*loaded.notes, *notes))


def load_images(config: Config) -> Data:
    """Returns the data set of a configuration's `data` section, read with the threads that `performance` allows.

    Raises:
        InputError: As `load_data`.
    """
    data, before = config.data, torch.get_num_threads()
    torch.set_num_threads(config.performance.threads or before)
    try:
        # not seeded by the run: runs of several seeds must use the same images
        return load_data(data.name, data.directory, data.download, data.image_size, train_images=data.train_images)
    finally:
        torch.set_num_threads(before)


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

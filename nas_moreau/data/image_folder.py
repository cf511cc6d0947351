"""Reads `folder:DIR`: train/CLASS/* and test/CLASS/*, of any format and size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas_moreau.data.image_files import is_image, read_images
from nas_moreau.data.images import Images, Loaded
from nas_moreau.data.splitting import stratified_split
from nas_moreau.errors import InputError

if TYPE_CHECKING:
    from nas_moreau.data.sources import Request

_LAYOUT = "Put the images at DIR/train/CLASS/* and DIR/test/CLASS/*."
HELD_OUT = 0.1


def read_folder(request: Request) -> Loaded:
    """Returns the images of a folder; class names are the names of its subfolders, sorted.

    All images become RGB; `read_images` chooses one size for both parts. Without a `test` folder a tenth of every
    class, drawn by `seed`, is held out for the test.

    Args:
        request: Its place is the folder that holds `train` and perhaps `test`.

    Raises:
        InputError: The layout is another one, classes differ between the parts, or files cannot be read.
    """
    directory = request.place
    if not directory.is_dir():
        raise InputError(f"The folder {directory} does not exist.", "Check the path after folder:.")
    if not (directory / "train").is_dir():
        raise InputError(f"{directory} holds no folder 'train'.", _LAYOUT)
    train, skipped = _class_files(directory / "train")
    classes = tuple(train)
    if len(classes) < 2:
        raise InputError(f"{directory / 'train'} has {len(classes)} class folders.", "Make one folder for each class.")
    test: dict[str, list[Path]] = {}
    if (directory / "test").is_dir():
        test, skipped_test = _class_files(directory / "test")
        skipped += skipped_test
        if set(test) != set(train):
            missing, extra = sorted(set(train) - set(test)), sorted(set(test) - set(train))
            words = [f"{text} {names[:5]}" for text, names in (("lacks", missing), ("adds", extra)) if names]
            raise InputError(
                f"The classes in {directory / 'test'} differ from train's: it {' and '.join(words)}.",
                "Give both the same class folders, or no folder test: then a tenth of train is held out.",
            )
    groups = [*train.values(), *(test[name] for name in classes if test)]
    labels = torch.tensor(
        [i % len(classes) for i, group in enumerate(groups) for _ in group], dtype=torch.int64, device="cpu"
    )
    files = [path for group in groups for path in group]
    pixels, sentence = read_images(files, "RGB", request.image_size)
    notes = [sentence]
    if skipped:
        notes.append(f"{skipped} files with other endings were skipped.")
    if test:
        n = sum(len(group) for group in train.values())
        parts = Images(pixels[:n], labels[:n]), Images(pixels[n:], labels[n:])
        return Loaded(*parts, classes, tuple(notes), files=tuple(files[:n]))
    everything = Images(pixels, labels)
    kept, held_out = hold_out(labels, request.seed, str(directory))
    notes.append("Without a test folder, a tenth of every class is held out for the test.")
    return Loaded(
        everything.take(kept),
        everything.take(held_out),
        classes,
        tuple(notes),
        files=tuple(files[i] for i in kept.tolist()),
    )


def hold_out(labels: Tensor, seed: int, where: str) -> tuple[Tensor, Tensor]:
    """Returns the indices of the training images and of a stratified tenth for the test.

    Every class keeps training images.

    Args:
        labels: (n,) integer labels.
        seed: Seed of the draw.
        where: Where the images are from, for messages.

    Raises:
        InputError: There are too few images to hold a tenth out.
    """
    if len(labels) < 10:
        raise InputError(
            f"{where} has {len(labels)} images, too few to hold a tenth out for the test.",
            "Add images or a test folder.",
        )
    parts = stratified_split(labels, {"train": 1 - HELD_OUT, "test": HELD_OUT}, seed)
    # A class of one image can fall to the test alone; it stays in training then.
    alone = parts["test"][~torch.isin(labels[parts["test"]], labels[parts["train"]])]
    train = torch.cat([parts["train"], alone]).sort().values
    test = parts["test"][~torch.isin(parts["test"], alone)]
    if not len(test):
        raise InputError(
            f"{where} has too few images in each class to hold a tenth out for the test.",
            "Add images or a test folder.",
        )
    return train, test


def _class_files(directory: Path) -> tuple[dict[str, list[Path]], int]:
    """Returns the image files of each class, both sorted by name, and how many other files there are."""
    found: dict[str, list[Path]] = {}
    others = 0
    for folder in sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
        found[folder.name] = [path for path in files if is_image(path)]
        others += len(files) - len(found[folder.name])
    empty = [name for name, files in found.items() if not files]
    if empty:
        raise InputError(
            f"{len(empty)} class folders in {directory} hold no images: {', '.join(empty[:10])}.",
            "Put images directly into them or remove them.",
        )
    return found, others

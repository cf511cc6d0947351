"""Reads `folder:DIR`: train/CLASS/* and test/CLASS/*, of any format and size."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nas_moreau.data.image_files import is_image, read_images
from nas_moreau.data.images import Images
from nas_moreau.data.splitting import stratified_split
from nas_moreau.errors import InputError

_LAYOUT = "Put the images at DIR/train/CLASS/* and DIR/test/CLASS/*."
HELD_OUT = 0.1


def read_folder(
    directory: Path, image_size: int | None = None, seed: int = 0
) -> tuple[Images, Images, tuple[str, ...], tuple[str, ...]]:
    """Returns training images, test images, sorted class names, and notes.

    All images become RGB; sizes as `read_images` says, one for both parts. Without a `test` folder a tenth
    of every class, drawn by `seed`, is held out for the test.

    Args:
        directory: The folder that holds `train` and perhaps `test`.
        image_size: Height and width wished, or None.
        seed: Seed of the held-out tenth.

    Raises:
        InputError: The layout is not as above, classes differ between the parts, or files cannot be read.
    """
    if not directory.is_dir():
        raise InputError(f"There is no folder {directory}.", "Check the path after folder:.")
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
    pixels, sentence = read_images([path for group in groups for path in group], "RGB", image_size)
    everything = Images(pixels, labels)
    notes = [sentence]
    if skipped:
        notes.append(f"{skipped} files with other endings were passed over.")
    if test:
        border = sum(len(group) for group in train.values())
        return (
            Images(pixels[:border], labels[:border]),
            Images(pixels[border:], labels[border:]),
            classes,
            tuple(notes),
        )
    parts = hold_out(everything, seed, str(directory))
    notes.append("There is no test folder: a tenth of every class is held out for the test.")
    return *parts, classes, tuple(notes)


def training_files(directory: Path, seed: int = 0) -> tuple[Path, ...]:
    """Returns the file of each training image that `read_folder` gives for the same arguments, in their order."""
    found, _ = _class_files(directory / "train")
    files = [path for group in found.values() for path in group]
    if (directory / "test").is_dir():
        return tuple(files)
    labels = torch.tensor([i for i, group in enumerate(found.values()) for _ in group], dtype=torch.int64, device="cpu")
    return tuple(files[i] for i in _parts(labels, seed, str(directory))[0].tolist())


def hold_out(images: Images, seed: int, where: str) -> tuple[Images, Images]:
    """Returns training images and a stratified tenth for the test; every class keeps training images.

    Raises:
        InputError: There are too few images to hold a tenth out.
    """
    train, test = _parts(images.labels, seed, where)
    return images.take(train), images.take(test)


def _parts(labels: Tensor, seed: int, where: str) -> tuple[Tensor, Tensor]:
    """Returns the indices of both parts of `hold_out`."""
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

"""Parts of a data set: how each is spelled in folders and arrays, and what it is used for. The same for every source.

A set has a training part, and may have a validation and a test part. Without a test part the validation part is used
for the test; without either, a tenth of every training class is held out. With both, the validation images join the
training images: search and retraining draw their own held-out splits from those.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas_moreau.data.images import Images, Loaded
from nas_moreau.data.splitting import stratified_split
from nas_moreau.errors import InputError
from nas_moreau.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

SPELLINGS = {
    "train": ("train", "training", "trn", "tr"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst", "te", "t10k", "eval", "evaluation"),
}
"""Part -> its names, in lower case."""
PART_OF = {spelling: part for part, spellings in SPELLINGS.items() for spelling in spellings}
FILLERS = frozenset(("set", "split", "data", "dataset", "images", "image", "imgs", "img", "seg"))
"""Words that may stand beside a part's name: training_set, seg_train, test-images."""
HELD_OUT = 0.1
FEW_TESTS = 100
"""Below this number of test images a note gives it: one image is then a percentage point of accuracy or more."""


def tokens(name: str) -> list[str]:
    """Returns the parts of a name in lower case: `trainX_set` -> train, x, set."""
    return [token.lower() for token in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]


def part_of(name: str) -> str | None:
    """Returns train, validation or test for a folder's name that spells it, else None."""
    words = [token.removesuffix("set") or token for token in tokens(name)]
    while len(words) > 1 and words[0].isdigit():  # 01_train
        del words[0]
    words = [word for word in words if word not in FILLERS and not (word.isdigit() and len(word) == 4)]  # train2017
    return PART_OF.get(words[0]) if len(words) == 1 else None


def settle(loaded: Loaded, seed: int, name: str) -> Loaded:
    """Returns the same images as a training and a test part, with notes on what was assumed.

    Args:
        loaded: What a source has read; its parts have images of one size.
        seed: Of the draw of a held-out test part.
        name: The specification, for messages.

    Raises:
        InputError: There is one class only, a class without a training image, or there are too few images.
    """
    train, validation, test = loaded.train, loaded.validation, loaded.test
    notes, files = list(loaded.notes), loaded.files
    if validation is not None and test is None:
        test, files = validation, files[: len(train)]
        notes.append(f"There is no test part: the {len(test)} validation images are the test images.")
    elif validation is not None:
        train = Images(torch.cat([train.pixels, validation.pixels]), torch.cat([train.labels, validation.labels]))
        notes.append(f"The {len(validation)} validation images are used as training images.")
    _check_classes(train, loaded.classes, name)
    if test is None:
        kept, held_out = hold_out(train.labels, seed, name)
        test, train = train.take(held_out), train.take(kept)
        files = tuple(files[i] for i in kept.tolist()) if files else ()
        notes.append("There is no test part: a tenth of every class is held out for the test.")
    absent = [name for name, n in zip(loaded.classes, _counts(test, loaded.classes)) if not n]
    if absent:
        notes.append(f"The test part has no image of {_listed(absent)}: accuracy says nothing about them.")
    if len(test) < FEW_TESTS:
        notes.append(f"Number of test images: {len(test)}; one of them is {100 / len(test):.3g} points of accuracy.")
    return replace(loaded, train=train, test=test, validation=None, notes=tuple(notes), files=files)


def _check_classes(train: Images, classes: tuple[str, ...], name: str) -> None:
    if len(classes) < 2:
        raise InputError(
            f"{name} has a single class{f', {classes[0]!r}' if classes else ''}.",
            "Give images of two classes or more: one folder or label for each.",
        )
    empty = [label for label, count in zip(classes, _counts(train, classes)) if not count]
    if empty:
        raise InputError(
            f"{name} has no training image of {_listed(empty)}.",
            "Add images of these classes to the training part, or remove the classes everywhere.",
        )


def _counts(images: Images, classes: Sequence[str]) -> list[int]:
    return torch.bincount(images.labels.cpu(), minlength=len(classes)).tolist()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{printable(name)}'" for name in names[:5]) + (
        f" and {len(names) - 5} more" if len(names) > 5 else ""
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
            "Add images or a test part.",
        )
    parts = stratified_split(labels, {"train": 1 - HELD_OUT, "test": HELD_OUT}, seed)
    # A class of one image can fall to the test alone; it stays in training then.
    alone = parts["test"][~torch.isin(labels[parts["test"]], labels[parts["train"]])]
    train = torch.cat([parts["train"], alone]).sort().values
    test = parts["test"][~torch.isin(parts["test"], alone)]
    if not len(test):
        raise InputError(
            f"{where} has too few images in each class to hold a tenth out for the test.",
            "Add images or a test part.",
        )
    return train, test

"""Reads `omniglot:DIR`: Alphabet/character/*.png, a class for each character of each alphabet."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from nas_moreau.data.image_files import is_image, read_images
from nas_moreau.data.image_folder import hold_out
from nas_moreau.data.images import Images
from nas_moreau.errors import InputError

IMAGE_SIZE = 28
_DEEPEST = 4


def read_omniglot(
    directory: Path, image_size: int | None = None, seed: int = 0
) -> tuple[Images, Images, tuple[str, ...], tuple[str, ...]]:
    """Returns training images, test images, sorted class names `Alphabet/character`, and notes.

    Several sets below one folder are merged: an alphabet in two of them counts once, and so does a drawing
    (known by its file name) that both hold. A tenth of each character's drawings is the test part; few-shot
    learning, which holds out whole alphabets, takes both parts together.

    Args:
        directory: A folder with Alphabet/character/*.png at most two folders down.
        image_size: Height and width wished; 28, usual in few-shot learning, by default.
        seed: Seed of the test part.

    Raises:
        InputError: There is no such folder or no image in that layout, or files cannot be read.
    """
    if not directory.is_dir():
        raise InputError(f"There is no folder {directory}.", "Check the path after omniglot:.")
    drawings: dict[tuple[str, str], dict[str, Path]] = {}
    depth = len(directory.parts)
    for folder, subfolders, names in os.walk(directory):
        here = Path(folder)
        below = len(here.parts) - depth
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".")) if below < _DEEPEST else []
        if below >= 2:
            for name in sorted(names):
                if is_image(here / name) and (here / name).is_file():
                    drawings.setdefault((here.parent.name, here.name), {}).setdefault(name, here / name)
    if len(drawings) < 2:
        raise InputError(
            f"{directory} holds {len(drawings)} characters as Alphabet/character/*.png.",
            "Unzip the Omniglot images there.",
        )
    classes = sorted(drawings)
    files = [(label, path) for label, key in enumerate(classes) for _, path in sorted(drawings[key].items())]
    size = IMAGE_SIZE if image_size is None else image_size
    pixels, sentence = read_images([path for _, path in files], "L", size)
    images = Images(pixels, torch.tensor([label for label, _ in files], dtype=torch.int64, device="cpu"))
    train, test = hold_out(images, seed, str(directory))
    notes = (sentence, "A tenth of every character's drawings is held out for the test.")
    return train, test, tuple(f"{alphabet}/{character}" for alphabet, character in classes), notes

"""Reads `omniglot:DIR`: Alphabet/character/*.png, a class for each character of each alphabet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nas_moreau.data.image_files import is_image, read_images
from nas_moreau.data.images import Images, Loaded
from nas_moreau.data.layout import is_dropping
from nas_moreau.errors import InputError
from nas_moreau.text import name_text

if TYPE_CHECKING:
    from nas_moreau.data.sources import Request

IMAGE_SIZE = 28
_DEEPEST = 4


def read_omniglot(request: Request) -> Loaded:
    """Returns the drawings of a folder; class names are `Alphabet/character`, sorted.

    Several sets below one folder are merged: an alphabet in two of them counts once, and so does a drawing
    (identified by its file name) that both hold. There is no test part; few-shot learning, which holds out whole
    alphabets, uses all drawings.

    Args:
        request: Its place is a folder with Alphabet/character/*.png at most two folders down; images have 28 pixels
            by default, as is usual in few-shot learning.

    Raises:
        InputError: The folder is missing or has no image in that layout, or files cannot be read.
    """
    directory = request.place
    if directory.is_file():
        raise InputError(f"{directory} is a file.", "Give the folder of the alphabets.")
    drawings: dict[tuple[str, str], dict[str, Path]] = {}
    depth = len(directory.parts)
    for folder, subfolders, names in os.walk(directory):
        here = Path(folder)
        below = len(here.parts) - depth
        subfolders[:] = sorted(name for name in subfolders if not is_dropping(name)) if below < _DEEPEST else []
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
    read = read_images([path for _, path in files], "L", request.image_size or IMAGE_SIZE)
    return Loaded(
        Images(read.pixels, torch.tensor([label for label, _ in files], dtype=torch.int64, device="cpu")),
        None,
        tuple(f"{name_text(alphabet)}/{name_text(character)}" for alphabet, character in classes),
        read.notes,
        files=tuple(path for _, path in files),
        white=read.white,
    )

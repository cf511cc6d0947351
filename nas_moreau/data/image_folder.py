"""Reads `folder:DIR`: images of any format and size, a folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nas_moreau.data.cifar_batches import are_batches, read_batches
from nas_moreau.data.image_files import read_images
from nas_moreau.data.images import Images, Loaded
from nas_moreau.data.layout import find_layout
from nas_moreau.data.mistaken_paths import line_for
from nas_moreau.errors import InputError

if TYPE_CHECKING:
    from nas_moreau.data.sources import Request


def read_folder(request: Request) -> Loaded:
    """Returns the images of a folder; class names are the names of the class folders, sorted.

    All images become RGB; `read_images` chooses one size for all parts. A folder with the batches of CIFAR is read as
    what it is.

    Args:
        request: Its place is the folder.

    Raises:
        InputError: The layout is none that `find_layout` understands, or files cannot be read.
    """
    directory = request.place
    if directory.is_file():
        raise InputError(f"{directory} is a file.", line_for(directory))
    if are_batches(directory):
        return read_batches(directory)
    layout = find_layout(directory)
    classes = tuple(layout.parts["train"])
    files: list[Path] = []
    labels: list[int] = []
    ends: dict[str, int] = {}
    for part, found in layout.parts.items():
        for name, paths in found.items():
            files += paths
            labels += [classes.index(name)] * len(paths)
        ends[part] = len(files)
    read = read_images(files, "RGB", request.image_size)
    images = Images(read.pixels, torch.tensor(labels, dtype=torch.int64, device="cpu"))
    parts, start = dict[str, Images](), 0
    for part, end in ends.items():
        parts[part] = Images(images.pixels[start:end], images.labels[start:end])
        start = end
    named = files[: ends.get("validation", ends["train"])]
    return Loaded(
        parts["train"],
        parts.get("test"),
        classes,
        (*read.notes, *layout.notes),
        files=tuple(named),
        validation=parts.get("validation"),
        white=read.white,
    )

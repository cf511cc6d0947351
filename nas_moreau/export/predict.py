"""Classifying image files with a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas_moreau.data import Augment
from nas_moreau.data.arrays import as_array, pixels_of
from nas_moreau.data.image_files import is_image, read_image
from nas_moreau.data.images import WHITE
from nas_moreau.data.pixel_ranges import Named
from nas_moreau.data.resizing import fit_pixels
from nas_moreau.errors import InputError
from nas_moreau.export.classifier import Classifier
from nas_moreau.text import name_text

BATCH = 64


@torch.no_grad()
def predict(classifier: Classifier, paths: Sequence[str | PathLike[str]]) -> dict[str, Any]:
    """Returns `images`, each with file, class, probability and the probabilities of all classes, and `unreadable`.

    Args:
        classifier: The network with the class names, size and statistics of the images it was trained on.
        paths: Image files, and folders: all images in and below them. Unreadable files are listed in the result.

    Raises:
        InputError: No image can be read.
    """
    data = classifier.data
    rows: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    files = _files(paths)
    for start in range(0, len(files), BATCH):
        kept, pixels = [], []
        for path in files[start : start + BATCH]:
            try:
                pixels.append(read_image(path, data["channels"], tuple(data["image_size"]), data.get("white", WHITE)))
                kept.append(path)
            except InputError as error:
                reason = error.cause.partition(" cannot be read: ")[2] or error.cause
                unreadable.append({"file": name_text(path), "reason": reason})
        if kept:
            found = _classify(classifier, torch.stack(pixels))
            rows += [{"file": name_text(path), **row} for path, row in zip(kept, found)]
    if not rows:
        cure = "Give image files or folders of them."
        if not unreadable:
            raise InputError(f"There are no image files in {', '.join(map(name_text, paths))}.", cure)
        first, count = f"{unreadable[0]['file']}: {unreadable[0]['reason'].rstrip('.')}", len(unreadable)
        none = f"None of the {count} files can be read, for example" if count > 1 else "An image cannot be read:"
        raise InputError(f"{none} {first}.", cure)
    return {"images": rows, "unreadable": unreadable}


@torch.no_grad()
def predict_arrays(classifier: Classifier, images: np.ndarray | Tensor) -> list[dict[str, Any]]:
    """Returns class, probability and the probabilities of all classes for each image of an array.

    Args:
        classifier: The network with the class names, size and statistics of the images it was trained on.
        images: By the rules of npz files, of any height and width: (n, height, width, channels),
            (n, channels, height, width), or one image without n; (n, height, width) where images are grey.

    Raises:
        InputError: The array holds no images, or images with another number of channels.
    """
    channels, height, width = classifier.input_size
    if images.ndim == (2 if channels == 1 else 3):
        images = images[None]
    named = Named("images", as_array("images", images))
    batch = pixels_of({"train": named}, "predict", classifier.data["white"])[0]["train"]
    if batch.shape[1] != channels:
        raise InputError(
            f"The images have {batch.shape[1]} channels; the network was trained on {channels}.",
            "Convert them first.",
        )
    batch = fit_pixels(batch, (height, width))
    return [row for part in batch.split(BATCH) for row in _classify(classifier, part)]


def _classify(classifier: Classifier, pixels: Tensor) -> list[dict[str, Any]]:
    """Returns the rows of a batch of pixels (n, channels, height, width)."""
    data = classifier.data
    logits = classifier.network(Augment(tuple(data["mean"]), tuple(data["std"]))(pixels))
    rows = []
    for row in logits.double().softmax(-1).tolist():
        best = max(range(len(row)), key=row.__getitem__)
        named = dict(zip(data["classes"], row))
        rows.append({"class": data["classes"][best], "probability": row[best], "probabilities": named})
    return rows


def _files(paths: Sequence[str | PathLike[str]]) -> list[Path]:
    """Returns the files, folders replaced by the images in and below them in order of name."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(p for p in path.rglob("*") if is_image(p)) if path.is_dir() else [path]
    return files

"""Classifying image files with a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from nas_moreau.data import Augment
from nas_moreau.data.image_files import is_image, read_image
from nas_moreau.data.images import WHITE
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
    augment = Augment(tuple(data["mean"]), tuple(data["std"]))
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
            logits = classifier.network(augment(torch.stack(pixels)))
            for path, row in zip(kept, logits.double().softmax(-1).tolist()):
                best = max(range(len(row)), key=row.__getitem__)
                rows.append(
                    {
                        "file": name_text(path),
                        "class": data["classes"][best],
                        "probability": row[best],
                        "probabilities": dict(zip(data["classes"], row)),
                    }
                )
    if not rows:
        first = f" ({unreadable[0]['file']}: {unreadable[0]['reason'].rstrip('.')})" if unreadable else ""
        raise InputError(f"None of the {len(files)} files can be read{first}.", "Give image files or folders of them.")
    return {"images": rows, "unreadable": unreadable}


def _files(paths: Sequence[str | PathLike[str]]) -> list[Path]:
    """Returns the files, folders replaced by the images in and below them in order of name."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(p for p in path.rglob("*") if is_image(p)) if path.is_dir() else [path]
    return files

"""What is worth keeping about a data set beside the weights that were trained on it."""

from __future__ import annotations

from typing import Any

import torch

from nas_moreau.data.images import Data


def describe_data(data: Data) -> dict[str, Any]:
    """Returns plain data: name, classes with their numbers of images, image size, statistics and notes."""
    count = len(data.classes)
    return {
        "name": data.name,
        "classes": list(data.classes),
        "train": torch.bincount(data.train.labels, minlength=count).tolist(),
        "test": torch.bincount(data.test.labels, minlength=count).tolist(),
        "channels": data.channels,
        "image_size": list(data.image_size),
        "mean": list(data.mean),
        "std": list(data.std),
        "notes": list(data.notes),
    }

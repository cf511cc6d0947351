"""What a command would do, said without doing it."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch

from nas_moreau.architecture import load_space
from nas_moreau.config import Config
from nas_moreau.data import load_images, stratified_split
from nas_moreau.search.methods import search_supernet
from nas_moreau.training.device import pick_device


def describe(config: Config, output: str | PathLike[str]) -> dict[str, Any]:
    """Returns the sizes of a run: images, parts, supernet, steps; nothing is written.

    Raises:
        InputError: As the run itself would.
    """
    space, data = load_space(config.space), load_images(config)
    settings = config.search
    with torch.device("meta"):
        supernet = search_supernet(space, settings, data.num_classes, data.channels)
    parts = stratified_split(data.train.labels, settings.split.model_dump(), config.seed)
    steps = settings.steps_per_epoch or max(1, len(parts["weights"]) // settings.batch_size)
    retrain_steps = config.retrain.steps_per_epoch or max(1, len(data.train) // config.retrain.batch_size)
    return {
        "output": str(output),
        "device": str(pick_device(config.device)),
        "data": {
            "name": data.name, "classes": data.num_classes, "train": len(data.train), "test": len(data.test),
            "image": list(data.input_size), "notes": list(data.notes),
        },
        "space": {"name": space.name, "genotypes": space.size()},
        "search": {
            "method": settings.method, "epochs": settings.epochs, "steps": steps * settings.epochs,
            "supernet_weights": sum(p.numel() for p in supernet.weights()),
            **{name: len(part) for name, part in parts.items()},
        },
        "retrain": {"epochs": config.retrain.epochs, "steps": retrain_steps * config.retrain.epochs},
    }  # fmt: skip

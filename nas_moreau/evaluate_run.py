"""The evaluate stage: what a finished run's network does on images."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from nas_moreau.architecture.spaces.zoo import load_genotype
from nas_moreau.config import Config
from nas_moreau.data import Augment
from nas_moreau.errors import InputError
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.search.restore import restore_supernet
from nas_moreau.training.evaluate import detail, evaluate_model, evaluation_result
from nas_moreau.training.performance import as_it_was
from nas_moreau.training.recipe import build_network
from nas_moreau.training.resume import load_weights
from nas_moreau.training.setting import load_images, prepare, search_images


@as_it_was()
def evaluate_run(folder: str | PathLike[str], config: Config) -> dict[str, Any]:
    """Returns split, accuracy (0..1), loss (nats) and samples.

    They are written with the confusion matrix to evaluation.json. A retraining is measured on the test images; a search
    on the training images held out from both of its levels.

    Args:
        folder: Folder of a retraining or a search.
        config: Its configuration; data and device may differ from the run's.

    Raises:
        InputError: There is nothing to evaluate, or the images do not fit the network.
    """
    folder = Path(folder)
    device = prepare(config)
    data = load_images(config)
    augment = Augment(data.mean, data.std)
    channels_last = config.performance.channels_last
    if (folder / "alphas.csv").exists():
        supernet = restore_supernet(folder, config, data, device)
        images, parts = search_images(config, data, device)
        split, model, indices = "held_out", supernet, parts["held_out"]
    else:
        genotype = load_genotype(str(folder / "genotype.json"))
        model = build_network(config, genotype, data.num_classes, data.channels)
        load_weights(model, folder)
        model = model.to(device).eval()
        images, indices, split = data.test.to(device), None, "test"
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    found = evaluate_model(model, images, augment, data.num_classes, indices, channels_last=channels_last)
    if not found.samples:
        raise InputError(f"There are no {split} images.", "Give a data set that has them.")
    result = evaluation_result(split, found)
    text = json.dumps(result | detail(found, data.classes), indent=1)
    write_atomic(folder / "evaluation.json", text.encode())
    return result

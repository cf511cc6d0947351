"""The evaluate stage: what a finished run's network does on images."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from nas_moreau.architecture.spaces.zoo import load_genotype
from nas_moreau.config import Config
from nas_moreau.data import Augment, Part, load_images
from nas_moreau.data.batches import search_parts
from nas_moreau.errors import InputError
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.search.restore import restore_supernet
from nas_moreau.training.device import set_up_device, torch_settings_restored
from nas_moreau.training.evaluate import detail, evaluate_model, evaluation_result
from nas_moreau.training.recipe import build_network
from nas_moreau.training.resume import load_weights


@torch_settings_restored()
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
    device = set_up_device(config)
    data = load_images(config)
    channels_last = config.performance.channels_last
    if (folder / "alphas.csv").exists():
        supernet = restore_supernet(folder, config, data, device)
        split, model, part = "held_out", supernet, search_parts(config, data, device).held_out
    else:
        genotype = load_genotype(str(folder / "genotype.json"))
        model = build_network(config, genotype, data.num_classes, data.channels)
        load_weights(model, folder)
        model = model.to(device).eval()
        split, part = "test", Part.whole(data.test.to(device), Augment(data.mean, data.std))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    found = evaluate_model(model, part, data.num_classes, channels_last=channels_last)
    if not found.samples:
        raise InputError(f"There are no {split} images.", "Give a data set that has them.")
    result = evaluation_result(split, found)
    text = json.dumps(result | detail(found, data.classes), indent=1)
    write_atomic(folder / "evaluation.json", text.encode())
    return result

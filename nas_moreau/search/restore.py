"""The supernet of a search, as its last checkpoint left it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch

from nas_moreau.architecture import Supernet
from nas_moreau.config import Config
from nas_moreau.data import Data
from nas_moreau.errors import InputError
from nas_moreau.runs import load_checkpoint
from nas_moreau.search.build import build_supernet
from nas_moreau.search.supernet_problem import write_back


def restore_supernet(run: str | PathLike[str], config: Config, data: Data, device: torch.device) -> Supernet:
    """Returns the supernet of a search folder as its last checkpoint left it, in evaluation mode, on the device."""
    loaded = load_checkpoint(Path(run) / "checkpoints")
    if loaded is None:
        raise InputError(f"{run} has no checkpoint yet.", "Let the search finish an epoch first.")
    payload = loaded[0]
    size = config.search.image_size
    image = data.input_size if size is None else (data.channels, size, size)
    supernet = build_supernet(config, data.num_classes, image, device)
    write_back(supernet, payload["x"], payload["y"])
    for name, buffer in supernet.named_buffers():
        buffer.copy_(payload["buffers"][name])
    return supernet.eval()

"""Networks of finished stages, as their checkpoints left them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch

from nas_moreau.architecture import Supernet, load_space
from nas_moreau.config import Config
from nas_moreau.data import Data
from nas_moreau.errors import InputError
from nas_moreau.runs import load_checkpoint
from nas_moreau.search.methods import search_supernet
from nas_moreau.search.supernet_problem import write_back


def restore_supernet(run: str | PathLike[str], config: Config, data: Data, device: torch.device) -> Supernet:
    """Returns the supernet of a search folder as its last checkpoint left it, in evaluation mode."""
    loaded = load_checkpoint(Path(run) / "checkpoints")
    if loaded is None:
        raise InputError(f"{run} has no checkpoint yet.", "Let the search finish an epoch first.")
    payload = loaded[0]
    supernet = search_supernet(load_space(config.space), config.search, data.num_classes, data.channels)
    write_back(supernet, payload["x"], payload["y"])
    for name, buffer in supernet.named_buffers():
        buffer.copy_(payload["buffers"][name])
    return supernet.to(device).eval()

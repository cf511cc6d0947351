"""Networks of finished stages, as their checkpoints left them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch
from torch import nn

from nas_moreau.architecture import Supernet, load_space
from nas_moreau.config import Config
from nas_moreau.data import Data
from nas_moreau.errors import InputError, first_line
from nas_moreau.runs import load_checkpoint
from nas_moreau.runs.checkpoint import Damaged, read_checkpoint
from nas_moreau.stages.methods import search_supernet
from nas_moreau.stages.supernet_problem import write_back


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


def load_weights(network: nn.Module, run: str | PathLike[str]) -> None:
    """Loads the weights that a retraining folder is reported with (best.pt): the moving average, if it has one.

    Raises:
        InputError: There is no such checkpoint, it is damaged, or it belongs to another network.
    """
    path = Path(run) / "checkpoints" / "best.pt"
    try:
        payload = read_checkpoint(path)
        network.load_state_dict(payload["ema"] or payload["model"])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", "Finish the retraining first (retrain --resume).") from None
    except (Damaged, KeyError, RuntimeError) as error:
        raise InputError(f"{path} cannot be used: {first_line(error)}.", "Retrain, or give another run.") from None

"""The derive stage: from the alphas in a search's checkpoint to the genotype, any time after the search began."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from nas_moreau.architecture import Genotype, derive, load_space
from nas_moreau.errors import InputError
from nas_moreau.runs import load_checkpoint
from nas_moreau.runs.folder import read_config


def derive_run(run: str | PathLike[str]) -> Genotype:
    """Returns the genotype that a search folder's last checkpoint stands for.

    Raises:
        InputError: There is no usable checkpoint.
    """
    folder = Path(run)
    loaded = load_checkpoint(folder / "checkpoints")
    if loaded is None:
        raise InputError(f"{folder} has no checkpoint yet.", "Let the search finish an epoch first.")
    space = load_space(read_config(folder)["space"])
    return derive(space, loaded[0]["alphas"])

"""The derive stage: the cell of finished searches, from their checkpoints, by any rule."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from nas_moreau.architecture import AlphaTable, load_space
from nas_moreau.config import Config
from nas_moreau.data import Data, load_images
from nas_moreau.data.batches import search_parts
from nas_moreau.drawing.genotype_files import genotype_files
from nas_moreau.errors import InputError
from nas_moreau.runs import load_checkpoint
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.folder import read_config
from nas_moreau.runs.lock import Lock
from nas_moreau.runs.plain_files import json_text, read_json
from nas_moreau.search.derive import MEASURED, Derived, Trained, derive_by_rule
from nas_moreau.search.restore import restore_supernet
from nas_moreau.training.device import set_up_device, torch_settings_restored


@torch_settings_restored()
def derive_run(run: str | PathLike[str], config: Config, data: Data | None = None) -> Derived:
    """Returns the cell that a search folder's last checkpoint stands for.

    Args:
        run: Folder of a search.
        config: Its configuration; the section `derive`, the data's place and the device may differ from the run's.
        data: The images, if they are loaded already; a rule that needs none loads none.

    Raises:
        InputError: There is no usable checkpoint, the data are missing, or no cell is within the budget.
    """
    folder, space, settings = Path(run), load_space(config.space), config.derive
    alphas = _alphas(folder)
    trained, shape = None, None
    if settings.rule in MEASURED or settings.max_parameters or settings.max_macs:
        data = load_images(config) if data is None else data
        shape = (data.num_classes, *data.input_size)
    if settings.rule in MEASURED:
        trained = _trained(folder, config, data)
    return derive_by_rule(config, space, alphas, trained, shape)


@torch_settings_restored()
def derive_ensemble(runs: Sequence[str | PathLike[str]], config: Config) -> Derived:
    """Returns the cell of several searches of one space: the space's rule on the mean of their softmax weights.

    Softmax weights are averaged, not alphas: a search with larger logits counts no more than any other.

    Args:
        runs: Folders of searches.
        config: The configuration of the first; its budget applies.

    Raises:
        InputError: As `derive_run`, or the searches are of different spaces.
    """
    space = load_space(config.space)
    if config.derive.rule != "argmax":
        raise InputError(
            f"The rule {config.derive.rule} belongs to one search, and {len(runs)} were given.",
            "Give one run, or leave --rule out: several are derived by the mean of their weights.",
        )
    tables = []
    for run in runs:
        other = load_space(read_config(run)["space"])
        if other != space:
            raise InputError(
                f"{run} is a search of the space '{other.name}', {runs[0]} one of '{space.name}'.",
                "Give searches of one space.",
            )
        tables.append(AlphaTable.from_logits(space, _alphas(Path(run))))
    shape = None
    if config.derive.max_parameters or config.derive.max_macs:
        data = load_images(config)
        shape = (data.num_classes, *data.input_size)
    found = derive_by_rule(config, space, AlphaTable.mean(tables), None, shape)
    record = (found.record or {}) | {"rule": "mean of softmax weights", "runs": [str(run) for run in runs]}
    return Derived(found.genotype, found.argmax or found.genotype, record)


def write_derived(run: str | PathLike[str], derived: Derived) -> None:
    """Puts the cell into a finished search's genotype.json, drawings and result.json, which `retrain RUN` reads.

    Raises:
        InputError: The search is not finished, or runs.
    """
    folder = Path(run)
    result = read_json(folder / "result.json")
    if result is None:
        raise InputError(
            f"The search in {folder} is not finished; its next epoch would write over the cell.",
            "Let it finish, or leave --write out.",
        )
    lock = Lock.take(folder)
    try:
        for key in ("argmax_genotype", "argmax_digest", "selection"):
            result.pop(key, None)
        result |= derived.result()
        space = load_space(read_config(folder)["space"])
        files = genotype_files(derived.genotype, result.get("alphas") or None, space, png=True)
        for name, data in (files | {"result.json": json_text(result).encode()}).items():
            write_atomic(folder / name, data)
    finally:
        lock.release()


def _alphas(folder: Path) -> dict[str, Any]:
    loaded = load_checkpoint(folder / "checkpoints")
    if loaded is None and (folder / "result.json").exists():
        raise InputError(f"The cell of {folder} was drawn at random; it has no alphas.", "Give another search.")
    if loaded is None:
        raise InputError(f"{folder} has no checkpoint yet.", "Let the search finish an epoch first.")
    return loaded[0]["alphas"]


def _trained(folder: Path, config: Config, data: Data) -> Trained:
    device = set_up_device(config)
    supernet = restore_supernet(folder, config, data, device)
    if config.performance.channels_last:
        supernet = supernet.to(memory_format=torch.channels_last)
    parts = search_parts(config, data, device)
    return Trained(supernet, parts.held_out, parts.architecture)

"""The derive stage: the genotype of finished searches, from their checkpoints, by any derivation rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from nas_moreau.architecture import AlphaTable, load_space
from nas_moreau.config import Config
from nas_moreau.data import Data, load_images
from nas_moreau.data.batches import search_parts
from nas_moreau.drawing.cell import genotype_files
from nas_moreau.errors import InputError
from nas_moreau.runs.atomic import refuse_links
from nas_moreau.runs.configuration import read_config
from nas_moreau.runs.history import Stage
from nas_moreau.runs.identity import recorded_identity, refuse_other
from nas_moreau.runs.lock import Lock
from nas_moreau.runs.manifest import check_recorded, write_recorded
from nas_moreau.runs.own_checkpoints import own_checkpoint
from nas_moreau.runs.plain_files import json_text, read_json
from nas_moreau.search.build import restore_supernet
from nas_moreau.search.collapse import assess
from nas_moreau.search.rules import DataShape, Derived, Trained, derive_by_rule, named_rule
from nas_moreau.search.short_training import Place
from nas_moreau.training.device import set_up_device, torch_settings_restored


@torch_settings_restored()
def derive_run(
    run: str | PathLike[str],
    config: Config,
    data: Data | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Derived:
    """Returns the genotype of a search folder's last checkpoint.

    Args:
        run: Folder of a search.
        config: Its configuration; the section `derive`, the data's place and the device may differ from the run's.
        data: The images, if they are loaded already; without a budget, a rule that needs no supernet loads none.
        report: Gets lines on the progress of a rule that takes long.

    Raises:
        InputError: The rule is unknown, there is no usable checkpoint, the data are missing, or no cell is within the
            budget.
    """
    folder, space, rule = Path(run), load_space(config.space), named_rule(config.derive.rule)
    check_recorded(folder)
    refuse_other(recorded_identity(folder), {"space": space.digest()}, "this command", f"the search in {folder}")
    alphas = _alphas(folder)
    if rule.needs_supernet and data is None:
        data = load_images(config)
    trained = _trained(folder, config, data, report) if rule.needs_supernet and data is not None else None
    return derive_by_rule(config, space, alphas, trained, _shape(config, data))


@torch_settings_restored()
def derive_ensemble(runs: Sequence[str | PathLike[str]], config: Config) -> Derived:
    """Returns the genotype of several searches of one space: the rule applied to the mean of their softmax weights.

    Softmax weights are averaged, not logits: a search with larger logits counts no more than the others.

    Args:
        runs: Folders of searches.
        config: The configuration of the first; its rule and budget apply.

    Raises:
        InputError: As `derive_run`, the searches are of different spaces, or the rule needs a supernet or logits.
    """
    space, rule = load_space(config.space), named_rule(config.derive.rule)
    if rule.needs_supernet:
        raise InputError(
            f"The rule {rule.name} needs the supernet of one search, and {len(runs)} searches were given.",
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
    found = derive_by_rule(config, space, AlphaTable.mean(tables), None, _shape(config))
    record = {"weights": "mean of softmax weights", "runs": [str(run) for run in runs]}
    return Derived(found.genotype, found.derived_by | record, found.before)


def write_derived(run: str | PathLike[str], derived: Derived) -> None:
    """Puts the genotype into a finished search's genotype.json, drawings and result.json, which `retrain RUN` reads.

    Raises:
        InputError: The search is not finished, or is running.
    """
    folder = Path(run)
    result = read_json(folder / "result.json")
    if result is None:
        raise InputError(
            f"The search in {folder} is not finished; its next epoch would overwrite the genotype.",
            "Let it finish, or leave --write out.",
        )
    refuse_links(folder)
    lock = Lock.take(folder)
    try:
        for key in ("before_rule", "percentile"):  # the new cell may have none
            result.pop(key, None)
        table = Stage(folder, "search").final_alphas
        health = assess(derived.genotype, table, derived.trained)
        result |= derived.to_dict() | {"health": health.to_dict(), "verdict": str(health)}
        files = genotype_files(derived.genotype, table, png=True)
        write_recorded(folder, files | {"result.json": json_text(result).encode()}, lock)
    finally:
        lock.release()


def _shape(config: Config, data: Data | None = None) -> DataShape | None:
    """Returns the shape of the data where there is a budget, which needs it."""
    if not config.derive.max_parameters and not config.derive.max_macs:
        return None
    data = load_images(config) if data is None else data
    channels, height, width = data.input_size
    return data.num_classes, channels, height, width


def _alphas(folder: Path) -> dict[str, Any]:
    loaded = own_checkpoint(folder)
    if loaded is None and (folder / "result.json").exists():
        raise InputError(f"The cell of {folder} was drawn at random; it has no alphas.", "Give another search.")
    if loaded is None:
        raise InputError(f"{folder} has no checkpoint yet.", "Let the search finish an epoch first.")
    return loaded[0]["alphas"]


def _trained(folder: Path, config: Config, data: Data, report: Callable[[str], None]) -> Trained:
    device = set_up_device(config)
    supernet = restore_supernet(folder, config, data, device)
    parts = search_parts(config, data, device)
    return Trained(supernet, parts.held_out, parts.architecture, Place(parts.weights, report=report))

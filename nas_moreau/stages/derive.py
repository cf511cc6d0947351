"""From alphas to the cell by the configuration's rule: at the end of a search, and from its checkpoint ever after."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nas_moreau.architecture import Genotype, Network, SearchSpace, Supernet, derive, load_space
from nas_moreau.architecture.budget import best_within, network_costs
from nas_moreau.architecture.derivation import mixing_weights, node_weights, strongest_genotype
from nas_moreau.config import Config
from nas_moreau.data import Augment, Data, stratified_split
from nas_moreau.errors import InputError
from nas_moreau.runs import load_checkpoint
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.genotype_files import genotype_files
from nas_moreau.runs.lock import Lock
from nas_moreau.runs.plain_files import read_json
from nas_moreau.stages.candidates import Part
from nas_moreau.stages.perturbation import perturb
from nas_moreau.stages.restored import restore_supernet
from nas_moreau.stages.selection import select
from nas_moreau.stages.setting import load_images, prepare, resized

MEASURED = ("perturbation", "selection")  # the rules that need the supernet and images


class Trained(NamedTuple):
    """A trained supernet and the images its candidates are measured on."""

    supernet: Supernet
    held_out: Part
    architecture: Part


class Derived(NamedTuple):
    """What came out; by another rule than the space's own, or in a budget, also what that gives (`argmax`), and how."""

    genotype: Genotype
    argmax: Genotype | None = None
    record: dict[str, Any] | None = None

    def result(self) -> dict[str, Any]:
        """Returns the keys of a search's result.json."""
        found: dict[str, Any] = {"genotype": self.genotype.to_dict(), "digest": self.genotype.digest()}
        if self.argmax is not None:
            found |= {"argmax_genotype": self.argmax.to_dict(), "argmax_digest": self.argmax.digest()}
            found |= {"selection": self.record}
        return found


def derive_by_rule(
    config: Config,
    space: SearchSpace,
    alphas: Mapping[str, Any],
    trained: Trained | None = None,
    shape: tuple[int, int, int, int] | None = None,
) -> Derived:
    """Returns the cell by `derive.rule`, within the budget of `derive.max_parameters` and `derive.max_macs`.

    A budget replaces the choice of the strongest weights by that of the strongest that fit (`architecture.budget`);
    `selection` then begins there and tries only neighbours that fit.

    Args:
        config: The sections `derive`, `retrain` (for a budget), `performance` and the seed.
        space: The space of the search.
        alphas: As for `architecture.derive`.
        trained: For the rules that measure.
        shape: (classes, channels, height, width) of the data, for a budget.

    Raises:
        InputError: No cell is within the budget.
    """
    settings = config.derive
    argmax = derive(space, alphas)
    weights = (node_weights if settings.rule == "edge-normalised" else mixing_weights)(space, alphas)
    genotype = strongest_genotype(space, weights)
    record: dict[str, Any] = {"rule": settings.rule}
    costs = None
    if settings.max_parameters or settings.max_macs:
        assert shape is not None, "a budget is a network's, and that has a size"
        costs = _costs(config, space, shape)
        found = best_within(space, weights, *costs, settings.max_parameters, settings.max_macs)
        genotype = found.genotype
        record["budget"] = {
            "max_parameters": settings.max_parameters, "max_macs": settings.max_macs, "log_weight": found.score,
            "parameters": found.parameters, "macs": found.macs, "exact": found.exact,
        }  # fmt: skip
    elif settings.rule == "argmax":
        return Derived(genotype)
    if settings.rule in MEASURED:
        assert trained is not None, "these rules measure"
        supernet, held_out, architecture = trained
        last = config.performance.channels_last
        if settings.rule == "selection":
            images = held_out.first(settings.images)
            genotype, tried = select(
                space, supernet, genotype, images, last, lambda cell: _fits(config, space, cell, costs)
            )
        else:
            images = architecture.first(settings.images)
            # the supernet weights its edges by itself
            weights = mixing_weights(space, {cell: alphas[cell] for cell in space.cells})
            genotype, tried = perturb(space, supernet, weights, images, config.seed, last)
        record |= tried
    return Derived(genotype, argmax, record)


def check_budget(config: Config, space: SearchSpace, shape: tuple[int, int, int, int]) -> None:
    """Raises InputError when no cell of the space is within the configuration's budget: before a search, not after."""
    settings = config.derive
    if settings.max_parameters or settings.max_macs:
        alike = {cell: [[1.0] * len(space.operations) for _ in space.edges] for cell in space.cells}
        best_within(space, alike, *_costs(config, space, shape), settings.max_parameters, settings.max_macs)


def _costs(config: Config, space: SearchSpace, shape: tuple[int, int, int, int]) -> tuple[Any, Any]:
    """Returns `network_costs` of the network that is retrained, without its auxiliary head, as results count it."""
    classes, channels, height, width = shape

    def build(genotype: Genotype) -> Network:
        return Network(genotype, config.retrain.channels, config.retrain.layers, classes, in_channels=channels)

    return network_costs(space, build, (channels, height, width))


def _fits(config: Config, space: SearchSpace, genotype: Genotype, costs: tuple[Any, Any] | None) -> bool:
    if costs is None:
        return True
    base, added = costs
    used = [
        added[name, space.edges.index((source, target)), operation]
        for name, cell in genotype.cells.items()
        for operation, source, target in cell.edges
    ]
    limits = (config.derive.max_parameters, config.derive.max_macs)
    return all(limit is None or base[i] + sum(cost[i] for cost in used) <= limit for i, limit in enumerate(limits))


# --- from run folders ------------------------------------------------------------------------------------------------


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
        shape = (data.num_classes, data.channels, *data.image_size)
    if settings.rule in MEASURED:
        trained = _trained(folder, config, data)
    return derive_by_rule(config, space, alphas, trained, shape)


def derive_ensemble(runs: Sequence[str | PathLike[str]], config: Config) -> Derived:
    """Returns the cell of several searches of one space: the space's rule on the mean of their softmax weights.

    Softmax weights are averaged, not alphas: a search with larger logits counts no more than any other.

    Args:
        runs: Folders of searches.
        config: The configuration of the first; its budget applies.

    Raises:
        InputError: As `derive_run`, or the searches are of different spaces.
    """
    from nas_moreau.runs.folder import read_config

    space = load_space(config.space)
    if config.derive.rule != "argmax":
        raise InputError(
            f"The rule {config.derive.rule} belongs to one search, and {len(runs)} were given.",
            "Give one run, or leave --rule out: several are derived by the mean of their weights.",
        )
    tables, weighted = [], False
    for run in runs:
        other = load_space(read_config(run)["space"])
        if other != space:
            raise InputError(
                f"{run} is a search of the space '{other.name}', {runs[0]} one of '{space.name}'.",
                "Give searches of one space.",
            )
        own = _alphas(Path(run))
        weighted = weighted or f"edge_{space.cells[0]}" in own
        tables.append(mixing_weights(space, own))
    mean = {
        cell: [[math.fsum(ws) / len(runs) for ws in zip(*rows)] for rows in zip(*(table[cell] for table in tables))]
        for cell in space.cells
    }
    # a logarithm of the mean, so that the softmax of it is the mean again
    alphas: dict[str, Any] = {
        cell: [[math.log(max(w, 1e-300)) for w in row] for row in table] for cell, table in mean.items()
    }
    if weighted:  # edges had weights: what a row adds up to
        alphas |= {f"edge_{cell}": [math.log(math.fsum(row)) for row in table] for cell, table in mean.items()}
    shape = None
    if config.derive.max_parameters or config.derive.max_macs:
        data = load_images(config)
        shape = (data.num_classes, data.channels, *data.image_size)
    found = derive_by_rule(config, space, alphas, None, shape)
    record = (found.record or {}) | {"rule": "mean of softmax weights", "runs": [str(run) for run in runs]}
    return Derived(found.genotype, found.argmax or found.genotype, record)


def write_derived(run: str | PathLike[str], derived: Derived) -> None:
    """Puts the cell into a finished search's genotype.json, drawings and result.json, which `retrain RUN` reads.

    Raises:
        InputError: The search is not finished, or runs.
    """
    from nas_moreau.runs.folder import read_config

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
        text = json.dumps(result, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
        for name, data in (files | {"result.json": (text + "\n").encode()}).items():
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
    device = prepare(config)
    supernet = restore_supernet(folder, config, data, device)
    if config.performance.channels_last:
        supernet = supernet.to(memory_format=torch.channels_last)
    images = resized(data.train, config.search.image_size).to(device)
    parts = stratified_split(images.labels, config.search.split.model_dump(), config.seed)
    augment = Augment(data.mean, data.std)
    return Trained(supernet, *(Part(images, parts[name], augment) for name in ("held_out", "architecture")))

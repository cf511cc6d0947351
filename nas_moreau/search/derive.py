"""From alphas to the cell by the configuration's rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nas_moreau.architecture import AlphaTable, Genotype, Network, SearchSpace, Supernet, derive
from nas_moreau.architecture.networks.budget import best_within, network_costs
from nas_moreau.architecture.spaces.derivation import alpha_table, edge_normalised
from nas_moreau.config import Config
from nas_moreau.data import Part
from nas_moreau.search.perturbation import perturb
from nas_moreau.search.selection import select

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
    alphas: AlphaTable | Mapping[str, Any],
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
    own = alpha_table(space, alphas)
    argmax = derive(space, own)
    table = edge_normalised(space, own) if settings.rule == "edge-normalised" else own
    genotype = derive(space, table)
    record: dict[str, Any] = {"rule": settings.rule}
    costs = None
    if settings.max_parameters or settings.max_macs:
        assert shape is not None, "a budget is a network's, and that has a size"
        costs = _costs(config, space, shape)
        found = best_within(space, table, *costs, settings.max_parameters, settings.max_macs)
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
            images = held_out.sample(settings.images)
            genotype, tried = select(
                space, supernet, genotype, images, last, lambda cell: _fits(config, space, cell, costs)
            )
        else:
            images = architecture.sample(settings.images)
            genotype, tried = perturb(space, supernet, own, images, config.seed, last)
        record |= tried
    return Derived(genotype, argmax, record)


def check_budget(config: Config, space: SearchSpace, shape: tuple[int, int, int, int]) -> None:
    """Raises InputError when no cell of the space is within the configuration's budget: before a search, not after."""
    settings = config.derive
    if settings.max_parameters or settings.max_macs:
        alike = AlphaTable.uniform(space)
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

"""Derivation rules by name: from the weights of a search to a genotype, within a budget.

`derive.rule` names a row of `RULES`. A rule is a plain function of the search space, the weights, the trained supernet
(if it needs one) and the configuration; `register_rule` adds one, from a user's file too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from nas_moreau import distributed
from nas_moreau.architecture import AlphaTable, Genotype, Network, SearchSpace, Supernet, derive
from nas_moreau.architecture.networks.budget import Budget
from nas_moreau.architecture.spaces.derivation import alpha_table, edge_normalised
from nas_moreau.architecture.spaces.percentile import percentile
from nas_moreau.config import Config
from nas_moreau.data import Part
from nas_moreau.errors import InputError, nearest, quoted
from nas_moreau.search.perturbation import perturb
from nas_moreau.search.selection import select
from nas_moreau.search.short_training import TRAINED, Place, draw_cells, train_and_choose

Rule = Callable[..., tuple[Genotype, dict[str, Any]]]
"""(space, weights, trained or None, config) -> the genotype, and a record of plain data for result.json."""
DataShape = tuple[int, int, int, int]
"""Classes, channels, height and width of the data."""


class Trained(NamedTuple):
    """A trained supernet and the images that candidates are measured on.

    Attributes:
        supernet: With the weights of the search.
        held_out: The split that neither level of the search has seen.
        architecture: The split of the upper level.
        place: The split of the lower level, and where and how a rule that trains works on it.
    """

    supernet: Supernet
    held_out: Part
    architecture: Part
    place: Place


@dataclass(frozen=True)
class DerivationRule:
    """A row of `RULES`.

    Attributes:
        name: The value of `derive.rule`.
        derive: The rule.
        what: One sentence for `nas-moreau list rules`.
        needs_supernet: Whether it measures candidates in the trained supernet.
        budget: Whether it takes the keyword argument `budget`, a `Budget` or None, and keeps to it.
    """

    name: str
    derive: Rule
    what: str
    needs_supernet: bool
    budget: bool


RULES: dict[str, DerivationRule] = {}


def register_rule(name: str, *, needs_supernet: bool = False, budget: bool = False) -> Callable[[Rule], Rule]:
    """Makes a derivation rule known by name, as a decorator of its function.

    The function `(space, weights, trained, config) -> (genotype, record)` gets the `SearchSpace`, the `AlphaTable` of
    the search, a `Trained` (None unless `needs_supernet`) and the `Config`. It returns a genotype of the space and a
    record of plain data that goes into result.json under `derived_by`. The first line of its docstring describes it in
    `nas-moreau list rules`.

    Args:
        name: The value of `derive.rule`.
        needs_supernet: The rule measures candidates in the trained supernet.
        budget: The rule takes a keyword argument `budget` and keeps to it; other rules are refused where
            `derive.max_parameters` or `derive.max_macs` is set.

    Raises:
        InputError: The name is taken.

    Example:
        >>> @register_rule("doctest-second")
        ... def second(space, weights, trained, config):
        ...     return derive(space, weights), {"note": "the same as the rule of the space"}
        >>> RULES.pop("doctest-second").needs_supernet
        False
    """

    if name in RULES:
        raise InputError(f"A derivation rule named '{name}' exists already.", "Choose another name.")

    def register(rule: Rule) -> Rule:
        what = (inspect.getdoc(rule) or "").partition("\n")[0].rstrip(".")
        RULES[name] = DerivationRule(name, rule, what, needs_supernet, budget)
        return rule

    return register


def named_rule(name: str) -> DerivationRule:
    """Returns the derivation rule of that name.

    Raises:
        InputError: There is none.
    """
    if name not in RULES:
        found = nearest(name, RULES)
        known = f"Did you mean '{found}'?" if found else f"Known are {', '.join(RULES)}; `space` is the default."
        raise InputError(f"Unknown derivation rule {quoted(name)} (derive.rule).", known)
    return RULES[name]


# --- the rules -------------------------------------------------------------------------------------------------------


@register_rule("space", budget=True)
def _space(
    space: SearchSpace, weights: AlphaTable, trained: Trained | None, config: Config, budget: Budget | None = None
) -> tuple[Genotype, dict[str, Any]]:
    """The rule of the search space (`derivation` in its file): the strongest operations."""
    if budget is None:
        return derive(space, weights), {}
    found = budget.best(weights)
    return found.genotype, {"budget": budget.record(found)}


@register_rule("edge-normalised", budget=True)
def _edge_normalised(
    space: SearchSpace, weights: AlphaTable, trained: Trained | None, config: Config, budget: Budget | None = None
) -> tuple[Genotype, dict[str, Any]]:
    """The rule of the space on one softmax over all pairs of edge and operation that enter a node."""
    return _space(space, edge_normalised(space, weights), trained, config, budget=budget)


@register_rule("perturbation", needs_supernet=True)
def _perturbation(
    space: SearchSpace, weights: AlphaTable, trained: Trained | None, config: Config
) -> tuple[Genotype, dict[str, Any]]:
    """The operations whose removal from the supernet costs most, edge by edge (DARTS-PT)."""
    assert trained is not None
    images = trained.architecture.sample(config.derive.images)
    return perturb(space, trained.supernet, weights, images, config.seed, config.performance.channels_last)


def _allowed(budget: Budget | None) -> Callable[[Genotype], bool]:
    return (lambda genotype: True) if budget is None else budget.fits


@register_rule("selection", needs_supernet=True, budget=True)
def _selection(
    space: SearchSpace, weights: AlphaTable, trained: Trained | None, config: Config, budget: Budget | None = None
) -> tuple[Genotype, dict[str, Any]]:
    """The best one-hot in the supernet of the space's cell and all cells one operation away."""
    assert trained is not None
    start, record = _space(space, weights, None, config, budget=budget)
    images, last = trained.held_out.sample(config.derive.images), config.performance.channels_last
    genotype, tried = select(space, trained.supernet, start, images, last, _allowed(budget))
    return genotype, record | tried


@register_rule(TRAINED, needs_supernet=True, budget=True)
def _trained(
    space: SearchSpace, weights: AlphaTable, trained: Trained | None, config: Config, budget: Budget | None = None
) -> tuple[Genotype, dict[str, Any]]:
    """The best of the derived cell and cells drawn by the weights, after short real training of each."""
    assert trained is not None
    start, record = _space(space, weights, None, config, budget=budget)
    cells = draw_cells(space, weights, start, config.derive.trained.candidates, config.seed, _allowed(budget))
    classes, channels = trained.supernet.classifier.out_features, trained.place.weights.images.pixels.shape[1]
    validation = trained.architecture.sample(config.derive.images)
    genotype, tried = train_and_choose(config, cells, classes, channels, validation, trained.place)
    return genotype, record | tried


# --- their use -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Derived:
    """A derived genotype and how it was derived.

    Attributes:
        genotype: The genotype.
        derived_by: `rule`, and what the rule recorded; empty for a genotype drawn at random.
        before: The genotype by the rule of the space without a budget, where another rule or a budget was asked for.
    """

    genotype: Genotype
    derived_by: dict[str, Any]
    before: Genotype | None = None

    @property
    def trained(self) -> bool:
        """Whether short training of candidates chose the genotype."""
        return self.derived_by.get("rule") == TRAINED

    def to_dict(self) -> dict[str, Any]:
        """Returns keys of a search's result.json: `genotype digest derived_by` and, with `before`, `before_rule`.

        Cells of the DARTS space also have `percentile`, as of `architecture.Percentile.to_dict`.
        """
        found = _named(self.genotype) | ({"derived_by": self.derived_by} if self.derived_by else {})
        return found if self.before is None else {**found, "before_rule": _named(self.before)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Derived:
        """Returns what `to_dict` wrote, from what result.json holds."""
        before = Genotype.from_json(data["before_rule"]["genotype"]) if "before_rule" in data else None
        return cls(Genotype.from_json(data["genotype"]), data.get("derived_by", {}), before)


def _named(genotype: Genotype) -> dict[str, Any]:
    found = percentile(genotype)
    rank = {} if found is None else {"percentile": found.to_dict()}
    return {"genotype": genotype.to_dict(), "digest": genotype.digest(), **rank}


def derive_by_rule(
    config: Config,
    space: SearchSpace,
    alphas: AlphaTable | Mapping[str, Any],
    trained: Trained | None = None,
    shape: DataShape | None = None,
) -> Derived:
    """Returns the genotype by `derive.rule`, within the budget of `derive.max_parameters` and `derive.max_macs`.

    Args:
        config: The sections `derive`, `retrain` (for a budget), `performance` and the seed.
        space: The space of the search.
        alphas: As for `architecture.derive`.
        trained: For rules that need the supernet.
        shape: Needed for a budget.

    Raises:
        InputError: The rule is unknown, lacks what it needs, or returns a genotype of another space; or no cell is
            within the budget.
    """
    rule, table = named_rule(config.derive.rule), alpha_table(space, alphas)
    budget = budget_of(config, space, shape)
    if rule.needs_supernet and trained is None:
        raise InputError(f"The rule {rule.name} needs the trained supernet.", "Give one search with its checkpoint.")
    options = {"budget": budget} if rule.budget else {}
    genotype, record = rule.derive(space, table, trained, config, **options)
    space.check(genotype)
    default = rule.name == "space" and budget is None
    return Derived(genotype, {"rule": rule.name, **record}, None if default else derive(space, table))


def check_derivation(config: Config, space: SearchSpace, shape: DataShape) -> None:
    """Raises InputError when the rule is unknown or cannot keep the budget, or no cell of the space is within it."""
    named_rule(config.derive.rule)
    if config.derive.rule == TRAINED and distributed.world_size() > 1:
        raise InputError(
            "The rule trained trains its candidates in one process; the others would wait.",
            "Search with derive.rule=space, then `nas-moreau derive RUN --rule trained --write`.",
        )
    budget = budget_of(config, space, shape)
    if budget is not None:
        budget.best(AlphaTable.uniform(space))


def budget_of(config: Config, space: SearchSpace, shape: DataShape | None) -> Budget | None:
    """Returns the budget of the network that is retrained, without its auxiliary head, as results count it.

    Args:
        config: The sections `derive` and `retrain`.
        space: Cells, edges and operations.
        shape: Needed where there is a budget.

    Returns:
        None where the configuration sets no limit.

    Raises:
        InputError: The rule does not support a budget.
    """
    settings = config.derive
    if not settings.max_parameters and not settings.max_macs:
        return None
    if not named_rule(settings.rule).budget:
        able = ", ".join(rule.name for rule in RULES.values() if rule.budget)
        raise InputError(
            f"The rule {settings.rule} does not support a budget (derive.max_parameters, derive.max_macs).",
            f"Choose one of {able}, or leave the budget out.",
        )
    assert shape is not None, "the cost of a network depends on the data"
    classes, channels, height, width = shape

    def build(genotype: Genotype) -> Network:
        return Network(genotype, config.retrain.channels, config.retrain.layers, classes, in_channels=channels)

    limits = (settings.max_parameters, settings.max_macs)
    return Budget.measure(space, build, (channels, height, width), *limits)

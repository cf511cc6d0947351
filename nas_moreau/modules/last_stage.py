"""The last stage of a search in a module: candidates are trained for a short time, and the best on unseen samples wins.

Candidates are the choices of the search and choices drawn in proportion to their weights, within the limits. Each is
trained from the weights that the module came with, on the samples that trained the weights in the search, and compared
by the mean loss on the samples that trained the alphas. Successive halving (Jamieson and Talwalkar, AISTATS 2016):
after a round the better half goes on to the next, with twice the steps. Every training begins from the same weights
and goes through the whole schedule of the learning rate: what is compared is trained to an end.

What is trained is kept in the run folder; a search that is stopped in this stage trains the others when it is resumed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nas_moreau import distributed
from nas_moreau.architecture import AlphaTable
from nas_moreau.data import seed_for
from nas_moreau.modules.cost_table import parents_of
from nas_moreau.modules.pricing import Priced
from nas_moreau.modules.setup import ModuleSetup
from nas_moreau.modules.training import (
    finite_or_none,
    keep_trainings,
    kept_trainings,
    plain_network,
    train_plain,
)
from nas_moreau.search.short_training import distinct, perturbed_tables, rounds
from nas_moreau.training.signals import Interrupted, NonFinite, StopRequest

Picks = dict[str, int]
"""Decision -> number of its option."""


class Place(NamedTuple):
    """Where a last stage works.

    Attributes:
        file: Where finished trainings are kept; None keeps nothing.
        stop: The signals of the search.
        report: Gets a line for the terminal.
    """

    file: Path | None
    stop: StopRequest
    report: Callable[[str], None]


def draw_picks(priced: Priced, table: AlphaTable, count: int, seed: int) -> list[Picks]:
    """Returns up to `count` distinct choices: those of the weights, and draws in proportion to the weights.

    Choices that differ only in a Choice of an option that neither of them has are the same.

    Args:
        priced: The search and its limits.
        table: Its weights.
        count: Number of choices.
        seed: Of the draws.
    """
    places = priced.setup.places
    parents = parents_of(places)

    def used(picks: Picks) -> tuple[tuple[str, int], ...]:
        names = {
            name
            for path, name in places.paths.items()
            if all(picks[places.paths[parent]] in holding for parent, holding in parents[path])
        }
        return tuple((name, picks[name]) for name in places.options if name in names)

    tables = itertools.chain([table], perturbed_tables(table, count, seed))
    return distinct(map(priced.pick, tables), used, count)


def train_and_choose(priced: Priced, table: AlphaTable, place: Place) -> tuple[Picks, dict[str, Any]]:
    """Returns the chosen options, and a record of the rounds.

    Args:
        priced: The search: its module, data, recipe, and limits.
        table: Its weights.
        place: Where to work.

    Raises:
        StopTraining: A signal arrived; finished trainings are kept.
    """
    setup, config = priced.setup, priced.setup.config
    candidates = draw_picks(priced, table, config.derive.trained.candidates, config.seed)
    trained = _Trained(setup, place)
    left, record, plan = candidates, [], rounds(config)
    for number, (_, steps) in enumerate(plan):
        losses = []
        for k, picks in enumerate(left):
            place.report(f"last stage: round {number + 1}/{len(plan)}, choices {k + 1}/{len(left)}, {steps} steps")
            losses.append(trained.loss(picks, steps))
        order = sorted(range(len(left)), key=lambda k: losses[k])
        rows = [{"choices": trained.named(left[k]), "loss": finite_or_none(losses[k])} for k in order]
        record.append({"steps": steps, "candidates": rows})
        left = [left[k] for k in order[: math.ceil(len(left) / 2)]]
    chosen = left[0]
    place.report(f"last stage: the lowest loss of {len(candidates)} is {min(losses):.4g}")
    return chosen, {
        "samples": len(setup.data.upper.numbers),
        "moved": chosen != candidates[0],
        "first": trained.named(candidates[0]),
        "rounds": record,
    }


class _Trained:
    """Losses of choices after training, each computed once."""

    def __init__(self, setup: ModuleSetup, place: Place):
        data = replace(setup.data, upper=setup.data.lower, held_out=setup.data.upper)
        self._setup, self._place = replace(setup, data=data), place
        self._known = distributed.run_on_rank0(lambda: kept_trainings(place.file, ["loss"]))

    def named(self, picks: Mapping[str, int]) -> dict[str, str]:
        """Returns decision -> option."""
        return {name: options[picks[name]] for name, options in self._setup.places.options.items()}

    def loss(self, picks: Picks, steps: int) -> float:
        """Returns the mean loss on the samples that are compared on; one that is not finite is infinite."""
        key = json.dumps([self.named(picks), steps], sort_keys=True)
        if key not in self._known:
            self._known[key] = {"loss": finite_or_none(self._measured(picks, steps))}
            distributed.run_on_rank0(lambda: keep_trainings(self._place.file, self._known))
        found = self._known[key]["loss"]
        return math.inf if found is None else float(found)

    def _measured(self, picks: Picks, steps: int) -> float:
        self._place.stop.check()
        seed = seed_for(self._setup.config.seed, "last stage")
        network = plain_network(self._setup, picks, fresh=True)
        torch.manual_seed(seed)
        try:
            return train_plain(network, self._setup, steps, seed)["loss"]
        except NonFinite:
            return math.inf
        except Interrupted as error:  # a signal to the search, which the inner training has received
            self._place.stop.received = error.number
            self._place.stop.check()
            raise

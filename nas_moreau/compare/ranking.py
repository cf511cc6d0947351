"""How well a finished supernet ranks cells: its one-hot evaluations against a table, by Kendall's tau.

The cells are those of NAS-Bench-201 made of skip_connect, nor_conv_1x1 and nor_conv_3x3 alone: 729, none of them broken
by a missing or pooled edge, so that their ranks are meaningful.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from nas_moreau.architecture import Cell, Genotype, SearchSpace, load_space
from nas_moreau.compare.nas_bench_table import SPACE, BenchmarkTable
from nas_moreau.config import Config
from nas_moreau.data import Data, generator_for, seed_for
from nas_moreau.data.batches import search_parts
from nas_moreau.report.significance import kendall_tau
from nas_moreau.runs.manifest import write_recorded
from nas_moreau.runs.plain_files import read_json
from nas_moreau.search.build import restore_supernet
from nas_moreau.search.mixture_scores import one_hot, score_mixtures
from nas_moreau.search.supernet_problem import Mixing
from nas_moreau.training.device import set_up_device, torch_settings_restored
from nas_moreau.training.evaluate import evaluate_model

OPERATIONS = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3")
CELLS = 3**6
IMAGES = 1000
"""Held-out images that every cell of a search is evaluated on."""
EARLY = "c10_valid25k_12ep"
"""Column of accuracies after 12 epochs, which ranks cells too if the table has it."""


def ranked_cells(space: SearchSpace, count: int) -> list[Genotype]:
    """Returns `count` of the 729 cells, the same ones for every search; all of them where count is 729 or more."""
    choices = list(product(OPERATIONS, repeat=len(space.edges)))
    if count < len(choices):
        choices = random.Random(seed_for(0, "cells to rank")).sample(choices, count)
    name = space.cells[0]
    return [
        Genotype(space.name, {name: Cell(tuple((op, *edge) for op, edge in zip(chosen, space.edges)), space.concat)})
        for chosen in choices
    ]


@torch_settings_restored()
@torch.no_grad()
def one_hot_losses(
    run: str | PathLike[str], config: Config, data: Data, count: int, check_stop: Callable[[], None]
) -> dict[str, Any]:
    """Returns the loss of every cell with a finished search's weights, and keeps it in the search's rank.json.

    The result: `cells` and `images` (how many), `running` and `batch`: for every cell of `ranked_cells` its loss (nats)
    on a fixed part of the held-out images, with BatchNorm's running statistics and with those of the batch.

    Args:
        run: Folder of a finished search.
        config: Its configuration.
        data: The images.
        count: Number of cells.
        check_stop: Called between evaluations; it may raise.
    """
    path = Path(run) / "rank.json"
    space = load_space(config.space)
    cells = ranked_cells(space, count)
    known = read_json(path)
    if known is not None and known.get("cells") == len(cells):
        return known
    device = set_up_device(config)
    supernet = restore_supernet(run, config, data, device)
    held_out = search_parts(config, data, device).held_out
    order = torch.randperm(len(held_out), generator=generator_for(config.seed, "images to rank by"), device="cpu")
    part = replace(held_out, indices=held_out.indices[order[:IMAGES].to(device)])
    mixtures = [one_hot(space, cell, supernet.classifier.weight) for cell in cells]
    running = []
    for mixing in mixtures:
        check_stop()

        def forward(batch: torch.Tensor, mixing: Mixing = mixing) -> torch.Tensor:
            return supernet(batch, *mixing.by_cell(space))

        running.append(evaluate_model(forward, part, data.num_classes).loss)
    batch = [score.loss for score in score_mixtures(supernet, mixtures, part, check_stop=check_stop)]
    found = {"cells": len(cells), "images": len(part), "running": running, "batch": batch}
    write_recorded(path.parent, {path.name: json.dumps(found).encode()})
    return found


def rank_correlations(losses: dict[str, Any], table: BenchmarkTable, column: str) -> dict[str, float | None]:
    """Returns Kendall's tau of a supernet's one-hot losses, `running` and `batch`: 1 is the order of the column."""
    truth = _truth(table, column, losses["cells"])
    return {name: _tau([-loss for loss in losses[name]], truth) for name in ("running", "batch")}


def reference_rankings(table: BenchmarkTable, column: str, count: int) -> dict[str, Any]:
    """Returns the number of cells and Kendall's tau of rankings without a search: parameter count, early accuracy."""
    cells = ranked_cells(load_space(SPACE), count)
    truth = _truth(table, column, count)
    found: dict[str, Any] = {"cells": len(cells), "parameters": _tau([_size(cell) for cell in cells], truth)}
    if EARLY in table.columns and column != EARLY:
        found[EARLY] = _tau([table.look_up(cell)[EARLY] for cell in cells], truth)
    return found


def _truth(table: BenchmarkTable, column: str, count: int) -> list[float]:
    return [table.look_up(cell)[column] for cell in ranked_cells(load_space(SPACE), count)]


def _tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    # a loss that overflowed has no rank
    return kendall_tau(a, b) if all(map(math.isfinite, a)) else None


def _size(genotype: Genotype) -> int:
    """Returns a number that orders these cells as their parameter counts do: a 3x3 convolution has 9 of a 1x1's."""
    operations = [operation for operation, _, _ in genotype.cells["cell"].edges]
    return 9 * operations.count("nor_conv_3x3") + operations.count("nor_conv_1x1")

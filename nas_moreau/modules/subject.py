"""What is found by a search in a module, epoch by epoch: evaluation, rows of metrics.csv, pictures, the choices."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from nas_moreau.architecture import AlphaTable
from nas_moreau.data import seed_for
from nas_moreau.drawing.choices import choices_pixels, draw_choices
from nas_moreau.errors import InputError
from nas_moreau.modules.last_stage import Place, train_and_choose
from nas_moreau.modules.pricing import Priced
from nas_moreau.modules.result import ModuleResult, choices_json
from nas_moreau.modules.setup import ModuleSetup
from nas_moreau.runs.board import board_layout, edge_curves
from nas_moreau.search.engine import SearchJob
from nas_moreau.search.epoch import step_row
from nas_moreau.search.short_training import TRAINED
from nas_moreau.training.device import peak_memory_bytes
from nas_moreau.training.loop import Loop

DRAWS = 1000
"""Random choices that are drawn to find some within the limits."""


class ChoiceSearch:
    """The choices of a module (`search.engine.Subject`).

    Args:
        setup: The module, its data and its bilevel problem.
        configuration: The whole configuration, plain data.
        priced: Costs, limits and penalties.
    """

    stage = "module"

    def __init__(self, setup: ModuleSetup, configuration: dict[str, Any], priced: Priced):
        self.setup, self._configuration, self.priced = setup, configuration, priced

    @property
    def about(self) -> str:
        """The module and its choices."""
        count = len(self.setup.places.options)
        return f"{type(self.setup.whole.module).__name__} with {count} choice{'s' * (count != 1)}"

    def configuration(self) -> dict[str, Any]:
        """Returns the whole configuration, plain data."""
        return self._configuration

    def result_of(self, data: Mapping[str, Any]) -> ModuleResult:
        """Returns the result that result.json holds."""
        return ModuleResult.from_dict(data)

    def start(self, loop: Loop) -> None:
        """Begins or resumes in a run folder."""
        loop.folder.write_files(self.priced.files())

    def stops(self) -> bool:
        """Returns False: the search ends after its last step."""
        return False

    def _evaluate(self, job: SearchJob, table: AlphaTable, picks: dict[str, int]) -> tuple[dict[str, Any], ...]:
        """Returns loss and metric on the held-out samples: of the mixture, and of the picked options alone."""
        setup, check_stop, count = self.setup, job.loop.stop.check, len(self.setup.data.held_out.numbers)
        setup.write_back(job.x, job.y)

        def mixed() -> dict[str, float]:
            return setup.evaluate(setup.mixtures(job.x), check_stop)

        def alone() -> dict[str, float]:
            return setup.evaluate(setup.one_hot(picks), check_stop)

        return job.loop.evaluate(job, "held_out", count, mixed), job.loop.evaluate(job, "one_hot", count, alone)

    def end_epoch(self, job: SearchJob) -> tuple[dict[str, Any], bool]:
        """Evaluates the module and its choices, logs and writes both."""
        torch.manual_seed(seed_for(self.setup.config.seed, "evaluation", job.counters.epochs))
        table = self.setup.alpha_table(job.counted)
        picks = self.priced.pick(table)
        held_out, one_hot = self._evaluate(job, table, picks)
        row = step_row(job)
        for kind, numbers in (("held_out", held_out), ("one_hot", one_hot)):
            row |= {f"{kind}_{name}": value for name, value in numbers.items()}
        row |= certainty(table) | self.priced.expected(job.x)
        self._log(job, table, picks, row)
        job.loop.monitor.alphas(row["epoch"], table)
        job.loop.monitor.epoch(row | {"wall_seconds": job.counters.seconds})
        job.loop.folder.write_files(choice_files(self.named(picks), weights_of(table)))
        self._print(job, table, picks, row)
        return row, False

    def _log(self, job: SearchJob, table: AlphaTable, picks: dict[str, int], row: dict[str, Any]) -> None:
        monitor = job.loop.monitor
        if row["epoch"] == 0:
            monitor.layout(board_layout(row, table))
        job.loop.log_epoch(job, row)
        job.loop.log(job, edge_curves(table))
        self._draw(job, table, picks)

    def _draw(self, job: SearchJob, table: AlphaTable, picks: dict[str, int]) -> None:
        monitor = job.loop.monitor
        if monitor.tensorboard:
            monitor.image("choices", choices_pixels(weights_of(table), self.named(picks)), job.counters.step)

    def replay_log(self, job: SearchJob) -> None:
        """Shows the picture of the last epoch again."""
        table = self.setup.alpha_table(job.counted)
        self._draw(job, table, self.priced.pick(table))

    def _print(self, job: SearchJob, table: AlphaTable, picks: dict[str, int], row: dict[str, Any]) -> None:
        epochs = math.ceil(job.total_steps / job.epoch_steps)
        job.latest = {"held-out_loss": f"{row['held_out_loss']:.4f}", "margin": f"{row['margin_choices']:.3f}"}
        losses = "".join(
            f"  {name} {row[key]:.3f}"
            for name, key in (("architecture loss", "upper_loss"), ("weights loss", "lower_loss"))
            if key in row
        )
        numbers = "".join(f"  {name.replace('_', ' ')} {text}" for name, text in job.latest.items())
        shown = ", ".join(f"{name}={option}" for name, option in list(self.named(picks).items())[:8])
        job.loop.progress.cell(shown)
        job.loop.progress.line(f"epoch {row['epoch'] + 1}/{epochs}{losses}{numbers}  {shown}")

    def named(self, picks: Mapping[str, int]) -> dict[str, str]:
        """Returns decision -> name of the picked option."""
        return {name: options[picks[name]] for name, options in self.setup.places.options.items()}

    def drawn(self, picks: dict[str, int]) -> ModuleResult:
        """Returns the result of the method `random`, which takes no steps."""
        setup = self.setup
        uniform = {name: dict.fromkeys(found, 1 / len(found)) for name, found in setup.places.options.items()}
        return ModuleResult(
            method=setup.config.search.method,
            choices=self.named(picks),
            weights=uniform,
            seed=setup.config.seed,
            steps=0,
            wall_seconds=0.0,
            peak_memory_bytes=0,
            costs=self.priced.costs_of(picks),
            limits=dict(self.priced.limits or {}),
            places=setup.places.paths,
        )

    def finish(self, job: SearchJob) -> ModuleResult:
        """Chooses the options and returns the result."""
        begin = time.monotonic()
        torch.manual_seed(seed_for(self.setup.config.seed, "final evaluation"))
        table = self.setup.alpha_table(job.counted)
        picks, last_stage = self.priced.pick(table), None
        if self.setup.config.derive.rule == TRAINED:
            picks, last_stage = train_and_choose(self.priced, table, self._place(job.loop))
        held_out, one_hot = self._evaluate(job, table, picks)
        job.counters.seconds += time.monotonic() - begin
        result = ModuleResult(
            method=self.setup.config.search.method,
            choices=self.named(picks),
            weights=weights_of(table),
            seed=self.setup.config.seed,
            steps=job.counters.step,
            wall_seconds=job.counters.seconds,
            peak_memory_bytes=peak_memory_bytes(self.setup.device),
            held_out=held_out,
            one_hot=one_hot,
            costs=self.priced.costs_of(picks),
            limits=dict(self.priced.limits or {}),
            places=self.setup.places.paths,
            last_stage=last_stage,
        )
        job.loop.folder.write_files(choice_files(result.choices, result.weights))
        return result

    def _place(self, loop: Loop) -> Place:
        file = None if loop.folder.silent else loop.folder.path / "trained.json"
        return Place(file, loop.stop, loop.progress.line)

    def state_dict(self, job: SearchJob) -> dict[str, Any]:
        """Returns the alphas by decision, the weights that the module came with, and those that are never trained."""
        frozen = {name: p.detach() for name, p in self.setup.whole.named_parameters() if not p.requires_grad}
        alphas = dict(zip(self.setup.places.by_name, job.counted))
        return {"alphas": alphas, "initial": self.setup.initial, "frozen": frozen}

    @torch.no_grad()
    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name, value in payload["initial"].items():
            self.setup.initial[name].copy_(value)
        frozen = dict(self.setup.whole.named_parameters())
        for name, value in payload["frozen"].items():
            frozen[name].copy_(value)


def choice_files(chosen: Mapping[str, str], weights: Mapping[str, Mapping[str, float]]) -> dict[str, bytes]:
    """Returns choices.json and choices.svg."""
    return {"choices.json": choices_json(chosen), "choices.svg": draw_choices(weights, chosen).encode()}


def random_picks(
    options: Mapping[str, Sequence[str]],
    seed: int,
    number: int = 0,
    keeps: Callable[[dict[str, int]], bool] = lambda picks: True,
) -> dict[str, int]:
    """Returns decision -> number of an option, drawn uniformly.

    Args:
        options: Decision -> names of its options.
        seed: Of the run.
        number: Of the draw.
        keeps: Whether picks keep the limits; drawn again until they do.

    Raises:
        InputError: None of `DRAWS` draws keeps the limits.
    """
    draws = random.Random(seed_for(seed, "random choices", number))
    for _ in range(DRAWS):
        picks = {name: draws.randrange(len(found)) for name, found in options.items()}
        if keeps(picks):
            return picks
    raise InputError(f"None of {DRAWS} random choices keeps the limits.", "Allow more.")


def weights_of(table: AlphaTable) -> dict[str, dict[str, float]]:
    """Returns decision -> option -> softmax weight."""
    return {name: dict(row.weights) for name, (row,) in table.cells.items()}


def certainty(table: AlphaTable) -> dict[str, float]:
    """Returns columns of metrics.csv: mean entropy and mean margin of the decisions."""
    rows = [row for (row,) in table.cells.values()]
    entropy = -sum(w * math.log(w) for row in rows for w in row.weights.values() if w > 0)
    margin = sum(row.margin() or 0.0 for row in rows)
    return {"alpha_entropy_choices": entropy / len(rows), "margin_choices": margin / len(rows)}

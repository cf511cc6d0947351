"""A comparison in progress: which searches are to do, the commands of each, and the rows that they give."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nas_moreau import distributed
from nas_moreau.architecture import Genotype, load_space
from nas_moreau.compare.child_runs import Command
from nas_moreau.compare.conditions import Conditions, Settings, conditions, config_of
from nas_moreau.compare.cost_curves import cost_curve
from nas_moreau.compare.nas_bench_table import AccuracyColumn, baselines
from nas_moreau.compare.ranking import CELLS, one_hot_losses, rank_correlations
from nas_moreau.compare.rows import Row, folder_name, rows_file, rows_of_search
from nas_moreau.compare.twins import Retraining, retraining
from nas_moreau.config import Config
from nas_moreau.data import Data, load_images
from nas_moreau.runs import RunFolder
from nas_moreau.runs.heartbeat import doing
from nas_moreau.runs.history import Stage
from nas_moreau.runs.identity import Identity
from nas_moreau.runs.plain_files import read_json
from nas_moreau.search.random_cell import RANDOM, random_cell
from nas_moreau.search.stage import plan_search
from nas_moreau.training.device import pick_device
from nas_moreau.training.retrain import check_retraining
from nas_moreau.training.signals import Interrupted, StopRequest

_log = logging.getLogger(__name__)


@dataclass
class ComparisonJob:
    """The searches of a comparison and their rows.

    Attributes:
        config: All sections; seed and method are set for each row.
        methods: Method -> seeds.
        output: The folder of the comparison.
        imports: The user's modules.
        column: The column of a table to look cells up in; None without a table.
        retrain: Whether cells are retrained.
        rank: Number of cells that each supernet ranks.
        settings: Method -> overrides that only its searches get.
        rows: Name of a search's folder -> its rows, as recorded.
        own: Names of the searches that this process did.
        stop: Receives signals.
        folder: The open folder of the comparison.
        identity: Digest of the images, if a search is left to do.
    """

    config: Config
    methods: Mapping[str, Sequence[int]]
    output: Path
    imports: tuple[str, ...]
    column: AccuracyColumn | None
    retrain: bool
    rank: int | None
    settings: Settings = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)
    stop: StopRequest | None = None
    folder: RunFolder | None = None
    identity: Identity = field(default_factory=dict)
    _data: Data | None = None

    # --- what is to do ---

    def tasks(self) -> list[tuple[str, int]]:
        """Returns (method, seed) seed by seed, so that an unfinished comparison has all methods at the same seeds."""
        seeds = sorted({seed for seeds in self.methods.values() for seed in seeds})
        return [(method, seed) for seed in seeds for method, own in self.methods.items() if seed in own]

    def left(self) -> list[tuple[str, int]]:
        """Returns the tasks whose rows do not have all that is asked for."""
        return [task for task in self.tasks() if not self._done(*task)]

    def _done(self, method: str, seed: int) -> bool:
        name = folder_name(method, seed)
        rows = self.rows.get(name, [])
        retrained = not self.retrain or all(row.retrained_accuracy is not None for row in rows)
        return bool(rows) and retrained and (self._ranked(name) or not self._to_rank(method))

    def _to_rank(self, method: str) -> bool:
        return self.rank is not None and method != RANDOM

    def _ranked(self, name: str) -> bool:
        losses = read_json(self.output / "searches" / name / "rank.json")
        return losses is not None and self.rank is not None and losses["cells"] == min(self.rank, CELLS)

    def check(self) -> None:
        """Raises InputError for data and networks that do not fit, unless all is done already."""
        left = self.left()
        if not left:
            return
        doing("reading the images")
        data = load_images(self.config)
        self.identity = {"images": data.digest}
        for method in dict.fromkeys(method for method, _ in left):
            plan_search(self._config_of(method, 0), data)
        if self.retrain:
            check_retraining(self.config, random_cell(load_space(self.config.space), 0), data)
        self._data = data if self.rank is not None else None

    def _config_of(self, method: str, seed: int) -> Config:
        return config_of(self.config, method, seed, self.settings)

    def conditions(self) -> list[Conditions]:
        """Returns the conditions of each method."""
        return [conditions(self.config, method, self.settings) for method in self.methods]

    # --- doing it ---

    def chains(self) -> Iterator[Iterator[Command]]:
        """Yields the commands of every search that is not done; of several processes each takes the next search."""
        left, began = distributed.run_on_rank0(self.left), time.monotonic()

        def announced(number: int) -> Iterator[Command]:
            method, seed = left[number]
            minutes = (time.monotonic() - began) / 60
            rest = f", about {minutes / number * (len(left) - number):.0f} min left" if number else ""
            doing(f"search {number + 1} of {len(left)}: {method}, seed {seed}{rest}")
            _log.info("search %d of %d: %s, seed %d%s", number + 1, len(left), method, seed, rest)
            return self._chain(method, seed)

        return map(announced, distributed.work_queue(len(left), "cells of the comparison"))

    def _chain(self, method: str, seed: int) -> Iterator[Command]:
        """Yields search and retrainings of a task, records its rows."""
        name = folder_name(method, seed)
        folder = self.output / "searches" / name
        if not _is_finished(folder, method=method, seed=seed):
            settings = [f"search.method={json.dumps(method)}", f"seed={seed}", *self.settings.get(method, ())]
            yield self._command("search", name, folder, [], settings)
        rows = list(rows_of_search(method, seed, folder))
        for i, row in enumerate(rows if self.retrain else []):
            same = row.digest == rows[0].digest  # a rule may keep the cell
            place = self.output / "retrained" / (name if same else f"{name}-{i}")
            if not _is_finished(place, digest=row.digest, seed=seed):
                yield self._command("retrain", place.name, place, [json.dumps(row.genotype)], [f"seed={seed}"])
            rows[i] = row.retrained(place)
        if self._to_rank(method):
            data = self._data = self._data or load_images(self.config)
            one_hot_losses(folder, self._config_of(method, seed), data, self.rank or 0, self._check_stop)
        self.rows[name] = rows
        self.own.append(name)
        self.record()

    def _command(self, verb: str, name: str, folder: Path, subject: list[str], settings: list[str]) -> Command:
        imports = [argument for module in self.imports for argument in ("--import", module)]
        device = distributed.own_device(pick_device(self.config.device))
        if distributed.world_size() > 1 and device.type != "cpu":
            settings = [*settings, f"device={device}"]
        places = ["--config", str(self.output / "config.yaml"), "--output", str(folder), "--resume"]
        log = self.output / "logs" / f"{verb}-{name}.txt"
        return Command(f"{verb} {name}", [verb, *subject, *places, *imports, *settings], log)

    def _check_stop(self) -> None:
        if self.stop is not None and self.stop.received:
            raise Interrupted(self.stop.received, str(self.output))

    def collect(self, failed: list[str]) -> list[str]:
        """Waits for the other processes, takes their rows, and returns the names of all runs that failed."""
        own = {name: [row.to_dict() for row in self.rows[name]] for name in self.own}
        mine: dict[str, Any] = {"rows": own, "failed": failed}
        found = distributed.gather_at_end(mine, self._check_stop)
        for other in found:
            self.rows |= {name: [Row(**row) for row in rows] for name, rows in other["rows"].items()}
        return [name for other in found for name in other["failed"]]

    # --- its rows ---

    def record(self) -> None:
        """Writes rows.csv; in the first process only."""
        if self.folder is not None:
            rows = [self._looked_up(row) for rows in self.rows.values() for row in rows]
            self.folder.write_files({"rows.csv": rows_file(rows)})

    def wanted_rows(self) -> list[Row]:
        """Returns the rows of the methods and seeds, which may be fewer than those recorded."""
        return [self._looked_up(row) for task in self.tasks() for row in self.rows.get(folder_name(*task), [])]

    def _looked_up(self, row: Row) -> Row:
        """Returns the row with the numbers of the table (its column may be another one than before)."""
        if self.column is None:
            return row
        row = replace(row, table=self.column.of(Genotype.from_json(row.genotype)))
        losses = read_json(self.output / "searches" / row.search / "rank.json") if self.rank else None
        if not losses:
            return row
        tau = rank_correlations(losses, self.column.table, self.column.name)
        return replace(row, tau_running=tau["running"], tau_batch=tau["batch"])

    def retraining(self) -> Retraining | None:
        """Returns how much the accuracies of the table depend on the training; None without a table or twins in it."""
        return None if self.column is None else retraining(self.column.table, self.column.name)

    def baselines(self) -> list[dict[str, Any]]:
        """Returns exact statistics of groups of cells in the table; [] without a table."""
        return [] if self.column is None else baselines(self.column.table, self.column.name)

    def curves(self) -> dict[str, list[list[tuple[float, float]]]]:
        """Returns method -> for each seed (seconds, accuracy) after every epoch."""
        accuracies = {} if self.column is None else self.column.accuracies
        found = {
            method: [cost_curve(self.output / "searches" / folder_name(method, seed), accuracies) for seed in seeds]
            for method, seeds in self.methods.items()
            if method != RANDOM
        }
        return {method: [curve for curve in curves if curve] for method, curves in found.items()}


def _is_finished(folder: Path, **wanted: Any) -> bool:
    """Returns whether a folder holds a finished run with these entries of its result: no other one's may be read.

    A folder of another run is left to the command, which refuses it.
    """
    stage = Stage(folder)
    return stage.finished and all(stage.result.get(name) == value for name, value in wanted.items())

"""The compare stage: several methods and seeds under one protocol, resumed row by row.

Every search and retraining is an ordinary run in a folder of its own and in a process of its own, so that it can be
resumed exactly and its memory is its own. What all methods share at a seed (split, batches, initial weights) follows
from the seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from nas_moreau import distributed
from nas_moreau.architecture import Genotype, load_space
from nas_moreau.compare.child_runs import Run, run_all
from nas_moreau.compare.cost_curves import cost_curve
from nas_moreau.compare.nas_bench_table import SPACE, Table, baselines, load_table, name_of, same_cells
from nas_moreau.compare.ranking import CELLS, one_hot_losses, rank_correlations, rivals_of_ranking
from nas_moreau.compare.rows import (
    Row,
    folder_name,
    read_rows,
    retrained_figures,
    rows_of_search,
    write_rows,
)
from nas_moreau.compare.summary import summarise
from nas_moreau.config import Config
from nas_moreau.data import Data, load_images
from nas_moreau.errors import InputError
from nas_moreau.report.comparison import write_page
from nas_moreau.runs import RunFolder
from nas_moreau.runs.folder import read_config
from nas_moreau.runs.history import Stage
from nas_moreau.runs.plain_files import read_json
from nas_moreau.runs.tables import read_table
from nas_moreau.search.random_cell import random_cell
from nas_moreau.search.stage import plan_search
from nas_moreau.training.device import pick_device, torch_settings_restored
from nas_moreau.training.retrain import plan_retraining
from nas_moreau.training.shared_folder import open_folder
from nas_moreau.training.signals import Interrupted, StopRequest


@torch_settings_restored()
def compare(
    config: Config,
    methods: Mapping[str, Sequence[int]],
    output: str | PathLike[str],
    resume: bool = False,
    *,
    table: str | PathLike[str] | None = None,
    column: str | None = None,
    retrain: bool = False,
    rank: int | None = None,
    baseline: str | None = None,
    jobs: int = 1,
    imports: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns rows (one for each cell found) and their summary, after doing what is not done yet.

    Args:
        config: All sections; seed and method are set row by row.
        methods: Method -> seeds.
        output: Becomes the parent of searches/ and retrained/, with rows.csv, result.json and compare.html.
        resume: Go on in a folder where an earlier comparison stopped; methods and seeds may have been added.
        table: A table of NAS-Bench-201 to look the found cells up in.
        column: Which column of it; see `Table.pick_column`.
        retrain: Retrain every found cell even though there is a table (without one they always are).
        rank: Compare each supernet's ranking of so many cells with the table.
        baseline: The method that p-values are against: `random` by default if it takes part, else the first one.
        jobs: Searches side by side, in each process; their times are then not those of a search alone.
        imports: The user's modules, imported by every run.

    Raises:
        InputError: Something handed in cannot be used.
        Interrupted: SIGINT or SIGTERM; the runs in work have saved what they had.
        RuntimeError: Some runs failed; the others are done and reported.
    """
    if jobs < 1 or (rank is not None and rank < 2):
        raise InputError("--jobs starts at 1 and --rank at 2.", "Give larger numbers.")

    def plan() -> _Comparison:
        work = _plan(config, methods, Path(output), table, column, retrain, rank, imports)
        if baseline is not None and baseline not in methods:
            raise InputError(f"The baseline {baseline} is not among the methods.", f"Known are {', '.join(methods)}.")
        if resume:
            work.rows = read_rows(Path(output) / "rows.csv")
        work.check()
        return work

    work = distributed.together(plan)
    against = baseline or ("random" if "random" in methods else next(iter(methods)))
    with open_folder(output, config.to_dict(), "compare", resume) as folder:
        folder.status("running")
        try:
            with StopRequest() as stop:
                work.stop = stop
                failed = run_all(work.chains(), jobs, stop, str(folder.path))
                failed = work.collect(failed)
        except BaseException as error:
            folder.status("interrupted", reason=str(error) or type(error).__name__)
            raise
        result = distributed.on_first(lambda: _conclude(folder, work, against, failed))
        if failed:
            folder.status("failed", reason=f"{len(failed)} runs failed")
            raise RuntimeError(f"{len(failed)} runs failed: {'; '.join(failed)}. The others are in {folder.path}.")
        folder.status("finished")
        return result


def _conclude(folder: RunFolder, work: _Comparison, baseline: str, failed: Sequence[str]) -> dict[str, Any]:
    result = work.result(baseline, failed)
    folder.write_result(result)
    write_page(folder.path, result, work.curves())
    return result


def plan_comparison(methods: Mapping[str, Sequence[int]], output: str | PathLike[str]) -> dict[str, Any]:
    """Returns what a comparison would run and what of it is recorded as finished."""
    done = {row["search"] for row in read_table(Path(output) / "rows.csv") if "search" in row}
    names = [folder_name(method, seed) for method, seeds in methods.items() for seed in seeds]
    return {"output": str(output), "searches": len(names), "finished": [name for name in names if name in done],
            "to do": [name for name in names if name not in done]}  # fmt: skip


def _plan(
    config: Config, methods: Mapping[str, Sequence[int]], output: Path, table: Any, column: str | None,
    retrain: bool, rank: int | None, imports: Sequence[str],
) -> _Comparison:  # fmt: skip
    """Refuses what cannot be used before anything is written."""
    space = load_space(config.space)
    if not methods or not all(methods.values()):
        raise InputError("There is nothing to compare.", "Name methods and seeds.")
    if table is None and (column is not None or rank is not None):
        raise InputError(f"--{'rank' if rank else 'column'} needs a table.", "Give --table FILE.")
    loaded, accuracies = (None if table is None else load_table(table)), {}
    if loaded is not None:
        if not same_cells(space):
            raise InputError(f"The table holds cells of {SPACE}, and the space is {space.name}.", f"Use space={SPACE}.")
        column = loaded.pick_column(column)
        accuracies = loaded.accuracies(column)
        if rank is not None:
            rivals_of_ranking(loaded, column, rank)
    path = output / "config.yaml"
    if path.exists():
        stored = read_config(output)
        for stage in ("search", "retrain"):
            epochs = (stored.get(stage) or {}).get("epochs", 0)
            if epochs != getattr(config, stage).epochs:
                raise InputError(
                    f"The comparison in {output} was begun with {stage}.epochs={epochs}.", "Use another --output."
                )
    return _Comparison(
        config, methods, output, loaded, column, accuracies, retrain or loaded is None, rank, tuple(imports)
    )


@dataclass
class _Comparison:
    """A comparison in progress. `rows` are those recorded, by the search they come from; `own` names this process's."""

    config: Config
    methods: Mapping[str, Sequence[int]]
    output: Path
    table: Table | None
    column: str | None
    accuracies: dict[str, float]
    retrain: bool
    rank: int | None
    imports: tuple[str, ...]
    rows: dict[str, list[Row]] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)
    stop: StopRequest | None = None
    data: Data | None = None

    def tasks(self) -> list[tuple[str, int]]:
        """Seed by seed, so that an unfinished comparison holds all methods at the same seeds."""
        seeds = sorted({seed for seeds in self.methods.values() for seed in seeds})
        return [(method, seed) for seed in seeds for method, own in self.methods.items() if seed in own]

    def done(self, method: str, seed: int) -> bool:
        """Whether the rows of this search hold all that is asked for."""
        name = folder_name(method, seed)
        rows = self.rows.get(name, [])
        retrained = all(row["retrained_accuracy"] is not None for row in rows)
        return bool(rows) and (retrained or not self.retrain) and (self._ranked(name) or not self._to_rank(method))

    def _to_rank(self, method: str) -> bool:
        return self.rank is not None and method != "random"

    def _ranked(self, name: str) -> bool:
        losses = read_json(self.output / "searches" / name / "rank.json")
        return losses is not None and self.rank is not None and losses.get("cells") == min(self.rank, CELLS)

    def check(self) -> None:
        """Refuses data and networks that do not fit, unless all is done already."""
        left = [(method, seed) for method, seed in self.tasks() if not self.done(method, seed)]
        if not left:
            return
        self.data = load_images(self.config)
        for method in dict.fromkeys(method for method, _ in left):
            plan_search(self._config_of(method, 0), self.data)
        if self.retrain:
            plan_retraining(self.config, random_cell(load_space(self.config.space), 0), self.data)
        if self.rank is None:
            self.data = None

    def _config_of(self, method: str, seed: int) -> Config:
        search = self.config.search.model_copy(update={"method": method})
        return self.config.model_copy(update={"seed": seed, "search": search})

    def chains(self) -> Iterator[Iterator[Run]]:
        """Yields for every search that is not done the runs it takes; of several processes each takes the next one."""
        left = distributed.on_first(lambda: [task for task in self.tasks() if not self.done(*task)])
        return (self._chain(*left[i]) for i in distributed.taking_turns(len(left), "cells of the comparison"))

    def collect(self, failed: list[str]) -> list[str]:
        """Waits for the other processes, takes over their rows, and returns the names of all runs that failed."""
        mine: dict[str, Any] = {"rows": {name: self.rows[name] for name in self.own}, "failed": failed}
        found = distributed.in_the_end(mine, self._give_up)
        for other in found:
            self.rows |= other["rows"]
        return [name for other in found for name in other["failed"]]

    def _chain(self, method: str, seed: int) -> Iterator[Run]:
        name = folder_name(method, seed)
        folder = self.output / "searches" / name
        if not Stage(folder).finished:
            yield self._run("search", name, folder, [f"search.method={json.dumps(method)}", f"seed={seed}"])
        rows = list(rows_of_search(method, seed, folder))
        for i, row in enumerate(rows if self.retrain else []):
            place = self.output / "retrained" / (name if i == 0 else f"{name}-{i}")
            if i and row["digest"] == rows[0]["digest"]:  # the selection kept the cell
                place = self.output / "retrained" / name
            elif not Stage(place).finished:
                yield self._run("retrain", place.name, place, [json.dumps(row["genotype"]), f"seed={seed}"])
            row |= retrained_figures(place)
        if self._to_rank(method):
            one_hot_losses(folder, self._config_of(method, seed), self._images(), self.rank or 0, self._give_up)
        self.rows[name] = rows
        self.own.append(name)
        self._record()

    def _images(self) -> Data:
        if self.data is None:
            self.data = load_images(self.config)
        return self.data

    def _give_up(self) -> None:
        if self.stop is not None and self.stop.received:
            raise Interrupted(self.stop.received, str(self.output))

    def _run(self, verb: str, name: str, folder: Path, words: list[str]) -> Run:
        given = [word for module in self.imports for word in ("--import", module)]
        genotype = [words.pop(0)] if verb == "retrain" else []
        device = distributed.own_device(pick_device(self.config.device))
        if distributed.processes() > 1 and device.type != "cpu":
            words = [*words, f"device={device}"]
        words = [verb, *genotype, "--config", str(self.output / "config.yaml"), "--output", str(folder), "--resume",
                 *given, *words]  # fmt: skip
        return Run(f"{verb} {name}", words, self.output / "logs" / f"{verb}-{name}.txt")

    def _record(self) -> None:
        if distributed.rank():
            return
        rows = (self._looked_up(row) for rows in self.rows.values() for row in rows)
        write_rows(self.output / "rows.csv", rows)

    def _looked_up(self, row: Row) -> Row:
        """Returns the row with what the table says now (it may be another column than before)."""
        if self.table is None or self.column is None:
            return row
        genotype = Genotype.from_json(row["genotype"])
        self.table.look_up(genotype)  # refuses a cell that it does not hold
        row = row | {"table": self.accuracies[name_of(genotype) or ""]}
        losses = read_json(self.output / "searches" / row["search"] / "rank.json") if self.rank else None
        return row | (rank_correlations(losses, self.table, self.column) if losses else {})

    def result(self, baseline: str, failed: Sequence[str]) -> dict[str, Any]:
        """Returns rows and summary as the command line prints them, and rewrites rows.csv."""
        self._record()
        wanted = [row for method, seed in self.tasks() for row in self.rows.get(folder_name(method, seed), [])]
        rows = [self._looked_up(row) for row in wanted]
        known = baselines(self.table, self.column) if self.table is not None and self.column is not None else []
        ranking = None
        if self.table is not None and self.column is not None and self.rank is not None:
            ranking = rivals_of_ranking(self.table, self.column, self.rank)
        return {
            "rows": rows, "summary": summarise(rows, list(self.methods), baseline, known), "baseline": baseline,
            "baselines": known, "column": self.column, "ranking": ranking, "failed": list(failed),
            "space": self.config.space, "data": self.config.data.name, "report": str(self.output / "compare.html"),
        }  # fmt: skip

    def curves(self) -> dict[str, list[list[tuple[float, float]]]]:
        """Returns method -> for each seed what the search would have returned after so many seconds."""
        return {
            method: [
                curve
                for seed in seeds
                if (curve := cost_curve(self.output / "searches" / folder_name(method, seed), self.accuracies))
            ]
            for method, seeds in self.methods.items()
            if method != "random"
        }

"""The compare stage: several methods and seeds under one protocol, resumed row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from nas_moreau import distributed
from nas_moreau.architecture import load_space, percentile
from nas_moreau.compare.child_runs import run_all
from nas_moreau.compare.conditions import FILE, Conditions, Settings, agreed_settings
from nas_moreau.compare.job import ComparisonJob
from nas_moreau.compare.nas_bench_table import SPACE, AccuracyColumn, load_table, same_cells
from nas_moreau.compare.ranking import reference_rankings
from nas_moreau.compare.rows import Row, folder_name, read_rows
from nas_moreau.compare.summary import Summary, summarise
from nas_moreau.compare.twins import Retraining
from nas_moreau.config import Config
from nas_moreau.errors import InputError
from nas_moreau.report.comparison import write_comparison
from nas_moreau.runs import RunFolder
from nas_moreau.runs.configuration import read_config
from nas_moreau.runs.tables import read_table
from nas_moreau.search.random_cell import RANDOM, random_cell
from nas_moreau.training.device import torch_settings_restored
from nas_moreau.training.resume import open_folder
from nas_moreau.training.signals import StopRequest


@dataclass(frozen=True)
class Protocol:
    """How the cells that the searches find are judged.

    Attributes:
        table: A table of NAS-Bench-201 to look the cells up in.
        column: Its column; by default `BenchmarkTable.pick_column` chooses.
        retrain: Whether cells are retrained; by default only without a table. With neither, predicted percentiles judge
            the cells of the DARTS space.
        rank: Number of cells by which each supernet's ranking is compared with the table; None: no ranking.
        baseline: The method that p-values are against; by default `random` if it takes part, else the first one.
        settings: Method -> overrides `key=value` of its searches alone, such as the step of the alphas that suits it.
    """

    table: str | PathLike[str] | None = None
    column: str | None = None
    retrain: bool | None = None
    rank: int | None = None
    baseline: str | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        rows: A row for each cell found.
        summary: A line for each figure, method and derivation rule.
        conditions: What each method costs and how it is tuned.
        baseline: The method that p-values are against.
        baselines: Exact statistics of groups of cells in the table (`name n mean std min max`); [] without a table.
        column: Column of the table; None without one.
        retraining: How much the table's accuracies depend on the training; None without a table.
        ranking: Kendall's tau of rankings without a search; None if no ranking was asked for.
        failed: Names of the runs that failed.
        space: Name or file of the search space.
        data: Specification of the images.
        report: Path of the page.
    """

    rows: list[Row]
    summary: list[Summary]
    conditions: list[Conditions]
    baseline: str
    baselines: list[dict[str, Any]]
    column: str | None
    retraining: Retraining | None
    ranking: dict[str, Any] | None
    failed: list[str]
    space: str
    data: str
    report: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data, as in result.json."""
        lists = {name: [line.to_dict() for line in getattr(self, name)] for name in ("rows", "summary", "conditions")}
        return vars(self) | lists | {"retraining": self.retraining and asdict(self.retraining)}


@torch_settings_restored()
def compare(
    config: Config,
    methods: Mapping[str, Sequence[int]],
    output: str | PathLike[str],
    resume: bool = False,
    *,
    protocol: Protocol = Protocol(),
    jobs: int = 1,
    imports: Sequence[str] = (),
) -> Comparison:
    """Returns the comparison of search methods over seeds, after doing what is not done yet.

    Every search and retraining is an ordinary run in its own folder and process, so that it can be resumed exactly and
    its memory can be measured. What all methods share at a seed (split, batches, initial weights) follows from the
    seed.

    Args:
        config: All sections; seed and method are set for each row.
        methods: Method -> seeds.
        output: Becomes the parent of searches/ and retrained/, with rows.csv, result.json and compare.html.
        resume: Continue in a folder where an earlier comparison stopped; methods and seeds may have been added.
        protocol: How the cells are judged.
        jobs: Number of parallel searches in each process; their times are then not those of a search alone.
        imports: The user's modules, imported by every run.

    Raises:
        InputError: An argument cannot be used.
        Interrupted: SIGINT or SIGTERM; the running searches have saved their state.
        RuntimeError: Some runs failed; the others are done and reported.
    """
    if jobs < 1 or (protocol.rank is not None and protocol.rank < 2):
        raise InputError("--jobs starts at 1 and --rank at 2.", "Give larger numbers.")

    def plan() -> ComparisonJob:
        job = _plan(config, methods, Path(output), protocol, tuple(imports))
        if resume:
            job.rows = read_rows(Path(output) / "rows.csv")
        job.check()
        return job

    job = distributed.run_on_all_ranks(plan)
    with open_folder(output, config.to_dict(), "compare", resume, job.identity) as folder:
        folder.status("running")
        job.folder = folder
        folder.write_files({FILE: json.dumps(job.settings, indent=1).encode()})
        try:
            with StopRequest() as stop:
                job.stop = stop
                failed = job.collect(run_all(job.chains(), jobs, stop, str(folder.path)))
        except BaseException as error:
            folder.status("interrupted", reason=str(error) or type(error).__name__)
            raise
        result = distributed.run_on_rank0(lambda: _conclude(folder, job, protocol.baseline, failed))
        if failed:
            folder.status("failed", reason=f"{len(failed)} runs failed")
            raise RuntimeError(f"{len(failed)} runs failed: {'; '.join(failed)}. The others are in {folder.path}.")
        folder.status("finished")
        return result


def plan_comparison(methods: Mapping[str, Sequence[int]], output: str | PathLike[str]) -> dict[str, Any]:
    """Returns what a comparison would run and what of it is recorded as finished."""
    done = {row["search"] for row in read_table(Path(output) / "rows.csv") if "search" in row}
    names = [folder_name(method, seed) for method, seeds in methods.items() for seed in seeds]
    return {
        "output": str(output),
        "searches": len(names),
        "finished": [name for name in names if name in done],
        "to do": [name for name in names if name not in done],
    }


def _plan(
    config: Config, methods: Mapping[str, Sequence[int]], output: Path, protocol: Protocol, imports: tuple[str, ...]
) -> ComparisonJob:
    """Returns the comparison, ready to run; refuses what cannot be used before anything is written."""
    if not methods or not all(methods.values()):
        raise InputError("There is nothing to compare.", "Give methods and seeds.")
    if protocol.baseline is not None and protocol.baseline not in methods:
        raise InputError(
            f"The baseline {protocol.baseline} is not among the methods.", f"Choose one of {', '.join(methods)}."
        )
    column = _column(config, protocol)
    retrain = column is None if protocol.retrain is None else protocol.retrain
    if column is None and not retrain:
        space = load_space(config.space)
        if all(percentile(random_cell(space, seed)) is None for seed in range(5)):
            raise InputError(
                f"Without retraining nothing judges the cells: those of {space.name} have no predicted percentile.",
                "Leave --no-retrain out, or give --table FILE.",
            )
    if (output / "config.yaml").exists():
        stored = read_config(output)
        for stage in ("search", "retrain"):
            epochs = (stored.get(stage) or {}).get("epochs", 0)
            if epochs != getattr(config, stage).epochs:
                raise InputError(
                    f"The comparison in {output} was begun with {stage}.epochs={epochs}.", "Use another --output."
                )
    return ComparisonJob(
        config,
        methods,
        output,
        imports,
        column=column,
        retrain=retrain,
        rank=protocol.rank,
        settings=agreed_settings(protocol.settings, methods, output),
    )


def _column(config: Config, protocol: Protocol) -> AccuracyColumn | None:
    """Returns the column of the table that the protocol names."""
    if protocol.table is None:
        if protocol.column is not None or protocol.rank is not None:
            raise InputError(f"--{'rank' if protocol.rank else 'column'} needs a table.", "Give --table FILE.")
        return None
    table, space = load_table(protocol.table), load_space(config.space)
    if not same_cells(space):
        raise InputError(f"The table holds cells of {SPACE}, and the space is {space.name}.", f"Use space={SPACE}.")
    column = AccuracyColumn(table, table.pick_column(protocol.column))
    if column.accuracies and protocol.rank is not None:
        reference_rankings(table, column.name, protocol.rank)
    return column


def _conclude(folder: RunFolder, job: ComparisonJob, baseline: str | None, failed: Sequence[str]) -> Comparison:
    """Returns the result of a comparison and writes it with its page."""
    job.record()
    against = baseline or (RANDOM if RANDOM in job.methods else next(iter(job.methods)))
    rows, exact, again, ranking = job.wanted_rows(), job.baselines(), job.retraining(), None
    if job.column is not None and job.rank is not None:
        ranking = reference_rankings(job.column.table, job.column.name, job.rank)
    result = Comparison(
        rows,
        summarise(rows, list(job.methods), against, exact, again.near_best if again else None),
        conditions=job.conditions(),
        baseline=against,
        baselines=exact,
        column=job.column.name if job.column is not None else None,
        retraining=again,
        ranking=ranking,
        failed=list(failed),
        space=job.config.space,
        data=job.config.data.name,
        report=str(job.output / "compare.html"),
    )
    folder.write_result(result.to_dict())
    write_comparison(folder.path, result.to_dict(), job.curves())
    return result

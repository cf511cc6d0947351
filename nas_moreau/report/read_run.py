"""What lies in a run folder, read for the report; every part may be missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.space import load_space
from nas_moreau.errors import InputError
from nas_moreau.runs.plain_files import read_json, read_yaml
from nas_moreau.runs.tables import read_table


@dataclass
class Choice:
    """What became of one edge: the strongest operation, the runner-up, and the chosen one where the edge was kept."""

    cell: str
    edge: tuple[int, int]
    strongest: str
    weight: float
    runner_up: str
    runner_up_weight: float
    chosen: tuple[str, ...] = ()

    @property
    def margin(self) -> float:
        """Softmax weight of the strongest operation minus that of the runner-up."""
        return self.weight - self.runner_up_weight


@dataclass
class Stage:
    """The folder of one stage. `alphas`: cell -> edge -> operation -> weight by epoch."""

    path: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    alphas: dict[str, dict[tuple[int, int], dict[str, list[float]]]] = field(default_factory=dict)
    alpha_epochs: list[int] = field(default_factory=list)
    genotype: Any = None

    @property
    def finished(self) -> bool:
        """Whether the stage came to its end."""
        return bool(self.result) and self.status.get("state", "finished") == "finished"

    def last(self, column: str) -> float | None:
        """Returns the last number in a column of metrics.csv, None where there is none."""
        return next((value for value in reversed(self.metrics.get(column, [])) if value is not None), None)

    def number(self, key: str) -> float | None:
        """Returns a number of result.json (or evaluation.json), None where it is missing."""
        for source in (self.result, self.evaluation):
            value = source.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                return value
        return None


@dataclass
class Run:
    """A run: its folder and the stages found in it."""

    path: Path
    search: Stage | None
    retrain: Stage | None
    parent: Stage | None = None

    @property
    def stages(self) -> list[Stage]:
        """The stages that are there, in the order in which they run."""
        return [stage for stage in (self.search, self.retrain) if stage is not None]

    @property
    def genotype(self) -> Any:
        """The cell: the one retrained, else the one found, else None."""
        return next((s.genotype for s in (self.retrain, self.search) if s is not None and s.genotype is not None), None)


def read_run(path: Path) -> Run:
    """Returns what lies in `path`, the folder of a stage or the parent of search/ and retrain/.

    Raises:
        InputError: There is no run, or a file of it is damaged.
    """
    if not path.is_dir():
        raise InputError(f"There is no folder {path}.", "Give the folder of a run.")
    search, retrain = (_read_stage(path / name, name) for name in ("search", "retrain"))
    if search is not None or retrain is not None:
        return Run(path, search, retrain, _read_stage(path, "run"))
    stage = _read_stage(path, "")
    if stage is None or stage.name not in ("search", "retrain"):
        raise InputError(f"The folder {path} holds no search and no retraining.", "Give the folder of a run.")
    return Run(path, stage, None) if stage.name == "search" else Run(path, None, stage)


def _read_stage(path: Path, name: str) -> Stage | None:
    files = ("config.yaml", "status.json", "result.json", "metrics.csv", "genotype.json")
    if not any((path / file).exists() for file in files):
        return None
    stage = Stage(path, name)
    if (path / "config.yaml").exists():
        stage.config = read_yaml(path / "config.yaml")
    stage.environment = read_json(path / "environment.json") or {}
    stage.status = read_json(path / "status.json") or {}
    stage.result = read_json(path / "result.json") or {}
    stage.evaluation = read_json(path / "evaluation.json") or {}
    rows = read_table(path / "metrics.csv")
    stage.metrics = {column: [_number(row[column]) for row in rows] for column in (rows[0] if rows else ())}
    _read_alphas(stage, path / "alphas.csv")
    if (path / "genotype.json").exists():
        stage.genotype = Genotype.from_json((path / "genotype.json").read_text(encoding="utf-8"))
    if not name:
        known = stage.status.get("stage")
        guess = "retrain" if "train_loss" in stage.metrics or "test_accuracy" in stage.result else "search"
        stage.name = str(known) if known else guess
    return stage


def _read_alphas(stage: Stage, path: Path) -> None:
    epochs: dict[int, None] = {}
    for row in read_table(path):
        try:
            epoch, weight = int(row["epoch"]), float(row["weight"])
            a, _, b = row["edge"].partition("-")
            edge, cell, operation = (int(a), int(b)), row["cell"], row["operation"]
        except (KeyError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}).", "Restore it, or delete it to do without.") from error
        epochs[epoch] = None
        stage.alphas.setdefault(cell, {}).setdefault(edge, {}).setdefault(operation, []).append(weight)
    stage.alpha_epochs = list(epochs)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def choices(stage: Stage) -> list[Choice]:
    """Returns for every edge of the last epoch what was strongest, the runner-up, and what the cell took.

    Operations that the space excludes take part in the softmax but cannot be chosen; they are left out.
    """
    excluded = _excluded(stage)
    taken: dict[tuple[str, tuple[int, int]], list[str]] = {}
    for name, cell in stage.genotype.cells.items() if stage.genotype is not None else ():
        for operation, a, b in cell.edges:
            taken.setdefault((name, (a, b)), []).append(operation)
    found = []
    for cell_name, edges in stage.alphas.items():
        for edge, operations in edges.items():
            ranked = sorted(
                ((weights[-1], name) for name, weights in operations.items() if name not in excluded),
                key=lambda pair: -pair[0],
            )
            if not ranked:
                continue
            second = ranked[1] if len(ranked) > 1 else (0.0, "")
            chosen = tuple(taken.get((cell_name, edge), ()))
            found.append(Choice(cell_name, edge, ranked[0][1], ranked[0][0], second[1], second[0], chosen))
    return found


def _excluded(stage: Stage) -> tuple[str, ...]:
    """Returns the operations that the space excludes; without its file `none`, if no cell has it."""
    try:
        return load_space(stage.config["space"]).derivation.exclude
    except (KeyError, InputError):
        cells = stage.genotype.cells.values() if stage.genotype is not None else ()
        return () if any(operation == "none" for cell in cells for operation, _, _ in cell.edges) else ("none",)


def final_tables(stage: Stage) -> dict[str, list[list[float]]]:
    """Returns cell name -> (edges, operations) softmax weights of the last epoch; {} before the first."""
    return {
        name: [[weights[-1] for weights in operations.values()] for operations in edges.values()]
        for name, edges in stage.alphas.items()
    }


def final_weights(stage: Stage) -> dict[str, dict[tuple[str, int, int], float]]:
    """Returns the last softmax weights of the edges that the stage's genotype kept, for drawing."""
    if stage.genotype is None:
        return {}
    return {
        name: {
            (operation, a, b): stage.alphas[name][a, b][operation][-1]
            for operation, a, b in cell.edges
            if operation in stage.alphas.get(name, {}).get((a, b), {})
        }
        for name, cell in stage.genotype.cells.items()
    }

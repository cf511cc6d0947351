"""The reader of run folders: which stages are there, how far they came, what they found.

Files are read when they are first asked for; each may be missing. Whoever needs to know something about a run (report,
`list runs`, `show`, `derive`, `compare`, export) asks here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nas_moreau.architecture.spaces.alpha_table import AlphaTable
from nas_moreau.architecture.spaces.derivation import derive
from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.space import SearchSpace, load_space
from nas_moreau.architecture.spaces.zoo import refuse_other_cells
from nas_moreau.config.sections import MAX_EPOCHS
from nas_moreau.drawing.network import Sizes
from nas_moreau.errors import InputError
from nas_moreau.runs.configuration import near_run
from nas_moreau.runs.lock import is_held
from nas_moreau.runs.plain_files import read_json, read_recorded_text, read_yaml
from nas_moreau.runs.tables import read_table

RANDOM_CELLS = "random"
"""In the folder of a run: the retrainings of random cells."""
FILES = ("config.yaml", "status.json", "result.json", "metrics.csv", "genotype.json")
"""A folder with one of them holds a stage."""
ACCURACIES = {"test_accuracy": "test", "held_out_accuracy": "supernet, held out", "accuracy": "task"}
"""Key of a result -> what its accuracy is of; the first one that is there counts."""
WINDOW = 5
"""Epochs over which the stability of a cell's edges is counted."""


class Stage:
    """The folder of one stage.

    Every file is read at its first use, which raises InputError where it is damaged; a missing one gives an empty
    value.

    Args:
        path: The folder.
        name: What runs in it ("search", "retrain", "solve", "run", "compare"); by default read from its files.
    """

    def __init__(self, path: Path, name: str | None = None):
        self.path = path
        self._name = name

    @cached_property
    def name(self) -> str:
        """What runs in the folder."""
        known = self._name or self.status.get("stage")
        if known:
            return str(known)
        trained = "train_loss" in self.metrics or "test_accuracy" in self.result
        return "retrain" if trained else "search"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration in config.yaml, plain data."""
        return read_yaml(self.path / "config.yaml") or {}

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware and command of the run."""
        return self._json("environment")

    @cached_property
    def status(self) -> dict[str, Any]:
        """State, step, time of the last change."""
        return self._json("status")

    @cached_property
    def result(self) -> dict[str, Any]:
        """The result of a finished stage."""
        return self._json("result")

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """What `evaluate` measured: accuracy, confusion matrix."""
        return self._json("evaluation")

    @cached_property
    def data(self) -> dict[str, Any]:
        """Description of the images: classes, size, statistics."""
        return self._json("data")

    def _json(self, name: str) -> dict[str, Any]:
        return read_json(self.path / f"{name}.json") or {}

    @property
    def state(self) -> str:
        """ "running", "finished", "interrupted", "failed", "killed" (nobody runs it any more) or "unknown"."""
        state = str(self.status.get("state", "unknown"))
        return "killed" if state == "running" and is_held(self.path) is False else state

    @property
    def finished(self) -> bool:
        """Whether the stage came to its end."""
        return bool(self.result) and self.status.get("state", "finished") == "finished"

    # --- numbers ---

    @cached_property
    def metrics(self) -> dict[str, list[float | None]]:
        """Column of metrics.csv -> its numbers by epoch, None where there is none."""
        rows = read_table(self.path / "metrics.csv", MAX_EPOCHS)
        return {column: [_number(row[column]) for row in rows] for column in (rows[0] if rows else ())}

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

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds: of the result, or up to the last epoch."""
        found = self.number("wall_seconds")
        return self.last("wall_seconds") if found is None else found

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        """Stage -> its result: of this folder, or of the stages in it where it is that of a whole run."""
        if self.name != "run":
            return {self.name: self.result}
        return {name: Stage(self.path / name, name).result for name in ("search", "retrain")}

    @property
    def accuracy(self) -> float | None:
        """Test accuracy, else accuracy on held-out images, else that of a task; None if there is none."""
        return self.measured[0] if self.measured is not None else None

    @property
    def measured(self) -> tuple[float, str] | None:
        """The accuracy, and what it is of: a trained network, a supernet or a task; None if there is none."""
        for key, what in ACCURACIES.items():
            for result in self.results.values():
                if isinstance(value := result.get(key), float):
                    return value, what
        return None

    @property
    def verdict(self) -> str | None:
        """The verdict on a finished search: "healthy", "undecided" or "collapsed"; None where there is none.

        A search inside a module has "decided", "undecided" or "random".
        """
        if "verdict" in self.results.get("module", {}):
            return str(self.results["module"]["verdict"]).partition(":")[0]
        health = self.results.get("search", {}).get("health")
        return str(health["verdict"]) if isinstance(health, Mapping) and "verdict" in health else None

    # --- what was found ---

    @cached_property
    def genotype(self) -> Genotype | None:
        """The cells that were found or retrained; InputError if they are not those of the result."""
        path = self.path / "genotype.json"
        text = read_recorded_text(path)
        if text is None:
            return None
        found = Genotype.from_json(text)
        refuse_other_cells(path, found)
        return found

    @cached_property
    def space(self) -> SearchSpace | None:
        """The search space of the configuration; None where it cannot be loaded (any more)."""
        try:
            return load_space(self.config["space"])
        except (KeyError, InputError):
            return None

    @cached_property
    def alphas(self) -> dict[int, AlphaTable]:
        """Epoch -> softmax weights, of alphas.csv; {} for a search without any."""
        path = self.path / "alphas.csv"
        try:
            return AlphaTable.from_rows(read_table(path))
        except InputError as error:
            raise InputError(f"{path} is damaged: {error.cause}", "Restore it, or delete it to do without.") from None

    @cached_property
    def final_alphas(self) -> AlphaTable | None:
        """The softmax weights that the cell was derived from: the result's, or the last epoch's before the end."""
        if self.result.get("alphas") and self.space is not None:
            return AlphaTable.from_dict(self.space, self.result)
        return next(reversed(self.alphas.values()), None)


class Run:
    """A run: its folder and the stages found in it.

    Attributes:
        path: The folder.
        search: Its search, None where there is none.
        retrain: Its retraining, None where there is none.
        parent: The folder that holds both, None for a stage by itself.
        random: Retrainings of random cells by the same recipe, that the found cell is measured against.
    """

    def __init__(
        self,
        path: Path,
        search: Stage | None,
        retrain: Stage | None,
        parent: Stage | None = None,
        random: Sequence[Stage] = (),
    ):
        self.path, self.search, self.retrain, self.parent, self.random = path, search, retrain, parent, random

    @property
    def stages(self) -> list[Stage]:
        """The stages that are there, in the order in which they run."""
        return [stage for stage in (self.search, self.retrain) if stage is not None]

    @property
    def source(self) -> Stage:
        """The folder with the configuration and the environment of the whole run."""
        return self.parent if self.parent is not None and self.parent.config else self.stages[0]

    @property
    def genotype(self) -> Genotype | None:
        """The cells: those retrained, else those found, else None."""
        return next((stage.genotype for stage in reversed(self.stages) if stage.genotype is not None), None)

    @property
    def test_accuracy(self) -> float | None:
        """Test accuracy after retraining, 0..1: of the result, or else what `evaluate` measured."""
        if self.retrain is None:
            return None
        found = self.retrain.number("test_accuracy")
        return self.retrain.number("accuracy") if found is None else found

    @property
    def seed(self) -> Any:
        """The seed of the configuration."""
        return self.source.config.get("seed")


def open_stage(path: str | os.PathLike[str], name: str | None = None) -> Stage | None:
    """Returns the stage in a folder, None where the folder holds none.

    Args:
        path: The folder.
        name: What runs in it, if that is known.
    """
    folder = Path(path)
    return Stage(folder, name) if any((folder / file).exists() for file in FILES) else None


def read_run(path: str | os.PathLike[str]) -> Run:
    """Returns the run in `path`, the folder of a search or a retraining or the parent of both.

    Raises:
        InputError: There is no run.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", "Give the folder of a run.")
    search, retrain = (open_stage(folder / name, name) for name in ("search", "retrain"))
    if search is not None or retrain is not None:
        places = sorted((folder / RANDOM_CELLS).glob("[0-9]*"), key=lambda place: place.name)
        random = [stage for place in places if (stage := open_stage(place, "retrain")) is not None and stage.finished]
        return Run(folder, search, retrain, open_stage(folder, "run"), random)
    stage = open_stage(folder)
    if stage is None or stage.name not in ("search", "module", "retrain"):
        raise InputError(f"The folder {folder} holds no search and no retraining.", "Give the folder of a run.")
    return Run(folder, None, stage) if stage.name == "retrain" else Run(folder, stage, None)


def find_stage(path: str | os.PathLike[str], *names: str) -> Stage:
    """Returns the first of the stages `names` that the folder is or holds.

    Raises:
        InputError: It is not a run folder, or holds none of them.
    """
    folder = Path(path)
    if not (folder / "status.json").is_file():
        state = "is not a run folder" if folder.exists() else "does not exist"
        raise InputError(f"{path} {state}.", near_run(folder))
    own = Stage(folder)
    for name in names:
        if own.name == name:
            return own
        if (folder / name / "status.json").is_file():
            return Stage(folder / name, name)
    raise InputError(f"{path} holds no {' or '.join(names)}.", f"It is a folder of '{own.name}'; give another one.")


def find_search(path: str | os.PathLike[str]) -> Stage | None:
    """Returns the search that a folder is or holds, None if it holds none or is not a folder."""
    for place in (Path(path), Path(path, "search")):
        # isdir: Path.exists() refuses the text of a genotype
        if os.path.isdir(place) and (stage := open_stage(place)) is not None and stage.name == "search":
            return stage
    return None


@dataclass(frozen=True)
class Stability:
    """How long the derived cell of a search has not changed.

    Attributes:
        epochs: Epochs so far.
        epochs_unchanged: Last epochs in a row with the same genotype.
        recent: The genotypes of the last `WINDOW` epochs.
    """

    epochs: int = 0
    epochs_unchanged: int = 0
    recent: tuple[Genotype, ...] = ()

    @classmethod
    def of(cls, space: SearchSpace, history: Iterable[AlphaTable]) -> Stability:
        """Returns the stability of a search with these weights at the ends of its epochs."""
        found = cls()
        for table in history:
            found = found.after(derive(space, table))
        return found

    def after(self, genotype: Genotype) -> Stability:
        """Returns the stability after one more epoch, with this genotype."""
        same = bool(self.recent) and self.recent[-1] == genotype
        recent = (*self.recent, genotype)[-WINDOW:]
        return Stability(self.epochs + 1, self.epochs_unchanged + 1 if same else 1, recent)

    def to_dict(self) -> dict[str, Any]:
        """Returns what result.json holds.

        `edges_unchanged` is the share of the genotype's edges that carried the same operation in each of the last
        `window` epochs.
        """
        edges = [{(name, *edge) for name, cell in found.cells.items() for edge in cell.edges} for found in self.recent]
        return {
            "epochs": self.epochs,
            "epochs_unchanged": self.epochs_unchanged,
            "window": len(edges),
            "edges_unchanged": len(set.intersection(*edges)) / len(edges[-1]),
        }

    def to_state(self) -> list[Any]:
        """Returns plain data for a checkpoint."""
        return [self.epochs, self.epochs_unchanged, [genotype.to_json() for genotype in self.recent]]

    @classmethod
    def from_state(cls, state: list[Any]) -> Stability:
        """Returns what `to_state` was given."""
        epochs, unchanged, recent = state
        return cls(epochs, unchanged, tuple(Genotype.from_json(text) for text in recent))


def network_sizes(genotype: Genotype, path: str | os.PathLike[str]) -> Sizes:
    """Returns the sizes of the network that the run or stage in `path` trains at the end.

    Without a configuration or a data.json there, those that networks of this kind are published with (CIFAR-10).

    Args:
        genotype: The genotype of the network.
        path: The run's folder, or anything else for the published sizes.
    """
    places = [Path(path), Path(path, "retrain"), Path(path, "search")] if os.path.isdir(path) else []
    stages = [Stage(place) for place in places]
    retrain = next((stage.config for stage in stages if stage.config), {}).get("retrain")
    retrain = retrain if isinstance(retrain, Mapping) else {}
    data = next((stage.data for stage in stages if stage.data), {})
    channels, layers = genotype.skeleton.published_sizes
    return Sizes(
        channels=_whole(retrain.get("channels"), channels),
        layers=_whole(retrain.get("layers"), layers),
        image=(data.get("channels", 3), *data.get("image_size", (32, 32))),
        classes=len(data["classes"]) if "classes" in data else None,
        auxiliary=bool(retrain.get("auxiliary", False)),
    )


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

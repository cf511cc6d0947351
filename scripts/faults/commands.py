"""Commands of every kind on the toy: how each is started and resumed, and what it must leave behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from faults.toy import left_behind, make_toy

SHORT = ["search.epochs=2", "search.steps_per_epoch=2", "retrain.epochs=2", "retrain.steps_per_epoch=2"]
SOLVE = ["--steps", "4", "--n", "10", "--device", "cpu"]


class Step(NamedTuple):
    """A command whose death is tried.

    Attributes:
        arguments: Its command line without the folder.
        left: Folder -> what it leaves there, which must not depend on kills.
        prepare: Makes the folder that it works on; None if it makes its own.
    """

    arguments: list[str]
    left: Callable[[Path], Any]
    prepare: Callable[[Path], None] | None = None

    def run(self, folder: Path, resume: bool = False) -> int:
        """Runs the command in this process and returns its exit code."""
        from nas_moreau.cli import main

        if self.prepare is not None:
            return main([self.arguments[0], str(folder), *self.arguments[1:]])
        return main([*self.arguments, "--output", str(folder), *(["--resume"] if resume else [])])


def children_in_this_process() -> None:
    """From now on a comparison runs its commands in this process, where a kill meets them too."""
    from nas_moreau.cli import main
    from nas_moreau.compare import protocol

    def run_all(chains: Any, jobs: int, stop: Any, place: str) -> list[str]:
        return [c.name for chain in chains for c in chain if main(c.arguments) != 0]

    protocol.run_all = run_all


def steps(folder: Path) -> dict[str, Step]:
    """Returns the commands by name; `folder` gets their images, configuration and a finished search."""
    from faults.finished import command_line

    words = make_toy(folder)
    config = ["--config", str(folder / "toy.yaml"), *SHORT]
    data = ["--data", f"npz:{folder / 'toy.npz'}"]
    searched = folder / "searched"
    code, text = command_line(*words["search"], *SHORT, "--output", str(searched))
    if code != 0:
        raise SystemExit(text)
    wide = [*words["retrain"], *SHORT]
    methods = ["--methods", "darts1,random", "--seeds", "0"]
    return {
        "search": Step([*words["search"], *SHORT], left_behind),
        "retrain": Step(wide, left_behind),
        "run": Step(["run", *config], _run),
        "compare": Step(["compare", *methods, *config], _comparison),
        "solve": Step(["solve", "hyper-cleaning", *SOLVE, "--corrupt", "0.5", *data], _solve),
        "derive --write": Step(
            ["derive", "--rule", "selection", "--write"], _derived, lambda place: _copy(searched, place)
        ),
    }


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def _json(path: Path, *without: str) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in without}


def _run(folder: Path) -> dict[str, Any]:
    parts = {name: left_behind(folder / name) for name in ("search", "retrain")}
    state = _json(folder / "status.json")["state"]
    return {**parts, "state": state, "report": (folder / "report.html").exists()}


def _comparison(folder: Path) -> dict[str, Any]:
    from nas_moreau.runs.tables import read_table

    rows = [
        {name: text for name, text in row.items() if not name.endswith(("seconds", "bytes"))}
        for row in read_table(folder / "rows.csv")
    ]
    return {"rows": sorted(rows, key=str), "state": _json(folder / "status.json")["state"]}


def _solve(folder: Path) -> dict[str, Any]:
    from nas_moreau.runs import load_checkpoint
    from nas_moreau.runs.tables import read_table

    payload = (load_checkpoint(folder / "checkpoints") or ({}, ""))[0]
    rows = [{k: v for k, v in row.items() if k != "wall_seconds"} for row in read_table(folder / "metrics.csv")]
    result = _json(folder / "result.json")
    kept = {name: result[name] for name in ("accuracy", "f1", "steps")}
    return {
        "tensors": [tensor.numpy().tobytes() for tensor in (*payload["x"], *payload["y"])],
        "metrics": rows,
        "result": kept,
        "lists": [(folder / name).read_bytes() for name in ("suspects.csv", "cleaned.csv", "suspects.png")],
    }


def _derived(folder: Path) -> dict[str, Any]:
    from nas_moreau.runs.history import Stage

    stage = Stage(folder)
    pictures = [(folder / name).read_bytes() for name in ("genotype.svg", "genotype.png")]
    return {"genotype": stage.genotype and stage.genotype.digest(), "result": stage.result["digest"], "svg": pictures}

"""The verdict on a run in plain words: how good, how sure, what next. Terminal, page and `Result.verdict` show it."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import NamedTuple

from nas_moreau.architecture import percentile
from nas_moreau.report.format import count, listed, mean_and_spread, p_value, percent
from nas_moreau.report.indicators import GOOD, health, indicators
from nas_moreau.report.significance import LEVEL
from nas_moreau.runs.history import Run, Stage
from nas_moreau.search.random_cell import RANDOM


class NextStep(NamedTuple):
    """What to do next.

    Attributes:
        reason: Why, as the beginning of a sentence.
        command: The command that does it.
    """

    reason: str
    command: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.command}"


def outcome(run: Run) -> str:
    """Returns what came out, in a few sentences: accuracy, state, verdict on the cell, chance, what to look at."""
    accuracy, search, retrain = run.test_accuracy, run.search, run.retrain
    found = []
    if accuracy is not None and retrain is not None:
        what = "The cell that was found reaches" if search is not None else "The network reaches"
        parameters = retrain.number("parameters")
        size = f", with {count(parameters)} parameters" if parameters is not None else ""
        found.append(f"{what} {percent(accuracy)} test accuracy after retraining{size}.")
    elif retrain is not None:
        found.append(f"Retraining {_progress(retrain)}; there is no final test accuracy yet.")
    if search is not None:
        held_out = search.number("held_out_accuracy")
        if search.result.get("method") == RANDOM:
            found.append("The cell was drawn at random, as a baseline for searched cells.")
        elif accuracy is None and search.finished:
            reached = f", whose supernet reaches {percent(held_out)} on held-out images" if held_out is not None else ""
            found.append(f"The search is finished and derived a cell{reached}.")
            if retrain is None:
                found.append("How good the cell is by itself is known only after retraining.")
        if search.finished:
            found += _chance(run)
        else:
            found.append(f"The search {_progress(search)}.")
        found += _verdict(search)
    return " ".join(found)


def next_step(run: Run) -> NextStep:
    """Returns what to do next with a run: continue it, search again, retrain its cell, or compare it with chance."""
    path, search, retrain = shlex.quote(str(run.path)), run.search, run.retrain
    for stage in run.stages:
        if not stage.finished:
            return NextStep("Continue it", _continued(run, stage))
    if search is None:
        return NextStep("Classify images with it", f"nas-moreau predict {path} IMAGE...")
    where = shlex.quote(str(search.path))
    state = health(search)
    config = shlex.quote(str(search.path / "config.yaml"))
    drawn = search.result.get("method") == RANDOM
    if state is not None and state.collapsed and not drawn:
        again = f"nas-moreau search --config {config} search.guard=best"
        return NextStep("Search again with the guard, which derives from the best epoch", again)
    undecided = state is not None and state.undecided and not drawn
    if undecided and retrain is None:
        return NextStep("Let short training choose the cell", f"nas-moreau derive {where} --rule trained --write")
    if undecided:
        again = f"nas-moreau run --config {shlex.quote(str(run.source.path / 'config.yaml'))} derive.rule=trained"
        return NextStep("Search again, and let short training choose the cell", again)
    if retrain is None:
        return NextStep("Train the cell from scratch", f"nas-moreau retrain {where}")
    if run.parent is not None and not drawn and not run.random:
        command = f"nas-moreau run --output {path} --resume --against-random 3"
        return NextStep("Compare with random cells trained by the same recipe", command)
    return NextStep("Write the network for another program", f"nas-moreau export {path} --format onnx")


def _continued(run: Run, stage: Stage) -> str:
    whole = run.parent is not None and run.parent.name == "run"
    verb, path = ("run", run.path) if whole else (stage.name, stage.path)
    subject = "" if verb != "retrain" else f" {shlex.quote(str(Path(path) / 'genotype.json'))}"
    return f"nas-moreau {verb}{subject} --output {shlex.quote(str(path))} --resume"


def against_random(run: Run) -> str | None:
    """Returns how the found cell compares with the random cells of its run; None without any, or before it is trained.

    The p-value is that of the found cell's rank among all of them, (1 + number at least as good) / (1 + N): with N
    random cells it cannot be below 1 / (1 + N).
    """
    accuracy = run.test_accuracy
    others = [value for stage in run.random if (value := stage.number("test_accuracy")) is not None]
    if accuracy is None or not others:
        return None
    better, count = sum(accuracy > value for value in others), len(others)
    p = (1 + count - better) / (1 + count)
    needed = math.floor(1 / LEVEL)
    sure = f"p {p_value(p)}"
    if p >= LEVEL and count < needed:
        sure += f"; below {LEVEL} takes at least {needed} random cells"
    return (
        f"better than {better} of {count} random cells trained by the same recipe "
        f"({percent(accuracy)} against {mean_and_spread(others)}; {sure})"
    )


def _chance(run: Run) -> list[str]:
    """Returns sentences on whether the cell is better than chance."""
    compared = against_random(run)
    rank = percentile(run.genotype) if run.genotype is not None else None
    found = [f"Its predicted percentile among random cells is {rank}."] if rank is not None else []
    if compared is not None:
        return [*found, f"It is {compared}."]
    if run.search is not None and run.search.result.get("method") == RANDOM:
        return found
    return found or ["Whether it is better than random cells is not known from one run."]


def _progress(stage: Stage) -> str:
    state = {"interrupted": "was interrupted", "failed": "failed", "killed": "was killed"}.get(
        stage.state, "is not finished"
    )
    done = len(stage.metrics.get("epoch", []))
    planned = (stage.config.get(stage.name) or {}).get("epochs")
    return f"{state} after {done} of {planned} epochs" if isinstance(planned, int) else f"{state} after {done} epochs"


def _verdict(search: Stage) -> list[str]:
    state = health(search)
    if state is None:
        return []
    look_at = [sign.name[:1].lower() + sign.name[1:] for sign in indicators(search) if sign.level != GOOD]
    return [f"The cell is {state}.", *([f"Worth a look: {listed(look_at)}."] if look_at else [])]

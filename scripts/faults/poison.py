"""NaN and infinity put into every place where a stage computes, at a known step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faults.toy import Row, make_toy

STEP = 5  # of 9, two steps into the second epoch
NAN, INF = math.nan, math.inf


class _Poison(torch.autograd.Function):
    """Passes a tensor on as it is; its gradient comes back not finite."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * NAN


def _objective(original: Callable, place: str, now: Callable[[], bool], value: float) -> Callable:
    """Returns the objective with its value, or its gradient for x or y, poisoned whenever `now()`."""

    def poisoned(x: list[Tensor], y: list[Tensor], batch: Any) -> Any:
        if now() and place in "xy":
            x = [_Poison.apply(t) for t in x] if place == "x" else x
            y = [_Poison.apply(y[0]), *y[1:]] if place == "y" else y
        returned = original(x, y, batch)
        if now() and place == "value":
            returned = (returned[0] * value, *returned[1:]) if isinstance(returned, tuple) else returned * value
        return returned

    return poisoned


def _spoil(tensors: Any) -> None:
    """Puts NaN into the first number of the first tensor in nested lists."""
    next(_tensors(tensors)).view(-1)[0] = NAN


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _field(state: Any, name: str) -> Any:
    """Returns the entry of that name of an update rule's state: its own, or that of a part of a chain."""
    if hasattr(state, name):
        return getattr(state, name)
    found = [_field(part, name) for part in state] if isinstance(state, tuple) else []
    return next((entry for entry in found if entry is not None), None)


SEARCH_PLACES = {
    **{f"{name}, {place}": (name, place) for name in ("F", "f", "f_theta") for place in ("value", "x", "y")},
    "alphas": lambda job: _spoil(job.x),
    "weights": lambda job: _spoil(job.y),
    "theta": lambda job: _spoil(job.state.theta),
    "momentum of the weights": lambda job: _spoil(job.state.y_rule.transforms),
    "momentum of theta": lambda job: _spoil(job.state.theta_rule.transforms),
    "Adam's second moment of the alphas": lambda job: _spoil(_field(job.state.x_rule, "second")),
    "running statistics": lambda job: _spoil([b for b in job.setup.supernet.buffers() if b.is_floating_point()]),
}
RETRAIN_PLACES = {
    "a weight": lambda job: _spoil(next(job.trainer.network.parameters()).data),
    "a gradient": lambda job: next(job.trainer.network.parameters()).register_hook(lambda gradient: gradient * NAN),
    "an image": lambda job: _poison_images(job),
    "the moving average": lambda job: _spoil(next(job.trainer.ema.module.parameters()).data),
    "a momentum": lambda job: _spoil(next(iter(job.trainer.optimizer.state.values()))["momentum_buffer"]),
}


def everywhere(folder: Path) -> list[Row]:
    """Poisons search, retraining and solve at each place; the same step must stop, and what is saved must be sound."""
    begin, wrong, count = time.monotonic(), [], 0
    for name, place in SEARCH_PLACES.items():
        count += 1
        wrong += [] if search_stops(folder / f"s{count}", place) else [f"search: {name}"]
    for name, place in RETRAIN_PLACES.items():
        count += 1
        wrong += [] if retrain_stops(folder / f"r{count}", place) else [f"retrain: {name}"]
    for place in ("value", "x", "y"):
        for objective in ("F", "f"):
            count += 1
            wrong += [] if solve_stops(objective, place) else [f"solve: {objective}, {place}"]
    note = (
        f"wrong: {wrong}"
        if wrong
        else (
            f"{len(SEARCH_PLACES)} places of search, {len(RETRAIN_PLACES)} of retraining, 6 of solve; stopped in that "
            "step, which is named; nothing of it saved"
        )
    )
    return [Row("NaN at a place", count, count - len(wrong), note, time.monotonic() - begin)]


def _sound(folder: Path, status: str) -> bool:
    """Returns whether the checkpoint is of the step before the poisoned one and all of it finite."""
    from nas_moreau.runs import load_checkpoint
    from nas_moreau.training.finite_guard import tensors_in

    found = load_checkpoint(folder / "checkpoints")
    finite = found is not None and all(t.isfinite().all() for t in tensors_in(found[0]) if t.is_floating_point())
    return finite and found[0]["counters"]["step"] == STEP - 1 and f"at step {STEP} " in status


def search_stops(folder: Path, place: Any) -> bool:
    """Returns whether a search poisoned at a place stops in that step and leaves a sound checkpoint."""
    from nas_moreau.config import load_config
    from nas_moreau.search.stage import search
    from nas_moreau.training.loop import Hook
    from nas_moreau.training.signals import NonFinite

    folder.mkdir()
    config = load_config(path=make_toy(folder)["search"][2], overrides=["logging.tensorboard=false"])

    def poison_objective(job: Any) -> None:
        name, where = place
        problem = job.setup.posed.problem
        changed = _objective(getattr(problem, name), where, lambda: job.counters.step == STEP - 1, INF)
        posed = job.setup.posed._replace(problem=replace(problem, **{name: changed}))
        job.setup = replace(job.setup, posed=posed)

    def poison_state(job: Any) -> None:
        if job.counters.step == STEP - 1:
            place(job)

    hook = Hook(on_start=poison_objective) if isinstance(place, tuple) else Hook(before_step=poison_state)
    try:
        search(config, folder / "run", hooks=[hook])
        return False
    except NonFinite as error:
        return _sound(folder / "run", str(error))


class _PoisonedBatches:
    """Batches whose images are NaN."""

    def __init__(self, batches: Any):
        self.batches, self.shard = batches, batches.shard

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        images, labels = self.batches.batch(step)
        return images * NAN, labels


def _poison_images(job: Any) -> None:
    job.images = job.images._replace(shards=[_PoisonedBatches(batches) for batches in job.images.shards])


def retrain_stops(folder: Path, place: Callable[[Any], Any]) -> bool:
    """Returns whether a retraining poisoned at a place stops in that step and leaves a sound checkpoint."""
    from nas_moreau.architecture.spaces.zoo import published_cell
    from nas_moreau.config import load_config
    from nas_moreau.training.loop import Hook
    from nas_moreau.training.retrain import retrain
    from nas_moreau.training.signals import NonFinite

    folder.mkdir()
    overrides = ["logging.tensorboard=false", "retrain.mixup=0"]
    config = load_config(path=make_toy(folder)["retrain"][3], overrides=overrides)

    def poison(job: Any) -> None:
        if job.counters.step == STEP - 1:
            place(job)

    try:
        retrain(config, published_cell("DARTS_V2"), folder / "run", hooks=[Hook(before_step=poison)])
        return False
    except NonFinite as error:
        return _sound(folder / "run", str(error))


def solve_stops(objective: str, place: str) -> bool:
    """Returns whether a solve with a poisoned objective stops in that step with finite iterates."""
    from nas_moreau.bilevel import Bilevel, moreau, solve

    step, seen = 7, [0]
    functions = {
        "F": lambda x, y, batch: 0.5 * (x[0] - 1) ** 2 + 0.5 * y[0] ** 2,
        "f": lambda x, y, batch: 0.5 * y[0] ** 2 - x[0] * y[0],
    }
    functions[objective] = _objective(functions[objective], place, lambda: seen[0] == step - 1, NAN)
    start = [torch.zeros((), dtype=torch.float64)]

    def count(k: int, x: Any, y: Any, info: Any) -> None:
        seen[0] = k + 1

    found = solve(Bilevel(functions["F"], functions["f"]), start, start, moreau(0.1, 0.1, 0.1, 1.0, 1.0), watch=count)
    finite = all(t.isfinite().all() for t in (*found.x, *found.y))
    return found.steps == step and found.status == "diverged" and finite

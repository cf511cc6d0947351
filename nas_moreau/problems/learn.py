"""Hyper-parameter learning: a bilevel method on a task with networks, in a run folder, with exact resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_moreau.bilevel import Bilevel, Method
from nas_moreau.bilevel.tensors import Tensors
from nas_moreau.runs import RunFolder
from nas_moreau.runs.identity import Identity
from nas_moreau.training.device import peak_memory_bytes
from nas_moreau.training.finite_guard import FiniteGuard
from nas_moreau.training.loop import Hook, Loop, LoopSettings, run_in
from nas_moreau.training.resume import Counters, check_like, pack, unpack

MEASUREMENTS = 20
"""How often in a run, about, accuracy is measured and the state saved."""


@dataclass(frozen=True, kw_only=True)
class LearningTask:
    """A problem, a method for it, and what is measured.

    Attributes:
        name: Of the task.
        method_name: Of the method.
        problem, x, y: The bilevel problem and where to start.
        method: The method.
        evaluations: Gradient evaluations of one step, for comparisons at equal budgets.
        steps: Number of steps.
        every: Steps between two measurements.
        measure: (x, y) -> numbers for metrics.csv, "accuracy" among them.
        finish: (folder, x, y) -> further entries of the result, "accuracy" among them; writes the task's files.
        batches: k -> (upper_batch, lower_batch), or None.
        renew: (k, y, state) -> (y, state) before step k, for a lower level that changes; or None.
    """

    name: str
    method_name: str
    problem: Bilevel
    x: Tensors
    y: Tensors
    method: Method
    evaluations: int
    steps: int
    every: int
    measure: Callable[[Tensors, Tensors], dict[str, float]]
    finish: Callable[[RunFolder, Tensors, Tensors], dict[str, Any]]
    batches: Callable[[int], tuple[Any, Any]] | None = None
    renew: Callable[[int, Tensors, Any], tuple[Tensors, Any]] | None = None


@dataclass(frozen=True)
class LearningResult:
    """The outcome of a task.

    Attributes:
        task, method: Their names.
        x, y: Summaries of all entries.
        steps: Steps done.
        evaluations: Gradient evaluations done.
        seconds, cpu_seconds: Of the method's steps, without the measurements.
        peak_memory_bytes: The most that the process held; on an accelerator, that its allocator took.
        curve: step, evaluations, seconds, cpu_seconds, accuracy at every measurement.
        task_entries: What the task adds, "accuracy" (0..1) among it.
    """

    task: str
    method: str
    x: dict[str, float]
    y: dict[str, float]
    steps: int
    evaluations: int
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    curve: list[dict[str, float]]
    task_entries: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """The accuracy at the end, 0..1."""
        return self.task_entries["accuracy"]

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.4f}"

    def to_dict(self) -> dict[str, Any]:
        """Returns what result.json holds."""
        own = {key: value for key, value in vars(self).items() if key != "task_entries"}
        return {**own, "error": None, "residual": None, "message": f"Took {self.steps} steps.", **self.task_entries}


def learn(task: LearningTask, folder: RunFolder, hooks: Sequence[Hook] = ()) -> LearningResult:
    """Takes the steps that are left in `folder` and returns the result, which is written there too.

    Raises:
        NonFinite: F, f, a direction or an iterate became NaN or infinite; the last checkpoint is kept.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    return run_in(LearningJob(task), folder, hooks)


class LearningJob:
    """A task in progress, and what the training loop asks of it (`training.loop.Job`); an epoch ends in a measurement.

    Attributes:
        counters: Steps and seconds done, measurements included.
        x, y, state: The iterates and the method's state.
        seconds, cpu_seconds: Of the method's steps alone.
        curve: See `LearningResult`.
    """

    loop: Loop
    description = None
    loop_settings = LoopSettings()

    def __init__(self, task: LearningTask):
        self.task, self.name, self.device = task, task.name, task.x[0].device
        self.about = f"{task.evaluations} evaluations a step"
        self.identity: Identity = {}  # the folder is open already, and has been compared
        self.total_steps, self.epoch_steps, self.samples = task.steps, task.every, 0
        self.counters, self.guard = Counters(), FiniteGuard(task.name, self.device, None)
        self.x, self.y = task.x, task.y
        self.curve: list[list[float]] = []
        begin, cpu = time.perf_counter(), time.process_time()
        self.state = task.method.init(task.problem, task.x, task.y, *self._batches(0))
        self.seconds, self.cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
        self._info: Any = None

    def _batches(self, k: int) -> tuple[Any, Any]:
        return self.task.batches(k) if self.task.batches else (None, None)

    def start(self, loop: Loop) -> None:
        """Begins or resumes in a run folder."""
        self.loop = loop

    def done(self) -> bool:
        """Returns whether all steps are done."""
        return self.counters.step >= self.total_steps

    def train_step(self) -> Any:
        """Does one step of the method and returns its info."""
        task, k = self.task, self.counters.step
        batches = self._batches(k)
        begin, cpu = time.perf_counter(), time.process_time()
        if task.renew:
            self.y, self.state = task.renew(k, self.y, self.state)
        before = self.x, self.y, self.state
        *after, info = task.method.step(task.problem, *before, *batches)
        self.seconds += time.perf_counter() - begin
        self.cpu_seconds += time.process_time() - cpu
        self.counters.step += 1
        values = dict(zip(("x", "y", "state"), after))
        self.x, self.y, self.state = self.guard.after(self.counters.step, _numbers(info), values, tuple(after), before)
        self._info = info
        return info

    def log_step(self, info: Any, seconds: float) -> None:
        """Nothing is logged between two measurements."""

    def replay_log(self) -> None:
        """Logs nothing: the counters' `logged` is all."""

    def end_epoch(self) -> tuple[dict[str, Any], bool]:
        """Measures, and writes a row of metrics.csv and TensorBoard's curves."""
        info, step, loop = self._info, self.counters.step, self.loop
        begin, cpu = time.perf_counter(), time.process_time()
        self.guard.read()  # waits for an accelerator, whose steps take this time too
        self.seconds += time.perf_counter() - begin
        self.cpu_seconds += time.process_time() - cpu
        row = {name: float(value) for name, value in _numbers(info).items()}
        if "f_theta" in row:
            row["gap"] = row["f"] - row.pop("f_theta")
        if info.c is not None:
            row["c_k"] = float(info.c)
        row |= loop.evaluate(self, "accuracy", 0, lambda: self.task.measure(self.x, self.y))
        loop.log_epoch(self, row)
        whole = {"epoch": self.counters.epochs, "step": step, **row, "wall_seconds": self.seconds}
        loop.monitor.epoch(whole)
        evaluations = step * self.task.evaluations
        self.curve.append([step, evaluations, self.seconds, self.cpu_seconds, row["accuracy"]])
        losses = {name: row[name] for name in ("F", "f") if name in row}
        loop.progress.update(step, **losses, test_accuracy=f"{100 * row['accuracy']:.2f} %")
        return whole, False

    def finish(self) -> LearningResult:
        """Returns the result."""
        task, steps = self.task, self.counters.step
        columns = ("step", "evaluations", "seconds", "cpu_seconds", "accuracy")
        result = LearningResult(
            task=task.name,
            method=task.method_name,
            x=summary(self.x),
            y=summary(self.y),
            steps=steps,
            evaluations=steps * task.evaluations,
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
            curve=[dict(zip(columns, row)) for row in self.curve],
            task_entries=task.finish(self.loop.folder, self.x, self.y),
        )
        names = {"task": task.name, "method": task.method_name}
        self.loop.monitor.hparams(names, {"final/accuracy": result.accuracy}, steps)
        return result

    def reported_weights(self) -> str | None:
        """Returns None: there is no best.pt."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Returns iterates, the method's state, its times and the curve."""
        return {
            "x": self.x,
            "y": self.y,
            "state": pack(self.state),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "curve": self.curve,
        }

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        check_like([*payload["x"], *payload["y"]], [*self.x, *self.y])
        self.x = [tensor.to(self.device) for tensor in payload["x"]]
        self.y = [tensor.to(self.device) for tensor in payload["y"]]
        self.state = unpack(self.state, payload["state"], self.device)
        self.seconds, self.cpu_seconds = payload["seconds"], payload["cpu_seconds"]
        self.curve = payload["curve"]


def _numbers(info: Any) -> dict[str, Tensor]:
    named = {"F": info.F, "f": info.f, "f_theta": info.f_theta, **info.norms}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def summary(tensors: Tensors) -> dict[str, float]:
    """Returns number, mean, least, greatest and Euclidean norm of all entries."""
    flat = torch.cat([t.detach().flatten().double().cpu() for t in tensors])
    return {
        "entries": flat.numel(),
        "mean": float(flat.mean()),
        "min": float(flat.min()),
        "max": float(flat.max()),
        "norm": float(flat.norm()),
    }

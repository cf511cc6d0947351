"""The solve stage on networks: a bilevel method in a run folder, with exact resume, until its steps are done.

Its loop is not that of `stepping`: there are no epochs, and its clock runs for the method's steps alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_moreau.bilevel import Bilevel, Method
from nas_moreau.bilevel.tensors import Tensors
from nas_moreau.runs import Monitor, Progress, RunFolder, load_checkpoint, save_checkpoint
from nas_moreau.training.device import peak_memory_bytes
from nas_moreau.training.finite_guard import FiniteGuard
from nas_moreau.training.resume import pack, unpack
from nas_moreau.training.signals import Interrupted, NonFinite, StopRequest

LOOKS = 20
"""About so many times in a run accuracy is measured and the state saved."""


@dataclass
class Job:
    """A problem, a method for it, and what is looked at on the way.

    Attributes:
        task, name: Of the task and of the method.
        problem, x, y, method: What is solved, from where, how.
        evaluations: Gradient evaluations of one step, for comparisons at equal budgets.
        steps: How many to take.
        every: Steps between two looks.
        look: (x, y) -> numbers for metrics.csv, "accuracy" among them.
        finish: (folder, x, y) -> further entries of the result; writes the task's own files.
        batches: k -> (upper_batch, lower_batch), or None.
        renew: (k, y, state) -> (y, state) before step k, for a lower level that changes; or None.
    """

    task: str
    name: str
    problem: Bilevel
    x: Tensors
    y: Tensors
    method: Method
    evaluations: int
    steps: int
    every: int
    look: Callable[[Tensors, Tensors], dict[str, float]]
    finish: Callable[[RunFolder, Tensors, Tensors], dict[str, Any]]
    batches: Callable[[int], tuple[Any, Any]] | None = None
    renew: Callable[[int, Tensors, Any], tuple[Tensors, Any]] | None = None


def run_job(job: Job, folder: RunFolder) -> dict[str, Any]:
    """Takes the steps that are left in `folder` and returns the result, which is written there too.

    Returns:
        `task n method x y error residual steps seconds peak_memory_bytes message` as for small problems, x and y as
        summaries; besides `evaluations`, `cpu_seconds`, `curve` (step, evaluations, seconds, cpu_seconds, accuracy at
        every look) and what `job.finish` adds. `seconds` are those of the method's steps, without the looks.

    Raises:
        NonFinite: F, f, a direction or what is solved for became NaN or infinite; the last checkpoint stands.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    return _Run(job, folder).go()


class _Run:
    """One job in progress."""

    def __init__(self, job: Job, folder: RunFolder):
        self.job, self.folder = job, folder
        self.device = job.x[0].device
        self.x, self.y = job.x, job.y
        self.step, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        self.curve: list[list[float]] = []
        begin, cpu = time.perf_counter(), time.process_time()
        first = job.batches(0) if job.batches else (None, None)
        self.state = job.method.init(job.problem, job.x, job.y, *first)
        self.seconds, self.cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu

    def go(self) -> dict[str, Any]:
        try:
            return self._go()
        except NonFinite as error:
            self.folder.status("failed", reason=str(error))
            self.folder.log(str(error))
            raise

    def _go(self) -> dict[str, Any]:
        job = self.job
        self._restore()
        self.guard = FiniteGuard(job.task, self.device, None)
        with (
            Monitor(self.folder.path, len(self.curve), self.step + 1) as monitor,
            Progress(job.steps, job.task, start=self.step) as progress,
            StopRequest() as stop,
        ):
            while self.step < job.steps:
                info = self._advance()
                if self.step % job.every == 0 or self.step == job.steps:
                    self.guard.read()
                    accuracy = self._look(monitor, info)
                    progress.update(self.step, F=float(info.F), accuracy=accuracy)
                    self._save()
                elif stop.received:
                    self._save()
                if stop.received and self.step < job.steps:
                    self.folder.status("interrupted", step=self.step)
                    self.folder.log(f"{job.task}: stopped by a signal at step {self.step}")
                    raise Interrupted(stop.received, str(self.folder.path))
            return self._finish(monitor)

    def _advance(self) -> Any:
        job, k = self.job, self.step
        batch = job.batches(k) if job.batches else (None, None)
        begin, cpu = time.perf_counter(), time.process_time()
        if job.renew:
            self.y, self.state = job.renew(k, self.y, self.state)
        before = self.x, self.y, self.state
        *after, info = job.method.step(job.problem, *before, *batch)
        self.seconds += time.perf_counter() - begin
        self.cpu_seconds += time.process_time() - cpu
        self.step += 1
        values = dict(zip(("x", "y", "state"), after))
        self.x, self.y, self.state = self.guard.after(self.step, _terms(info), values, tuple(after), before)
        return info

    def _look(self, monitor: Monitor, info: Any) -> float:
        """Measures, writes a row of metrics.csv and TensorBoard's curves, and returns the accuracy."""
        row = {name: float(value) for name, value in _terms(info).items()}
        if row.get("f_theta") is not None:
            row["gap"] = row["f"] - row["f_theta"]
        if info.c is not None:
            row["c"] = float(info.c)
        seen = self.job.look(self.x, self.y)
        row |= seen
        monitor.scalars({f"step/{name}": value for name, value in row.items()}, self.step)
        monitor.epoch({"epoch": len(self.curve), "step": self.step, **row, "wall_seconds": self.seconds})
        done = self.step * self.job.evaluations
        self.curve.append([self.step, done, self.seconds, self.cpu_seconds, seen["accuracy"]])
        return seen["accuracy"]

    def _finish(self, monitor: Monitor) -> dict[str, Any]:
        job = self.job
        columns = ("step", "evaluations", "seconds", "cpu_seconds", "accuracy")
        result = {
            "task": job.task,
            "method": job.name,
            "x": summary(self.x),
            "y": summary(self.y),
            "error": None,
            "residual": None,
            "steps": self.step,
            "evaluations": self.step * job.evaluations,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "message": f"Took {self.step} steps.",
            "curve": [dict(zip(columns, row)) for row in self.curve],
            **job.finish(self.folder, self.x, self.y),
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }
        monitor.hparams({"task": job.task, "method": job.name}, {"final/accuracy": result["accuracy"]}, self.step)
        self.folder.write_result(result)
        self.folder.status("finished", step=self.step)
        self.folder.log(f"{job.task}: finished with accuracy {result['accuracy']:.4f}")
        return result

    def _save(self) -> None:
        self.guard.read()
        payload = {
            "stage": "solve", "step": self.step, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds,
            "x": self.x, "y": self.y, "state": pack(self.state), "curve": self.curve,
        }  # fmt: skip
        save_checkpoint(self.folder.path / "checkpoints", payload)

    def _restore(self) -> None:
        loaded = load_checkpoint(self.folder.path / "checkpoints") if self.folder.resuming else None
        if loaded is None:
            return
        payload, note = loaded
        self.folder.log(f"{self.job.task}: resumed at step {payload['step']}; {note}")
        self.step, self.seconds, self.cpu_seconds = payload["step"], payload["seconds"], payload["cpu_seconds"]
        self.x = [tensor.to(self.device) for tensor in payload["x"]]
        self.y = [tensor.to(self.device) for tensor in payload["y"]]
        self.state = unpack(self.state, payload["state"], self.device)
        self.curve = payload["curve"]


def _terms(info: Any) -> dict[str, Tensor]:
    named = {"F": info.F, "f": info.f, "f_theta": info.f_theta, **info.norms}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def summary(tensors: Tensors) -> dict[str, float]:
    """Returns number, mean, least, greatest and Euclidean norm of all entries."""
    flat = torch.cat([t.detach().flatten().double().cpu() for t in tensors])
    return {
        "entries": flat.numel(), "mean": float(flat.mean()), "min": float(flat.min()), "max": float(flat.max()),
        "norm": float(flat.norm()),
    }  # fmt: skip

"""The training loop of search, retraining and hyper-parameter learning: hooks, signals, checkpoints, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol, TypeVar

import torch

from nas_moreau import distributed
from nas_moreau.config import Config
from nas_moreau.runs import Monitor, Progress, RunFolder
from nas_moreau.runs.board import epoch_tag
from nas_moreau.runs.identity import Identity
from nas_moreau.runs.plain_files import read_json
from nas_moreau.text import duration
from nas_moreau.training.device import peak_memory_bytes
from nas_moreau.training.finite_guard import FiniteGuard
from nas_moreau.training.resume import Resumable, finished_result, open_folder, restore, roll_back, save
from nas_moreau.training.signals import Interrupted, NonFinite, StopRequest, StopTraining
from nas_moreau.training.trackers import Trackers, check_trackers

T = TypeVar("T")
RATE_KNOWN = 20.0
"""Seconds after which the rate of the steps is known."""
LATE = 24 * 3600.0
"""Seconds: an end on a CPU that is further away gets a warning."""


@dataclass(frozen=True)
class Hook:
    """Functions that the training loop calls, on every rank; leave out what is not needed.

    They get the job (`SearchJob`, `RetrainJob`, `LearningJob`), may read and change it (`job.counters.step` steps are
    done; `job.total_steps = job.counters.step` makes this the last one), and must not wait for the device. An exception
    that they raise ends the stage.

    Attributes:
        on_start: (job), before the first step, after a checkpoint was restored.
        before_step: (job).
        on_step: (job, info), when a step was done and logged. `info` is the `Info` of the bilevel method, or the loss
            of a retraining.
        on_evaluate: (job, name, samples, seconds), when an evaluation was done on rank 0: "held_out", "one_hot",
            "eigenvalue", "choice", "derivation" in a search; "test", "validation" in a retraining.
        on_epoch: (job, row), when an epoch was written and saved; `row` is that of metrics.csv.

    Example:
        search(config, "runs/a", hooks=[Hook(on_epoch=lambda job, row: print(row["held_out_accuracy"]))])
    """

    on_start: Callable[[Any], None] | None = None
    before_step: Callable[[Any], None] | None = None
    on_step: Callable[[Any, Any], None] | None = None
    on_evaluate: Callable[[Any, str, int, float], None] | None = None
    on_epoch: Callable[[Any, dict[str, Any]], None] | None = None


@dataclass(frozen=True)
class LoopSettings:
    """How a stage is saved and logged.

    Attributes:
        save_every: Steps between two checkpoints within an epoch; 0 for none.
        tensorboard: Whether to write TensorBoard's events.
        rollback: Whether a number that is not finite sends the stage back to its last checkpoint.
        trackers: Experiment trackers that get its numbers as well.
    """

    save_every: int = 0
    tensorboard: bool = True
    rollback: bool = False
    trackers: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config) -> LoopSettings:
        """Returns the settings of a configuration.

        Raises:
            InputError: The package of a tracker is not installed.
        """
        checkpoint, logging = config.checkpoint, config.logging
        check_trackers(logging.trackers)
        rollback = checkpoint.on_nonfinite == "rollback"
        return cls(checkpoint.every_steps or 0, logging.tensorboard, rollback, tuple(logging.trackers))


class Job(Resumable, Protocol):
    """A stage as the loop sees it.

    Attributes:
        loop_settings: How it is saved and logged.
        total_steps, epoch_steps: Steps altogether, and of an epoch.
        samples: Of a step; 0 where a step has none.
        identity: Digests of what it is made of, by content.
        guard: Detects NaN and infinity; it is read before anything is saved.
        device: Where it runs.
        about: What it is, for the first line on the terminal: "moreau+beta, space darts".
    """

    loop_settings: LoopSettings
    total_steps: int
    epoch_steps: int
    samples: int
    identity: Identity
    guard: FiniteGuard

    @property
    def device(self) -> torch.device:
        """The device."""

    @property
    def about(self) -> str:
        """What it is."""

    @property
    def description(self) -> dict[str, Any] | None:
        """Description of the images for data.json, or None."""

    def start(self, loop: Loop) -> None:
        """Begins or resumes in a run folder, with the monitor and terminal of `loop`."""

    def done(self) -> bool:
        """Returns whether no step is to follow."""

    def train_step(self) -> Any:
        """Does one step and returns its info, for `log_step` and hooks."""

    def log_step(self, info: Any, seconds: float) -> None:
        """Logs a step that took `seconds`."""

    def replay_log(self) -> None:
        """Logs what a resumed run has dropped of its last step again, except the counters' `logged`."""

    def end_epoch(self) -> tuple[dict[str, Any], bool]:
        """Evaluates and writes an epoch; returns its row of metrics.csv, and whether it is the best so far.

        May raise StopTraining as long as nothing is written: the epoch's end is then repeated on resume.
        """

    def reported_weights(self) -> str | None:
        """Returns the digest of the weights that the result belongs to, None if best.pt does not hold them."""

    def finish(self) -> Any:
        """Returns the result; its `to_dict` becomes result.json, its `str` a line of log.txt. All is saved before."""


@dataclass(frozen=True)
class Loop:
    """What a job can use while it runs: its folder, monitor and terminal, signals, hooks, and trackers."""

    folder: RunFolder
    monitor: Monitor
    progress: Progress
    stop: StopRequest
    hooks: Sequence[Hook]
    trackers: Trackers

    def call(self, event: str, job: Job, *given: Any) -> None:
        """Calls the hooks that have the event."""
        for hook in self.hooks:
            function = getattr(hook, event)
            if function is not None:
                function(job, *given)

    def say(self, text: str) -> None:
        """Writes a line to log.txt and to the terminal."""
        self.folder.log(text)
        self.progress.line(text)

    def log(self, job: Job, values: dict[str, Any]) -> None:
        """Logs numbers of this step to TensorBoard, and keeps them for a run that is resumed here."""
        self.monitor.scalars(values, job.counters.step)
        job.counters.logged |= values

    def log_epoch(self, job: Job, row: dict[str, Any]) -> None:
        """Logs an epoch's row of metrics.csv to TensorBoard and trackers, and the time and memory used so far.

        Args:
            job: The stage.
            row: Column -> number; None for one that was not measured.
        """
        values = {epoch_tag(name): value for name, value in row.items() if name != "epoch" and value is not None}
        counters = job.counters
        if counters.seconds:
            values["resources/minutes"] = counters.seconds / 60
            rate = counters.step * job.samples / counters.seconds
            values |= {"resources/samples_per_second": rate} if rate else {}
        values["resources/peak_memory_gb"] = peak_memory_bytes(job.device) / 1e9
        self.log(job, values)
        self.trackers.log(values, counters.step)

    def evaluate(self, job: Job, name: str, samples: int, work: Callable[[], T]) -> T:
        """Returns on all ranks what `work` returns on rank 0; its time counts as evaluation."""
        begin = time.monotonic()
        self.progress.doing(f"{job.name}: evaluation ({name.replace('_', '-')})")
        found = distributed.run_on_rank0(work)
        self.progress.doing("")
        seconds = time.monotonic() - begin
        job.counters.evaluating += seconds
        self.call("on_evaluate", job, name, samples, seconds)
        return found

    def stop_requested(self) -> int:
        """Returns the signal that one of the ranks has received, 0 for none: all stop at the same step."""
        return distributed.all_reduce_max(self.stop.received or 0)


def run(
    job: Job,
    stage: str,
    config: dict[str, Any],
    output: str | PathLike[str],
    resume: bool,
    hooks: Sequence[Hook],
    result_of: Callable[[dict[str, Any]], T],
) -> T:
    """Opens the run folder, runs what is left of the job in it, and returns the result.

    Args:
        job: The stage, ready to run.
        stage: What the folder holds: "search" or "retrain".
        config: The configuration in full; a resumed run must have the same.
        output: The run folder.
        resume: Continue from the last checkpoint.
        hooks: Called by the loop.
        result_of: Makes the result from what result.json holds, for a folder that is finished.
    """
    with open_folder(output, config, stage, resume, job.identity) as folder:
        if folder.finished:
            return result_of(finished_result(folder))
        return run_in(job, folder, hooks)


def run_in(job: Job, folder: RunFolder, hooks: Sequence[Hook] = ()) -> Any:
    """Runs what is left of the job in an open run folder, writes result.json and returns the result.

    Raises:
        NonFinite: A number became NaN or infinite, and going back to a checkpoint is not allowed or did not help.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    if job.description is not None:
        folder.write_data(job.description)
    while True:
        try:
            return _attempt(job, folder, hooks)
        except NonFinite as error:
            roll_back(job, folder, error, job.loop_settings.rollback)


def _attempt(job: Job, folder: RunFolder, hooks: Sequence[Hook]) -> Any:
    resumed = restore(job, folder)
    step, settings = job.counters.step, job.loop_settings
    with (
        Monitor(None if folder.silent else folder.path, job.counters.epochs, step, settings.tensorboard) as monitor,
        Progress(job.total_steps, job.name, start=step, epoch_steps=job.epoch_steps) as progress,
        Trackers(settings.trackers, folder, progress.line) as trackers,
    ):
        loop = Loop(folder, monitor, progress, StopRequest(), hooks, trackers)
        if not folder.silent:
            progress.line(_heading(job))
        job.start(loop)
        if resumed:
            progress.line(resumed)
            monitor.scalars(job.counters.logged, step)
            job.replay_log()
        else:
            _describe(job, folder, monitor)
        if not resumed and settings.rollback:
            _save(job, loop)  # the state that a fault in the first epoch goes back to
        loop.call("on_start", job)
        _or_stop(job, loop, lambda: _train(job, loop))
        if job.counters.step > step and not folder.silent:
            loop.say(_speed(job))
        result = _or_stop(job, loop, job.finish)
        result = distributed.run_on_rank0(lambda: result)
        trackers.final = result.to_dict()
    folder.log(f"{job.name}: finished with {result}")
    # last of all: whatever may fail, a full disk for one, has been done
    folder.finish(
        result.to_dict(), job.reported_weights(), step=job.counters.step, evaluation_seconds=job.counters.evaluating
    )
    return result


def _or_stop(job: Job, loop: Loop, work: Callable[[], T]) -> T:
    """Does the work and returns its result; where a signal ends it by StopTraining, raises Interrupted."""
    folder = loop.folder
    try:
        with loop.stop:
            return work()
    except StopTraining:
        received = loop.stop_requested()  # also waits until rank 0 has saved
        folder.status("interrupted", step=job.counters.step)
        folder.log(f"{job.name}: stopped by a signal at step {job.counters.step}")
        nowhere = distributed.run_on_rank0(lambda: folder.silent)
        raise Interrupted(received, None if nowhere else str(folder.path)) from None


def _train(job: Job, loop: Loop) -> None:
    counters, every = job.counters, job.loop_settings.save_every
    began, late = time.monotonic(), job.device.type != "cpu"
    started = began - counters.seconds
    if _at_end_of_epoch(job) and counters.epochs < math.ceil(counters.step / job.epoch_steps):
        _end_epoch(job, loop)  # a signal had arrived while it was evaluated
    while not job.done():
        loop.call("before_step", job)
        begin = time.monotonic()
        info = job.train_step()
        counters.logged = {}
        job.log_step(info, time.monotonic() - begin)
        counters.seconds = time.monotonic() - started
        late = late or _warn_of_late_end(job, loop, time.monotonic() - began)
        loop.call("on_step", job, info)
        ends = _at_end_of_epoch(job)
        if ends:
            _end_epoch(job, loop)
        stop = loop.stop_requested()
        if not ends and (stop or (every and counters.step % every == 0)):
            _save(job, loop)
        if stop:
            raise StopTraining
    counters.seconds = time.monotonic() - started
    if loop.stop_requested():
        raise StopTraining


def _heading(job: Job) -> str:
    """Returns what a stage is about to do: device, steps and images."""
    cpu = job.device.type == "cpu"
    threads = torch.get_num_threads()
    device = f"cpu, {threads} thread{'s' * (threads > 1)}" if cpu else str(job.device)
    epochs = math.ceil(job.total_steps / job.epoch_steps)
    parts = [job.about, device, f"{job.total_steps:,} steps in {epochs} epoch{'s' * (epochs > 1)}"]
    if job.description is not None:
        data = job.description
        height, width = data["image_size"]
        images = f"{sum(data['train']):,} training images, {width}x{height}, {len(data['classes'])} classes"
        parts.append(f"{data['name']} ({images})")
    return f"{job.name}: {'; '.join(parts)}"


def _speed(job: Job) -> str:
    """Returns what the steps took: time, samples a second, memory."""
    counters, spent = job.counters, duration(job.counters.seconds)
    rate = counters.step / max(counters.seconds, 1e-9)
    speed = f"{rate * job.samples:,.0f} samples a second" if job.samples else f"{rate:,.1f} steps a second"
    memory = f"peak memory {peak_memory_bytes(job.device) / 1e9:.2f} GB"
    return f"{job.name}: {counters.step:,} step{'s' * (counters.step > 1)} in {spent}, {speed}, {memory}"


def _describe(job: Job, folder: RunFolder, monitor: Monitor) -> None:
    """Shows the command and the configuration on TensorBoard's TEXT page."""
    found = read_json(folder.path / "environment.json") if monitor.tensorboard else None
    if found is not None:
        monitor.text("about", f"{_heading(job)}\n\n`{found['command']}`")
        text = (folder.path / "config.yaml").read_text(encoding="utf-8")
        monitor.text("configuration", f"```\n{text}\n```")


def _warn_of_late_end(job: Job, loop: Loop, seconds: float) -> bool:
    """Returns whether the end was looked at; warns, once the rate is known, where it is further away than a day."""
    if seconds < RATE_KNOWN:
        return False
    left = loop.progress.seconds_left(job.counters.step)
    if left is None:
        return False
    if left > LATE and not loop.folder.silent:
        loop.progress.line(
            f"{job.name}: about {left / 3600:.0f} h are left on this CPU. `nas-moreau plan` with the same arguments "
            "proposes sizes that fit; --preset cpu is the same job at a size for CPUs."
        )
    return True


def _at_end_of_epoch(job: Job) -> bool:
    step = job.counters.step
    return step > 0 and (step % job.epoch_steps == 0 or step >= job.total_steps)


def _end_epoch(job: Job, loop: Loop) -> None:
    try:
        row, best = job.end_epoch()
    except StopTraining:
        _save(job, loop)
        raise
    job.counters.epochs += 1
    _save(job, loop, best)
    loop.call("on_epoch", job, row)


def _save(job: Job, loop: Loop, best: bool = False) -> None:
    job.guard.read()
    loop.monitor.flush()
    save(job, loop.folder, best)

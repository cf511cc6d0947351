"""How both training stages take their steps: progress shown, signals heeded, saved when due, resumable at each."""

from __future__ import annotations

import time
from typing import Any, Protocol

from nas_moreau import distributed
from nas_moreau.config import Config
from nas_moreau.runs import Monitor, Progress, RunFolder
from nas_moreau.training.signals import Abandoned, Interrupted, StopRequest


class Stepper(Protocol):
    """What a stage in progress offers.

    Attributes:
        config, folder: Of the run.
        step, total_steps, epoch_steps: Steps done, to do in all, and of an epoch.
        seconds: Wall-clock time of the run so far, earlier parts of it included.
        shown: The numbers shown in TensorBoard at this step.
        stop: The signal asked for; set here.
    """

    config: Config
    folder: RunFolder
    step: int
    total_steps: int
    epoch_steps: int
    seconds: float
    shown: dict[str, Any]
    stop: StopRequest

    def over(self) -> bool:
        """Returns whether no step is to follow."""

    def advance(self) -> Any:
        """Does one step and returns what there is to see of it."""

    def look(self, monitor: Monitor, progress: Progress, seen: Any, seconds: float) -> None:
        """Shows a step that took `seconds`."""

    def show_again(self, monitor: Monitor) -> None:
        """Shows in TensorBoard what the last step before a stop had shown: a resumed run drops it."""

    def finish_epoch(self, monitor: Monitor, progress: Progress) -> None:
        """Evaluates, writes the epoch's row and saves; may raise Abandoned once all that repeats it is saved."""

    def save(self, monitor: Monitor) -> None:
        """Writes a checkpoint."""

    def finish(self, monitor: Monitor) -> dict[str, Any]:
        """Returns the result, which it writes; all is saved before, so that a signal may end it at once.

        Of several processes the first alone is asked.
        """


def take_steps(job: Stepper, resumed: str | None, due: bool) -> dict[str, Any]:
    """Takes the steps that are left and returns the stage's result.

    Args:
        job: The stage, at the step where it begins or goes on.
        resumed: A sentence on what it goes on from; None at the beginning.
        due: Whether the last epoch's end is still to come: a signal arrived while it was evaluated.

    Raises:
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    job.stop, folder = StopRequest(), job.folder
    place = None if folder.silent else folder.path
    with (
        Monitor(place, job.step // job.epoch_steps - due, job.step, job.config.logging.tensorboard) as monitor,
        Progress(job.total_steps, folder.stage, start=job.step, epoch_steps=job.epoch_steps) as progress,
    ):
        if resumed:
            progress.line(resumed)
            job.show_again(monitor)
        elif job.config.checkpoint.on_nonfinite == "rollback":
            job.save(monitor)  # what a fault in the first epoch goes back to
        try:
            with job.stop:
                _loop(job, monitor, progress, due)
            _heed(job.stop)
        except Abandoned:
            received = _asked(job.stop)  # also: none ends before the first has saved
            folder.status("interrupted", step=job.step)
            folder.log(f"{folder.stage}: stopped by a signal at step {job.step}")
            raise Interrupted(received, str(folder.path)) from None
        return distributed.on_first(lambda: job.finish(monitor))


def _loop(job: Stepper, monitor: Monitor, progress: Progress, due: bool) -> None:
    every = job.config.checkpoint.every_steps
    started = time.monotonic() - job.seconds
    if due:
        job.finish_epoch(monitor, progress)
    while not job.over():
        before = time.monotonic()
        seen = job.advance()
        job.shown = {}
        job.look(monitor, progress, seen, time.monotonic() - before)
        job.seconds = time.monotonic() - started
        whole = job.step % job.epoch_steps == 0
        if whole:
            job.finish_epoch(monitor, progress)
        asked = _asked(job.stop)
        if not whole and (asked or (every and job.step % every == 0)):
            job.save(monitor)
        if asked:
            raise Abandoned
    job.seconds = time.monotonic() - started


def _asked(stop: StopRequest) -> int:
    """Returns the signal that one of the processes has received, 0 for none: all stop at the same step."""
    return distributed.largest(stop.received or 0)


def _heed(stop: StopRequest) -> None:
    if _asked(stop):
        raise Abandoned


def show(job: Stepper, monitor: Monitor, values: dict[str, Any]) -> None:
    """Shows numbers in TensorBoard and keeps them, to be shown again by a run that is resumed here."""
    monitor.scalars(values, job.step)
    job.shown |= values

"""Memory and time of one stage, measured on a few of its steps.

`plan` runs this file in a child process, because the peak memory of a process cannot be reset. It reads a request as
JSON from standard input and prints the answer as JSON on the last line of standard output.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nas_moreau.architecture import Genotype, load_space
from nas_moreau.config import Config, DeriveConfig, make_config
from nas_moreau.data import Data, Part, load_images
from nas_moreau.errors import InputError
from nas_moreau.plugins import import_modules
from nas_moreau.search.engine import SearchJob
from nas_moreau.search.random_cell import RandomSearchJob, random_cell
from nas_moreau.search.short_training import TRAINED, rounds, short_config, total_steps
from nas_moreau.search.stage import plan_search
from nas_moreau.training.device import peak_memory_bytes
from nas_moreau.training.loop import Hook
from nas_moreau.training.retrain import RetrainJob, plan_retraining

WARM_STEPS = 3
"""Steps before the measured ones: the first fill caches and may compile."""
MIN_STEPS, MAX_STEPS = 4, 100
"""Measured steps: enough for a mean, few enough for fast networks to end."""
MAX_IMAGES = 500
"""Images to evaluate: two batches of `evaluate_model`; the time of more is extrapolated."""


def now(device: torch.device) -> float:
    """Returns the time once the device has done all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.monotonic()


class StageTimer:
    """Times the parts of a stage by hooks, and ends it when enough is known.

    The stage begins in the middle of its training, where everything that grows with the epochs (drop-path, the beta
    term) is at work.

    Args:
        device: Of the stage.
        middle: The epoch to begin at.
        seconds: How long steps are timed, by `work`.

    Attributes:
        spent: Seconds in "evaluation", "one_hot" and "choice", and in the rest of the "end" of an epoch.
        images: Images of the evaluations.
        step_seconds: Mean time of a step.
        warm_seconds: Time of the first steps.
        begin, end: When the first step began, and the end of an epoch was over.
    """

    def __init__(self, device: torch.device, middle: int, seconds: float):
        self.device, self.middle, self.seconds = device, middle, seconds
        self.steps, self.epochs, self.images = -WARM_STEPS, 0, 0
        self.spent = {"end": 0.0, "evaluation": 0.0, "one_hot": 0.0, "choice": 0.0}
        self.step_seconds = self.warm_seconds = self.begin = self.end = 0.0
        self._mark = self._worked = self._inside = self._last = self._evaluated = 0.0

    def hook(self) -> Hook:
        """Returns the hook that times the stage."""
        return Hook(self._start, self._before_step, self._step, self._evaluate, self._epoch)

    def work(self) -> float:
        """Returns seconds in which this process was working: other work on the machine costs no measured steps."""
        if self.device.type != "cpu":
            return time.monotonic()
        return time.process_time() / torch.get_num_threads()

    def _start(self, job: Any) -> None:
        job.counters.epochs, job.counters.step = self.middle, self.middle * job.epoch_steps
        job.total_steps = job.counters.step + WARM_STEPS + MAX_STEPS + 1

    def _before_step(self, job: Any) -> None:
        if self.steps == -WARM_STEPS:
            self.begin = self._mark = now(self.device)
        if self.steps == 0:
            self.warm_seconds = now(self.device) - self._mark - self._inside
            self._mark, self._worked, self._inside = now(self.device), self.work(), 0.0

    def _step(self, job: Any, info: Any) -> None:
        self.steps += 1
        enough = self.steps >= MIN_STEPS and self.work() - self._worked >= self.seconds
        if enough or self.steps == MAX_STEPS:
            self.step_seconds = (now(self.device) - self._mark - self._inside) / self.steps
            job.total_steps = job.counters.step  # the end of an epoch and of the stage follow
        if job.counters.step % job.epoch_steps == 0 or job.done():
            self.end = self._last = now(self.device)
            self._evaluated = 0.0

    def _evaluate(self, job: Any, name: str, samples: int, seconds: float) -> None:
        kind = "evaluation" if name in ("held_out", "validation", "test") else name
        if kind in self.spent:
            before, self._last = self._last, now(self.device)  # by this clock, which a benchmark may replace
            self.spent[kind] += self._last - before
            self._evaluated += self._last - before
            self.images += samples * (kind == "evaluation")

    def _epoch(self, job: Any, row: dict[str, Any]) -> None:
        begin, self.end = self.end, now(self.device)
        self.epochs += 1
        self.spent["end"] += self.end - begin - self._evaluated
        self._inside += self.end - begin
        self._last = self.end


def probe(stage: str, config: Config, genotype: Genotype | None, seconds: float) -> dict[str, Any]:
    """Returns memory_bytes and hours of `stage`, and the numbers these come from.

    Of derivations at the end of a search, only that by short training (`derive.rule=trained`) is counted.

    Args:
        stage: "search" or "retrain".
        config: The whole configuration; a few steps of it are run.
        genotype: The cell to retrain; by default the one that the method `random` gives.
        seconds: How long steps are measured.

    Raises:
        InputError: As the stage itself.
    """
    data, called = load_images(config), now(torch.device("cpu"))
    if stage == "search":
        searching = plan_search(config.model_copy(update={"derive": DeriveConfig()}), data)
        if isinstance(searching, RandomSearchJob):  # draws a cell and trains nothing
            return {"memory_bytes": peak_memory_bytes(torch.device("cpu")), "hours": 0.0, "steps": 0}
        final = held_out = len(searching.subject.held_out)
        evaluated, one_hot = (config.search.all_epochs + 1) * held_out, config.search.all_epochs * held_out
        searching.subject.held_out = _first(searching.subject.held_out)
        job: SearchJob | RetrainJob = searching
        epochs, device, digest = config.search.all_epochs, searching.setup.device, {}
        final = len(searching.subject.held_out)
    else:
        cell = random_cell(load_space(config.space), config.seed) if genotype is None else genotype
        job = retraining = plan_retraining(config, cell, data)
        evaluated, one_hot = _evaluated_in_retraining(config, data, retraining.images.validation), 0
        validation, test = retraining.images.validation, _first(retraining.images.test)
        retraining.images = retraining.images._replace(test=test, validation=validation and _first(validation))
        epochs, device, digest, final = config.retrain.epochs, job.device, {"digest": cell.digest()}, len(test)
    steps, timer = job.epoch_steps * epochs, StageTimer(device, epochs // 2, seconds)
    with tempfile.TemporaryDirectory() as place:
        job.run(Path(place) / stage, hooks=[timer.hook()])
        done = now(device)
    image = timer.spent["evaluation"] / timer.images
    end = timer.spent["end"] / timer.epochs
    one_hot_image = timer.spent["one_hot"] / (timer.epochs * final) if one_hot else 0.0
    begin = timer.begin - called + max(0.0, timer.warm_seconds - WARM_STEPS * timer.step_seconds)
    after = max(0.0, done - timer.end - image * final) + timer.spent["choice"]
    if stage == "search" and config.derive.rule == TRAINED:
        after += _last_stage_seconds(config, seconds)
    total = begin + steps * timer.step_seconds + epochs * end + evaluated * image + one_hot * one_hot_image + after
    return {
        "memory_bytes": peak_memory_bytes(device),
        "hours": total / 3600,
        "steps": steps,
        "step_seconds": timer.step_seconds,
        "epochs": epochs,
        "epoch_end_seconds": end,
        "evaluated_images": evaluated,
        "image_seconds": image,
        "derived_cell_images": one_hot,
        "derived_cell_image_seconds": one_hot_image,
        "begin_seconds": begin,
        "final_seconds": after,
        "measured_steps": timer.steps,
        **digest,
    }


def _last_stage_seconds(config: Config, seconds: float) -> float:
    """Returns the time of the candidates' short training, from steps of a random cell by their recipe."""
    found = probe("retrain", short_config(config), None, seconds)
    images = config.derive.images * sum(count for count, _ in rounds(config))
    return total_steps(config) * found["step_seconds"] + images * found["image_seconds"]


def _first(part: Part) -> Part:
    return replace(part, indices=part.indices[:MAX_IMAGES])


def _evaluated_in_retraining(config: Config, data: Data, validation: Part | None) -> int:
    """Returns the number of images that a retraining evaluates."""
    settings = config.retrain
    if validation is not None:
        return settings.epochs * len(validation) + len(data.test)
    due = settings.epochs // settings.evaluate_every if settings.evaluate_every else 0
    last = not settings.evaluate_every or settings.epochs % settings.evaluate_every != 0
    return (due + last + 1) * len(data.test)


def main() -> None:
    """Answers the request on standard input."""
    request = json.load(sys.stdin)
    try:
        import_modules(request["imports"])
        genotype = None if request["genotype"] is None else Genotype.from_json(request["genotype"])
        answer = probe(request["stage"], make_config(request["config"]), genotype, request["seconds"])
    except InputError as error:
        answer = {"refused": [error.cause, error.cure]}
    print("\n" + json.dumps(answer, allow_nan=False))


if __name__ == "__main__":
    main()

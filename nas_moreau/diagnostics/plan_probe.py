"""One stage of a run tried for a few steps: what it takes in memory and time.

`plan` runs this file in a process of its own, because the most memory that a process ever used cannot be reset. It
reads a request as JSON from standard input and prints the answer as JSON on the last line of standard output.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from nas_moreau.architecture import Genotype, load_space
from nas_moreau.config import Config, DeriveConfig, make_config
from nas_moreau.data import Data, load_images
from nas_moreau.errors import InputError
from nas_moreau.plugins import import_modules
from nas_moreau.runs import RunFolder
from nas_moreau.search.random_cell import random_cell
from nas_moreau.search.stage import plan_search
from nas_moreau.training.device import peak_memory_bytes
from nas_moreau.training.retrain import plan_retraining

WARM_STEPS = 3  # the first steps meet empty caches
LEAST_STEPS, MOST_STEPS = 4, 100
MOST_IMAGES = 500  # evaluated; more are reckoned from these


def now(device: torch.device) -> float:
    """Returns the time once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.monotonic()


class Clock:
    """Times the parts of a stage that runs as it always does, and brings it to its end once enough is known.

    Args:
        job: The stage, ready to run. It begins in the middle of its training, where whatever grows with the epochs
            (drop-path, the beta term) is at work.
        seconds: How long steps are timed, by `work`.
    """

    def __init__(self, job: Any, seconds: float):
        self.job, self.seconds = job, seconds
        self.count, self.spent = 0, {"end": 0.0, "evaluation": 0.0, "derived": 0.0, "choice": 0.0}
        self.ends, self.evaluations, self.inside = 0, 0, 0.0
        job.step = max(0, job.settings.epochs // 2) * job.epoch_steps
        job.total_steps = job.step + WARM_STEPS + MOST_STEPS + 1
        self.first = self.mark = self.now()
        advance, finish, evaluate = job.advance, job.finish_epoch, job._evaluate
        job.advance = lambda: self._step(advance)
        job.finish_epoch = lambda *given: self._end(finish, *given)
        job._evaluate = lambda *given, **named: self._evaluation(evaluate, *given, **named)
        if hasattr(job, "_choose"):  # a search, which also measures the derived cell at every epoch's end
            choose, one_hot = job._choose, job._one_hot
            job._choose = lambda: self._timed("choice", choose)
            job._one_hot = lambda genotype: self._timed("derived", one_hot, genotype)

    def now(self) -> float:
        """Returns the time once the job's device has done what it was given."""
        return now(self.job.device)

    def work(self) -> float:
        """Returns seconds in which this process was at work: what others do on the machine costs no measured steps."""
        if self.job.device.type != "cpu":
            return time.monotonic()
        return time.process_time() / torch.get_num_threads()

    def _step(self, advance: Callable[[], Any]) -> Any:
        if self.count == 0:
            self.first = self.now()
        if self.count == WARM_STEPS:
            self.warm, self.mark = self.now() - self.first - self.inside, self.now()
            self.worked = self.work()
            self.inside = 0.0
        result = advance()
        self.count += 1
        measured = self.count - WARM_STEPS
        enough = measured >= LEAST_STEPS and self.work() - self.worked >= self.seconds
        if enough or measured == MOST_STEPS:
            self.each = (self.now() - self.mark - self.inside) / measured
            # the stage sees the end of its last epoch
            self.job.epoch_steps = self.job.total_steps = self.job.step
        return result

    def _end(self, finish: Callable[..., None], *given: Any) -> None:
        began, before = self.now(), sum(self.spent.values())
        finish(*given)
        self.last = self.now()
        self.inside += self.last - began
        self.ends += 1
        self.spent["end"] += self.last - began - (sum(self.spent.values()) - before)

    def _evaluation(self, evaluate: Callable[..., Any], *given: Any, **named: Any) -> Any:
        found = self._timed("evaluation", evaluate, *given, **named)
        self.evaluations += found.samples
        return found

    def _timed(self, what: str, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        began = self.now()
        found = function(*given, **named)
        self.spent[what] += self.now() - began
        return found


def probe(stage: str, config: Config, genotype: Genotype | None, seconds: float) -> dict[str, Any]:
    """Returns what `stage` takes: memory_bytes and hours, and the numbers these come from.

    What a derivation by another rule than the strongest weights adds at the end of a search is left out.

    Args:
        stage: "search" or "retrain".
        config: The whole configuration; it is carried out for a few steps.
        genotype: The cell to retrain; by default the one that the method `random` gives.
        seconds: How long steps are measured.

    Raises:
        InputError: What the stage itself would refuse.
    """
    data, called = load_images(config), now(torch.device("cpu"))
    if stage == "search":
        job: Any = plan_search(config, data)
        if job is None:  # the method `random` draws a cell and trains nothing
            return {"memory_bytes": peak_memory_bytes(torch.device("cpu")), "hours": 0.0, "steps": 0}
        derived = job.settings.epochs * len(job.held_out)
        evaluated = derived + len(job.held_out)
        job.held_out = replace(job.held_out, indices=job.held_out.indices[:MOST_IMAGES])
        job.config = config.model_copy(update={"derive": DeriveConfig()})
    else:
        cell = random_cell(load_space(config.space), config.seed) if genotype is None else genotype
        job = plan_retraining(config, cell, data)
        evaluated, derived = _evaluated_in_retraining(config, data, job), 0
        job.test = replace(job.test, indices=job.test.indices[:MOST_IMAGES])
        if job.validation is not None:
            job.validation = replace(job.validation, indices=job.validation.indices[:MOST_IMAGES])
    steps, epochs = job.epoch_steps * job.settings.epochs, job.settings.epochs
    with tempfile.TemporaryDirectory() as place, RunFolder.open(place, config.to_dict(), stage) as folder:
        clock = Clock(job, seconds)
        job.run(folder)
        done = clock.now()
    image, end = clock.spent["evaluation"] / clock.evaluations, clock.spent["end"] / clock.ends
    cell_image = clock.spent["derived"] / (clock.ends * len(job.held_out)) if stage == "search" else 0.0
    begin = clock.first - called + max(0.0, clock.warm - WARM_STEPS * clock.each)
    final = done - clock.last - image * (len(job.held_out) if stage == "search" else len(job.test))
    final = max(0.0, final) + clock.spent["choice"]
    total = begin + steps * clock.each + epochs * end + evaluated * image + derived * cell_image + final
    return {
        "memory_bytes": peak_memory_bytes(job.device), "hours": total / 3600, "steps": steps,
        "step_seconds": clock.each, "epochs": epochs, "epoch_end_seconds": end, "evaluated_images": evaluated,
        "image_seconds": image, "derived_cell_images": derived, "derived_cell_image_seconds": cell_image,
        "begin_seconds": begin, "final_seconds": final, "measured_steps": clock.count - WARM_STEPS,
        **({} if stage == "search" else {"digest": job.genotype.digest()}),
    }  # fmt: skip


def _evaluated_in_retraining(config: Config, data: Data, job: Any) -> int:
    """Returns how many images a retraining classifies outside of its steps."""
    settings = config.retrain
    if job.validation is not None:
        return settings.epochs * len(job.validation) + len(data.test)
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

"""Training of a module of fixed choices by the engine of the search, and the comparison with random choices."""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_moreau.data import seed_for
from nas_moreau.distributed import Shard
from nas_moreau.errors import InputError, first_line
from nas_moreau.modules.check import Checked, evaluate_once
from nas_moreau.modules.choice import Places, chosen_module, find_choices
from nas_moreau.modules.copying import copy_of
from nas_moreau.modules.problem import ModuleTensors, WithLoss, module_problem
from nas_moreau.modules.setup import ModuleSetup, epochs_of, mean_on
from nas_moreau.modules.stream import Stream
from nas_moreau.report.significance import permutation_p_value
from nas_moreau.runs import RunFolder
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.search.engine import SearchJob
from nas_moreau.search.epoch import step_row
from nas_moreau.training.loop import Loop, run_in
from nas_moreau.training.signals import NonFinite


class PlainTraining:
    """A module without a decision (`search.engine.Subject`): its weights are trained, and it is evaluated at the end.

    Args:
        setup: Of the module.
    """

    stage = "module"

    def __init__(self, setup: ModuleSetup):
        self.setup = setup

    def configuration(self) -> dict[str, Any]:
        """Returns the configuration, plain data."""
        return self.setup.config.to_dict()

    def result_of(self, data: Mapping[str, Any]) -> dict[str, float]:
        """Returns the means on the held-out samples."""
        return dict(data)

    def start(self, loop: Loop) -> None:
        """Begins; there is no folder."""

    def stops(self) -> bool:
        """Returns False: the training ends after its last step."""
        return False

    def end_epoch(self, job: SearchJob) -> tuple[dict[str, Any], bool]:
        """Returns the means over the epoch's steps; nothing is written."""
        return step_row(job), False

    def replay_log(self, job: SearchJob) -> None:
        """Shows nothing."""

    def finish(self, job: SearchJob) -> Evaluated:
        """Returns the means of loss and metric on the held-out samples."""
        setup = self.setup
        setup.write_back(job.x, job.y)
        check_stop = job.loop.stop.check
        return Evaluated(mean_on(setup.whole, setup.data.held_out, setup.metric, check_stop=check_stop))

    def state_dict(self, job: SearchJob) -> dict[str, Any]:
        """Returns nothing: no checkpoint is written."""
        return {}

    def load_state_dict(self, payload: dict[str, Any]) -> None:
        """Restores nothing."""


class Evaluated(dict[str, float]):
    """Means on the held-out samples: "loss", and "metric" if there is one."""

    def to_dict(self) -> dict[str, float | None]:
        """Returns plain data; None for a mean that is not finite."""
        return {name: finite_or_none(value) for name, value in self.items()}


def plain_network(setup: ModuleSetup, picks: Mapping[str, int], *, fresh: bool) -> nn.Module:
    """Returns a copy of the searched module with the picked options and no Choice, in evaluation mode.

    Args:
        setup: The search.
        picks: Decision -> number of the option.
        fresh: With the weights that the module came with, instead of those of the search.
    """
    module = copy_of(setup.whole.module)
    if fresh:
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, value in setup.initial.items():
                if name.startswith("module."):  # others are the loss's
                    tensors[name.removeprefix("module.")].copy_(value)
    return chosen_module(module, picks, find_choices(module)).eval()


def train_plain(network: nn.Module, setup: ModuleSetup, steps: int, seed: int) -> Evaluated:
    """Trains a module without Choices by the weights' recipe of a search, and returns its held-out means.

    It is trained on all samples but the held-out ones, by the engine of the search with the method `lower-only`.

    Args:
        network: Trained in place.
        setup: The search that it is from: loss, data, metric, recipe.
        steps: Steps.
        seed: Of the order of the samples.
    """
    lower, upper = setup.data.lower, setup.data.upper
    numbers = sorted({*lower.numbers, *upper.numbers}) if lower.samples is upper.samples else lower.numbers
    size = lower.batch_size
    stream = Stream(lower.samples, numbers, size, seed, "training", Shard(0, size, size), lower.device)
    epochs, epoch_steps = epochs_of(steps)
    search = setup.config.search.model_copy(update={"method": "lower-only", "epochs": epochs, "restarts": 1})
    config = setup.config.model_copy(update={"search": search, "seed": seed})
    # a loss that is a module is trained with each network
    own = setup.whole.loss
    loss = copy_of(own) if isinstance(own, nn.Module) else copy.deepcopy(own)
    whole, places = WithLoss(network.train(), loss), Places({}, {}, {})
    if not ModuleTensors.of(whole).weights:  # the chosen options have nothing to train
        return Evaluated(mean_on(whole, setup.data.held_out, setup.metric))
    # names differ from those in the module with its Choices
    rebound = evaluate_once(whole.loss, network, stream.at(0))[1] if setup.checked.rebound else frozenset()
    plain = ModuleSetup(
        config=config,
        device=setup.device,
        whole=whole,
        checked=Checked(places),
        posed=module_problem(whole, places, [], rebound=rebound),
        data=replace(setup.data, lower=stream, upper=stream),
        initial={},
        epoch_steps=epoch_steps,
        total_steps=steps,
        metric=setup.metric,
    )
    job = SearchJob(plain, PlainTraining(plain), None, {})
    with closing(stream):
        found: Evaluated = run_in(job, RunFolder(Path(), "module", None, resuming=False, finished=False))
    return found


@dataclass(frozen=True)
class Row:
    """A module that was trained for a comparison.

    Attributes:
        kind: "found", "random", or the name of other choices.
        choices: Decision -> option.
        seed: Of the training.
        loss: On the held-out samples; infinite if the training, the loss or the metric was not finite.
        metric: On the held-out samples, minus infinity then; None without a metric.
    """

    kind: str
    choices: dict[str, str]
    seed: int
    loss: float
    metric: float | None

    @property
    def score(self) -> float:
        """The metric, or the negative loss: the higher, the better."""
        return -self.loss if self.metric is None else self.metric


@dataclass(frozen=True)
class RandomComparison:
    """The found choices beside random ones, each trained from the module's initial weights by one recipe.

    Attributes:
        rows: All trainings.
        steps: Steps of each.
    """

    rows: tuple[Row, ...]
    steps: int

    def scores(self, kind: str) -> list[float]:
        """Returns the scores of a kind: the metric, or the negative loss; minus infinity if it was not finite."""
        return [row.score for row in self.rows if row.kind == kind]

    def mean(self, kind: str) -> float:
        """Returns the mean score of a kind."""
        return statistics.fmean(self.scores(kind))

    def p(self, kind: str = "random") -> float | None:
        """Returns the two-sided p-value of the difference of the found choices' mean from that of a kind.

        Trainings that were not finite count as the worst of the others.
        """
        pairs = self.scores("found"), self.scores(kind)
        finite = [score for scores in pairs for score in scores if math.isfinite(score)]
        if not finite:
            return None
        found, others = ([max(score, min(finite)) for score in scores] for scores in pairs)
        return permutation_p_value(found, others)

    @property
    def beats_random(self) -> bool:
        """Whether the mean of the found choices is better than that of the random ones, with p < .05."""
        p = self.p()
        return self.mean("found") > self.mean("random") and p is not None and p < 0.05

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data: every training, and mean, standard deviation and p by kind."""
        kinds = list(dict.fromkeys(row.kind for row in self.rows))
        summary = [
            {
                "kind": kind,
                "n": len(self.scores(kind)),
                "mean": finite_or_none(self.mean(kind)),
                "std": _spread(self.scores(kind)),
                "p": None if kind == "found" else self.p(kind),
            }
            for kind in kinds
        ]
        rows = [
            {**vars(row), "loss": finite_or_none(row.loss), "metric": finite_or_none(row.metric)} for row in self.rows
        ]
        return {"steps": self.steps, "rows": rows, "summary": summary}

    def __str__(self) -> str:
        score = "loss" if self.rows[0].metric is None else "metric"
        lines, sign = [f"held-out {score} after {self.steps} steps"], -1 if score == "loss" else 1
        for entry in self.to_dict()["summary"]:
            spread = "" if entry["std"] is None else f" +- {entry['std']:.4g}"
            p = "" if entry["p"] is None else f", p = {entry['p']:.3g}"
            mean = "not finite" if entry["mean"] is None else f"{sign * entry['mean']:.4g}"
            lines.append(f"  {entry['kind']}: {mean}{spread} (n = {entry['n']}{p})")
        return "\n".join(lines)


def finite_or_none(value: float | None) -> float | None:
    """Returns a number as JSON takes it: None if it is not finite.

    Args:
        value: The number, or None.
    """
    return value if value is not None and math.isfinite(value) else None


def _spread(scores: list[float]) -> float | None:
    return statistics.stdev(scores) if len(scores) > 1 and all(map(math.isfinite, scores)) else None


def kept_trainings(file: Path | None, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Returns the results of trainings that a file keeps, by key; {} without the file.

    Args:
        file: JSON; None for no file.
        names: Of the numbers of each.

    Raises:
        InputError: The file is damaged.
    """
    if file is None or not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
        if not all(set(entry) == set(names) for entry in found.values()):
            raise ValueError(f"other numbers than {' and '.join(names)}")
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{file} is damaged ({first_line(error)}).", "Remove it: its modules are trained again."
        ) from None
    return dict(found)


def keep_trainings(file: Path | None, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes results of trainings for `kept_trainings`.

    Args:
        file: JSON; None for no file.
        known: By key.
    """
    if file is not None:
        write_atomic(file, (json.dumps(known, indent=1) + "\n").encode())


def compare_choices(
    network_of: Callable[[Mapping[str, str]], nn.Module],
    setup: ModuleSetup,
    kinds: Mapping[str, list[dict[str, str]]],
    steps: int,
) -> RandomComparison:
    """Returns the comparison of several kinds of choices.

    Args:
        network_of: Choices -> the module of them, with its initial weights.
        setup: The search they are from.
        kinds: Kind -> choices, each trained once, with its own seed.
        steps: Steps of each training.
    """
    rows = []
    for kind, several in kinds.items():
        for number, choices in enumerate(several):
            seed = seed_for(setup.config.seed, f"training of {kind}", number)
            network = network_of(choices)
            torch.manual_seed(seed)
            try:
                found = train_plain(network, setup, steps, seed)
            except NonFinite:  # one that diverges is a result too
                found = Evaluated(loss=math.inf)
            loss, metric = found["loss"], None if setup.metric is None else found.get("metric", -math.inf)
            if not (math.isfinite(loss) and (metric is None or math.isfinite(metric))):
                loss, metric = math.inf, None if metric is None else -math.inf
            rows.append(Row(kind, dict(choices), number, loss, metric))
    return RandomComparison(tuple(rows), steps)

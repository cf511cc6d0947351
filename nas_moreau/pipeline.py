"""The main job (search, derive, retrain, evaluate and report in one folder), and the evaluation of a finished run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from nas_moreau import distributed
from nas_moreau.architecture import load_space
from nas_moreau.config import Config
from nas_moreau.data import Augment, Data, Part, load_images, seed_for
from nas_moreau.data.batches import search_parts
from nas_moreau.data.description import as_trained, check_description
from nas_moreau.errors import InputError
from nas_moreau.report import write_report
from nas_moreau.report.verdict import next_step, outcome
from nas_moreau.runs import Monitor
from nas_moreau.runs.folder import RunFolder
from nas_moreau.runs.heartbeat import doing
from nas_moreau.runs.history import RANDOM_CELLS, Stage, read_run
from nas_moreau.runs.identity import recorded_identity, refuse_other
from nas_moreau.runs.manifest import write_recorded
from nas_moreau.search.build import restore_supernet
from nas_moreau.search.engine import SearchJob
from nas_moreau.search.random_cell import RandomSearchJob, random_cell
from nas_moreau.search.result import SearchResult
from nas_moreau.search.stage import plan_search
from nas_moreau.training.device import set_up_device, torch_settings_restored
from nas_moreau.training.evaluate import EvaluateResult, evaluate_model
from nas_moreau.training.hparams import log_hparams
from nas_moreau.training.loop import Hook
from nas_moreau.training.recipe import build_network
from nas_moreau.training.resume import finished_result, load_weights, open_folder
from nas_moreau.training.retrain import RetrainResult, check_retraining, retrain
from nas_moreau.training.signals import Interrupted

OTHER_IMAGES = "evaluation-other.json"
"""The evaluation of a retraining on other images than its own."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The outcome of the main job.

    Attributes:
        search: Of its search.
        retrain: Of its retraining.
        report: Path of the report.
        random: Of the retrainings of random cells.
    """

    search: SearchResult
    retrain: RetrainResult
    report: str
    random: list[RetrainResult] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns what result.json holds."""
        random = {"random": [result.to_dict() for result in self.random]} if self.random else {}
        return {"search": self.search.to_dict(), "retrain": self.retrain.to_dict(), "report": self.report, **random}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunResult:
        """Returns the result that `to_dict` wrote."""
        random = [RetrainResult.from_dict(row) for row in data.get("random", ())]
        found = SearchResult.from_dict(data["search"]), RetrainResult.from_dict(data["retrain"])
        return cls(*found, data["report"], random)


@torch_settings_restored()
def run(
    config: Config,
    output: str | PathLike[str],
    resume: bool = False,
    data: Data | None = None,
    hooks: Sequence[Hook] = (),
) -> RunResult:
    """Searches, derives, retrains, evaluates and reports, as far as that is not done yet.

    Args:
        config: All sections.
        output: Becomes the parent of the folders `search` and `retrain`, with result.json and report.html.
        resume: Continue where an earlier call in this folder stopped.
        data: The images, if they are loaded already.
        hooks: Called by the training loops of search and retraining.

    Raises:
        InputError, NonFinite, Interrupted: As `search` and `retrain`.
    """

    alone = config.model_copy(update={"against_random": 0})  # more random cells change neither search nor retraining

    def plan() -> tuple[Data, SearchJob | RandomSearchJob]:
        doing("reading the images")
        images = load_images(config) if data is None else data
        doing("preparing search and retraining")
        _refuse_longer_search(config, Path(output))
        # the cell to retrain is not known yet: another one of the space has the same sizes
        check_retraining(alone, random_cell(load_space(config.space), config.seed), images)
        return images, plan_search(alone, images)

    images, job = distributed.run_on_all_ranks(plan)  # whatever cannot be used is refused before anything is written
    with open_folder(output, config.to_dict(), "run", resume, {"images": images.digest}) as folder:
        if folder.finished:
            finished = RunResult.from_dict(finished_result(folder))
            return replace(finished, report=str(Path(output) / "report.html"))  # the folder may have been moved
        try:
            found = job.run(folder.path / "search", folder.resuming, hooks)
            del job  # the supernet's memory is free for the retraining
            trained = retrain(alone, found.genotype, folder.path / "retrain", folder.resuming, images, hooks)
            random = _retrain_random(alone, config.against_random, folder, images, hooks)
        except Interrupted as error:
            folder.status("interrupted", reason=str(error))
            raise
        result = RunResult(found, trained, str(Path(output) / "report.html"), random)
        folder.write_result(result.to_dict())
        distributed.run_on_rank0(lambda: _report(config, folder.path, result))
        folder.status("finished")
        return result


def _retrain_random(
    alone: Config, count: int, folder: RunFolder, images: Data, hooks: Sequence[Hook]
) -> list[RetrainResult]:
    """Returns the outcome of random cells trained by the recipe of the found one, with the same seed and batches."""
    space, results = load_space(alone.space), []
    for number in range(count):
        folder.log(f"run: random cell {number + 1} of {count}")
        _log.info("random cell %d of %d", number + 1, count)
        cell = random_cell(space, seed_for(alone.seed, "against random", number))
        place = folder.path / RANDOM_CELLS / f"{number:03}"
        results.append(retrain(alone, cell, place, folder.resuming, images, hooks))
    return results


def _refuse_longer_search(config: Config, folder: Path) -> None:
    """Refuses more epochs or restarts of a search whose cell is retrained already, before anything is written.

    Raises:
        InputError: The retraining of the search's cell was begun.
    """
    stored = Stage(folder / "search").config.get("search") or {}
    before = [stored.get(name, 1) for name in ("epochs", "restarts")] if stored else []
    if not all(type(number) is int for number in before):
        return  # damaged: the search itself says so
    more = config.search.all_epochs - math.prod(before) if before else 0
    if more > 0 and (folder / "retrain" / "config.yaml").exists():
        raise InputError(
            f"The cell of the search in {folder} is retrained already; {more} more epochs of the search would find "
            "another one.",
            f"Search again in another folder, or delete {folder / 'retrain'} first.",
        )


def _report(config: Config, folder: Path, result: RunResult) -> None:
    found, trained = result.search, result.retrain
    with Monitor(folder, tensorboard=config.logging.tensorboard) as monitor:
        metrics = {
            "held_out_accuracy": found.held_out_accuracy,
            "test_accuracy": trained.test_accuracy,
            "parameters": trained.parameters,
            "search_seconds": found.wall_seconds,
        }
        log_hparams(monitor, config, "run", trained.digest, metrics)
        whole = read_run(folder)
        monitor.text("about", f"{outcome(whole)}\n\n{next_step(whole)}")
    doing(f"writing {folder / 'report.html'}")
    _log.info("writing %s", folder / "report.html")
    write_report(folder)


@torch_settings_restored()
def evaluate_run(folder: str | PathLike[str], config: Config, data: Data | None = None) -> EvaluateResult:
    """Evaluates a finished run and writes evaluation.json, which has the confusion matrix too.

    A retraining is evaluated on the test images, a search on the held-out split of the training images. A retraining
    that is evaluated on other images than its own keeps its evaluation.json; their result is in evaluation-other.json.

    Args:
        folder: Folder of a retraining or a search.
        config: Its configuration; data and device may differ from the run's.
        data: The images, the run's own or others, if they are loaded already.

    Where the folder cannot be written to, the result is not kept there, which is logged.

    Raises:
        InputError: There is nothing to evaluate, or the images do not fit the network.
    """
    stage = Stage(Path(folder))
    named = data is None  # by the configuration: whose name is that of the run means the same images
    device, data = set_up_device(config), load_images(config) if data is None else data
    last, name = config.performance.channels_last, "evaluation.json"
    if stage.name == "search":
        split, part = "held_out", search_parts(config, data, device).held_out
        model: torch.nn.Module = restore_supernet(stage.path, config, data, device)
    else:
        if stage.genotype is None:
            raise InputError(f"{folder} has no genotype.", "Give the folder of a retraining or a search.")
        recorded = recorded_identity(stage.path)
        if named and config.data.name == (stage.config.get("data") or {}).get("name"):
            refuse_other(recorded, {"images": data.digest}, "this command", f"the run in {folder}")
        elif recorded.get("images") != data.digest:
            data, name = as_trained(data, check_description(stage.data, stage.path / "data.json")), OTHER_IMAGES
        split, part = "test", Part.whole(data.test.to(device), Augment(data.mean, data.std))
        model = build_network(config, stage.genotype, data.num_classes, data.channels)
        load_weights(model, stage.path)
        model = model.to(device).eval()
        model = model.to(memory_format=torch.channels_last) if last else model
    if not len(part):
        raise InputError(f"There are no {split} images.", "Give a data set that has them.")
    result = EvaluateResult(split, evaluate_model(model, part, data.num_classes, channels_last=last), data.classes)
    try:
        write_recorded(stage.path, {name: result.file()})
    except InputError as error:  # somebody else's run, or one in use: the numbers are printed all the same
        _log.info("The measurement is not kept in the run folder: %s", error.cause)
    return result

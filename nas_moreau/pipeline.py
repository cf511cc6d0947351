"""The main job: search, derive, retrain, evaluate and report in one folder."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from nas_moreau import distributed
from nas_moreau.architecture import Genotype, load_space
from nas_moreau.config import Config
from nas_moreau.data import Data, load_images
from nas_moreau.report import write_report
from nas_moreau.runs import Monitor, RunFolder
from nas_moreau.search.random_cell import random_cell
from nas_moreau.search.stage import plan_search, search
from nas_moreau.training.device import torch_settings_restored
from nas_moreau.training.hyperparameters import show_outcome
from nas_moreau.training.retrain import plan_retraining, retrain
from nas_moreau.training.shared_folder import finished_result, open_folder
from nas_moreau.training.signals import Interrupted


@torch_settings_restored()
def run(config: Config, output: str | PathLike[str], resume: bool = False) -> dict[str, Any]:
    """Returns {"search": ..., "retrain": ..., "report": path} after doing what is not done yet.

    Args:
        config: All sections.
        output: Becomes the parent of the folders `search` and `retrain`, with result.json and report.html.
        resume: Go on where an earlier call in this folder stopped.

    Raises:
        InputError, NonFinite, Interrupted: As `search` and `retrain` do.
    """

    def plan() -> Data:
        data = load_images(config)
        plan_search(config, data)
        plan_retraining(config, random_cell(load_space(config.space), config.seed), data)
        return data

    data = distributed.together(plan)  # what cannot be used is refused before anything is written
    with open_folder(output, config.to_dict(), "run", resume) as folder:
        if folder.finished:
            return finished_result(folder)
        try:
            found = search(config, folder.path / "search", resume=folder.resuming, data=data)
            genotype = distributed.on_first(lambda: _found(folder))
            trained = retrain(config, genotype, folder.path / "retrain", resume=folder.resuming, data=data)
        except Interrupted as error:
            folder.status("interrupted", reason=str(error))
            raise
        result = {"search": found, "retrain": trained, "report": str(Path(output) / "report.html")}
        folder.write_result(result)
        distributed.on_first(lambda: _show(config, folder, result))
        folder.status("finished")
        return result


def _found(folder: RunFolder) -> Genotype:
    return Genotype.from_json((folder.path / "search" / "genotype.json").read_text(encoding="utf-8"))


def _show(config: Config, folder: RunFolder, result: dict[str, Any]) -> None:
    found, trained = result["search"], result["retrain"]
    with Monitor(folder.path, tensorboard=config.logging.tensorboard) as monitor:
        show_outcome(
            monitor, config, "run", trained["digest"], held_out_accuracy=found["held_out_accuracy"],
            test_accuracy=trained["test_accuracy"], parameters=trained["parameters"],
            search_seconds=found["wall_seconds"],
        )  # fmt: skip
    write_report(folder.path)

"""`nas-moreau solve hyper-cleaning` and `solve few-shot`: data, method and run folder put together."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from nas_moreau.data import Data, load_data
from nas_moreau.errors import InputError, did_you_mean
from nas_moreau.problems.cleaning_job import cleaning_job
from nas_moreau.problems.few_shot_job import few_shot_job
from nas_moreau.problems.learn import run_job
from nas_moreau.problems.network_methods import METHODS
from nas_moreau.runs import RunFolder
from nas_moreau.runs.folder import read_config
from nas_moreau.training.device import pick_device

EVALUATIONS = {"hyper-cleaning": 600, "few-shot": 6000}
"""Gradient evaluations that every method is given unless `steps` says otherwise."""

TASKS = {
    "hyper-cleaning": "which training labels are wrong: a weight for each by validation loss (--data, --corrupt)",
    "few-shot": "a backbone for tasks of few images a class, classes held out (--data, --ways, --shots)",
}
"""Name -> what it is, for the command line to list."""


class Wish(NamedTuple):
    """What is to be solved; None stands for the task's own choice.

    Attributes:
        data, directory, download: Which images, where torchvision's lie, whether it may fetch them.
        method: A name of `network_methods.METHODS[task]`.
        steps: How many; by default as many as the budget of evaluations allows.
        seed: Of every random draw.
        device: "auto", "cpu", or a device of torch.
        n: hyper-cleaning: training samples, and as many for validation.
        corrupt: hyper-cleaning: share of labels that are changed.
        ways, shots: few-shot: classes of a task, support images of each.
    """

    data: str | None = None
    directory: str | None = None
    download: bool = False
    method: str | None = None
    steps: int | None = None
    seed: int | None = None
    device: str | None = None
    n: int | None = None
    corrupt: float | None = None
    ways: int | None = None
    shots: int | None = None


DEFAULTS: dict[str, dict[str, Any]] = {
    "hyper-cleaning": {"n": 5000, "corrupt": 0.5},
    "few-shot": {"ways": 5, "shots": 1},
}
_SHARED = {"data": "shapes", "directory": "data", "method": "moreau", "seed": 0, "device": "auto"}


def solve_networks(
    task: str, wish: Wish, output: str | PathLike[str], resume: bool = False, data: Data | None = None
) -> dict[str, Any]:
    """Runs the task in a folder and returns the result (`learn.run_job`).

    Args:
        task: A name of `TASKS`.
        wish: What is wanted; on resuming, what it leaves open is as it was.
        output: Run folder; a missing or empty one, or one to resume.
        resume: Go on from the last checkpoint.
        data: The images that the wish names, if they are loaded already.

    Raises:
        InputError: Something handed in cannot be used; nothing was written.
        NonFinite: F or f became NaN or infinite.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    config = configuration(task, wish, Path(output) if resume else None)
    device = pick_device(config["device"])
    if data is None:
        data = load_data(config["data"], config["directory"], wish.download)
    make = cleaning_job if task == "hyper-cleaning" else few_shot_job
    job = make(config, METHODS[task][config["method"]], data, device)
    with RunFolder.open(output, config, "solve", resume) as folder:
        for note in data.notes:
            folder.log(note)
        return folder.read_result() or {} if folder.finished else run_job(job, folder)


def configuration(task: str, wish: Wish, resumed: Path | None = None) -> dict[str, Any]:
    """Returns what config.yaml will hold: the wish, then what the run that is resumed had, then the defaults.

    Raises:
        InputError: Unknown task or method, an option of the other task, or a number out of its range.
    """
    if task not in TASKS:
        raise InputError(f"There is no task '{task}'.", did_you_mean(task, list(TASKS)))
    own = DEFAULTS[task]
    given = {k: v for k, v in wish._asdict().items() if v is not None and k != "download"}
    for name in given:
        if name not in own and name not in _SHARED and name != "steps":
            raise InputError(f"{task} has no option --{name}.", f"Its own are {', '.join('--' + k for k in own)}.")
    earlier: dict[str, Any] = {}
    if resumed is not None and (resumed / "config.yaml").exists():
        earlier = read_config(resumed)
    config = {"task": task, **_SHARED, **own, **{k: v for k, v in earlier.items() if k != "task"}, **given}
    if "n" in given and config["corrupt"] == 0:
        raise InputError(
            "With --corrupt 0 all training images are judged, so there is no --n.", "Leave one of them out."
        )
    if config["method"] not in METHODS[task]:
        raise InputError(
            f"There is no method '{config['method']}' for {task}.", did_you_mean(config["method"], list(METHODS[task]))
        )
    config.setdefault("steps", max(1, EVALUATIONS[task] // METHODS[task][config["method"]].evaluations))
    for name, least in (("steps", 1), ("n", 2), ("ways", 2), ("shots", 1)):
        if name in config and config[name] < least:
            raise InputError(f"{name} is {config[name]}.", f"It must be at least {least}.")
    return config

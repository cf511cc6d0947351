"""The tasks of `nas-moreau solve` in one table: problems with known answers, and hyper-parameter learning on data."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from nas_moreau.bilevel import polished, residual, solve
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.bilevel.tensors import scalar_of
from nas_moreau.config import make_section
from nas_moreau.data import Data, load_data
from nas_moreau.errors import InputError, unknown
from nas_moreau.problems.cleaning_job import cleaning_job
from nas_moreau.problems.few_shot_job import few_shot_job
from nas_moreau.problems.group_lasso import group_lasso
from nas_moreau.problems.learn import LearningTask, learn
from nas_moreau.problems.step_sizes import method_for, tuned_step_sizes
from nas_moreau.problems.synthetic import Case, lasso, merely_convex, quadratic, sine
from nas_moreau.problems.task_options import (
    AUTOMATIC,
    CleaningConfig,
    DataTaskConfig,
    FewShotConfig,
    SmallConfig,
    SolveConfig,
)
from nas_moreau.report import write_report
from nas_moreau.runs import RunFolder
from nas_moreau.runs.configuration import read_config
from nas_moreau.runs.folder import check_output
from nas_moreau.runs.tables import csv_text
from nas_moreau.training.device import peak_memory_bytes, pick_device, torch_settings_restored

CURVE_POINTS = 1000
"""Largest number of rows of the metrics.csv of a problem with a known answer."""
STEPS = 2000
"""Maximum number of steps of `bilevel.solve` without a method."""


@dataclass(frozen=True)
class SolveResult:
    """The outcome of a problem with a known answer.

    Attributes:
        task: Its name.
        n: Its size.
        method: Name of the method.
        x, y: All entries, one tensor after the other.
        error: |x - x*| / max(1, |x*|) against the exact solution; None if none is known.
        F: The upper objective there.
        residual: R_k of (15) before polishing; None for methods without penalty and envelope.
        steps: Steps done.
        seconds: Of the method.
        peak_memory_bytes: The most that the process held; on an accelerator, that its allocator took.
        message: How the solver ended.
        status: The same in one word (`bilevel.solution.Status`).
        evaluations: Evaluations of F and f and products with second derivatives.
        certificate: Relative residuals at the point by name (`bilevel.Certificate`); None for what is not known.
    """

    task: str
    n: int
    method: str
    x: list[float]
    y: list[float]
    error: float | None
    F: float | None
    residual: float | None
    steps: int
    seconds: float
    peak_memory_bytes: int
    message: str
    status: str
    evaluations: int
    certificate: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class SmallTask:
    """A problem with a known answer.

    Attributes:
        what: One line for `list tasks`.
        n: Default size.
        steps: Default maximum number of steps of a method.
        build: (n, seed) -> the problem.
        method: Default method.
        largest: Largest n: beyond it its vectors, or its matrices, do not fit into the memory of usual machines.
    """

    what: str
    n: int
    steps: int
    build: Callable[[int, int], Case]
    method: str = AUTOMATIC
    largest: int = 10_000_000
    config: ClassVar[type[SolveConfig]] = SmallConfig


@dataclass(frozen=True)
class DataTask:
    """Hyper-parameter learning on images.

    Attributes:
        what: One line for `list tasks`.
        config: Its options.
        evaluations: Gradient evaluations that every method is given by default.
        prepare: (options as plain data, method, images, device) -> task of `learn`.
    """

    what: str
    config: type[DataTaskConfig]
    evaluations: int
    prepare: Callable[..., LearningTask]


TASKS: dict[str, SmallTask | DataTask] = {
    "sine": SmallTask(
        "(19): nonconvex lower level with many valleys; n = length of y", 100, 1000, lambda n, seed: sine(n)
    ),
    "quadratic": SmallTask(
        "(77): strongly convex; n = length of x and y", 100, 1000, lambda n, seed: quadratic(n), largest=10_000
    ),
    "merely-convex": SmallTask(
        "(18): the lower level has many solutions; n = length of x", 100, 2000, lambda n, seed: merely_convex(n)
    ),
    "lasso": SmallTask("(20): l1 norm weighted by x; n = length of x and y, even", 100, 1000, lambda n, seed: lasso(n)),
    "group-lasso": SmallTask(
        "(21): weights of a group lasso by validation loss; n = features",
        600,
        2000,
        lambda n, seed: group_lasso(n=n, seed=seed),
        method="moreau",  # a large nonsmooth level, on which a certificate is expensive
        largest=20_000,
    ),
    "hyper-cleaning": DataTask(
        "which training labels are wrong: a weight for each by validation loss (--data, --corrupt)",
        CleaningConfig,
        600,
        cleaning_job,
    ),
    "few-shot": DataTask(
        "a backbone for tasks of few images a class, on classes not trained on (--data, --ways, --shots)",
        FewShotConfig,
        6000,
        few_shot_job,
    ),
}
"""Name -> task."""


def find_task(name: str) -> SmallTask | DataTask:
    """Returns a task by its name.

    Raises:
        InputError: Unknown task.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def solve_options(name: str, options: Mapping[str, Any], resumed: Path | None = None) -> SolveConfig:
    """Returns the checked options of a task: what is given, then what the resumed run had, then the defaults.

    Args:
        name: A name of `TASKS`.
        options: Keys of the task's section.
        resumed: The run folder to resume.

    Raises:
        InputError: Unknown task, method or option, or a value out of its range.
    """
    task = find_task(name)
    merged: dict[str, Any] = {}
    if resumed is not None and (resumed / "config.yaml").exists():
        merged = read_config(resumed)
        merged.pop("task", None)
    for key, value in options.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both else value
    if isinstance(task, SmallTask):
        merged.setdefault("method", task.method)
    cure = f"Its options are {', '.join(task.config.model_fields)}."
    config = make_section(task.config, merged, f"the options of {name}", cure)
    if config.method not in METHODS and not (isinstance(config, SmallConfig) and config.method == AUTOMATIC):
        raise unknown("bilevel method", config.method, METHODS)
    if isinstance(task, DataTask) and config.steps is None:
        info = METHODS[config.method]
        each = info.count(tuned_step_sizes(name, 1, info))
        config = config.model_copy(update={"steps": max(1, task.evaluations // each)})
    return config


def solve_task(
    name: str, options: Mapping[str, Any] | None = None, output: str | PathLike[str] | None = None
) -> SolveResult:
    """Returns the outcome of a problem with a known answer.

    Args:
        name: Its name in `TASKS`.
        options: Keys of `SmallConfig`.
        output: Run folder, missing or empty, for the result, its curves and a report; None to write nothing.

    Raises:
        InputError: An input cannot be used; nothing was written.
    """
    task, config = find_task(name), solve_options(name, options or {})
    if not isinstance(task, SmallTask) or not isinstance(config, SmallConfig):
        raise InputError(f"{name} learns from images in a run folder.", "Call solve_on_data.")
    if output is None:
        return _solved(name, task, config)[0]
    check_output(output, "solve")
    result, history = _solved(name, task, config)
    with RunFolder.open(output, {"task": name} | config.model_dump(mode="json"), "solve") as folder:
        folder.write_text("metrics.csv", _curves(history))
        folder.finish(result.to_dict())
    write_report(output)
    return result


def _curves(history: Mapping[str, list[float]]) -> str:
    """Returns the numbers of a run's steps as the text of metrics.csv, at most `CURVE_POINTS` of the steps."""
    rows = list(zip(*history.values()))
    every = math.ceil(len(rows) / CURVE_POINTS)
    kept = [(k, *row) for k, row in enumerate(rows, 1) if not (len(rows) - k) % every]  # with the last one
    return csv_text([["step", *({"c": "c_k"}.get(name, name) for name in history)], *kept])


def _solved(name: str, task: SmallTask, config: SmallConfig) -> tuple[SolveResult, dict[str, list[float]]]:
    """Returns the outcome, and the numbers of the steps by name."""
    n, method, alone = config.n or task.n, config.method, config.method == AUTOMATIC
    if alone and (config.debias or not config.polish):
        raise InputError(
            "Without a method the solver has no bias to remove, and solves the lower level by itself.",
            "Name a method (moreau, for example), or leave debias and polish out.",
        )
    steps = config.steps or (STEPS if alone else task.steps)
    if n > task.largest:
        raise InputError(f"{name} with n = {n:,} is larger than {task.largest:,}.", f"Choose n up to {task.largest}.")
    try:
        case = task.build(n, config.seed)
        chosen = None if alone else method_for(method, case)
        if chosen is not None and config.debias and chosen.at_penalty is None:
            raise InputError(f"The method '{method}' has no penalty bias to remove.", "Leave debias out.")
        begin = time.perf_counter()
        found = solve(case.problem, case.x, case.y, chosen, steps=steps, debias=config.debias)
    except InputError:
        raise
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise InputError(f"{name} with n = {n} by {method}: {reason}.", "Change n or the method.") from error
    seconds = time.perf_counter() - begin
    last, info = None, found.info
    if found.status != "diverged" and info is not None and info.c is not None and info.gamma is not None:
        last = residual(case.problem, found.x, found.y, info.c, info.gamma).total
    if config.polish and not alone:
        found = polished(case.problem, found)
    distance = case.error(found.x) if case.error else None
    result = SolveResult(
        task=name,
        n=case.y[0].numel(),  # a group lasso has whole groups
        method=method,
        x=[value for tensor in found.x for value in tensor.flatten().tolist()],
        y=[value for tensor in found.y for value in tensor.flatten().tolist()],
        error=_finite(distance),
        F=_finite(float(scalar_of(case.problem.F(found.x, found.y, None)))),
        residual=_finite(last),
        steps=found.steps,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(found.x[0].device),
        message=found.message,
        status=found.status,
        evaluations=found.evaluations,
        certificate={name: _finite(value) for name, value in found.certificate._asdict().items()},
    )
    return result, {name: values for name, values in found.history.items() if name != "f_theta"}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@torch_settings_restored()
def solve_on_data(
    name: str,
    options: Mapping[str, Any],
    output: str | PathLike[str],
    resume: bool = False,
    data: Data | None = None,
) -> dict[str, Any]:
    """Returns the outcome of a task that learns from images, in a run folder.

    Args:
        name: Its name in `TASKS`.
        options: Keys of the task's section; what is missing has its default, or is as in the resumed run.
        output: Run folder: missing, empty, or one to resume.
        resume: Continue from the last checkpoint.
        data: The images, if they are loaded already.

    Raises:
        InputError: An input cannot be used; nothing was written.
        NonFinite: F or f became NaN or infinite.
        Interrupted: SIGINT or SIGTERM; the state is saved.
    """
    if data is not None:  # what a default depends on is the name of these images
        own = options.get("data", {})
        options = {**options, "data": {"name": data.name, **own} if isinstance(own, Mapping) else own}
    task, config = find_task(name), solve_options(name, options, Path(output) if resume else None)
    if not isinstance(task, DataTask) or not isinstance(config, DataTaskConfig):
        raise InputError(f"{name} has neither images nor a run folder.", "Call solve_task.")
    device = pick_device(config.device)
    if data is None:
        images = config.data
        data = load_data(
            images.name, images.directory, images.download, images.image_size, train_images=images.train_images
        )
    plain = config.model_dump(mode="json")
    prepared = task.prepare(plain, METHODS[config.method], data, device)
    with RunFolder.open(output, {"task": name} | plain, "solve", resume, {"images": data.digest}) as folder:
        for sentence in data.notes:
            folder.log(sentence)
        if folder.finished:
            return folder.read_result() or {}
        result = learn(prepared, folder).to_dict()
    write_report(output)
    return result

"""Which `performance` settings are right and fastest on this device: measured once, written as a configuration.

Every variant is checked by one step of search and retraining against float64 on the CPU (`verify_performance`), then
timed by whole steps of the real stages (batches, augmentation, guard) on random images. Variants take turns, round by
round, so that a change of the device's speed affects all alike; medians are reported. The chosen variant has the least
expected time for the whole configuration among those that passed both checks.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import yaml

from nas_moreau.architecture import Genotype, load_space
from nas_moreau.config import Config, PerformanceConfig
from nas_moreau.data import Data, Images
from nas_moreau.diagnostics.bench_cases import CLASSES
from nas_moreau.diagnostics.bench_measures import clock, hardware
from nas_moreau.diagnostics.verify_performance import (
    CHANNELS,
    CPU,
    errors,
    retraining_step,
    search_step,
    tolerance,
)
from nas_moreau.errors import first_line
from nas_moreau.search.random_cell import random_cell
from nas_moreau.search.stage import plan_search
from nas_moreau.training.capture import WARM_UP
from nas_moreau.training.device import set_up_torch, uses_tf32
from nas_moreau.training.retrain import plan_retraining

STAGES = ("search", "retrain")
WARM = WARM_UP + 1


def variants(device: torch.device, compiled: bool = True) -> list[dict[str, Any]]:
    """Returns the choices that are measured: precision and TF32, memory layout, compiling."""
    precisions: list[dict[str, Any]] = [{"precision": "float32", "tf32": False}]
    if device.type != "cpu":
        precisions.append({"precision": "float32", "tf32": True})
    precisions += [{"precision": half, "tf32": device.type != "cpu"} for half in ("bfloat16", "float16")]
    layouts, compiling = (True, False), (False, True) if compiled else (False,)
    return [
        precision | {"channels_last": last, "compile": made}
        for precision, last, made in itertools.product(precisions, layouts, compiling)
    ]


def name_of(variant: dict[str, Any]) -> str:
    """Returns the name of a variant, "bfloat16, channels last" for example."""
    parts = ["tf32" if variant["tf32"] and variant["precision"] == "float32" else variant["precision"]]
    parts += [part for key, part in (("channels_last", "channels last"), ("compile", "compiled")) if variant[key]]
    return ", ".join(parts)


@dataclass
class SettingsRow:
    """A variant in one stage.

    Attributes:
        stage: "search" or "retrain".
        name: See `name_of`.
        variant: Keys and values of the `performance` section.
        errors: Relative errors of a step against float64 on the CPU: "loss" and each vector; None if it failed.
        passed: Whether all are within the tolerance.
        milliseconds: Median time of a step over `n` rounds; None if it failed.
        n: Number of rounds.
        peak_bytes: Memory that a step adds on the device at its peak; None where it is not counted.
        fault: Why it failed; None if it did not.
    """

    stage: str
    name: str
    variant: dict[str, Any]
    errors: dict[str, float] | None = None
    passed: bool = False
    milliseconds: float | None = None
    n: int = 0
    peak_bytes: int | None = None
    fault: str | None = None


@dataclass(frozen=True)
class TuningResult:
    """All variants, and the one that was chosen.

    Attributes:
        hardware, device, torch: Where they were measured.
        rows: The variants.
        chosen: The fastest variant that is right in both stages; None if there is none.
        hours: Time of both stages with it.
    """

    hardware: str
    device: str
    torch: str
    rows: list[SettingsRow]
    chosen: dict[str, Any] | None
    hours: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return asdict(self)


def benchmark_settings(
    config: Config,
    device: torch.device,
    rounds: int = 10,
    check_batch: int = 8,
    image_size: int = 32,
    compiled: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> TuningResult:
    """Checks and times all variants.

    Args:
        config: What is to be run: sizes of both stages, methods, batches.
        device: Where to run.
        rounds: n of the medians.
        check_batch: Images of the checked step.
        image_size: Side of the images.
        compiled: Whether to measure compiled variants, too; they take minutes to compile.
        note: Called with a line on the progress.
    """
    torch._dynamo.config.recompile_limit = 256  # all variants compile the same function
    config = config.model_copy(update={"device": str(device)})
    data, cell = random_data(config, image_size), random_cell(load_space(config.space), config.seed)
    chosen_from = variants(device, compiled)
    note("the exact step, float64 on the CPU")
    plain = configured(config, {"precision": "float32", "tf32": False, "channels_last": True, "compile": False})
    exact, theta = search_step(plain, CPU, check_batch, None, torch.float64)
    exact_retraining = retraining_step(plain, cell, CPU, check_batch, image_size, torch.float64)
    rows, runs = [], {}
    for stage, variant in itertools.product(STAGES, chosen_from):
        if stage == "search" and variant["precision"] == "float16":
            continue  # refused there
        row, trial = SettingsRow(stage, name_of(variant), variant), configured(config, variant)
        note(f"{stage}: {row.name}")
        rows.append(row)
        try:
            if stage == "search":
                found = errors(search_step(trial, device, check_batch, theta, torch.float32)[0], exact)
            else:
                step = retraining_step(trial, cell, device, check_batch, image_size, torch.float32)
                found = errors(step, exact_retraining)
            row.errors = {"loss": found.loss, **found.vectors}
            row.passed = found.within(tolerance(trial.performance, uses_tf32(trial.performance, device)))
            run = prepared(stage, trial, cell, data, device)
            for _ in range(WARM):
                run()
            row.peak_bytes = peak_bytes(run, device)
            runs[stage, row.name] = run
        except RuntimeError as error:  # out of memory, or what the compiler cannot do: the others continue
            row.fault = first_line(error)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for number in range(rounds):
        note(f"round {number + 1} of {rounds}")
        for key, run in runs.items():
            times[key].append(clock(run, device))
    for row in rows:
        if measured := times.get((row.stage, row.name)):
            row.milliseconds, row.n = statistics.median(measured), len(measured)
    return TuningResult(hardware(device), str(device), torch.__version__, rows, *choose(rows, steps_of(config)))


def configured(config: Config, variant: dict[str, Any]) -> Config:
    """Returns the configuration with the variant's settings in its `performance` section."""
    section = PerformanceConfig(**(config.performance.model_dump() | variant))
    return config.model_copy(update={"performance": section})


def random_data(config: Config, image_size: int) -> Data:
    """Returns random images, as many as both stages need for a batch."""
    split = config.search.split
    count = max(config.retrain.batch_size, int(config.search.batch_size / min(split.weights, split.architecture)) + 1)
    count = CLASSES * -(-2 * count // CLASSES)
    draw = torch.Generator(device="cpu").manual_seed(0)
    shape = (count, CHANNELS, image_size, image_size)
    pixels = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8, device="cpu")
    images = Images(pixels, torch.arange(count, device="cpu") % CLASSES)
    names = tuple(str(i) for i in range(CLASSES))
    return Data("random images", names, images, images, (0.5,) * CHANNELS, (0.25,) * CHANNELS)


def prepared(stage: str, config: Config, cell: Genotype, data: Data, device: torch.device) -> Callable[[], Any]:
    """Returns a function that does one step of the real stage."""
    # as long an epoch as there are steps: a recording holds for an epoch of a retraining
    endless = {"steps_per_epoch": sum(steps_of(config).values())}
    sections = {name: getattr(config, name).model_copy(update=endless) for name in STAGES}
    config = config.model_copy(update=sections)
    job: Any = plan_search(config, data) if stage == "search" else plan_retraining(config, cell, data)

    def run() -> None:
        set_up_torch(config.performance, device)
        job.train_step()

    return run


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Returns what one call adds to the device's memory at its peak; None where the device does not count."""
    module = getattr(torch, device.type)
    if device.type == "cpu" or not hasattr(module, "reset_peak_memory_stats"):
        return None
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    run()
    return module.max_memory_allocated(device) - before


def steps_of(config: Config) -> dict[str, int]:
    """Returns the steps of both stages, on CIFAR-10's 50,000 training images where the configuration gives none."""
    search, retrain = config.search, config.retrain
    weights = int(50_000 * search.split.weights)
    return {
        "search": search.epochs * (search.steps_per_epoch or weights // search.batch_size),
        "retrain": retrain.epochs * (retrain.steps_per_epoch or 50_000 // retrain.batch_size),
    }


def choose(rows: list[SettingsRow], steps: dict[str, int]) -> tuple[dict[str, Any] | None, float | None]:
    """Returns the variant that takes both stages through all their steps soonest, and in how many hours; None if none.

    Only variants whose steps were right in both stages, and could be timed, are considered.
    """
    usable: dict[str, dict[str, tuple[float, dict[str, Any]]]] = {stage: {} for stage in steps}
    for row in rows:
        if row.passed and row.milliseconds is not None:
            usable[row.stage][row.name] = row.milliseconds, row.variant
    both = [name for name in usable["search"] if name in usable["retrain"]]
    hours = {name: sum(n * usable[stage][name][0] for stage, n in steps.items()) / 3.6e6 for name in both}
    if not hours:
        return None, None
    best = min(hours, key=hours.__getitem__)
    return usable["search"][best][1], hours[best]


def as_configuration(preset: dict[str, Any], result: TuningResult, command: str, made_by: str) -> str:
    """Returns the YAML of a preset with the chosen settings, beginning with the command that runs it."""
    assert result.chosen is not None
    performance = {**preset.get("performance", {}), **result.chosen}
    rows = [row for row in result.rows if row.variant == result.chosen]
    head = [
        command,
        f"The fastest settings that were right on {result.hardware}, torch {result.torch}:",
        *(f"{row.stage} {row.milliseconds:.1f} ms a step (median of {row.n})" for row in rows),
        f"Made by {made_by}",
    ]
    text = yaml.safe_dump({**preset, "performance": performance}, sort_keys=False)
    return "".join(f"# {line}\n" for line in head) + text

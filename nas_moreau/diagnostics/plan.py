"""Memory and time of a run, estimated from a few measured steps, and changes that make it fit. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.config import Config, make_config
from nas_moreau.errors import InputError
from nas_moreau.plugins import python_command

SECONDS = 4.0
"""How long the steps of a stage are measured: some tens of steps of the `cpu` preset."""
ENOUGH = 2
"""Proposals that fit, for a stage that does not: the mildest and one that leaves some room."""
STAGES = ("search", "retrain")
UNITS = {"": 1, "B": 1, **{f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}}
UNITS |= {f"{p}IB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}


@dataclass(frozen=True)
class Cost:
    """What a stage takes.

    Attributes:
        memory_bytes: The most that the process holds: all of it on a CPU, what torch's allocator took on an
            accelerator; None if this machine has too little memory to measure it.
        hours: Wall-clock time; None if unknown.
        measured: The numbers that these come from (`plan_probe.probe`).
    """

    memory_bytes: int | None
    hours: float | None
    measured: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return {"memory_bytes": self.memory_bytes, "hours": self.hours, **self.measured}


@dataclass(frozen=True)
class Limits:
    """Available memory, and time for both stages together; None: not limited."""

    memory_bytes: int | None
    hours: float | None

    def allow_memory(self, cost: Cost) -> bool:
        """Returns whether the memory of a stage is available."""
        if cost.memory_bytes is None:
            return False
        return self.memory_bytes is None or cost.memory_bytes <= self.memory_bytes

    def allow(self, cost: Cost, other_hours: float) -> bool:
        """Returns whether a stage fits, together with the hours of the other one."""
        in_time = self.hours is None or (cost.hours or 0.0) + other_hours <= self.hours
        return self.allow_memory(cost) and in_time


@dataclass(frozen=True)
class Proposal:
    """A change of the configuration.

    Attributes:
        stage: "search", "retrain" or "both".
        change: key=value texts.
        memory_bytes, hours: What the stage then takes.
        fits: Whether the run is then within the limits.
    """

    stage: str
    change: list[str]
    memory_bytes: int | None
    hours: float | None
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What search and retraining take, and proposals if that is too much."""

    search: Cost
    retrain: Cost
    proposals: list[Proposal]
    limits: Limits

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data: `search retrain proposals limits`."""
        return {
            "search": self.search.to_dict(),
            "retrain": self.retrain.to_dict(),
            "proposals": [asdict(proposal) for proposal in self.proposals],
            "limits": asdict(self.limits),
        }


Measure = Callable[[str, Config], Cost]


def plan(
    config: Config,
    genotype: Genotype | None = None,
    memory: int | None = None,
    hours: float | None = None,
    imports: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Returns what search and retraining take, and proposals if that is too much.

    Args:
        config: The whole configuration.
        genotype: The cell to retrain; by default a random one of the space, of about the same cost.
        memory: Available bytes; by default this machine's memory (on a CPU).
        hours: Available time for both stages together.
        imports: The user's modules, imported by name or path before anything is built.
        note: Called with a line before each measurement.

    Raises:
        InputError: The configuration cannot be run as it is.
    """
    limits = Limits(_machine_memory(config) if memory is None else memory, hours)

    def measure(stage: str, changed: Config) -> Cost:
        found = measure_stage(stage, changed, genotype, imports)
        if stage == "retrain" and found.hours is not None:
            return replace(found, hours=found.hours * (1 + config.against_random))
        return found

    costs: dict[str, Cost] = {}
    for stage in STAGES:
        note(f"measuring a few steps of {stage} ({len(costs) + 1} of {len(STAGES)})")
        costs[stage] = measure(stage, config)
    return Plan(costs["search"], costs["retrain"], _proposals(config, costs, limits, measure, note), limits)


def _proposals(
    config: Config, costs: dict[str, Cost], limits: Limits, measure: Measure, note: Callable[[str], None]
) -> list[Proposal]:
    proposals = []
    total = sum(cost.hours or 0.0 for cost in costs.values())
    late = limits.hours is not None and total > limits.hours
    for stage, cost in costs.items():
        rest, fitting = total - (cost.hours or 0.0), 0
        if not late and limits.allow(cost, rest):
            continue
        for change in candidates(stage, config, late and limits.allow_memory(cost)):
            note(f"measuring {stage} with {' '.join(change)}")
            try:
                found = measure(stage, changed(config, change))
            except InputError:  # not every method can search every space
                continue
            if found.memory_bytes is None:
                continue
            fits = limits.allow(found, rest)
            proposals.append(Proposal(stage, change, found.memory_bytes, found.hours, fits))
            fitting += fits
            if fitting == ENOUGH:
                break
    if late:
        proposals.append(_fewer_epochs(config, costs, limits, total))
    return proposals


def candidates(stage: str, config: Config, faster: bool) -> Iterator[list[str]]:
    """Yields changes of a stage to try, the mildest first, that save time (`faster`) or memory."""
    settings = config.search if stage == "search" else config.retrain
    batch, channels = settings.batch_size, settings.channels
    method, plus, terms = config.search.method.partition("+")
    if stage == "search":
        if method in ("moreau-gauss-seidel", "moreau-jacobi"):
            yield [f"search.method=moreau{plus}{terms}"]
        if method == "darts2":
            yield [f"search.method=darts1{plus}{terms}"]
    if not faster:
        for part in (2, 4):
            if batch // part >= 8:
                yield [f"{stage}.batch_size={batch // part}"]
    if stage == "search" and "pc" not in terms.split("+"):
        yield [f"search.method={config.search.method}+pc"]
    if channels >= 8:
        yield [f"{stage}.channels={channels // 2}"]
        if not faster and batch >= 16:
            yield [f"{stage}.channels={channels // 2}", f"{stage}.batch_size={batch // 2}"]
    if stage == "retrain" and settings.layers >= 6:
        yield [f"{stage}.layers={settings.layers // 2}"]


def _fewer_epochs(config: Config, costs: dict[str, Cost], limits: Limits, total: float) -> Proposal:
    """Returns the same run with as many epochs as there is time for, extrapolated: time is proportional to them."""
    available = limits.hours or 0.0
    epochs = {"search": config.search.epochs, "retrain": config.retrain.epochs}
    fewer = {stage: max(1, int(count * available / total)) for stage, count in epochs.items()}
    hours = sum((costs[stage].hours or 0.0) * fewer[stage] / epochs[stage] for stage in epochs)
    change = [f"{stage}.epochs={count}" for stage, count in fewer.items()]
    memory = [cost.memory_bytes for cost in costs.values() if cost.memory_bytes is not None]
    enough = all(limits.allow_memory(cost) for cost in costs.values())
    largest = max(memory) if len(memory) == len(costs) else None
    return Proposal("both", change, largest, hours, enough and hours <= available)


def changed(config: Config, change: Sequence[str]) -> Config:
    """Returns the configuration with section.key=value texts applied."""
    data = config.to_dict()
    for text in change:
        key, _, value = text.partition("=")
        section, _, name = key.partition(".")
        data[section][name] = int(value) if value.isdigit() else value
    return make_config(data)


def measure_stage(stage: str, config: Config, genotype: Genotype | None, imports: Sequence[str]) -> Cost:
    """Returns what a stage takes, measured in a child process.

    Raises:
        InputError: The stage refuses its configuration, or fails for another reason than memory.
    """
    request = {
        "stage": stage,
        "config": config.to_dict(),
        "imports": list(imports),
        "seconds": SECONDS,
        "genotype": None if genotype is None else genotype.to_json(),
    }
    command = python_command("nas_moreau.diagnostics.plan_probe")
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False, env=paths)
    if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
        if "refused" in answer:
            raise InputError(*answer["refused"])
        return Cost(answer.pop("memory_bytes"), answer.pop("hours"), answer)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.returncode == -9 or "out of memory" in last.lower() or "can't allocate memory" in last.lower():
        return Cost(None, None)
    raise InputError(f"The {stage} cannot be measured: {last[:300]}", f"Run nas-moreau {stage} -v for a traceback.")


def parse_memory(text: str) -> int:
    """Returns the bytes of a text such as 11GB (10^9), 8GiB (2^30) or a number.

    Raises:
        InputError: The text is not an amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise InputError(f"Invalid amount of memory '{text}'.", "Write for example 11GB or 8GiB.")
    amount = int(float(match[1]) * UNITS[match[2].upper()])
    if amount < 1 << 20:
        raise InputError(f"The memory '{text}' is {amount} bytes.", f"Write for example {match[1]}GB.")
    return amount


def _machine_memory(config: Config) -> int | None:
    """Returns the machine's memory for a run on the CPU (an accelerator's is known only when torch is loaded)."""
    if config.device not in ("auto", "cpu") or not hasattr(os, "sysconf"):
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None

"""What a run will take, measured before it begins, and changes that make it fit. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.config import Config, make_config
from nas_moreau.errors import InputError

SECONDS = 4.0  # how long the steps of a stage are measured
ENOUGH = 2  # proposals for a stage that does not fit
UNITS = {"": 1, "B": 1, **{f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}}
UNITS |= {f"{p}IB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}


def plan(
    config: Config,
    genotype: Genotype | None = None,
    memory: int | None = None,
    hours: float | None = None,
    imports: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Returns what search and retraining take, and proposals where that is too much.

    Args:
        config: The whole configuration.
        genotype: The cell to retrain; by default a random one of the space, whose costs stand for the one to be found.
        memory: Bytes that there are; by default what this machine has (on a CPU).
        hours: Hours that there are for both stages together.
        imports: The user's modules, imported by name or path before anything is built.
        note: Called with a line before each measurement.

    Returns:
        `search` and `retrain`, each memory_bytes, hours and what they come from; `proposals`, each stage, change
        (key=value texts), memory_bytes, hours, fits; `limits`. Memory is the most that the process holds: all of it on
        a CPU, what torch's allocator took on an accelerator.

    Raises:
        InputError: The configuration cannot be run as it is.
    """
    limits = {"memory_bytes": _machine_memory(config) if memory is None else memory, "hours": hours}

    def measure(stage: str, changed: Config) -> dict[str, Any] | None:
        return _probe(stage, changed, genotype, imports)

    base: dict[str, dict[str, Any]] = {}
    for stage in ("search", "retrain"):
        note(f"measuring a few steps of {stage}")
        found = measure(stage, config)
        base[stage] = {"memory_bytes": None, "hours": None} if found is None else found
    return {**base, "proposals": _proposals(config, base, limits, measure, note), "limits": limits}


def _proposals(
    config: Config,
    base: dict[str, dict[str, Any]],
    limits: dict[str, Any],
    measure: Callable[[str, Config], dict[str, Any] | None],
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    proposals = []
    total = sum(found["hours"] or 0.0 for found in base.values())
    late = limits["hours"] is not None and total > limits["hours"]
    for stage, found in base.items():
        rest = total - (found["hours"] or 0.0)
        if not late and _fits(found, limits, rest):
            continue
        fitting = 0
        for change in candidates(stage, config, late and _fits(found, limits, rest, hours=False)):
            note(f"measuring {stage} with {' '.join(change)}")
            try:
                row = measure(stage, changed(config, change))
            except InputError:  # not every method goes with every space
                continue
            if row is None:
                continue
            fits = _fits(row, limits, rest)
            kept = {key: row[key] for key in ("memory_bytes", "hours")}
            proposals.append({"stage": stage, "change": change, **kept, "fits": fits})
            fitting += fits
            if fitting == ENOUGH:
                break
    if late:
        proposals.append(_fewer_epochs(config, base, limits, total))
    return proposals


def _fits(found: dict[str, Any], limits: dict[str, Any], rest: float, hours: bool = True) -> bool:
    """Whether a stage's memory fits, and its hours together with the `rest` of the run."""
    if found["memory_bytes"] is None:
        return False
    enough = limits["memory_bytes"] is None or found["memory_bytes"] <= limits["memory_bytes"]
    return enough and (not hours or limits["hours"] is None or found["hours"] + rest <= limits["hours"])


def candidates(stage: str, config: Config, faster: bool) -> Iterator[list[str]]:
    """Yields changes of a stage to try, the mildest first; `faster`: for want of time, else for want of memory."""
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


def _fewer_epochs(
    config: Config, base: dict[str, dict[str, Any]], limits: dict[str, Any], total: float
) -> dict[str, Any]:
    """Returns the same run with as many epochs as there is time for: reckoned, since time grows with them."""
    share = limits["hours"] / total
    epochs = {"search": config.search.epochs, "retrain": config.retrain.epochs}
    fewer = {stage: max(1, int(count * share)) for stage, count in epochs.items()}
    hours = sum((base[stage]["hours"] or 0.0) * fewer[stage] / epochs[stage] for stage in epochs)
    memory = [found["memory_bytes"] for found in base.values()]
    known = None not in memory
    enough = known and (limits["memory_bytes"] is None or max(memory) <= limits["memory_bytes"])
    return {
        "stage": "both",
        "change": [f"{stage}.epochs={count}" for stage, count in fewer.items()],
        "memory_bytes": max(memory) if known else None,
        "hours": hours,
        "fits": enough and hours <= limits["hours"],
    }


def changed(config: Config, change: Sequence[str]) -> Config:
    """Returns the configuration with texts of the form section.key=value put in."""
    data = config.to_dict()
    for text in change:
        key, _, value = text.partition("=")
        section, _, name = key.partition(".")
        data[section][name] = int(value) if value.isdigit() else value
    return make_config(data)


def _probe(stage: str, config: Config, genotype: Genotype | None, imports: Sequence[str]) -> dict[str, Any] | None:
    """Returns what a stage takes, or None where this machine has not the memory to try it.

    Raises:
        InputError: The stage refuses its configuration, or breaks for another reason.
    """
    request = {
        "stage": stage,
        "config": config.to_dict(),
        "imports": list(imports),
        "seconds": SECONDS,
        "genotype": None if genotype is None else genotype.to_json(),
    }
    command = [sys.executable, "-m", "nas_moreau.diagnostics.plan_probe"]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False, env=paths)
    if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
        if "refused" in answer:
            raise InputError(*answer["refused"])
        return answer
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if done.returncode == -9 or "out of memory" in last.lower() or "can't allocate memory" in last.lower():
        return None
    raise InputError(f"The {stage} could not be tried: {last[:300]}", "Run it with -v to see where it breaks.")


def parse_memory(text: str) -> int:
    """Returns bytes of texts such as 11GB (10^9), 8GiB (2^30) or a number.

    Raises:
        InputError: It is not an amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise InputError(f"'{text}' is not an amount of memory.", "Write for example 11GB or 8GiB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _machine_memory(config: Config) -> int | None:
    """Returns the machine's memory where the CPU does the work (an accelerator's is known once torch is loaded)."""
    if config.device not in ("auto", "cpu") or not hasattr(os, "sysconf"):
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None

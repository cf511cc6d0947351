"""Times whole steps on an accelerator: replayed as one graph, eager, and DARTS' published scripts beside them.

    python scripts/benchmark_gpu_steps.py --json steps.json                       # random images, published sizes
    python scripts/benchmark_gpu_steps.py --darts darts/cnn --minutes 4           # beside a clone of quark0/darts
    python scripts/benchmark_gpu_steps.py --device cpu --preset smoke --rounds 1  # a trial without an accelerator

Every line is printed when it is known; the JSON grows with it. NAS_MOREAU_NATIVE=0 leaves all depthwise convolutions to
the library. What was seen: docs/gpu.md.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import re
import statistics
import sys
import time
import types
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_moreau.architecture import load_space
from nas_moreau.architecture.networks.depthwise import trials_text
from nas_moreau.config import Config, load_config
from nas_moreau.diagnostics.bench_measures import clock, hardware
from nas_moreau.diagnostics.tune_performance import configured, peak_bytes, prepared, random_data
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.search.random_cell import random_cell
from nas_moreau.training.capture import WARM_UP
from nas_moreau.training.device import pick_device

IMAGE_SIZE = 32
EAGER = {"capture": False}
PLAIN = {"channels_last": False}
HALF = {"precision": "bfloat16"}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("search", "as configured", {}),
    ("retrain", "as configured", {}),
    ("retrain", "eager, NCHW", EAGER | PLAIN),
    ("search", "bfloat16, NCHW", HALF | PLAIN),
    ("search", "NCHW", PLAIN),
    ("retrain", "bfloat16", HALF),
    ("search", "eager", EAGER),
]
"""Stage, name, and what differs from the configuration's `performance` section; the most interesting ones first. By
default a step is replayed as one graph where the device can."""


def published_step(folder: Path, config: Config, device: torch.device, unrolled: bool) -> Callable[[], None]:
    """Returns a step of DARTS' own scripts (quark0/darts, cnn/), with calls replaced that torch has dropped since."""
    sys.path.insert(0, str(folder))
    warnings.simplefilter("ignore")
    text = (folder / "architect.py").read_text()
    text = re.sub(r"\.(add|sub)(_?)\((eta|R|2\*R), ([^()]*(?:\([^()]*\))?[^()]*)\)", r".\1\2(\4, alpha=\3)", text)
    module = types.ModuleType("architect")
    exec(compile(text, "architect.py", "exec"), module.__dict__)  # the published file
    specification = importlib.util.spec_from_file_location("model_search", folder / "model_search.py")
    assert specification is not None and specification.loader is not None
    model = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(model)
    search = config.search
    loss = nn.CrossEntropyLoss().to(device)
    network = model.Network(search.channels, 10, search.layers, loss).to(device)
    given = types.SimpleNamespace(momentum=0.9, weight_decay=3e-4, arch_learning_rate=3e-4, arch_weight_decay=1e-3)
    architect = module.Architect(network, given)
    optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    shape = (search.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE)
    images = [torch.randn(shape, device=device) for _ in range(2)]
    labels = [torch.randint(0, 10, shape[:1], device=device) for _ in range(2)]

    def step() -> None:
        architect.step(images[0], labels[0], images[1], labels[1], 0.025, optimizer, unrolled=unrolled)
        optimizer.zero_grad()
        loss(network(images[0]), labels[0]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()

    return step


def kernels_of(step: Callable[[], Any], device: torch.device, steps: int = 2) -> dict[str, Any] | None:
    """Returns how many kernels a step runs, how long they take, and those that take longest; None on a CPU."""
    if device.type == "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[getattr(ProfilerActivity, device.type.upper())]) as found:
        for _ in range(steps):
            step()
        torch.get_device_module(device).synchronize()
    rows: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in found.events():
        if event.device_type != torch.autograd.DeviceType.CPU:
            rows[event.name[:120]][0] += 1 / steps
            rows[event.name[:120]][1] += event.time_range.elapsed_us() / 1e3 / steps
    longest = sorted(rows.items(), key=lambda row: -row[1][1])[:30]
    count, busy = (sum(column) for column in zip(*rows.values()))
    return {"kernels": round(count), "busy_ms": busy, "longest": [[name, *row] for name, row in longest]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10", help="whose sizes and methods are measured")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=8, help="n of the medians")
    parser.add_argument("--minutes", type=float, default=8.0, help="no further case is begun after that time")
    parser.add_argument("--darts", type=Path, metavar="DIR", help="folder cnn/ of a clone of quark0/darts")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    begun, device = time.monotonic(), pick_device(given.device)
    config = load_config(given.preset, overrides=[f"device={device}", *given.overrides])
    data, cell = random_data(config, IMAGE_SIZE), random_cell(load_space(config.space), config.seed)
    result: dict[str, Any] = {"hardware": hardware(device), "torch": torch.__version__, "rows": {}}
    print(f"{result['hardware']}, torch {torch.__version__}, preset {given.preset}, n={given.rounds}", flush=True)

    def measure(name: str, make: Callable[[], Callable[[], Any]], images: int = 0) -> Callable[[], Any] | None:
        if time.monotonic() - begun > 60 * given.minutes:
            print(f"{name}: out of time", flush=True)
            return None
        gc.collect()
        made: list[Callable[[], Any]] = []
        firsts: list[float] = []

        def begin() -> None:
            made.append(make())
            firsts.extend(clock(made[0], device) / 1e3 for _ in range(WARM_UP + 2))

        peak = peak_bytes(begin, device)  # a replay alone takes nothing: its memory is the recording's
        (step,) = made
        times = [clock(step, device) for _ in range(given.rounds)]
        row = {"ms": statistics.median(times), "times_ms": times, "first_steps_s": firsts, "peak_bytes": peak}
        result["rows"][name] = row
        rate = f", {1e3 * images / row['ms']:.0f} images/s" if images else ""
        memory = "" if peak is None else f", peak {peak / 1e6:.0f} MB"
        first = ", ".join(f"{seconds:.1f}" for seconds in firsts)
        print(f"{name:44} {row['ms']:9.2f} ms ({min(times):.2f} to {max(times):.2f}){rate}{memory}; first {first} s")
        sys.stdout.flush()
        if given.json:
            write_atomic(given.json, (json.dumps(result, indent=1) + "\n").encode())
        return step

    for number, (stage, name, changes) in enumerate(CASES):
        images = config.retrain.batch_size if stage == "retrain" else 0
        variant = configured(config, changes)
        step = measure(f"{stage}: {name}", partial(prepared, stage, variant, cell, data, device), images)
        if step is not None and stage == "search" and "capture" not in changes:
            found = result["rows"][f"{stage}: {name}"]["kernels"] = kernels_of(step, device)
            if chosen := trials_text():
                print(f"    {chosen}", flush=True)
            if found:
                print(f"    {found['kernels']} kernels, {found['busy_ms']:.1f} ms; the longest:", flush=True)
                for kernel, count, spent in found["longest"][:8]:
                    print(f"    {spent:8.2f} ms {count:7.0f} x {kernel[:100]}", flush=True)
        step = None
        if number == 0 and given.darts:
            for order, unrolled in (("first", False), ("second", True)):
                make = partial(published_step, given.darts, config, device, unrolled)
                measure(f"DARTS' scripts, {order} order", make)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

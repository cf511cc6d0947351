"""What the benchmark measures of a case: time, arithmetic, activations kept, operator calls, resident memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as f

from nas_moreau.architecture import LiteralSupernet, load_space, multiply_adds
from nas_moreau.diagnostics.bench_cases import (
    CLASSES,
    CPU,
    IMAGE,
    Case,
    Size,
    build_batch,
    build_run,
    build_supernet,
    evaluate,
)
from nas_moreau.diagnostics.saved_memory import peak_saved_bytes
from nas_moreau.plugins import import_modules, python_command
from nas_moreau.runs.environment import processor_name
from nas_moreau.training.device import peak_memory_bytes


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Returns the milliseconds one call takes: device events on an accelerator, the wall clock on a CPU."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    events = torch.get_device_module(device)
    first, last = events.Event(enable_timing=True), events.Event(enable_timing=True)
    first.record()
    run()
    last.record()
    events.synchronize()
    return first.elapsed_time(last)


def gemm_rate(device: torch.device) -> float:
    """Returns the best rate (operations a second) of a 1024x1024 float32 matrix product on the threads in use."""
    side = 1024
    a = torch.randn((side, side), device=device)
    a @ a
    return 2 * side**3 / min(clock(lambda: a @ a, device) / 1e3 for _ in range(10))


def evaluation_flops(space: str, size: Size) -> int:
    """Returns the convolution and linear arithmetic of one evaluation: two operations a multiply-add, three passes."""
    channels, layers, batch = size
    with torch.device("cpu"):
        net = LiteralSupernet(load_space(space), channels, layers, CLASSES)
    return 2 * 3 * batch * multiply_adds(net, (3, IMAGE, IMAGE))


def saved_bytes(case: Case) -> int:
    """Returns the bytes a forward pass keeps for the backward pass, parameters, buffers and images excepted."""
    net, batch = build_supernet(case), build_batch(case)
    known = [*net.parameters(), *net.buffers(), batch.images, batch.labels]
    return peak_saved_bytes(lambda: f.cross_entropy(net(batch.images), batch.labels), known)


def operator_calls(case: Case) -> int:
    """Returns how many operators of one evaluation, nested ones included, take a tensor of the size of an activation.

    That is one whose first dimension is the batch and that is not smaller than the first cell's channels at a quarter
    of the image's side.
    """
    channels, _, images = case.size
    least = images * channels * (IMAGE // 4) ** 2
    net, batch = build_supernet(case), build_batch(case)
    evaluate(net, batch)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, acc_events=True
    ) as profile:
        evaluate(net, batch)

    def large(shape: Any) -> bool:
        if not isinstance(shape, list | tuple) or not shape:
            return False
        if isinstance(shape[0], list | tuple):
            return any(map(large, shape))
        numel = 1
        for n in shape:
            numel *= n
        return len(shape) > 1 and shape[0] == images and numel >= least

    named = (event for event in profile.events() if "::" in event.name and not event.name.startswith("autograd::"))
    return sum(any(map(large, event.input_shapes)) for event in named)


def read_memory(case: Case, threads: int, imports: Sequence[str] = ()) -> int | None:
    """Returns the resident memory that two runs on the CPU add at their peak, measured in a new process.

    Args:
        case: What is run.
        threads: CPU threads.
        imports: The user's modules, which the process imports first.
    """
    given = {**case._asdict(), "device": "cpu", "threads": threads, "imports": list(imports)}
    command = python_command("nas_moreau.diagnostics.bench_measures", json.dumps(given))
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def added_memory(case: Case) -> int | None:
    """Returns peak resident memory less what was resident before the first run; None where /proc is missing."""
    run = build_run(case)
    status = Path("/proc/self/statm")
    if not status.exists():
        return None
    before = int(status.read_text().split()[1]) * resource.getpagesize()
    for _ in range(2):
        run()
    return peak_memory_bytes(CPU) - before


def hardware(device: torch.device) -> str:
    """Returns the name of the processor or accelerator."""
    if device.type != "cpu":
        return torch.get_device_module(device).get_device_name(device)
    return processor_name()


def _main(given: dict[str, Any]) -> None:
    import_modules(given.pop("imports"))
    torch.set_num_threads(given.pop("threads"))
    case = Case(**given)._replace(size=Size(*given["size"]), device=CPU)
    print(json.dumps(added_memory(case)))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))

"""Speed and memory of one evaluation and of one whole search step, for four supernets side by side.

    literal                the published description word for word, NCHW
    literal-channels-last  the same modules on channels-last tensors
    portable               our supernet in plain PyTorch
    native                 our supernet on the native operators (CPU only)

An evaluation is one forward and one full backward pass. Steps of the literal supernets are the published scripts' (full
`backward()` everywhere); ours run through `nas_moreau.bilevel`, as in a search. Variants take turns, round by round, so
that a change of the machine's speed meets all of them alike; medians are reported. Memory is read in a process of its own
for every variant.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from nas_moreau.architecture import LiteralSupernet, Supernet, load_space, multiply_adds
from nas_moreau.bilevel import adam, moreau, sgd
from nas_moreau.bilevel.rivals import darts1, darts2
from nas_moreau.errors import InputError
from nas_moreau.kernels.cell import available
from nas_moreau.stages.published_steps import published_step
from nas_moreau.stages.supernet_problem import Batch, supernet_problem

SUPERNETS = ("literal", "literal-channels-last", "portable", "native")
LITERAL_METHODS = ("evaluation", "darts1", "darts2")
OUR_METHODS = (*LITERAL_METHODS, "moreau-gauss-seidel", "moreau-jacobi", "moreau-lagged")
IMAGE, CLASSES = 32, 10


class Size(NamedTuple):
    """A supernet and a batch: `channels` of the first cell, `layers` cells, `batch` images of 32x32."""

    channels: int
    layers: int
    batch: int


SIZES = {"T": Size(8, 5, 16), "M": Size(16, 8, 16), "full": Size(16, 8, 64)}


def parse_size(text: str) -> Size:
    """Returns the size named `T`, `M` or `full`, or written as `channels,layers,batch`.

    Raises:
        InputError: It is neither.
    """
    if text in SIZES:
        return SIZES[text]
    numbers = text.split(",")
    if len(numbers) != 3 or not all(n.strip().isdigit() and int(n) > 0 for n in numbers):
        raise InputError(f"'{text}' is no size.", f"Give {', '.join(SIZES)} or channels,layers,batch such as 16,8,64.")
    return Size(*map(int, numbers))


def benchmark(
    size: str = "T",
    threads: int = 1,
    rounds: int = 5,
    budget_seconds: float = 1200.0,
    space: str = "darts",
    device: str = "cpu",
    supernets: tuple[str, ...] = SUPERNETS,
    methods: tuple[str, ...] = OUR_METHODS,
    memory: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Returns `rows` as the bench contract has them, with the hardware and the GEMM rate that the floor rests on.

    Args:
        size: `T`, `M`, `full` or `channels,layers,batch`.
        threads: CPU threads.
        rounds: How often every variant is timed (n of the medians); fewer if the budget is spent before.
        budget_seconds: No new round begins when it would end after this.
        space: Search space of the supernets.
        device: Where to run; CUDA devices are timed with events and leave out the native supernet.
        supernets: Which of SUPERNETS.
        methods: Which of OUR_METHODS; the literal supernets run those of LITERAL_METHODS.
        memory: Read memory, too (a process for every variant; the fields are None without).
        note: Takes a line on what is going on.
    """
    parse_size(size)
    for given, known in ((supernets, SUPERNETS), (methods, OUR_METHODS)):
        if unknown := set(given) - set(known):
            raise InputError(f"There is no '{sorted(unknown)[0]}' to benchmark.", f"Choose from {', '.join(known)}.")
    place = torch.device(device)
    if place.type != "cpu" or not available():
        supernets = tuple(name for name in supernets if name != "native")
    began, before = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cases = [(s, m) for s in supernets for m in methods if m in LITERAL_METHODS or not s.startswith("literal")]
        memories = {case: read_memory(space, size, *case, threads) for case in cases if memory and place.type == "cpu"}
        runs = {case: build_run(space, size, *case, place) for case in cases}
        calls = {s: operator_calls(space, size, s, place) for s in supernets if "evaluation" in methods}
        saved = {s: saved_bytes(space, size, s, place) for s in supernets}
        rate = gemm_rate(place)
        floor = 1e3 * evaluation_flops(space, size) / rate
        for run in runs.values():
            run()  # warm up
        times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
        for n in range(rounds):
            start = time.perf_counter()
            for case, run in runs.items():
                times[case].append(clock(run, place))
            spent = time.perf_counter() - began
            note(f"round {n + 1} of {rounds}, {spent:.0f} s")
            if spent + time.perf_counter() - start > budget_seconds:
                break
    finally:
        torch.set_num_threads(before)
    rows = [
        {
            "size": size, "threads": threads, "supernet": s, "method": m,
            "milliseconds": statistics.median(values), "n": len(values), "saved_bytes": saved[s],
            "resident_bytes": memories.get((s, m)),
            "operator_calls": calls[s] if m == "evaluation" else None, "floor_milliseconds": floor,
        }
        for (s, m), values in times.items()
    ]  # fmt: skip
    return {"rows": rows, "hardware": hardware(place), "torch": torch.__version__, "gemm_gflops": rate / 1e9}


def build_supernet(space: str, size: str, supernet: str, device: torch.device) -> nn.Module:
    """Returns the supernet called `supernet`, with weights that are the same every time."""
    channels, layers, _ = parse_size(size)
    torch.manual_seed(0)
    if supernet.startswith("literal"):
        net: nn.Module = LiteralSupernet(load_space(space), channels, layers, CLASSES)
    else:
        kernels = "native" if supernet == "native" else "portable"
        net = Supernet(load_space(space), channels, layers, CLASSES, kernels=kernels)
    layout = torch.contiguous_format if supernet == "literal" else torch.channels_last
    return net.to(device=device, memory_format=layout)


def build_batches(size: str, supernet: str, device: torch.device) -> tuple[Batch, Batch]:
    """Returns an upper and a lower batch of random images."""
    layout = torch.contiguous_format if supernet == "literal" else torch.channels_last

    def batch(seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn((parse_size(size).batch, 3, IMAGE, IMAGE), generator=generator)
        labels = torch.randint(0, CLASSES, (len(images),), generator=generator)
        return Batch(images.to(device=device, memory_format=layout), labels.to(device), 0.0)

    return batch(1), batch(2)


def build_run(space: str, size: str, supernet: str, method: str, device: torch.device) -> Callable[[], None]:
    """Returns a function without arguments that does one evaluation or one whole search step."""
    net = build_supernet(space, size, supernet, device)
    upper, lower = build_batches(size, supernet, device)
    if method == "evaluation":
        return lambda: evaluate(net, lower)
    if supernet.startswith("literal"):
        return published_step(net, method, upper, lower)
    rate, alpha_rate = 0.025, 3e-4
    rules = {"update_x": adam((0.5, 0.999), weight_decay=1e-3), "update_y": sgd(0.9, 3e-4, clip=5.0)}
    if method == "darts1":
        solver = darts1(alpha_rate, rate, **rules)
    elif method == "darts2":
        solver = darts2(alpha_rate, rate, momentum=0.9, weight_decay=3e-4, **rules)
    else:
        order = method.removeprefix("moreau-")
        rules["update_theta"] = rules["update_y"]
        solver = moreau(alpha=alpha_rate, beta=rate, eta=rate, gamma=1.0, c=0.2, order=order, **rules)
    posed = supernet_problem(net)
    held = [posed.x, posed.y, solver.init(posed.problem, posed.x, posed.y)]

    def step() -> None:
        held[:] = solver.step(posed.problem, *held, upper, lower)[:3]

    return step


def evaluate(net: nn.Module, batch: Batch) -> None:
    """Runs one forward and one full backward pass."""
    net.zero_grad(set_to_none=True)
    f.cross_entropy(net(batch.images), batch.labels).backward()


def clock(run: Callable[[], None], device: torch.device) -> float:
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


def gemm_rate(device: torch.device, side: int = 1024, repeats: int = 10) -> float:
    """Returns the best rate (operations a second) of a square float32 matrix product on the threads in use."""
    a = torch.randn((side, side), device=device)
    a @ a
    return 2 * side**3 / min(clock(lambda: a @ a, device) / 1e3 for _ in range(repeats))


def evaluation_flops(space: str, size: str) -> int:
    """Returns the convolution and linear arithmetic of one evaluation: two operations a multiply-add, three passes."""
    channels, layers, batch = parse_size(size)
    with torch.device("cpu"):
        net = LiteralSupernet(load_space(space), channels, layers, CLASSES)
    return 2 * 3 * batch * multiply_adds(net, (3, IMAGE, IMAGE))


def saved_bytes(space: str, size: str, supernet: str, device: torch.device) -> int:
    """Returns the bytes a forward pass keeps for the backward pass, parameters, buffers and images excepted."""
    net = build_supernet(space, size, supernet, device)
    _, batch = build_batches(size, supernet, device)
    known = {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers(), batch.images, batch.labels]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = f.cross_entropy(net(batch.images), batch.labels)
    total = sum(kept.values())
    del loss
    return total


def operator_calls(space: str, size: str, supernet: str, device: torch.device) -> int:
    """Returns how many operators of one evaluation, nested ones included, take a tensor of the size of an activation.

    That is: one whose first dimension is the batch and that is not smaller than a node of the last cell (a quarter of the
    image's side, the first cell's channels).
    """
    channels, _, images = parse_size(size)
    least = images * channels * (IMAGE // 4) ** 2
    net = build_supernet(space, size, supernet, device)
    _, batch = build_batches(size, supernet, device)
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


def read_memory(space: str, size: str, supernet: str, method: str, threads: int) -> int | None:
    """Returns the resident memory that two runs add at their peak, read in a process of its own."""
    command = [sys.executable, "-m", "nas_moreau.stages.bench", space, size, supernet, method, str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def added_memory(space: str, size: str, supernet: str, method: str, threads: int) -> int | None:
    """Returns peak resident memory less what was resident before the first run; None where /proc is missing."""
    torch.set_num_threads(threads)
    run = build_run(space, size, supernet, method, torch.device("cpu"))
    status = Path("/proc/self/statm")
    if not status.exists():
        return None
    before = int(status.read_text().split()[1]) * resource.getpagesize()
    for _ in range(2):
        run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def hardware(device: torch.device) -> str:
    """Returns the name of the processor or accelerator."""
    if device.type != "cpu":
        return torch.get_device_module(device).get_device_name(device)
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    print(json.dumps(added_memory(*sys.argv[1:5], int(sys.argv[5]))))

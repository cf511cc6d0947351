"""Speed and memory of one evaluation and of one whole search step, for four supernets side by side.

    literal                the published description word for word, NCHW
    literal-channels-last  the same modules on channels-last tensors
    portable               our supernet in plain PyTorch
    native                 our supernet on the native operators (CPU only)

An evaluation is one forward and one full backward pass. Steps of the literal supernets are the published scripts' (full
`backward()` everywhere); ours run through `nas_moreau.bilevel`, as in a search. Variants take turns, round by round, so
that a change of the machine's speed meets all of them alike; medians are reported. Memory is read in a process of its
own for every variant.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from nas_moreau.diagnostics.bench_cases import (
    DEFAULT_METHODS,
    SUPERNETS,
    build_run,
    goes_with,
    known_methods,
    parse_size,
)
from nas_moreau.diagnostics.bench_measures import (
    clock,
    evaluation_flops,
    gemm_rate,
    hardware,
    operator_calls,
    read_memory,
    saved_bytes,
)
from nas_moreau.errors import unknown
from nas_moreau.kernels.cell import available


def benchmark(
    size: str = "T",
    threads: int = 1,
    rounds: int = 5,
    space: str = "darts",
    device: str = "cpu",
    supernets: Sequence[str] = SUPERNETS,
    methods: Sequence[str] = DEFAULT_METHODS,
    memory: bool = True,
    imports: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Returns `rows` as the bench contract has them, with the hardware and the GEMM rate that the floor rests on.

    Args:
        size: `T`, `M`, `full` or `channels,layers,batch`.
        threads: CPU threads.
        rounds: How often every variant is timed (n of the medians).
        space: Search space of the supernets.
        device: Where to run; CUDA devices are timed with events and leave out the native supernet.
        supernets: Some of SUPERNETS.
        methods: Some of `known_methods`; each runs on the supernets that it goes with (`goes_with`).
        memory: Whether to read memory, too, in a process for every variant; without it the fields are None.
        imports: Modules of the user that those processes import.
        note: Called with a line on the progress.

    Raises:
        InputError: Unknown size, supernet or method.
    """
    parse_size(size)
    for what, given, known in (("supernet", supernets, SUPERNETS), ("method", methods, known_methods())):
        for name in given:
            if name not in known:
                raise unknown(f"{what} to benchmark", name, known)
    place = torch.device(device)
    if place.type != "cpu" or not available():
        supernets = tuple(name for name in supernets if name != "native")
    began, before = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cases = [(s, m) for s in supernets for m in methods if goes_with(s, m)]
        measured = cases if memory and place.type == "cpu" else []
        memories = {case: read_memory(space, size, *case, threads, imports) for case in measured}
        runs = {case: build_run(space, size, *case, place) for case in cases}
        calls = {s: operator_calls(space, size, s, place) for s in supernets if "evaluation" in methods}
        saved = {s: saved_bytes(space, size, s, place) for s in supernets}
        rate = gemm_rate(place)
        floor = 1e3 * evaluation_flops(space, size) / rate
        for run in runs.values():
            run()  # warm up
        times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
        for n in range(rounds):
            for case, run in runs.items():
                times[case].append(clock(run, place))
            note(f"round {n + 1} of {rounds}, {time.perf_counter() - began:.0f} s")
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

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
from collections.abc import Callable
from typing import Any

import torch

from nas_moreau.diagnostics.bench_cases import LITERAL_METHODS, OUR_METHODS, SUPERNETS, build_run, parse_size
from nas_moreau.diagnostics.bench_measures import (
    clock,
    evaluation_flops,
    gemm_rate,
    hardware,
    operator_calls,
    read_memory,
    saved_bytes,
)
from nas_moreau.errors import InputError
from nas_moreau.kernels.cell import available


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

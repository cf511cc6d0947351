"""Speed and memory of one evaluation and of one whole search step, for four supernets side by side.

    literal                the published description, operation by operation, NCHW
    literal-channels-last  the same modules on channels-last tensors
    portable               our supernet in plain PyTorch
    native                 our supernet on the native operators (CPU only)

An evaluation is one forward and one full backward pass. Steps of the literal supernets are the published scripts' (full
`backward()` everywhere); ours run through `nas_moreau.bilevel`, with the default configuration of a search. Variants
take turns, round by round, so that a change of the machine's speed affects all of them alike; medians are reported.
Memory is measured in a new process for every variant.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nas_moreau.config.sections import MAX_THREADS
from nas_moreau.diagnostics.bench_cases import (
    DEFAULT_METHODS,
    EVALUATION,
    SUPERNETS,
    Case,
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
from nas_moreau.errors import InputError, unknown
from nas_moreau.kernels.cell import available
from nas_moreau.training.device import pick_device

MAX_ROUNDS = 100_000


@dataclass(frozen=True)
class BenchmarkPlan:
    """What is timed.

    Attributes:
        size: `T`, `M`, `full` or `channels,layers,batch`.
        threads: CPU threads.
        rounds: How often every variant is timed (n of the medians).
        space: Search space of the supernets.
        device: Where to run; accelerators are timed with events and leave out the native supernet.
        supernets: Some of SUPERNETS.
        methods: Some of `known_methods`; each runs on the supernets that it goes with (`goes_with`).
        memory: Whether to measure memory, too (CPU only); without it the fields are None.
        imports: The user's modules, which the processes that measure memory import.
    """

    size: str = "T"
    threads: int = 1
    rounds: int = 5
    space: str = "darts"
    device: str = "cpu"
    supernets: Sequence[str] = SUPERNETS
    methods: Sequence[str] = DEFAULT_METHODS
    memory: bool = True
    imports: Sequence[str] = ()

    def cases(self) -> list[Case]:
        """Returns the variants.

        Raises:
            InputError: Unknown size, supernet, method or device, or a number that is out of range.
        """
        size, device = parse_size(self.size), pick_device(self.device)
        for name, number, most in (("threads", self.threads, MAX_THREADS), ("rounds", self.rounds, MAX_ROUNDS)):
            if not 1 <= number <= most:
                raise InputError(f"The number of {name} is {number}.", f"Choose one from 1 to {most}.")
        for what, given, known in (
            ("supernet to benchmark", self.supernets, SUPERNETS),
            ("method to benchmark", self.methods, known_methods()),
        ):
            for name in given:
                if name not in known:
                    raise unknown(what, name, known)
        native = device.type == "cpu" and available()
        supernets = [name for name in self.supernets if native or name != "native"]
        pairs = [(s, m) for s in supernets for m in self.methods if goes_with(s, m)]
        return [Case(supernet, method, size, self.space, device) for supernet, method in pairs]


@dataclass(frozen=True)
class BenchmarkRow:
    """One variant.

    Attributes:
        size, threads, supernet, method: What was timed.
        milliseconds: Median of `n` runs.
        saved_bytes: What a forward pass keeps for the backward pass.
        resident_bytes: Resident memory that two runs add at their peak; None if it was not measured.
        operator_calls: Operators of one evaluation on large tensors; None for methods.
        floor_milliseconds: Time of an evaluation's arithmetic at the rate of a matrix product.
    """

    size: str
    threads: int
    supernet: str
    method: str
    milliseconds: float
    n: int
    saved_bytes: int
    resident_bytes: int | None
    operator_calls: int | None
    floor_milliseconds: float


@dataclass(frozen=True)
class BenchmarkResult:
    """The table, and the machine that it was measured on."""

    rows: list[BenchmarkRow]
    hardware: str
    torch: str
    gemm_gflops: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return asdict(self)


def benchmark(plan: BenchmarkPlan, note: Callable[[str], None] = lambda text: None) -> BenchmarkResult:
    """Returns the times and the memory of all variants.

    Args:
        plan: What is timed.
        note: Called with a line on the progress.

    Raises:
        InputError: Unknown size, supernet or method.
    """
    cases, before = plan.cases(), torch.get_num_threads()
    device, size = torch.device(plan.device), parse_size(plan.size)
    torch.set_num_threads(plan.threads)
    try:
        measured = cases if plan.memory and device.type == "cpu" else []
        memories = dict[Case, int | None]()
        for number, case in enumerate(measured):
            note(f"memory of {case.supernet} {case.method} ({number + 1} of {len(measured)})")
            memories[case] = read_memory(case, plan.threads, plan.imports)
        note(f"building {len(cases)} variants, counting their tensors and operators")
        runs = {case: build_run(case) for case in cases}
        of_supernet = {case.supernet: case for case in cases}
        saved = {name: saved_bytes(case) for name, case in of_supernet.items()}
        counted = EVALUATION in plan.methods
        calls = {name: operator_calls(case) for name, case in of_supernet.items() if counted}
        rate = gemm_rate(device)
        floor = 1e3 * evaluation_flops(plan.space, size) / rate
        for number, (case, run) in enumerate(runs.items()):
            note(f"warming up {case.supernet} {case.method} ({number + 1} of {len(runs)})")
            run()
        times: dict[Case, list[float]] = {case: [] for case in cases}
        began = time.perf_counter()
        for number in range(plan.rounds):
            for case, run in runs.items():
                times[case].append(clock(run, device))
            passed = time.perf_counter() - began
            left = f", {passed / (number + 1) * (plan.rounds - number - 1):.0f} s left"
            note(f"round {number + 1} of {plan.rounds}{left}")
    finally:
        torch.set_num_threads(before)
    rows = [
        BenchmarkRow(
            size=plan.size,
            threads=plan.threads,
            supernet=case.supernet,
            method=case.method,
            milliseconds=statistics.median(values),
            n=len(values),
            saved_bytes=saved[case.supernet],
            resident_bytes=memories.get(case),
            operator_calls=calls[case.supernet] if case.method == EVALUATION else None,
            floor_milliseconds=floor,
        )
        for case, values in times.items()
    ]
    return BenchmarkResult(rows, hardware(device), torch.__version__, rate / 1e9)

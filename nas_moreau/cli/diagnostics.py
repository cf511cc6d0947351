"""Verbs that measure and check: plan, bench, check-hypergradient, doctor."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_moreau.cli.options import CONFIGURATION, configuration
from nas_moreau.cli.output import note, print_rows, print_table, print_text
from nas_moreau.cli.verbs import option, verb
from nas_moreau.errors import InputError
from nas_moreau.runs.heartbeat import heartbeat

if TYPE_CHECKING:
    from nas_moreau.diagnostics.plan import Plan


@verb(
    "plan",
    "measure a few steps and estimate memory and time of a run",
    examples=["plan --preset smoke", "plan --preset cifar10 --data cifar10 --memory 11GB --hours 6 --json"],
    options=[
        option("--memory", metavar="AMOUNT", help="available memory, e.g. 11GB (default: this machine's)"),
        option("--hours", type=float, help="time budget in hours, search and retraining"),
        option("--genotype", metavar="GENOTYPE", help="the cell to retrain (default: a random one of the space)"),
        *CONFIGURATION,
    ],
)
def plan(args: argparse.Namespace) -> dict[str, Any]:
    """Measures a few steps and prints the memory and the time of a run."""
    with heartbeat("plan: loading torch"):
        from nas_moreau.architecture import load_genotype
        from nas_moreau.diagnostics.plan import parse_memory
        from nas_moreau.diagnostics.plan import plan as estimate

    memory = None if args.memory is None else parse_memory(args.memory)
    if args.hours is not None and not args.hours > 0:
        raise InputError(f"--hours is {args.hours:g}.", "Give a positive number of hours.")
    genotype = None if args.genotype is None else load_genotype(args.genotype)
    with heartbeat("plan: reading the configuration"):
        found = estimate(configuration(args), genotype, memory, args.hours, args.imports, note)
    if not args.json:
        costs = {"search": found.search, "retrain": found.retrain}
        rows = [("stage", "memory", "time", "with")]
        rows += [(name, _memory(cost.memory_bytes), _time(cost.hours), "") for name, cost in costs.items()]
        for proposal in found.proposals:
            change = " ".join(proposal.change) + ("" if proposal.fits else "  (too much)")
            rows.append((proposal.stage, _memory(proposal.memory_bytes), _time(proposal.hours), change))
        print_rows(rows)
        print_text(_verdict(found, args.hours))
        if genotype is None:
            note("The retraining is that of a random cell of the space; --genotype chooses another one.")
    return found.to_dict()


def _verdict(found: Plan, hours: float | None) -> str:
    """Returns in a sentence what the run takes, whether that fits, and what does."""
    costs = (found.search, found.retrain)
    total = sum(cost.hours or 0.0 for cost in costs)
    if any(cost.memory_bytes is None for cost in costs):
        taken, fits = "The run needs more memory than is available", False
    else:
        fits = hours is None or total <= hours
        taken = f"The run takes about {_time(total)} here" + ("" if hours is None else f", of {hours:g} h")
    if fits and not found.proposals:
        return f"{taken}{': it fits.' if hours is not None else '.'}"
    fitting = next((" ".join(proposal.change) for proposal in found.proposals if proposal.fits), None)
    cure = f"{fitting} would" if fitting else "none of the proposals would; take a smaller preset (list presets)"
    return f"{taken}: it does not fit; {cure}."


def _memory(count: int | None) -> str:
    return "more than available" if count is None else f"{count / 1e9:.2f} GB"


def _time(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


@verb(
    "bench",
    "time the search step, supernets and methods side by side",
    examples=["bench", "bench --size M --threads 2 --json"],
    options=[
        option("--size", default="T", help="T, M, full, or channels,layers,batch (default T)"),
        option("--methods", metavar="A,B", help="evaluation and methods (list methods); default: DARTS and moreau"),
        option("--threads", type=int, default=1, help="CPU threads (default 1)"),
        option("--rounds", type=int, default=5, help="timings of every variant (default 5)"),
        option("--space", default="darts", help="search space (default darts)"),
        option("--device", default="cpu", help="device of torch (default cpu)"),
    ],
)
def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Times the search step and prints the table."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which counts operators, prints lines otherwise
    with heartbeat("bench: loading torch"):
        from nas_moreau.diagnostics.bench import BenchmarkPlan, benchmark

        chosen = {"methods": args.methods.split(",")} if args.methods else {}
        plan = BenchmarkPlan(
            args.size, args.threads, args.rounds, args.space, args.device, imports=args.imports, **chosen
        )
        result = benchmark(plan, note).to_dict()
    if not args.json:
        print(f"{result['hardware']}, torch {result['torch']}, medians of n interleaved runs")
        kept = ("supernet", "method", "milliseconds", "n", "saved_bytes", "resident_bytes", "operator_calls")
        print_rows([kept, *([_cell(row[name]) for name in kept] for row in result["rows"])])
    return result


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


@verb(
    "check-hypergradient",
    "compare each method's architecture gradient with the exact hypergradient on a tiny supernet",
    examples=[
        "check-hypergradient",
        "check-hypergradient --method moreau,darts2 --json",
        "check-hypergradient --import mine.py --method my_method",
    ],
    options=[
        option("--method", metavar="NAMES", help="methods, separated by commas (default: all)"),
        option("--seed", type=int, default=0, help="seed of the supernet and its images (default 0)"),
    ],
)
def check_hypergradient(args: argparse.Namespace) -> dict[str, Any]:
    """Prints how far each method's architecture gradient is from the exact hypergradient."""
    names = args.method and [name.strip() for name in args.method.split(",")]
    with heartbeat("check-hypergradient: loading torch"):
        from nas_moreau.diagnostics.check_hypergradient import check_hypergradient as check

        result = check(names or None, args.seed, note=note).to_dict()
    if not args.json:
        _print_directions(result)
    return result


def _print_directions(result: dict[str, Any]) -> None:
    """Prints the table of the rows, and the verdict of each check."""
    formats = {
        "c": "{:.3g}",
        "cosine": "{:.4f}",
        "relative_error": "{:.2e}",
        "norm": "{:.2e}",
        "seconds": "{:.3f}",
        "memory_bytes": "{:,}",
    }
    rows = [
        (
            row["part"],
            row["method"],
            *("-" if row[key] is None else form.format(row[key]) for key, form in formats.items()),
            row["verdict"],
        )
        for row in result["rows"]
    ]
    title = f"{result['alphas']} alphas, {result['weights']} weights, seed {result['seed']}, float64"
    columns = ("part", "method", "c", "cosine", "relative error", "norm", "seconds", "kept bytes", "verdict")
    print_table(columns, rows, title, left=("method", "verdict"))
    for check in result["checks"]:
        print_text(check["verdict"])


@verb(
    "doctor",
    "check the installation and suggest fixes",
    examples=["doctor", "doctor --json"],
    options=[
        option("--data-dir", metavar="DIR", default="data", help="folder of downloaded data sets (default data)"),
        option("--output", metavar="DIR", default="checkpoints", help="where runs are written (default checkpoints)"),
    ],
)
def doctor(args: argparse.Namespace) -> dict[str, Any]:
    """Checks this machine and prints what was found."""
    with heartbeat("checking the installation"):
        from nas_moreau.diagnostics.doctor import examine

        result = examine(Path(args.output), Path(args.data_dir))
    if not args.json:
        print_rows([(row["state"], row["what"], row["found"]) for row in result["findings"]])
        cures = [f"{row['what']}: {row['cure']}" for row in result["findings"] if row["cure"]]
        print_text("\n".join(["", "what to do:", *(f"  {cure}" for cure in cures)] if cures else []))
        print("usable" if result["usable"] else "not usable as it is")
    return result

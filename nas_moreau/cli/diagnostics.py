"""What the verbs do that measure methods: solve, bench, check-hypergradient."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from nas_moreau.cli.options import new_folder, print_rows, say
from nas_moreau.errors import InputError, did_you_mean


def solve(args: argparse.Namespace) -> dict[str, Any]:
    """Solves a bilevel problem and prints the outcome."""
    from nas_moreau.problems import small_tasks as small
    from nas_moreau.problems.network_tasks import TASKS

    if args.task in TASKS:
        return _solve_networks(args)
    if args.task not in small.TASKS:
        raise InputError(f"There is no task '{args.task}'.", did_you_mean(args.task, [*small.TASKS, *TASKS]))
    for name in ("data", "data_dir", "device", "corrupt", "ways", "shots", "output"):
        if getattr(args, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is no option of {args.task}.", f"It is for {', '.join(TASKS)}."
            )
    if args.resume or args.download:
        raise InputError(f"{args.task} has neither data nor a run folder.", "Leave --resume and --download out.")
    method, seed = args.method or "moreau", args.seed or 0
    result = small.solve_task(args.task, args.n, method, args.steps, seed, args.debias, not args.no_polish)
    if not args.json:
        short = {k: v for k, v in result.items() if k not in ("x", "y")}
        print_rows([(name, str(value)) for name, value in short.items()])
    return result


def _solve_networks(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.problems.network_tasks import Wish, solve_networks

    if args.debias or args.no_polish:
        raise InputError(f"{args.task} has neither bias removal nor polish.", "Leave --debias and --no-polish out.")
    wish = Wish(
        args.data, args.data_dir, args.download, args.method, args.steps, args.seed, args.device, args.n, args.corrupt,
        args.ways, args.shots,
    )  # fmt: skip
    output = new_folder(args, f"solve-{args.task}-seed{args.seed or 0}")
    say(f"run folder: {output}   (watch it: nas-moreau watch {shlex.quote(str(output))})")
    result = solve_networks(args.task, wish, output, args.resume)
    if not args.json:
        spread = f" +- {100 * result['interval']:.2f}" if "interval" in result else ""
        rows = [
            ("method", f"{result['method']}, {result['steps']} steps, {result['evaluations']} gradient evaluations"),
            ("test accuracy", f"{100 * result['accuracy']:.2f}{spread} %"),
            ("time", f"{result['seconds']:.1f} s, at most {result['peak_memory_bytes'] / 2**20:.0f} MiB"),
        ]
        if args.task == "hyper-cleaning":
            rows.append(("flagged as wrong", f"{100 * result['flagged']:.2f} % of {result['n']} samples"))
            if result["f1"] is not None:
                words = f"{100 * result['f1']:.2f} %  (precision {100 * result['precision']:.2f} %, "
                rows.append(("F1 of finding them", f"{words}recall {100 * result['recall']:.2f} %)"))
            rows += [(name.replace("_", " "), result[name]) for name in ("suspects", "cleaned", "contact_sheet")]
        print_rows(rows)
    return result


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Times the search step and prints the table."""
    from nas_moreau.diagnostics.bench import benchmark

    result = benchmark(args.size, args.threads, args.rounds, space=args.space, device=args.device, note=say)
    if not args.json:
        print(f"{result['hardware']}, torch {result['torch']}, medians of n interleaved runs")
        kept = ("supernet", "method", "milliseconds", "n", "saved_bytes", "resident_bytes", "operator_calls")
        cells = [[_cell(row[name]) for name in kept] for row in result["rows"]]
        print_rows([kept, *cells])
    return result


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


def check_hypergradient(args: argparse.Namespace) -> dict[str, Any]:
    """Prints how far each method's direction is from the exact hypergradient."""
    from nas_moreau.diagnostics.check_hypergradient import check_hypergradient as check

    names = args.method and [name.strip() for name in args.method.split(",")]
    result = check(names or None, args.seed, note=say)
    if not args.json:
        _print_directions(result)
    return result


def _print_directions(result: dict[str, Any]) -> None:
    """Prints the table of the rows, and what each check says."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['alphas']} alphas, {result['weights']} weights, seed {result['seed']}, float64")
    for name in ("part", "method", "c", "cosine", "relative error", "norm", "seconds", "kept bytes", "in words"):
        table.add_column(name, justify="left" if name in ("part", "method", "in words") else "right")
    formats = (
        ("c", "{:.3g}"), ("cosine", "{:.4f}"), ("relative_error", "{:.2e}"), ("norm", "{:.2e}"), ("seconds", "{:.3f}"),
        ("memory_bytes", "{:,}"),
    )  # fmt: skip
    for row in result["rows"]:
        numbers = ["-" if row[key] is None else form.format(row[key]) for key, form in formats]
        table.add_row(row["part"], row["method"], *numbers, row["verdict"])
    Console(width=None if Console().is_terminal else 160).print(table)
    for check in result["checks"]:
        print(check["verdict"])

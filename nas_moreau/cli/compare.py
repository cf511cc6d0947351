"""The verb compare: several methods and seeds under one protocol."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nas_moreau.cli.options import CONFIGURATION, RUN_FOLDER, begin, working_in
from nas_moreau.cli.output import print_json, print_next, print_table, print_text
from nas_moreau.cli.verbs import option, verb
from nas_moreau.errors import InputError
from nas_moreau.runs.heartbeat import heartbeat


@verb(
    "compare",
    "several methods and seeds under one protocol",
    examples=[
        "compare --preset nas_bench_201_cpu --data npz:cifar10.npz --methods moreau+beta,darts1,random --seeds 0-4 "
        "--table nb201.csv.gz",
        "compare --preset darts_cpu --data npz:cifar10.npz --methods moreau,random:0-7 --seeds 0,1,2",
        "compare --preset darts_cpu --data npz:cifar10.npz --methods moreau,darts1,random --seeds 0-19 --no-retrain",
        "compare --preset darts_cpu --data npz:cifar10.npz --methods moreau,darts1 darts1:search.alphas.lr=0.003",
    ],
    options=[
        *CONFIGURATION,
        *RUN_FOLDER,
        option(
            "--methods",
            required=True,
            metavar="A,B",
            help="methods (list methods); seeds of one: random:0-7; settings of one: darts1:search.alphas.lr=0.003",
        ),
        option("--seeds", default="0", metavar="0,1", help="seeds of the others: numbers and ranges (default 0)"),
        option("--table", metavar="FILE", help="NAS-Bench-201 as CSV (.gz): column arch, columns of numbers"),
        option("--column", help="column of --table to compare by (default c10_test_200ep, or the only one)"),
        option(
            "--retrain",
            action=argparse.BooleanOptionalAction,
            help="retrain found cells (default: only without a table); with neither, predicted percentiles of DARTS "
            "cells are compared",
        ),
        option("--rank", type=int, metavar="N", help="how each supernet ranks N of 729 cells (729: all of them)"),
        option("--baseline", metavar="METHOD", help="p-values are against it (default random, or the first one)"),
        option("--jobs", type=int, default=1, metavar="N", help="parallel searches (default 1)"),
    ],
    distributed=True,
)
def compare(args: argparse.Namespace) -> dict[str, Any] | None:
    """Compares methods and prints the tables."""
    with heartbeat("compare: loading torch"):
        from nas_moreau.compare import protocol
        from nas_moreau.compare.conditions import split_settings
        from nas_moreau.search.methods import parse_methods

    args.overrides, settings = split_settings(args.overrides)
    for override in args.overrides:
        if override.partition("=")[0].strip() in ("seed", "search.method"):
            raise InputError(f"'{override}' would apply to every row.", "Use --seeds and --methods.")
    if args.seed is not None:
        raise InputError("A comparison has several seeds.", "Use --seeds.")
    methods = parse_methods(args.methods, args.seeds)
    config, output = begin(args, "compare")
    if args.dry_run:
        print_json(protocol.plan_comparison(methods, output))
        return None
    with working_in(output):
        result = protocol.compare(
            config,
            methods,
            output,
            args.resume,
            protocol=protocol.Protocol(args.table, args.column, args.retrain, args.rank, args.baseline, settings),
            jobs=args.jobs,
            imports=args.imports,
        ).to_dict()
    if not args.json:
        _print_comparison(result, output)
    return result


def _print_comparison(result: dict[str, Any], output: Path) -> None:
    from nas_moreau.architecture.spaces.percentile import limit
    from nas_moreau.report.comparison import (
        FIGURE_NAMES,
        PERCENTILE,
        conditions_table,
        next_step,
        outcome,
        percentile_table,
        ranking_table,
        summary_table,
    )

    shown = [(title, summary_table(result, name)) for name, title in FIGURE_NAMES.items()]
    shown.append((PERCENTILE, percentile_table(result)))
    if result["ranking"]:
        shown.append((f"ranking of {result['ranking']['cells']} cells", ranking_table(result)))
    for title, (columns, rows) in shown:
        if rows:
            print_table(columns, rows, f"{title} ({result['column']})" if title.endswith("table") else title)
            if title == PERCENTILE:
                print_text(limit())
    print_table(*conditions_table(result), "how each method ran")
    print_text(outcome(result))
    print(f"page: {result['report']}")
    if (todo := next_step(result, output)) is not None:
        print_next(*todo)

"""What the verb `compare` does: read its words, call the stage, print the tables."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from nas_moreau.cli.options import begin, say
from nas_moreau.errors import InputError


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Compares methods and prints the tables."""
    for word in args.overrides:
        if word.partition("=")[0].strip() in ("seed", "search.method"):
            raise InputError(f"'{word}' would hold for every row.", "Use --seeds and --methods.")
    if args.seed is not None:
        raise InputError("A comparison has several seeds.", "Use --seeds.")
    from nas_moreau.compare import protocol as stage
    from nas_moreau.search.methods import parse_methods

    methods = parse_methods(args.methods, args.seeds)
    config, output = begin(args, "compare")
    if args.dry_run:
        return stage.plan_comparison(methods, output)
    say(f"comparison: {output}")
    result = stage.compare(
        config, methods, output, args.resume, table=args.table, column=args.column, retrain=args.retrain,
        rank=args.rank, baseline=args.baseline, jobs=args.jobs, imports=args.imports,
    )  # fmt: skip
    if not args.json:
        _print_comparison(result)
    return result


def _print_comparison(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from nas_moreau.report.comparison import FIGURE_NAMES, ranking_table, summary_table

    # a terminal's own width; a file gets whole lines
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 200)
    shown = [(title, summary_table(result, name)) for name, title in FIGURE_NAMES.items()]
    if result["ranking"]:
        shown.append((f"ranking of {result['ranking']['cells']} cells", ranking_table(result)))
    for title, (head, rows) in shown:
        if rows:
            table = Table(title=f"{title} ({result['column']})" if title.endswith("table") else title)
            for i, name in enumerate(head):
                table.add_column(name, justify="right" if i else "left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    print(f"page: {result['report']}")

"""The whole comparison of search methods: NAS-Bench-201 by its table, the DARTS spaces by retraining; prints Markdown.

    python scripts/benchmark_comparison.py --data npz:cifar10.npz --table nb201.csv.gz > comparison.md
    python scripts/benchmark_comparison.py ... --only table,darts --jobs 2
    python scripts/benchmark_comparison.py ... search.steps_per_epoch=2 retrain.steps_per_epoch=2    # a trial

Every part is a `nas-moreau compare`, resumable: run the same command again after an interruption. The rows that the
text quotes are copied to --results. One thread per search, on the CPU; it takes hours (the text has the number).
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nas_moreau.architecture import load_space
from nas_moreau.report.comparison import FIGURE_NAMES, PERCENTILE, percentile_table, ranking_table, summary_table
from nas_moreau.runs.plain_files import read_json

COLUMN = "c10_test_200ep"
METHODS = "moreau+beta,darts1+beta,darts1,moreau,darts2,rsws,gdas,drnas,random"
DARTS_METHODS = "moreau+beta,darts1,random:0-7"
SINGLE = ["search.epochs=5", "search.steps_per_epoch=120"]


class Part(NamedTuple):
    """One comparison: its name, heading, question, and the arguments of `nas-moreau compare`."""

    name: str
    heading: str
    text: str
    arguments: list[str]


def parts(spaces: Path, selection: bool) -> list[Part]:
    """Returns the protocol. `spaces`: where the space with its operations in another order is put."""
    table = ["--preset", "nas_bench_201_cpu", "--column", COLUMN]
    rule = ["derive.rule=selection"] if selection else []
    one = [*table, "--methods", "moreau+beta", "--seeds", "0", *rule]
    found = [
        Part(
            "table",
            "NAS-Bench-201",
            "Seeds 0-4, every method with the same splits, batches and initial weights.",
            [*table, "--methods", METHODS, "--seeds", "0-4", "--baseline", "darts1", "--rank", "150", *rule],
        ),
        Part(
            "long",
            "Five times the steps",
            "One seed each: does the search still end in a good cell?",
            [*table, "--methods", "moreau+beta,darts1", "--seeds", "0", *rule, "search.steps_per_epoch=500"],
        ),
        Part("scale-1e-2", "Initial alphas ten times as large", "One seed.", [*one, "search.alphas.init_scale=0.01"]),
        Part(
            "scale-1e-1", "Initial alphas a hundred times as large", "One seed.", [*one, "search.alphas.init_scale=0.1"]
        ),
        Part(
            "adam",
            "Alphas by Adam, batches of 32",
            "One seed.",
            [*one, "search.alphas.rule=adam", "search.batch_size=32"],
        ),
        Part("order", "Operations in another order", "One seed.", [*one, f"space={shuffled_space(spaces)}"]),
    ]
    for space, heading in (("darts", "DARTS space, scaled"), *((f"robust_darts_s{n}", f"S{n}") for n in (2, 3, 4))):
        text = "Found cells against eight random ones, all retrained by one short recipe."
        arguments = ["--preset", "darts_cpu", "--methods", DARTS_METHODS, "--seeds", "0-2", f"space={space}", *SINGLE]
        found.append(Part(space, heading, text, arguments))
    return found


def shuffled_space(folder: Path) -> Path:
    """Writes the NAS-Bench-201 space with its operations turned round, and returns the file."""
    space = load_space("nas_bench_201")
    path = folder / "nas_bench_201_reversed.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(
        yaml.safe_dump(
            {
                "name": "nas_bench_201_reversed",
                "skeleton": space.skeleton.name,
                "nodes": space.nodes,
                "operations": list(reversed(space.operations)),
                "edges": "all",
                "concat": list(space.concat),
                "derivation": {"rule": "all_edges"},
            }
        ),
        encoding="utf-8",
    )
    return path


def run(part: Part, args: argparse.Namespace) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Runs what is not done of a part; returns its command, result and environment."""
    folder = Path(args.output) / part.name
    arguments = [*part.arguments, "--data", args.data]
    if "--column" in part.arguments:
        arguments += ["--table", args.table]
    command = ["compare", *arguments, "--output", str(folder), "--jobs", str(args.jobs), *args.overrides]
    code = subprocess.run(
        [sys.executable, "-m", "nas_moreau", *command, "--resume"], stdout=subprocess.DEVNULL
    ).returncode
    if code and not (code == 1 and (folder / "result.json").exists()):  # a run that failed is part of the report
        sys.exit(code)
    Path(args.results).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "rows.csv", Path(args.results) / f"{part.name}.csv")
    shown = shlex.join(
        [
            "nas-moreau",
            "compare",
            *arguments[: arguments.index("--data")],
            "--data",
            "npz:cifar10.npz",
            *(["--table", "nb201.csv.gz"] if "--column" in arguments else []),
            *args.overrides,
        ]
    )
    shown = shown.replace(f"{folder.parent}/", "")  # the file of a space
    return shown, read_json(folder / "result.json") or {}, read_json(folder / "environment.json") or {}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Returns a table."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def section(part: Part, shown: str, result: dict[str, Any]) -> str:
    """Returns the text of one part."""
    text = [f"### {part.heading}", part.text, f"    {shown}"]
    for name, title in FIGURE_NAMES.items():
        head, rows = summary_table(result, name)
        if rows and any(row["figure"] == name for row in result["summary"]):
            text += [f"{title[:1].upper()}{title[1:]}" + (f" (`{result['column']}`):" if name == "table" else ":")]
            text += [markdown(head, rows)]
    head, rows = percentile_table(result)
    if rows:
        text += [
            f"{PERCENTILE[:1].upper()}{PERCENTILE[1:]} ([what it is worth](percentiles.md)):",
            markdown(head, rows),
        ]
    if result["ranking"]:
        text += [f"Kendall's tau of one-hot evaluations and the table, {result['ranking']['cells']} cells:"]
        text += [markdown(*ranking_table(result))]
    if result["failed"]:
        text += [f"Failed: {'; '.join(result['failed'])}."]
    return "\n\n".join(text)


def cost(results: dict[str, dict[str, Any]]) -> tuple[int, float]:
    """Returns the number of searches and the hours of searches and retrainings, each counted once."""
    searches: dict[tuple[str, str], float] = {}
    retrained: dict[tuple[str, str, str], float] = {}
    for part, result in results.items():
        for row in result["rows"]:
            key = (part, row["search"])
            searches[key] = max(searches.get(key, 0.0), row["search_seconds"])
            retrained[(*key, row["digest"])] = row["retrain_seconds"] or 0.0
    real = [seconds for seconds in searches.values() if seconds]
    return len(real), (sum(real) + sum(retrained.values())) / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as `nas-moreau --data` takes it")
    parser.add_argument("--table", required=True, help="NAS-Bench-201 as CSV")
    parser.add_argument("--output", default="checkpoints/comparison")
    parser.add_argument("--results", default="checkpoints/released/results")
    parser.add_argument("--only", help="names of parts, with commas between")
    parser.add_argument("--no-selection", action="store_true", help="without the selection stage")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--tuning", default="", help="a sentence on what the tuning cost")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    protocol = parts(Path(args.output), not args.no_selection)
    chosen = args.only.split(",") if args.only else [part.name for part in protocol]
    unknown = set(chosen) - {part.name for part in protocol}
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; known are {', '.join(part.name for part in protocol)}")
    sections, results, environment = [], {}, {}
    for part in protocol:
        if part.name in chosen:
            print(f"--- {part.name}", file=sys.stderr, flush=True)
            shown, result, environment = run(part, args)
            results[part.name] = result
            sections.append(section(part, shown, result))
    print("\n\n".join([intro(results, environment, args), *sections, NOT_SHOWN]))


def intro(results: dict[str, dict[str, Any]], environment: dict[str, Any], args: argparse.Namespace) -> str:
    """Returns what was tuned, how much it all cost, on what."""
    searches, hours = cost(results)
    torch = environment.get("packages", {}).get("torch", "?")
    changed = f" **Changed for this run: {shlex.join(args.overrides)}.**" if args.overrides else ""
    return (
        "## Comparison\n\n"
        "Made by `python scripts/benchmark_comparison.py --data npz:cifar10.npz --table nb201.csv.gz`; the rows are in "
        f"`checkpoints/released/results/`.{changed}\n\n"
        "**What was tuned:** the constants of the preset `nas_bench_201_cpu`, on seeds from 100 up and on the column "
        "`c10_25k_200ep` (networks trained on half of the training images, measured on the test images) alone. Nothing "
        f"was tuned on seeds 0-4 or on the column `{COLUMN}`. Nothing was tuned for `darts_cpu`, nor for the "
        f"rivals beyond what they share with the default. {args.tuning}\n\n"
        f"**What it cost:** {searches} searches and their retrainings, {hours:.1f} hours in all, one thread each, "
        f"{args.jobs} at a time, on {environment.get('processors', '?')} processors "
        f"({environment.get('processor', '?')}), torch {torch}, commit {str(environment.get('commit') or '?')[:7]}.\n\n"
        "RI: relative improvement over random cells, whose mean is exact where there is a table. p: two-sided "
        "permutation test of the difference of means; with 5 seeds against 5 it cannot be below 2/252 = 0.008, with 3 "
        "against 8 not below 1/165 = 0.006."
    )


NOT_SHOWN = (
    "### What is not shown\n\n"
    "* Networks of the published size: every search here has 8 channels and images of 16x16, and cells of the DARTS "
    "space are retrained for minutes. That a cell wins here does not say that it wins after 600 epochs.\n"
    "* Other data: all is CIFAR-10, a copy whose pixels went through JPEG; the table's networks saw the original.\n"
    "* Rivals at their own best constants: they share the trainer, the split and the step sizes of the default.\n"
    "* The table's column was measured on the test images, of which the searches see none."
)

if __name__ == "__main__":
    main()

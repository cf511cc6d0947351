"""What each verb of the command line does: read its words, call one function of the package, print what it returned.

Imports of what takes time (torch and all that needs it, pydantic) stand inside the verbs: help and lists answer at
once.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_moreau import distributed
from nas_moreau.cli.options import begin, print_rows, run_config, say, stage_folder
from nas_moreau.errors import InputError

if TYPE_CHECKING:
    from nas_moreau.config import Config


def _described(config: Config, output: Path) -> dict[str, Any]:
    from nas_moreau.cli.dry_run import describe

    return describe(config, output)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the main job and prints its outcome."""
    config, output = begin(args, "run")
    if args.dry_run:
        return _described(config, output)
    from nas_moreau import pipeline as main_job

    say(f"run folder: {output}   (watch it: nas-moreau watch {shlex.quote(str(output))})")
    result = main_job.run(config, output, args.resume)
    found, trained = result["search"], result["retrain"]
    if not args.json:
        held_out = found["held_out_accuracy"]
        rows = [
            ("cell", f"{found['digest']}  ({found['method']}, {found['steps']} steps, {found['wall_seconds']:.0f} s)"),
            ("verdict", found.get("verdict", "drawn at random")),
            ("supernet, held-out accuracy", "-" if held_out is None else f"{100 * held_out:.2f} %"),
            ("retrained, test accuracy", f"{100 * trained['test_accuracy']:.2f} %  ({trained['wall_seconds']:.0f} s)"),
            ("network", f"{trained['parameters']:,} parameters, {trained['macs']:,} multiply-adds"),
            ("report", result["report"]),
        ]
        print_rows(rows)
    return result


def search(args: argparse.Namespace) -> dict[str, Any]:
    """Searches and prints the cell and what comes next."""
    config, output = begin(args, "search")
    if args.dry_run:
        return _described(config, output)
    from nas_moreau.search import stage as stage

    say(f"run folder: {output}")
    result = stage.search(config, output, args.resume)
    if not args.json:
        held_out = result["held_out_accuracy"]
        print_rows([
            *([("cell by the space's rule", result["before_rule"]["digest"])] if "before_rule" in result else []),
            ("cell", result["digest"]),
            ("verdict", result.get("verdict", "drawn at random")),
            ("supernet, held-out accuracy", "-" if held_out is None else f"{100 * held_out:.2f} %"),
            ("genotype", str(output / "genotype.json")),
            ("next", f"nas-moreau retrain {shlex.quote(str(output))}"),
        ])  # fmt: skip
    return result


def derive(args: argparse.Namespace) -> dict[str, Any]:
    """Derives a cell from a search's alphas again and prints it."""
    from nas_moreau.search.derive import derive_ensemble, derive_run, write_derived

    folders = [stage_folder(run, "search") for run in args.runs]
    config = _derivation(args, run_config(folders[0]))
    if args.write and len(folders) > 1:
        raise InputError("A cell of several searches belongs to none of them.", "Leave --write out.")
    found = derive_run(folders[0], config) if len(folders) == 1 else derive_ensemble(folders, config)
    result = found.to_dict()
    if found.before is not None:
        say(f"before (the space's rule): {found.before.digest()}")
        say(f"after ({found.derived_by['rule']}): {result['digest']}")
    for line in _tried(found.derived_by):
        say(line)
    if args.write:
        write_derived(folders[0], found)
        say(f"written to {folders[0] / 'genotype.json'}")
    if not args.json:
        print(found.genotype.to_json())
    return result


def _derivation(args: argparse.Namespace, config: Config) -> Config:
    """Returns a run's configuration with the rule, the budget and the place of the data that the options name."""
    from nas_moreau.config import make_config

    changes: dict[str, Any] = {"derive": {}, "data": {}}
    for section, key, value in (
        ("derive", "rule", args.rule), ("derive", "max_parameters", args.max_parameters),
        ("derive", "max_macs", args.max_macs), ("data", "name", args.data), ("data", "directory", args.data_dir),
    ):  # fmt: skip
        if value is not None:
            changes[section][key] = value
    plain = config.to_dict()
    for section, values in changes.items():
        plain[section] |= values
    return make_config(plain | ({"device": args.device} if args.device else {}))


def _tried(record: dict[str, Any]) -> list[str]:
    """Returns what a person wants to know of a rule's record."""
    lines = []
    if "budget" in record:
        budget = record["budget"]
        how = "exactly" if budget["exact"] else "by a beam"
        lines.append(f"{budget['parameters']:,} parameters, {budget['macs']:,} multiply-adds; chosen {how}")
    if "candidates" in record:
        first, chosen = record["candidates"][0], record["chosen"]
        change = chosen["change"]
        where = f"{change['cell']} {change['edge'][0]}-{change['edge'][1]}" if change else ""
        what = f"{where}: {change['from']} -> {change['to']}, loss" if change else "nothing changed, loss"
        before, after = (
            "not finite" if row["loss"] is None else f"{row['loss']:.4f}" for row in (first, chosen)
        )  # fmt: skip
        lines.append(f"{what} {before} -> {after}, {len(record['candidates'])} cells measured")
    return lines + ([record["note"]] if "note" in record else [])


def retrain(args: argparse.Namespace) -> dict[str, Any]:
    """Retrains a cell and prints its accuracy."""
    from nas_moreau.architecture.spaces.zoo import load_genotype

    def load() -> tuple[Path | None, Any]:
        if os.path.exists(os.path.join(args.genotype, "status.json")):  # a genotype's text may be no possible path
            base = stage_folder(args.genotype, "search", "retrain")
            return base, load_genotype(str(base / "genotype.json"))
        return None, load_genotype(args.genotype)

    base, genotype = distributed.on_first(load)
    config, output = begin(args, "retrain", base)
    if args.dry_run:
        return _described(config, output)
    from nas_moreau.training import retrain as stage

    say(f"run folder: {output}")
    result = stage.retrain(config, genotype, output, args.resume)
    if not args.json:
        print_rows([
            ("cell", result["digest"]),
            ("test accuracy", f"{100 * result['test_accuracy']:.2f} %"),
            ("network", f"{result['parameters']:,} parameters, {result['macs']:,} multiply-adds"),
        ])  # fmt: skip
    return result


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Measures a run's network and prints the numbers."""
    from nas_moreau.evaluate_run import evaluate_run

    folder = stage_folder(args.run, "retrain", "search")
    config = run_config(folder)
    changes: dict[str, Any] = {"device": args.device or config.device}
    changes["data"] = config.data.model_copy(
        update={k: v for k, v in (("name", args.data), ("directory", args.data_dir)) if v is not None}
    )
    result = evaluate_run(folder, config.model_copy(update=changes))
    if not args.json:
        print_rows([(name, str(value)) for name, value in result.items()])
    return result


def report(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the reports and prints where they are."""
    from nas_moreau.report import write_comparison, write_report

    if args.output and len(args.runs) == 1:
        raise InputError("--output is for the comparison of several runs.", "A single run's report lies in its folder.")
    for run in args.runs:
        stage_folder(run, "run", "search", "retrain")
    paths = [str(write_report(Path(run))) for run in args.runs]
    result: dict[str, Any] = {"reports": paths}
    if len(args.runs) > 1:
        place = os.path.commonpath([os.path.abspath(os.path.dirname(os.path.abspath(run))) for run in args.runs])
        result["comparison"] = str(write_comparison(args.runs, args.output or Path(place) / "comparison.html"))
        paths = [*paths, result["comparison"]]
    if not args.json:
        print("\n".join(paths))
    return result


def watch(args: argparse.Namespace) -> None:
    """Serves TensorBoard until it is stopped."""
    from nas_moreau.cli.watching import serve

    for run in args.runs:
        stage_folder(run, "run", "search", "retrain", "solve")
    serve([Path(run) for run in args.runs], args.port, say)


def list_all(args: argparse.Namespace) -> Any:
    """Prints the names of one kind of thing."""
    from nas_moreau.cli import listing

    rows = listing.rows(args.what, Path(args.output))
    if not args.json:
        shown = [tuple(str(value) for value in row.values()) for row in rows] or [(f"no {args.what}",)]
        print_rows([tuple(rows[0]), *shown] if rows and args.what == "runs" else shown)
    return rows


def show(args: argparse.Namespace) -> Any:
    """Prints a preset, space, genotype or run."""
    from nas_moreau.cli import showing

    text, data = showing.show(args.name, args.why)
    if args.draw:
        showing.draw(args.name, Path(args.draw))
        say(f"drawn: {args.draw}")
    if not args.json:
        print(text.rstrip())
    return data


def check(args: argparse.Namespace) -> Any:
    """Says what a file is, if it is valid."""
    from nas_moreau.cli import showing

    kind = showing.check(args.file)
    if not args.json:
        print(f"{args.file} is a valid {kind}.")
    return {"file": args.file, "kind": kind}

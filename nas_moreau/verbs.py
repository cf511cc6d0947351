"""What each verb of the command line does: read its words, call one function of the package, print what it returned.

Imports of torch and of everything that needs it stand inside the verbs: help and lists answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas_moreau.config import Config, load_config, make_config
from nas_moreau.errors import InputError


def say(text: str = "") -> None:
    """Prints for a person, on standard error: standard output belongs to results."""
    print(text, file=sys.stderr, flush=True)


# --- configuration and output ----------------------------------------------------------------------------------------


def _configuration(args: argparse.Namespace, base: Path | None = None) -> Config:
    """Returns the configuration of the options; without --preset and --config that of the run `base`."""
    overrides = list(args.overrides)
    for key, value in (("data.name", args.data), ("data.directory", args.data_dir), ("device", args.device)):
        if value is not None:
            overrides.append(f"{key}={json.dumps(value)}")
    if args.seed is not None:
        overrides.append(f"seed={args.seed}")
    if args.download:
        overrides.append("data.download=true")
    if args.preset or args.config or base is None:
        return load_config(args.preset, args.config, overrides)
    return load_config(None, None, [f"{k}={json.dumps(v)}" for k, v in run_config(base).to_dict().items()] + overrides)


def run_config(folder: Path) -> Config:
    """Returns the configuration of a run folder."""
    from nas_moreau.runs.folder import read_config

    data = read_config(folder)
    data.pop("genotype", None)  # a retraining's, recorded so that it cannot be resumed with another cell
    return make_config(data, str(folder / "config.yaml"))


def stage_folder(run: str, *stages: str) -> Path:
    """Returns the folder of the first of `stages` that `run` is or holds."""
    folder = Path(run)
    try:
        own = json.loads((folder / "status.json").read_text(encoding="utf-8")).get("stage")
    except (OSError, ValueError, AttributeError):
        raise InputError(f"{run} is no run folder.", "Give a folder that `nas-moreau run` or a stage made.") from None
    for stage in stages:
        if own == stage:
            return folder
        if (folder / stage / "status.json").exists():
            return folder / stage
    raise InputError(f"{run} holds no {' or '.join(stages)}.", f"It is a folder of '{own}'; give another one.")


def _output(args: argparse.Namespace, verb: str, config: Config) -> Path:
    if args.output:
        return Path(args.output)
    if args.resume:
        raise InputError("--resume needs to know the run.", "Name it with --output.")
    stem = f"{verb}-{args.preset or Path(args.config or 'default').stem}-seed{config.seed}"
    number = 1
    while (path := Path("checkpoints") / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    args.output = str(path)
    return path


def _begin(args: argparse.Namespace, verb: str, base: Path | None = None) -> tuple[Config, Path]:
    """Returns configuration and output folder; a resumed run needs no configuration beside its own."""
    resumed = Path(args.output) if args.resume and args.output else None
    if resumed is not None and (resumed / "config.yaml").exists():
        base = resumed
    config = _configuration(args, base)
    return config, _output(args, verb, config)


def _dry_run(args: argparse.Namespace, config: Config, output: Path) -> dict[str, Any]:
    from nas_moreau.stages.dry_run import describe

    return describe(config, output)


# --- the verbs -------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> dict[str, Any]:
    config, output = _begin(args, "run")
    if args.dry_run:
        return _dry_run(args, config, output)
    from nas_moreau.stages import main_job

    say(f"run folder: {output}   (watch it: nas-moreau watch {shlex.quote(str(output))})")
    result = main_job.run(config, output, args.resume)
    found, trained = result["search"], result["retrain"]
    if not args.json:
        held_out = found["held_out_accuracy"]
        rows = [
            ("cell", f"{found['digest']}  ({found['method']}, {found['steps']} steps, {found['wall_seconds']:.0f} s)"),
            ("supernet, held-out accuracy", "-" if held_out is None else f"{100 * held_out:.2f} %"),
            ("retrained, test accuracy", f"{100 * trained['test_accuracy']:.2f} %  ({trained['wall_seconds']:.0f} s)"),
            ("network", f"{trained['parameters']:,} parameters, {trained['macs']:,} multiply-adds"),
            ("report", result["report"]),
        ]
        _print_rows(rows)
    return result


def search(args: argparse.Namespace) -> dict[str, Any]:
    config, output = _begin(args, "search")
    if args.dry_run:
        return _dry_run(args, config, output)
    from nas_moreau.stages import search as stage

    say(f"run folder: {output}")
    result = stage.search(config, output, args.resume)
    if not args.json:
        held_out = result["held_out_accuracy"]
        _print_rows([
            ("cell", result["digest"]),
            ("supernet, held-out accuracy", "-" if held_out is None else f"{100 * held_out:.2f} %"),
            ("genotype", str(output / "genotype.json")),
            ("next", f"nas-moreau retrain {shlex.quote(str(output))}"),
        ])  # fmt: skip
    return result


def derive(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.stages.derive import derive_ensemble, derive_run, write_derived

    folders = [stage_folder(run, "search") for run in args.runs]
    config = _derivation(args, run_config(folders[0]))
    if args.write and len(folders) > 1:
        raise InputError("A cell of several searches belongs to none of them.", "Leave --write out.")
    found = derive_run(folders[0], config) if len(folders) == 1 else derive_ensemble(folders, config)
    result = found.result()
    if found.argmax is not None:
        say(f"before (argmax): {found.argmax.digest()}")
        say(f"after ({result['selection']['rule']}): {result['digest']}")
    for line in _tried(result.get("selection", {})):
        say(line)
    if args.write:
        write_derived(folders[0], found)
        say(f"written to {folders[0] / 'genotype.json'}")
    if not args.json:
        print(found.genotype.to_json())
    return result if found.argmax is not None else result["genotype"]


def _derivation(args: argparse.Namespace, config: Config) -> Config:
    """Returns a run's configuration with the rule, the budget and the place of the data that the options name."""
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
        lines.append(f"{what} {first['loss']:.4f} -> {chosen['loss']:.4f}, {len(record['candidates'])} cells measured")
    return lines + ([record["note"]] if "note" in record else [])


def retrain(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.architecture.zoo import load_genotype

    base = None
    if os.path.exists(os.path.join(args.genotype, "status.json")):  # a genotype's text may be no possible path
        base = stage_folder(args.genotype, "search", "retrain")
        genotype = load_genotype(str(base / "genotype.json"))
    else:
        genotype = load_genotype(args.genotype)
    config, output = _begin(args, "retrain", base)
    if args.dry_run:
        return _dry_run(args, config, output)
    from nas_moreau.stages import retrain as stage

    say(f"run folder: {output}")
    result = stage.retrain(config, genotype, output, args.resume)
    if not args.json:
        _print_rows([
            ("cell", result["digest"]),
            ("test accuracy", f"{100 * result['test_accuracy']:.2f} %"),
            ("network", f"{result['parameters']:,} parameters, {result['macs']:,} multiply-adds"),
        ])  # fmt: skip
    return result


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.stages.evaluate_run import evaluate_run

    folder = stage_folder(args.run, "retrain", "search")
    config = run_config(folder)
    changes: dict[str, Any] = {"device": args.device or config.device}
    changes["data"] = config.data.model_copy(
        update={k: v for k, v in (("name", args.data), ("directory", args.data_dir)) if v is not None}
    )
    result = evaluate_run(folder, config.model_copy(update=changes))
    if not args.json:
        _print_rows([(name, str(value)) for name, value in result.items()])
    return result


def report(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.runs import write_report

    paths = []
    for run in args.runs:
        stage_folder(run, "run", "search", "retrain")
        paths.append(str(write_report(Path(run))))
        if not args.json:
            print(paths[-1])
    return {"reports": paths}


def watch(args: argparse.Namespace) -> None:
    from nas_moreau.runs.watching import serve

    for run in args.runs:
        stage_folder(run, "run", "search", "retrain")
    serve([Path(run) for run in args.runs], args.port, say)


def list_all(args: argparse.Namespace) -> Any:
    from nas_moreau import listing

    rows = listing.rows(args.what, Path(args.output))
    if not args.json:
        _print_rows([tuple(str(value) for value in row.values()) for row in rows] or [(f"no {args.what}",)])
    return rows


def show(args: argparse.Namespace) -> Any:
    from nas_moreau import listing

    text, data = listing.show(args.name)
    if not args.json:
        print(text.rstrip())
    return data


def check(args: argparse.Namespace) -> Any:
    from nas_moreau import listing

    kind = listing.check(args.file)
    if not args.json:
        print(f"{args.file} is a valid {kind}.")
    return {"file": args.file, "kind": kind}


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(len(row) for row in rows) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), *row[len(widths) :]]).rstrip())


def solve(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.stages.solve import solve_task

    result = solve_task(args.task, args.n, args.method, args.steps, args.seed, args.debias, not args.no_polish)
    if not args.json:
        short = {k: v for k, v in result.items() if k not in ("x", "y")}
        _print_rows([(name, str(value)) for name, value in short.items()])
    return result


def bench(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.stages.bench import benchmark

    result = benchmark(args.size, args.threads, args.rounds, space=args.space, device=args.device, note=say)
    if not args.json:
        print(f"{result['hardware']}, torch {result['torch']}, medians of n interleaved runs")
        kept = ("supernet", "method", "milliseconds", "n", "saved_bytes", "resident_bytes", "operator_calls")
        cells = [[_cell(row[name]) for name in kept] for row in result["rows"]]
        _print_rows([kept, *cells])
    return result


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)

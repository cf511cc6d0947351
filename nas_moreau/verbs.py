"""What each verb of the command line does: read its words, call one function of the package, print what it returned.

Imports of what takes time (torch and all that needs it, pydantic) stand inside the verbs: help and lists answer at
once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_moreau import distributed
from nas_moreau.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from nas_moreau.config import Config


def say(text: str = "") -> None:
    """Prints for a person, on standard error: standard output belongs to results."""
    print(text, file=sys.stderr, flush=True)


# --- configuration and output ----------------------------------------------------------------------------------------


def _configuration(args: argparse.Namespace, base: Path | None = None) -> Config:
    """Returns the configuration of the options; without --preset and --config that of the run `base`."""
    from nas_moreau.config import load_config

    overrides = list(args.overrides)
    for key, value in (("data.name", args.data), ("data.directory", args.data_dir), ("device", args.device)):
        if value is not None:
            overrides.append(f"{key}={json.dumps(value)}")
    if args.seed is not None:
        overrides.append(f"seed={args.seed}")
    if args.download:
        overrides.append("data.download=true")
    if getattr(args, "on_nonfinite", None):
        overrides.append(f"checkpoint.on_nonfinite={args.on_nonfinite}")
    if args.preset or args.config or base is None:
        return load_config(args.preset, args.config, overrides)
    return load_config(None, None, [f"{k}={json.dumps(v)}" for k, v in run_config(base).to_dict().items()] + overrides)


def run_config(folder: Path) -> Config:
    """Returns the configuration of a run folder."""
    from nas_moreau.config import make_config
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
    return _folder(args, f"{verb}-{args.preset or Path(args.config or 'default').stem}-seed{config.seed}")


def _folder(args: argparse.Namespace, stem: str) -> Path:
    """Returns --output, or else a new folder under checkpoints/."""
    if args.output:
        return Path(args.output)
    if args.resume:
        raise InputError("--resume needs to know the run.", "Name it with --output.")
    number = 1
    while (path := Path("checkpoints") / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    args.output = str(path)
    return path


def _begin(args: argparse.Namespace, verb: str, base: Path | None = None) -> tuple[Config, Path]:
    """Returns configuration and output folder; a resumed run needs no configuration beside its own."""

    def begin() -> tuple[Config, Path]:
        resumed = Path(args.output) if args.resume and args.output else None
        config = _configuration(args, resumed if resumed is not None and (resumed / "config.yaml").exists() else base)
        return config, _output(args, verb, config)

    config, output = distributed.on_first(begin)
    args.output = str(output)
    return config, output


def _dry_run(args: argparse.Namespace, config: Config, output: Path) -> dict[str, Any]:
    from nas_moreau.stages.dry_run import describe

    return describe(config, output)


# --- the verbs -------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the main job and prints its outcome."""
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
            ("looks", found.get("verdict", "drawn at random")),
            ("supernet, held-out accuracy", "-" if held_out is None else f"{100 * held_out:.2f} %"),
            ("retrained, test accuracy", f"{100 * trained['test_accuracy']:.2f} %  ({trained['wall_seconds']:.0f} s)"),
            ("network", f"{trained['parameters']:,} parameters, {trained['macs']:,} multiply-adds"),
            ("report", result["report"]),
        ]
        _print_rows(rows)
    return result


def search(args: argparse.Namespace) -> dict[str, Any]:
    """Searches and prints the cell and what comes next."""
    config, output = _begin(args, "search")
    if args.dry_run:
        return _dry_run(args, config, output)
    from nas_moreau.stages import search as stage

    say(f"run folder: {output}")
    result = stage.search(config, output, args.resume)
    if not args.json:
        held_out = result["held_out_accuracy"]
        _print_rows([
            *([("cell before selection", result["argmax_digest"])] if "argmax_digest" in result else []),
            ("cell", result["digest"]),
            ("looks", result.get("verdict", "drawn at random")),
            ("supernet, held-out accuracy", "-" if held_out is None else f"{100 * held_out:.2f} %"),
            ("genotype", str(output / "genotype.json")),
            ("next", f"nas-moreau retrain {shlex.quote(str(output))}"),
        ])  # fmt: skip
    return result


def derive(args: argparse.Namespace) -> dict[str, Any]:
    """Derives a cell from a search's alphas again and prints it."""
    from nas_moreau.stages.derive_run import derive_ensemble, derive_run, write_derived

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
    from nas_moreau.architecture.zoo import load_genotype

    def load() -> tuple[Path | None, Any]:
        if os.path.exists(os.path.join(args.genotype, "status.json")):  # a genotype's text may be no possible path
            base = stage_folder(args.genotype, "search", "retrain")
            return base, load_genotype(str(base / "genotype.json"))
        return None, load_genotype(args.genotype)

    base, genotype = distributed.on_first(load)
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
    """Measures a run's network and prints the numbers."""
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
    """Writes the reports and prints where they are."""
    from nas_moreau.runs import write_comparison, write_report

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
    from nas_moreau.runs.watching import serve

    for run in args.runs:
        stage_folder(run, "run", "search", "retrain", "solve")
    serve([Path(run) for run in args.runs], args.port, say)


def list_all(args: argparse.Namespace) -> Any:
    """Prints the names of one kind of thing."""
    from nas_moreau import listing

    rows = listing.rows(args.what, Path(args.output))
    if not args.json:
        shown = [tuple(str(value) for value in row.values()) for row in rows] or [(f"no {args.what}",)]
        _print_rows([tuple(rows[0]), *shown] if rows and args.what == "runs" else shown)
    return rows


def show(args: argparse.Namespace) -> Any:
    """Prints a preset, space, genotype or run."""
    from nas_moreau import showing

    text, data = showing.show(args.name, args.why)
    if args.draw:
        showing.draw(args.name, Path(args.draw))
        say(f"drawn: {args.draw}")
    if not args.json:
        print(text.rstrip())
    return data


def check(args: argparse.Namespace) -> Any:
    """Says what a file is, if it is valid."""
    from nas_moreau import showing

    kind = showing.check(args.file)
    if not args.json:
        print(f"{args.file} is a valid {kind}.")
    return {"file": args.file, "kind": kind}


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(len(row) for row in rows) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), *row[len(widths) :]]).rstrip())


def solve(args: argparse.Namespace) -> dict[str, Any]:
    """Solves a bilevel problem and prints the outcome."""
    from nas_moreau.stages import solve as small
    from nas_moreau.stages.solve_networks import TASKS

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
        _print_rows([(name, str(value)) for name, value in short.items()])
    return result


def _solve_networks(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.stages.solve_networks import Wish, solve_networks

    if args.debias or args.no_polish:
        raise InputError(f"{args.task} has neither bias removal nor polish.", "Leave --debias and --no-polish out.")
    wish = Wish(
        args.data, args.data_dir, args.download, args.method, args.steps, args.seed, args.device, args.n, args.corrupt,
        args.ways, args.shots,
    )  # fmt: skip
    output = _folder(args, f"solve-{args.task}-seed{args.seed or 0}")
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
        _print_rows(rows)
    return result


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Times the search step and prints the table."""
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

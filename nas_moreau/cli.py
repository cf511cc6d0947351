"""The command line. Each verb parses its words, calls one function of the package and prints what it returned.

Imports of torch and of everything that needs it stand inside the verbs: help and lists answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nas_moreau import __version__
from nas_moreau.config import Config, load_config, make_config, preset_names, preset_text
from nas_moreau.errors import InputError

DONE, FAILURE, USAGE, NON_FINITE = 0, 1, 2, 3


class Parser(argparse.ArgumentParser):
    """Reports a wrong word in one sentence with what is known, as every other error is reported."""

    def error(self, message: str) -> Any:
        raise InputError(f"{message[:1].upper()}{message[1:]}.", f"See {self.prog} --help.")


def say(text: str = "") -> None:
    """Prints for a person, on standard error: standard output belongs to results."""
    print(text, file=sys.stderr, flush=True)


# --- the parser ------------------------------------------------------------------------------------------------------


def _verb(verbs: Any, name: str, function: Callable, summary: str, examples: Sequence[str]) -> Parser:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[:1].upper() + summary[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  nas-moreau {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function)
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE",
        help="import your own module first (operations, methods): a name, or the path of a .py file",
    )  # fmt: skip
    return parser


def _with_configuration(parser: Parser, output: bool = True) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--preset", help=f"a ready-made configuration: {', '.join(preset_names())}")
    source.add_argument("--config", metavar="FILE", help="a configuration in YAML")
    parser.add_argument("--data", metavar="SPEC", help="shapes, cifar10, npz:FILE, folder:DIR, ... (see: list data)")
    parser.add_argument("--data-dir", metavar="DIR", help="where torchvision's data sets lie or are put")
    parser.add_argument("--download", action="store_true", help="allow torchvision to fetch the data set")
    parser.add_argument("--seed", type=int, help="seed of every random draw")
    parser.add_argument("--device", help="auto (default), cpu, or a device of torch")
    if output:
        parser.add_argument("--output", metavar="DIR", help="run folder (default: a new one under checkpoints/)")
        parser.add_argument("--resume", action="store_true", help="go on in --output where an earlier run stopped")
        parser.add_argument("--dry-run", action="store_true", help="say what would be done and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="single keys, e.g. search.epochs=10")


def build_parser() -> Parser:
    """Returns the parser of all verbs."""
    parser = Parser(
        prog="nas-moreau",
        description="Search, retrain and use network cells with a single-loop Moreau-envelope bilevel method.",
        epilog="start here:\n  nas-moreau run --preset smoke\n  nas-moreau run --preset cifar10 --data cifar10 --download",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nas-moreau {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    verb = _verb(verbs, "run", _run, "the main job: search, derive, retrain, evaluate, report", [
        "run --preset smoke", "run --preset cpu --data npz:cifar10.npz --output checkpoints/first",
        "run --preset cifar10 --data cifar10 --download", "run --output checkpoints/first --resume",
    ])  # fmt: skip
    _with_configuration(verb)

    verb = _verb(verbs, "search", _search, "search for cells", [
        "search --preset smoke", "search --preset cpu search.method=random seed=3",
    ])  # fmt: skip
    _with_configuration(verb)

    verb = _verb(
        verbs, "derive", _derive, "derive the genotype from a search's alphas again", ["derive checkpoints/first"]
    )
    verb.add_argument("run", metavar="RUN", help="a search folder, or the parent that `run` made")

    verb = _verb(verbs, "retrain", _retrain, "train the network of a genotype from scratch", [
        "retrain DARTS_V2 --preset cifar10 --data cifar10", "retrain checkpoints/first", "retrain cell.json --preset cpu",
    ])  # fmt: skip
    verb.add_argument(
        "genotype", metavar="GENOTYPE-OR-RUN", help="JSON file or text, printed genotype, zoo name, or run"
    )
    _with_configuration(verb)

    verb = _verb(verbs, "evaluate", _evaluate, "measure a run's network", ["evaluate checkpoints/first --json"])
    verb.add_argument("run", metavar="RUN", help="a retraining or search folder, or the parent that `run` made")
    verb.add_argument("--data", metavar="SPEC", help="other images than the run's")
    verb.add_argument("--data-dir", metavar="DIR", help="where torchvision's data sets lie")
    verb.add_argument("--device", help="auto (default), cpu, or a device of torch")

    verb = _verb(verbs, "report", _report, "write report.html of runs", ["report checkpoints/first"])
    verb.add_argument("runs", nargs="+", metavar="RUN")

    verb = _verb(verbs, "watch", _watch, "open TensorBoard on runs, on this machine only", ["watch checkpoints/first"])
    verb.add_argument("runs", nargs="+", metavar="RUN")
    verb.add_argument("--port", type=int, default=6006, help="port on 127.0.0.1 (default 6006; 0 finds a free one)")

    verb = _verb(verbs, "list", _list, "list what there is", ["list presets", "list cells", "list runs"])
    verb.add_argument("what", choices=["spaces", "operations", "presets", "methods", "cells", "data", "runs"])
    verb.add_argument("--output", metavar="DIR", default="checkpoints", help="where `list runs` looks")

    verb = _verb(
        verbs, "show", _show, "print a preset, space, genotype or run", ["show cifar10", "show darts", "show DARTS_V2"]
    )
    verb.add_argument("name", metavar="FILE-OR-NAME")

    verb = _verb(verbs, "check", _check, "check a configuration, space or genotype file", ["check my_space.yaml"])
    verb.add_argument("file", metavar="FILE")
    return parser


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


def _run(args: argparse.Namespace) -> dict[str, Any]:
    config, output = _begin(args, "run")
    if args.dry_run:
        return _dry_run(args, config, output)
    from nas_moreau.stages.main_job import run

    say(f"run folder: {output}   (watch it: nas-moreau watch {shlex.quote(str(output))})")
    result = run(config, output, args.resume)
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


def _search(args: argparse.Namespace) -> dict[str, Any]:
    config, output = _begin(args, "search")
    if args.dry_run:
        return _dry_run(args, config, output)
    from nas_moreau.stages.search import search

    say(f"run folder: {output}")
    result = search(config, output, args.resume)
    if not args.json:
        held_out = result["held_out_accuracy"]
        _print_rows([
            ("cell", result["digest"]),
            ("supernet, held-out accuracy", "-" if held_out is None else f"{100 * held_out:.2f} %"),
            ("genotype", str(output / "genotype.json")),
            ("next", f"nas-moreau retrain {shlex.quote(str(output))}"),
        ])  # fmt: skip
    return result


def _derive(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.stages.derive import derive_run

    genotype = derive_run(stage_folder(args.run, "search"))
    if not args.json:
        print(genotype.to_json())
    return json.loads(genotype.to_json())


def _retrain(args: argparse.Namespace) -> dict[str, Any]:
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
    from nas_moreau.stages.retrain import retrain

    say(f"run folder: {output}")
    result = retrain(config, genotype, output, args.resume)
    if not args.json:
        _print_rows([
            ("cell", result["digest"]),
            ("test accuracy", f"{100 * result['test_accuracy']:.2f} %"),
            ("network", f"{result['parameters']:,} parameters, {result['macs']:,} multiply-adds"),
        ])  # fmt: skip
    return result


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
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


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from nas_moreau.runs import write_report

    paths = []
    for run in args.runs:
        stage_folder(run, "run", "search", "retrain")
        paths.append(str(write_report(Path(run))))
        if not args.json:
            print(paths[-1])
    return {"reports": paths}


def _watch(args: argparse.Namespace) -> None:
    from nas_moreau.runs.watching import serve

    for run in args.runs:
        stage_folder(run, "run", "search", "retrain")
    serve([Path(run) for run in args.runs], args.port, say)


def _list(args: argparse.Namespace) -> Any:
    from nas_moreau import listing

    rows = listing.rows(args.what, Path(args.output))
    if not args.json:
        _print_rows([tuple(str(value) for value in row.values()) for row in rows] or [(f"no {args.what}",)])
    return rows


def _show(args: argparse.Namespace) -> Any:
    from nas_moreau import listing

    text, data = listing.show(args.name)
    if not args.json:
        print(text.rstrip())
    return data


def _check(args: argparse.Namespace) -> Any:
    from nas_moreau import listing

    kind = listing.check(args.file)
    if not args.json:
        print(f"{args.file} is a valid {kind}.")
    return {"file": args.file, "kind": kind}


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(len(row) for row in rows) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), *row[len(widths) :]]).rstrip())


# --- entry -----------------------------------------------------------------------------------------------------------


def _import(names: Sequence[str]) -> None:
    """Imports the user's modules; a path is imported as a module of its file's name."""
    import importlib
    import importlib.util

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        try:
            if name.endswith(".py"):
                spec = importlib.util.spec_from_file_location(Path(name).stem, name)
                module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
                sys.modules[spec.name] = module  # type: ignore[union-attr]
                spec.loader.exec_module(module)  # type: ignore[union-attr]
            else:
                importlib.import_module(name)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"--import {name} failed: {type(error).__name__}: {error}.", "Mend that module."
            ) from error


def _again(arguments: Sequence[str], output: str | None) -> str:
    """Returns the command that goes on with a stopped run."""
    words = ["nas-moreau", *arguments]
    if output and not any(word == "--output" or word.startswith("--output=") for word in arguments):
        words += ["--output", output]
    return shlex.join(words if "--resume" in arguments else [*words, "--resume"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failure, 2 usage, 3 not finite, 130/143 after a signal."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "-v" in arguments or "--verbose" in arguments
    args = argparse.Namespace(output=None)
    try:
        args = _parse(arguments)
        _import(args.imports)
        result = args.function(args)
        if args.json and result is not None:
            print(json.dumps(result, indent=2, sort_keys=True, allow_nan=False))
        elif result is not None and getattr(args, "dry_run", False):
            print(json.dumps(result, indent=2))
        return DONE
    except InputError as error:
        if verbose:
            traceback.print_exc()
        say(f"nas-moreau: {error}")
        return USAGE
    except KeyboardInterrupt:
        say("nas-moreau: stopped at once; what was saved before stands.")
        return 130
    except BrokenPipeError:
        return FAILURE
    except Exception as error:
        return _failed(error, arguments, args, verbose)


def _failed(error: Exception, arguments: Sequence[str], args: argparse.Namespace, verbose: bool) -> int:
    from nas_moreau.stages.stopping import Interrupted, NonFinite

    if verbose:
        traceback.print_exc()
    if isinstance(error, Interrupted):
        say(f"nas-moreau: {error}\nGo on with: {_again(arguments, args.output)}")
        return 128 + error.number
    if isinstance(error, NonFinite):
        say(f"nas-moreau: {error}")
        return NON_FINITE
    text = str(error).strip().splitlines()
    say(f"nas-moreau: {type(error).__name__}: {text[0] if text else ''} (-v shows where)")
    return FAILURE


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    # argparse gives up on key=value words that stand after options; they are the only words that may be left
    wrong = [word for word in rest if "=" not in word or word.startswith("-") or not hasattr(args, "overrides")]
    if wrong:
        raise InputError(f"'{wrong[0]}' is no option of {args.verb}.", f"See nas-moreau {args.verb} --help.")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


if __name__ == "__main__":
    sys.exit(main())

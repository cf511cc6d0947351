"""The command line: its words, its help, its exit codes. What the verbs do stands in `verbs` and its like."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nas_moreau import __version__, distributed
from nas_moreau.cli import compare as verbs_compare
from nas_moreau.cli import diagnostics as verbs_measuring
from nas_moreau.cli import export as verbs_using
from nas_moreau.cli import stages as verbs
from nas_moreau.cli.options import say
from nas_moreau.errors import InputError
from nas_moreau.plugins import import_modules
from nas_moreau.presets.by_name import preset_names
from nas_moreau.training.signals import Interrupted, NonFinite, StopRequest

DONE, FAILURE, USAGE, NON_FINITE = 0, 1, 2, 3
SHARED_VERBS = ("run", "search", "retrain", "compare")


class Parser(argparse.ArgumentParser):
    """Reports a wrong word in one sentence with what is known, as every other error is reported."""

    def error(self, message: str) -> Any:
        """Raises InputError in place of printing the usage."""
        raise InputError(f"{message[:1].upper()}{message[1:]}.", f"See {self.prog} --help.")


# --- the parser ------------------------------------------------------------------------------------------------------


def _verb(table: Any, name: str, function: Callable[..., Any], summary: str, examples: Sequence[str]) -> Parser:
    parser = table.add_parser(
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
    parser.add_argument("--data", metavar="SPEC", help="shapes, cifar10, npz:FILE, folder:DIR, ... (list sources)")
    parser.add_argument("--data-dir", metavar="DIR", help="where torchvision's data sets lie or are put")
    parser.add_argument("--download", action="store_true", help="allow torchvision to fetch the data set")
    parser.add_argument("--seed", type=int, help="seed of every random draw")
    parser.add_argument("--device", help="auto (default), cpu, or a device of torch")
    if output:
        parser.add_argument("--output", metavar="DIR", help="run folder (default: a new one under checkpoints/)")
        parser.add_argument("--resume", action="store_true", help="go on in --output where an earlier run stopped")
        parser.add_argument("--dry-run", action="store_true", help="say what would be done and stop")
        parser.add_argument(
            "--on-nonfinite", choices=["stop", "rollback"], metavar="stop|rollback",
            help="when a number is not finite: stop (default), or go back to the last checkpoint with halved steps",
        )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="single keys, e.g. search.epochs=10")


def build_parser() -> Parser:
    """Returns the parser of all verbs."""
    parser = Parser(
        prog="nas-moreau",
        description="Search, retrain and use network cells with a single-loop Moreau-envelope bilevel method.",
        epilog="start here:\n  nas-moreau run --preset smoke\n"
        "  nas-moreau run --preset cifar10 --data cifar10 --download",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nas-moreau {__version__}")
    table = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    verb = _verb(table, "run", verbs.run, "the main job: search, derive, retrain, evaluate, report", [
        "run --preset smoke", "run --preset cpu --data npz:cifar10.npz --output checkpoints/first",
        "run --preset cifar10 --data cifar10 --download", "run --output checkpoints/first --resume",
    ])  # fmt: skip
    _with_configuration(verb)

    verb = _verb(table, "search", verbs.search, "search for cells", [
        "search --preset smoke", "search --preset cpu search.method=random seed=3",
    ])  # fmt: skip
    _with_configuration(verb)

    verb = _verb(table, "derive", verbs.derive, "derive the genotype from a search's alphas again, by any rule", [
        "derive checkpoints/first", "derive checkpoints/first --rule selection --write",
        "derive checkpoints/first --max-parameters 3000000", "derive checkpoints/seed0 checkpoints/seed1",
    ])  # fmt: skip
    verb.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="a search folder, or the parent that `run` made; of several the mean of their softmax weights is taken",
    )  # fmt: skip
    verb.add_argument("--rule", help="derivation rule, see `list rules` (default: the run's)")
    verb.add_argument("--max-parameters", type=int, metavar="N", help="of the network that will be retrained")
    verb.add_argument("--max-macs", type=int, metavar="N", help="multiply-adds of that network, for one image")
    verb.add_argument("--write", action="store_true", help="put the cell into the finished search's folder")
    verb.add_argument("--data", metavar="SPEC", help="where the run's images lie now")
    verb.add_argument("--data-dir", metavar="DIR", help="where torchvision's data sets lie")
    verb.add_argument("--device", help="auto (default), cpu, or a device of torch")

    verb = _verb(table, "retrain", verbs.retrain, "train the network of a genotype from scratch", [
        "retrain DARTS_V2 --preset cifar10 --data cifar10", "retrain checkpoints/first",
        "retrain cell.json --preset cpu",
    ])  # fmt: skip
    verb.add_argument(
        "genotype",
        metavar="GENOTYPE-OR-RUN",
        help="JSON file or text, printed genotype, name of a cell (see: list cells), or run",
    )
    _with_configuration(verb)

    verb = _verb(table, "evaluate", verbs.evaluate, "measure a run's network", ["evaluate checkpoints/first --json"])
    verb.add_argument("run", metavar="RUN", help="a retraining or search folder, or the parent that `run` made")
    verb.add_argument("--data", metavar="SPEC", help="other images than the run's")
    verb.add_argument("--data-dir", metavar="DIR", help="where torchvision's data sets lie")
    verb.add_argument("--device", help="auto (default), cpu, or a device of torch")

    _using_words(table)

    verb = _verb(table, "report", verbs.report, "write report.html of runs, and of several a comparison", [
        "report checkpoints/first", "report checkpoints/seed0 checkpoints/seed1 --output comparison.html",
    ])  # fmt: skip
    verb.add_argument("runs", nargs="+", metavar="RUN")
    verb.add_argument(
        "--output", metavar="FILE", help="the comparison of several runs (default: comparison.html beside them)"
    )

    verb = _verb(
        table, "watch", verbs.watch, "open TensorBoard on runs, on this machine only", ["watch checkpoints/first"]
    )
    verb.add_argument("runs", nargs="+", metavar="RUN")
    verb.add_argument("--port", type=int, default=6006, help="port on 127.0.0.1 (default 6006; 0 finds a free one)")

    verb = _verb(table, "list", verbs.list_all, "list what there is", ["list presets", "list cells", "list runs"])
    verb.add_argument(
        "what", choices=["spaces", "operations", "presets", "methods", "rules", "cells", "sources", "tasks", "runs"]
    )
    verb.add_argument("--output", metavar="DIR", default="checkpoints", help="where `list runs` looks")

    verb = _verb(
        table,
        "show",
        verbs.show,
        "print a preset, space, genotype or run",
        ["show cifar10", "show darts", "show DARTS_V2 --draw cell.svg", "show checkpoints/first --why"],
    )
    verb.add_argument("name", metavar="FILE-OR-NAME")
    verb.add_argument("--draw", metavar="FILE", help="draw the cells and the whole network: FILE.svg or FILE.png")
    verb.add_argument("--why", action="store_true", help="of a search: for every edge what was chosen, and by how much")

    _compare_words(table)
    _solve_words(table)

    verb = _verb(table, "bench", verbs_measuring.bench, "time the search step, supernets and methods side by side", [
        "bench", "bench --size M --threads 2 --json",
    ])  # fmt: skip
    verb.add_argument("--size", default="T", help="T, M, full, or channels,layers,batch (default T)")
    verb.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    verb.add_argument("--rounds", type=int, default=5, help="timings of every variant (default 5)")
    verb.add_argument("--space", default="darts", help="search space (default darts)")
    verb.add_argument("--device", default="cpu", help="where to run (default cpu)")

    verb = _verb(
        table, "check-hypergradient", verbs_measuring.check_hypergradient,
        "hold every method's direction of the alphas against the exact hypergradient of a tiny supernet", [
            "check-hypergradient", "check-hypergradient --method moreau,darts2 --json",
            "check-hypergradient --import mine.py --method my_method",
        ],
    )  # fmt: skip
    verb.add_argument("--method", metavar="NAMES", help="methods, with commas between (default: all there are)")
    verb.add_argument("--seed", type=int, default=0, help="seed of the supernet and its images (default 0)")

    verb = _verb(table, "check", verbs.check, "check a configuration, space or genotype file", ["check my_space.yaml"])
    verb.add_argument("file", metavar="FILE")
    return parser


def _compare_words(table: Any) -> None:
    verb = _verb(table, "compare", verbs_compare.compare, "several methods and seeds under one protocol", [
        "compare --preset nas_bench_201_cpu --data npz:cifar10.npz --methods moreau+beta,darts1,random --seeds 0-4 "
        "--table nb201.csv.gz",
        "compare --preset darts_cpu --data npz:cifar10.npz --methods moreau+beta,random:0-7 --seeds 0,1,2",
    ])  # fmt: skip
    _with_configuration(verb)
    verb.add_argument("--methods", required=True, metavar="A,B", help="methods; one may bring its seeds: random:0-7")
    verb.add_argument("--seeds", default="0", metavar="0,1", help="seeds of the others: numbers and ranges (default 0)")
    verb.add_argument("--table", metavar="FILE", help="NAS-Bench-201 as CSV (.gz): column arch, columns of numbers")
    verb.add_argument("--column", help="its column to compare by (default c10_test_200ep, or the only one)")
    verb.add_argument("--retrain", action="store_true", help="retrain found cells though there is a table")
    verb.add_argument("--rank", type=int, metavar="N", help="how each supernet ranks N of 729 cells (729: all of them)")
    verb.add_argument("--baseline", metavar="METHOD", help="p-values are against it (default random, or the first one)")
    verb.add_argument("--jobs", type=int, default=1, metavar="N", help="searches side by side (default 1)")


def _solve_words(table: Any) -> None:
    summary = "solve a bilevel problem: small ones, data hyper-cleaning, few-shot"
    verb = _verb(table, "solve", verbs_measuring.solve, summary, [
        "solve sine --n 100", "solve quadratic --method bome --json", "list tasks",
        "solve hyper-cleaning --data folder:photos --corrupt 0     # which of my own labels are wrong?",
        "solve hyper-cleaning --data fashion_mnist --download --output checkpoints/clean",
        "solve few-shot --data omniglot:DIR --ways 5 --shots 1",
    ])  # fmt: skip
    verb.add_argument("task", metavar="TASK", help="a name of `list tasks`")
    verb.add_argument("--n", type=int, help="size of the problem (hyper-cleaning: training samples, default 5000)")
    verb.add_argument("--method", help="moreau (default) or a rival")
    verb.add_argument("--steps", type=int, help="at most so many steps")
    verb.add_argument("--seed", type=int, help="seed of generated data and of every random draw (default 0)")
    verb.add_argument("--debias", action="store_true", help="small problems: remove the bias of the penalty")
    verb.add_argument("--no-polish", action="store_true", help="small problems: leave y as the method left it")
    group = verb.add_argument_group("hyper-cleaning and few-shot")
    group.add_argument("--data", metavar="SPEC", help="shapes (default), idx:DIR, folder:DIR, ... (list sources)")
    group.add_argument("--data-dir", metavar="DIR", help="where torchvision's data sets lie or are put")
    group.add_argument("--download", action="store_true", help="allow torchvision to fetch the data set")
    group.add_argument("--device", help="auto (default), cpu, or a device of torch")
    group.add_argument(
        "--corrupt", type=float, metavar="RATE", help="share of labels changed; 0 judges your own (default 0.5)"
    )
    group.add_argument("--ways", type=int, help="few-shot: classes of a task (default 5)")
    group.add_argument("--shots", type=int, help="few-shot: images of each class to learn from (default 1)")
    group.add_argument("--output", metavar="DIR", help="run folder (default: a new one under checkpoints/)")
    group.add_argument("--resume", action="store_true", help="go on in --output where an earlier run stopped")


def _using_words(table: Any) -> None:
    """Adds the verbs that use what was found."""
    verb = _verb(table, "export", verbs_using.export, "write a trained network as files that other programs load", [
        "export checkpoints/first --format onnx", "export checkpoints/first --format python --output my_model",
        "export DARTS_V2 --format onnx --untrained retrain.channels=16",
    ])  # fmt: skip
    verb.add_argument("run", metavar="RUN", help="a retraining, or the parent `run` made; with --untrained a genotype")
    verb.add_argument("--format", choices=["onnx", "torch-export", "python", "safetensors"], required=True)
    verb.add_argument("--output", metavar="DIR", help="missing or empty folder (default: export-FORMAT in the run)")
    verb.add_argument("--untrained", action="store_true", help="random weights: to try a genotype's network elsewhere")
    _with_configuration(verb, output=False)

    verb = _verb(table, "predict", verbs_using.predict, "say what a trained network takes images for", [
        "predict checkpoints/first photo.png other.jpg", "predict my_model photos/ --json",
    ])  # fmt: skip
    verb.add_argument("run", metavar="RUN-OR-EXPORT", help="a retraining, the parent that `run` made, or an export")
    verb.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")

    verb = _verb(table, "plan", verbs_using.plan, "measure a few steps and say what a run will take", [
        "plan --preset smoke", "plan --preset cifar10 --data cifar10 --memory 11GB --hours 6 --json",
    ])  # fmt: skip
    verb.add_argument("--memory", metavar="AMOUNT", help="memory that there is, e.g. 11GB (default: this machine's)")
    verb.add_argument("--hours", type=float, help="hours that there are for search and retraining together")
    verb.add_argument("--genotype", metavar="GENOTYPE", help="the cell to retrain (default: a random one of the space)")
    _with_configuration(verb, output=False)

    verb = _verb(table, "doctor", verbs_using.doctor, "check this machine and say what to do about what is amiss", [
        "doctor", "doctor --json",
    ])  # fmt: skip
    verb.add_argument("--data-dir", metavar="DIR", default="data", help="where torchvision's data sets lie")
    verb.add_argument("--output", metavar="DIR", default="checkpoints", help="where runs are to be written")


# --- entry -----------------------------------------------------------------------------------------------------------


def _again(arguments: Sequence[str], output: str | None) -> str:
    """Returns the command that goes on with a stopped run."""
    module = Path(sys.argv[0]).parts[-2:] == ("nas_moreau", "__main__.py")
    words = [*([sys.executable, "-m", "nas_moreau"] if module else ["nas-moreau"]), *arguments]
    if distributed.launched():
        words = [*distributed.launcher(), "-m", "nas_moreau", *arguments]
    if output and not any(word == "--output" or word.startswith("--output=") for word in arguments):
        words += ["--output", output]
    return shlex.join(words if "--resume" in arguments else [*words, "--resume"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failure, 2 usage, 3 not finite, 130/143 after a signal."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "-v" in arguments or "--verbose" in arguments
    args = argparse.Namespace(output=None)
    stop = StopRequest(at_once=True)
    try:
        with stop:
            args = _parse(arguments)
            if distributed.launched() and args.verb not in SHARED_VERBS:
                raise InputError(
                    f"{args.verb} is work for one process.",
                    f"Start it without torchrun ({', '.join(SHARED_VERBS)} know several).",
                )
            with distributed.session():
                import_modules(args.imports)
                result = args.function(args)
        if distributed.rank():
            return DONE
        if args.json and result is not None:
            print(json.dumps(result, indent=2, sort_keys=True, allow_nan=False))
        elif result is not None and getattr(args, "dry_run", False):
            print(json.dumps(result, indent=2))
        # `doctor` and `check-hypergradient` say themselves whether what they looked at is in order
        found_wrong = isinstance(result, dict) and (result.get("usable") is False or result.get("passed") is False)
        return FAILURE if found_wrong else DONE
    except BrokenPipeError:
        return FAILURE
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, arguments, args, verbose, stop.received)


def _failed(
    error: BaseException, arguments: Sequence[str], args: argparse.Namespace, verbose: bool, received: int | None
) -> int:
    if verbose:
        traceback.print_exc()
    tell = say if distributed.speaks() else _silent
    if received or isinstance(error, (Interrupted, KeyboardInterrupt)):
        # with `received`, a library may have made another error of the one that the signal raised
        said = error if isinstance(error, Interrupted) else "stopped at once; what was saved before stands."
        if not hasattr(args, "verb"):  # it came while the words were read
            with suppress(InputError, SystemExit):
                args = _parse(arguments)
        resumable = hasattr(args, "resume") and args.output
        tell(f"nas-moreau: {said}" + (f"\nGo on with: {_again(arguments, args.output)}" if resumable else ""))
        return 128 + int(received or getattr(error, "number", None) or signal.SIGINT)
    if isinstance(error, InputError):
        tell(f"nas-moreau: {error}")
        return USAGE
    if isinstance(error, NonFinite):
        tell(f"nas-moreau: {error}")
        return NON_FINITE
    text = str(error).strip().splitlines()
    tell(f"nas-moreau: {type(error).__name__}: {text[0] if text else ''} (-v shows where)")
    return FAILURE


def _silent(text: str) -> None:
    """Says nothing: another process of the group has said why it failed."""


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

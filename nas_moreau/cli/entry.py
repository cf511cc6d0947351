"""The entry of the command line: the parser made of the verbs, errors, exit codes."""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from nas_moreau import __version__, distributed
from nas_moreau.cli.listing import KINDS
from nas_moreau.cli.options import COMMON, remove_unused_folders
from nas_moreau.cli.output import note, open_closed_streams, print_json, printing_notes, silence
from nas_moreau.cli.verbs import VERBS, Option, Verb
from nas_moreau.errors import InputError, did_you_mean, nearest, quoted, unknown
from nas_moreau.plugins import WITHIN, import_modules
from nas_moreau.presets import preset_names
from nas_moreau.runs.atomic import DiskFull, is_full
from nas_moreau.runs.heartbeat import heartbeat
from nas_moreau.text import printable
from nas_moreau.training.signals import Interrupted, NonFinite, StopRequest

MODULES = ("stages", "compare", "solve", "listing", "configuration", "inspect", "watch", "export", "diagnostics")
"""The modules that register verbs, in the order of the help."""
for _module in MODULES:
    import_module(f"nas_moreau.cli.{_module}")
DONE, FAILURE, USAGE, NON_FINITE = 0, 1, 2, 3
# half a million objects of the libraries need not be taken apart one by one at the end: seconds after the last line
atexit.register(gc.freeze)


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument as every other error is reported."""

    def error(self, message: str) -> Any:
        """Raises InputError instead of printing the usage and exiting."""
        name = self.prog.rpartition(" ")[2]
        examples = VERBS[name].examples if name in VERBS else ["run --preset smoke"]
        raise _described(message, self.prog, f"nas-moreau {examples[0]}")


_NO_NUMBER = re.compile(r"argument (?:\S+/)?(\S+): invalid (int|float) value: '(.*)'", re.DOTALL)
_NO_CHOICE = re.compile(r"argument (?:\S+/)?(\S+): invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)
_MISSING = "the following arguments are required: "


def _described(message: str, program: str, example: str) -> InputError:
    """Returns the error for a message of argparse."""
    if match := _NO_NUMBER.fullmatch(message):
        name, kind, value = match.groups()
        try:
            whole = float(value).is_integer() and f" Write {name} {int(float(value))}."
        except (ValueError, OverflowError):
            whole = ""
        what = "an integer" if kind == "int" else "a number"
        return InputError(f"{name} is {quoted(value)}; it takes {what}.", (whole or f"See {program} --help.").strip())
    if match := _NO_CHOICE.fullmatch(message):
        name, value, known = match.groups()
        choices = [choice.strip("' ") for choice in known.split(",")]
        return InputError(f"{name} is {quoted(value)}.", did_you_mean(value, choices))
    if message.startswith(_MISSING):
        missing = message.removeprefix(_MISSING).removesuffix(", key=value")
        return InputError(f"{program} lacks {missing}.", f"Write for example {example}.")
    return InputError(f"{message[:1].upper()}{message[1:]}.", f"See {program} --help.")


def build_parser() -> Parser:
    """Returns the parser of all verbs."""
    parser = Parser(
        prog="nas-moreau",
        description="Search, retrain and use network cells by a Moreau-envelope bilevel method.",
        epilog="start here:\n  nas-moreau run --preset smoke\n"
        "  nas-moreau run --preset cifar10 --data cifar10 --download",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nas-moreau {__version__}")
    table = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS.values():
        own = table.add_parser(
            verb.name,
            help=verb.summary,
            description=f"{verb.summary[:1].upper()}{verb.summary[1:]}.",
            epilog="examples:\n" + "\n".join(f"  nas-moreau {example}" for example in verb.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.set_defaults(function=verb.run)
        _add_options(own, [*COMMON, *verb.options])
    return parser


class _Once(argparse.Action):
    """Stores a value, and remembers in `repeated` where it replaces another one of the same command line."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Stores the value."""
        given = vars(namespace).setdefault("given", {})
        if given.setdefault(self.dest, values) != values:
            vars(namespace).setdefault("repeated", {})[option_string or self.dest] = values
        setattr(namespace, self.dest, values)


def _add_options(parser: Parser, options: Sequence[Option]) -> None:
    groups: dict[str | None, Any] = {None: parser}
    for option in options:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        once = {"action": _Once} if option.names[0].startswith("-") else {}
        groups[option.group].add_argument(*option.names, **{**once, **option.settings})


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed options, `function` and `verb` among them.

    Raises:
        InputError: Unknown verb or option, or a value that an option does not take.
    """
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    if first is not None and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        raise InputError(
            f"The option {arguments[0]} stands before the command.", "Write nas-moreau VERB first, then its options."
        )
    if first is not None and first not in VERBS:
        raise _unknown_verb(first)
    args, rest = build_parser().parse_known_args(arguments)
    # argparse gives up on key=value arguments that follow options; nothing else may be left
    wrong = [text for text in rest if "=" not in text or text.startswith("-") or not hasattr(args, "overrides")]
    if wrong:
        raise _unknown_option(wrong[0], VERBS[args.verb])
    if rest:
        args.overrides = [*args.overrides, *rest]
    _refuse_empty(args)
    return args


def _repeated(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options and keys that the command line gives several values, with the last one."""
    found: dict[str, Any] = dict(getattr(args, "repeated", {}))
    given: dict[str, str] = {}
    for text in getattr(args, "overrides", []):
        key, _, value = text.partition("=")
        if given.setdefault(key, value) != value:
            found[key] = value
    return found


def _refuse_empty(args: argparse.Namespace) -> None:
    """Refuses an argument without text, which would be taken for the working folder or for no argument."""
    for option in [*COMMON, *VERBS[args.verb].options]:
        name = option.names[-1]
        value = getattr(args, str(option.settings.get("dest", name.lstrip("-").replace("-", "_"))))
        if value == "" or (isinstance(value, list) and "" in value):
            shown = name if name.startswith("-") else option.settings.get("metavar", name)
            raise InputError(f"{shown} is empty.", "Check the variable that it comes from, or leave it out.")


OTHER_NAMES = {
    "help": "nas-moreau --help",
    "version": "nas-moreau --version",
    "train": "nas-moreau run or nas-moreau retrain",
    "fit": "nas-moreau run or nas-moreau retrain",
    "eval": "nas-moreau evaluate",
    "test": "nas-moreau evaluate",
    "validate": "nas-moreau check",
    "infer": "nas-moreau predict",
    "classify": "nas-moreau predict",
    "resume": "nas-moreau run --output DIR --resume",
    "tensorboard": "nas-moreau watch",
    "ls": "nas-moreau list",
}
"""What other programs call their commands -> ours."""


def _unknown_verb(name: str) -> InputError:
    if name.lower() in OTHER_NAMES:
        meant = OTHER_NAMES[name.lower()]
    elif name in KINDS:
        meant = f"nas-moreau list {name}"
    elif name in preset_names():
        meant = f"nas-moreau run --preset {name}"
    elif nearest(name, VERBS) is None and name.endswith((".yaml", ".yml")):
        meant = f"nas-moreau run --config {name}"
    else:
        return unknown("command", name, VERBS)
    return InputError(f"Unknown command '{name}'.", f"Did you mean {meant}?")


OTHER_OPTIONS = {
    "gpu": "--device auto",
    "gpus": "--device auto",
    "cpu": "--device cpu",
    "o": "--output DIR",
    "save": "--output DIR",
    "save-dir": "--output DIR",
    "outdir": "--output DIR",
    "work-dir": "--output DIR",
    "dataset": "--data SPEC",
    "data-path": "--data SPEC",
    "c": "--config FILE",
    "cfg": "--config FILE",
    "yaml": "--config FILE",
    "continue": "--resume",
    "restart": "--resume",
    "n": "--dry-run",
    "test": "--dry-run",
    "silent": "--quiet",
}
"""What other programs call their options -> ours."""


def _unknown_option(text: str, verb: Verb) -> InputError:
    known = [name for option in [*COMMON, *verb.options] for name in option.names if name.startswith("-")]
    cure = did_you_mean(text, known) if nearest(text, known) else f"See nas-moreau {verb.name} --help."
    other = OTHER_OPTIONS.get(text.lstrip("-").partition("=")[0].replace("_", "-").lower())
    if text.startswith("-") and other is not None and other.split(" ")[0] in known:
        return InputError(f"Unknown option '{text}' of {verb.name}.", f"Write {other}.")
    if text.startswith("-") and "overrides" in {name for option in verb.options for name in option.names}:
        from nas_moreau.config import config_keys

        name = text.lstrip("-").partition("=")[0].replace("-", "_")
        keys = [key for key in config_keys() if name in (key, key.rpartition(".")[2])]
        if keys:
            cure = f"Write {' or '.join(f'{key}=VALUE' for key in keys)}."
    if not text.startswith("-") and "--output" in known and Path(text).is_dir():
        cure = f"Write --output {shlex.quote(text)}."
    return InputError(f"Unknown {'option' if text.startswith('-') else 'argument'} '{text}' of {verb.name}.", cure)


def _resuming(arguments: Sequence[str], output: str) -> str:
    """Returns the command that resumes a stopped run."""
    module = Path(sys.argv[0]).parts[-2:] == ("nas_moreau", "__main__.py")
    command = [*([sys.executable, "-m", "nas_moreau"] if module else ["nas-moreau"]), *arguments]
    if distributed.launched():
        command = [*distributed.launch_command(), "-m", "nas_moreau", *arguments]
    if not any(text == "--output" or text.startswith("--output=") for text in arguments):
        command += ["--output", output]
    return shlex.join(command if "--resume" in arguments else [*command, "--resume"])


def _refuse_other_command(arguments: list[str]) -> None:
    """Refuses a rank that was started with other arguments than rank 0, whose configuration counts for all."""
    first = distributed.run_on_rank0(lambda: arguments)

    def compare() -> None:
        if arguments != first:
            only = [*(text for text in arguments if text not in first), *(t for t in first if t not in arguments)]
            raise InputError(
                f"Rank {distributed.rank()} was started with other arguments than rank 0: {' '.join(only)}.",
                "Give all processes the same command.",
            )

    distributed.run_on_all_ranks(compare)


def _refuse_removed_folder() -> None:
    """Refuses to work in a folder that was removed: neither relative paths nor torch's libraries work there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("The working folder was removed.", "Change to another one (cd).") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 1 failure, 2 usage, 3 not finite, 130/143 after a signal."""
    open_closed_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args: argparse.Namespace | None = None
    stop = StopRequest(immediate=True)
    try:
        with stop, printing_notes():
            _refuse_removed_folder()
            args = parse_arguments(arguments)
            if distributed.launched() and not VERBS[args.verb].distributed:
                several = ", ".join(verb.name for verb in VERBS.values() if verb.distributed)
                raise InputError(
                    f"{args.verb} runs in one process.", f"Start it without torchrun ({several} may use it)."
                )
            with distributed.session():
                _refuse_other_command(arguments)
                with silence(args.quiet):
                    for name, value in _repeated(args).items():
                        note(f"{name} is given more than once: the last one, {value}, counts.")
                    if args.imports:
                        with heartbeat(f"importing {', '.join(args.imports)}"):
                            import_modules(args.imports)
                    result = args.function(args)
        if distributed.rank():
            return DONE
        if args.json and result is not None:
            print_json(result)
        # the results of `doctor` and `check-hypergradient` state whether their checks passed, `predict` what it missed
        found_wrong = isinstance(result, dict) and (
            result.get("usable") is False or result.get("passed") is False or bool(result.get("unreadable"))
        )
        return FAILURE if found_wrong else DONE
    except BrokenPipeError:
        return FAILURE
    except (Exception, KeyboardInterrupt) as error:
        return _failed(error, arguments, args, stop.received)
    finally:
        remove_unused_folders()


def _failed(
    error: BaseException, arguments: Sequence[str], args: argparse.Namespace | None, received: int | None
) -> int:
    """Prints an error and returns its exit code."""
    if "-v" in arguments or "--verbose" in arguments:
        traceback.print_exc()
    silent = not distributed.reports_errors()  # another process of the group prints why it failed
    if received or isinstance(error, (Interrupted, KeyboardInterrupt)):
        # with `received`, a library may have turned the exception of the signal into another one
        if args is None:  # it arrived while the arguments were parsed
            with suppress(InputError, SystemExit):
                args = parse_arguments(arguments)
        output = getattr(error, "run_folder", None) or getattr(args, "output", None)
        begun = hasattr(args, "resume") and bool(output) and Path(str(output)).exists()
        text = "Stopped; what was saved before is complete." if begun else "Stopped."
        text = str(error) if isinstance(error, Interrupted) else text
        if begun and WITHIN not in os.environ:
            text += f"\nResume with: {_resuming(arguments, str(output))}"
        code = 128 + int(received or getattr(error, "number", None) or signal.SIGINT)
    elif isinstance(error, InputError):
        text, code = str(error), USAGE
    elif isinstance(error, NonFinite):
        text, code = str(error), NON_FINITE
    elif isinstance(error, OSError) and is_full(error):
        text = str(error) if isinstance(error, DiskFull) else str(DiskFull(Path(error.filename or "a file")))
        code = FAILURE
    elif isinstance(error, OSError) and error.filename and error.strerror:
        long = error.errno == errno.ENAMETOOLONG
        cure, code = ("Give a shorter name.", USAGE) if long else ("Check disk and permissions.", FAILURE)
        text = f"{printable(str(error.filename))[:200]} cannot be used ({error.strerror}). {cure}"
    elif isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        text, code = "There is not enough memory. Use fewer channels, fewer layers or a smaller batch.", FAILURE
    else:
        lines = str(error).strip().splitlines()
        text, code = f"{type(error).__name__}: {lines[0] if lines else ''} (-v prints the traceback)", FAILURE
    if not silent:
        note(f"nas-moreau: {text}", fold=False)
    return code

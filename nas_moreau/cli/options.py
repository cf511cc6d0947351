"""Options that verbs share, and the way from them to a configuration and a run folder.

Imports of what takes time (torch, pydantic) stand inside the functions, here and in the modules of the verbs, so that
help and lists answer at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nas_moreau import distributed
from nas_moreau.cli.output import note
from nas_moreau.cli.verbs import option
from nas_moreau.data.sources import SOURCES
from nas_moreau.errors import InputError, nearest
from nas_moreau.presets import preset_names
from nas_moreau.runs.heartbeat import heartbeat
from nas_moreau.text import is_utf8, name_text, path_of, specification

if TYPE_CHECKING:
    from nas_moreau.config import Config

COMMON = [
    option("-v", "--verbose", action="store_true", help="show tracebacks"),
    option("-q", "--quiet", action="store_true", help="print neither messages nor progress, only result and errors"),
    option("--json", action="store_true", help="print the result as JSON on standard output"),
    option(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers your own operations, methods, rules, data sources or metrics: "
        "its name, or the path of a .py file",
    ),
]
DATA = option("--data", metavar="SPEC", help=f"images: {', '.join(source.form for source in SOURCES.values())}")
DATA_DIR = option("--data-dir", metavar="DIR", help="folder of downloaded data sets (default data)")
DOWNLOAD = option("--download", action="store_true", help="allow torchvision to download the data set")
DEVICE = option("--device", help="auto (default), cpu, or a device of torch")
SEED = option("--seed", type=int, help="seed of every random draw (default 0)")
OUTPUT = option("--output", metavar="DIR", help="run folder (default: a new one under checkpoints/)")
RESUME = option("--resume", action="store_true", help="continue the run in --output from its last checkpoint")
CONFIGURATION = [
    option("--preset", help=f"a configuration by name: {', '.join(preset_names())}"),
    option("--config", metavar="FILE", help="a configuration in YAML"),
    DATA,
    DATA_DIR,
    DOWNLOAD,
    SEED,
    DEVICE,
    option("overrides", nargs="*", metavar="key=value", help="single keys, e.g. search.epochs=10 (nas-moreau config)"),
]
RUN_FOLDER = [
    OUTPUT,
    RESUME,
    option("--dry-run", action="store_true", help="print what would be done, as JSON, and stop"),
    option(
        "--on-nonfinite",
        choices=["stop", "rollback"],
        metavar="stop|rollback",
        help="if a number is not finite: stop (default), or return to the last checkpoint with halved step sizes",
    ),
]


def _instead_of(word: str) -> str:
    """Returns what to write instead of an argument without "=": an option, or the key with its value."""
    from nas_moreau.config.keys import config_keys, nearest_keys

    if word in preset_names():
        return f"Write --preset {word}."
    path = path_of(word)
    if path.suffix in (".yaml", ".yml"):
        return f"Write --config {shlex.quote(word)}."
    if len(word) < 256 and path.exists():
        return f"Write --data {specification('folder' if path.is_dir() else 'npz', path)}."
    key, _, value = word.partition(":")
    keys = [key] if key in config_keys() else nearest_keys(key, config_keys())
    if not keys:
        return "Write for example search.epochs=10."
    value = value or "VALUE"
    return f"Write {' or '.join(f'{known}={value}' for known in keys)}, without blanks."


def configuration(args: argparse.Namespace, base: Path | None = None, defaults: Sequence[str] = ()) -> Config:
    """Returns the configuration of the options.

    Args:
        args: Options of `CONFIGURATION`.
        base: A run folder; its configuration is the starting point if neither --preset nor --config is given.
        defaults: Settings (`key=value`) that come before those of the command line.
    """
    from nas_moreau.config import load_config, make_config

    for override in args.overrides:
        if "=" not in override:
            raise InputError(f"'{override}' is not of the form key.sub=value.", _instead_of(override))
    overrides = [*defaults, *args.overrides]
    for key, value in (("data.name", args.data), ("data.directory", args.data_dir), ("device", args.device)):
        if value is not None:
            overrides.append(f"{key}={json.dumps(as_text(value, key))}")
    if args.seed is not None:
        overrides.append(f"seed={args.seed}")
    if args.download:
        overrides.append("data.download=true")
    if getattr(args, "against_random", None) is not None:
        overrides.append(f"against_random={args.against_random}")
    if getattr(args, "on_nonfinite", None):
        overrides.append(f"checkpoint.on_nonfinite={args.on_nonfinite}")
    if args.preset or args.config or base is None:
        return load_config(args.preset, args.config, overrides)
    from nas_moreau.runs.configuration import run_config

    return make_config(run_config(base).to_dict(), str(base / "config.yaml"), overrides)


def stage_folder(run: str, *stages: str) -> Path:
    """Returns the folder of the first of `stages` that `run` is or holds."""
    from nas_moreau.runs.history import find_stage

    return find_stage(run, *stages).path


def as_text(argument: str, what: str) -> str:
    """Returns an argument that is stored in files as UTF-8 text; InputError if it is none."""
    if not is_utf8(argument):
        raise InputError(
            f"{what} {name_text(argument)} is not UTF-8 text.", "Rename it, or give a link to it: ln -s OLD NEW."
        )
    return argument.encode("utf-8", "surrogateescape").decode("utf-8")


def new_folder(args: argparse.Namespace, stem: str) -> Path:
    """Returns --output, or else a new folder under checkpoints/."""
    if args.output:
        return path_of(as_text(args.output, "--output"))
    if args.resume:
        raise InputError("--resume needs the folder of the run.", "Name it with --output.")
    from nas_moreau.runs.folder import DEFAULT_PARENT, new_run_folder

    parent_is_new = not DEFAULT_PARENT.exists()
    make = not getattr(args, "dry_run", False)  # not an option of solve
    path = new_run_folder(stem, make)
    if make:
        _MADE.extend(folder.absolute() for folder in (path, *([DEFAULT_PARENT] if parent_is_new else [])))
    return path


_MADE: list[Path] = []


def remove_unused_folders() -> None:
    """Removes folders that `new_folder` made for a command that was refused before it wrote anything."""
    while _MADE:
        with suppress(OSError):  # it holds a run
            _MADE.pop(0).rmdir()


def begin(args: argparse.Namespace, name: str, base: Path | None = None) -> tuple[Config, Path]:
    """Returns the configuration and the run folder of a verb; a resumed run needs no other configuration.

    Args:
        args: Options of `CONFIGURATION` and `RUN_FOLDER`.
        name: Of the verb, for the name of a new folder.
        base: A run folder; its configuration is the starting point.
    """

    from nas_moreau.data.sources import find_files
    from nas_moreau.runs.folder import check_output

    def agree() -> tuple[Config, Path]:
        start = base
        if args.resume and args.output and (Path(args.output) / "config.yaml").exists():
            start = Path(args.output)
        elif start is None and not args.preset and not args.config and not _length_given(args, name):
            raise _nothing_to_begin_with(args, name)
        config = configuration(args, start)
        preset = args.preset or Path(args.config or "default").stem
        output = new_folder(args, f"{name}-{preset}-seed{config.seed}")
        check_output(output, name, args.resume)
        if not args.resume:  # a finished run needs no images
            find_files(config.data.name, config.data.directory, config.data.download)
        _note_default_length(args, name, config)
        return config, output

    with nullcontext() if distributed.launched() else heartbeat(f"{name}: reading the configuration"):
        return distributed.run_on_rank0(agree)


def _length(name: str) -> str:
    """Returns the key of a verb's number of epochs."""
    return "retrain.epochs" if name == "retrain" else "search.epochs"


def _note_default_length(args: argparse.Namespace, name: str, config: Config) -> None:
    """Notes that a configuration file leaves the number of epochs to the default, which is the published one."""
    if not args.config or args.resume or _length_given(args, name):
        return
    from nas_moreau.yaml_files import parse_yaml, read_text

    section, _, key = _length(name).partition(".")
    found = parse_yaml(read_text(Path(args.config), "The configuration"), args.config, "Correct that line.") or {}
    if key not in (found.get(section) or {}):
        epochs = getattr(config, section).epochs
        note(
            f"{args.config} sets no {_length(name)}: the published {epochs} epochs count "
            "(nas-moreau plan estimates what they take).",
            activity=False,
        )


def _length_given(args: argparse.Namespace, name: str) -> bool:
    """Returns whether the command line has the number of epochs: then the settings were chosen, not forgotten."""
    return any(override.partition("=")[0].strip() == _length(name) for override in args.overrides)


def _nothing_to_begin_with(args: argparse.Namespace, name: str) -> InputError:
    """Returns the error for a run without a configuration: nobody trains with the published sizes by accident."""
    for word in args.overrides:
        if "=" not in word or word.startswith("preset="):
            word = word.removeprefix("preset=")
            return InputError(f"'{word}' is not of the form key.sub=value.", _instead_of(word))
    begin = f"give --preset smoke (two minutes), cpu or cifar10 (list presets), --config FILE, or {_length(name)}=N"
    if args.resume and not args.output:
        return InputError("--resume needs the folder of the run.", "Name it with --output.")
    if not args.resume:
        return InputError(f"{name} has no configuration to begin with.", f"{begin[0].upper()}{begin[1:]}.")
    output = Path(args.output)
    runs = {status.parent.name: status.parent for status in output.absolute().parent.glob("*/status.json")}
    near = nearest(output.name, runs)
    found = f"Did you mean {output.parent / near}? " if near else ""
    return InputError(f"{output} holds no run that could be resumed.", f"{found}To begin one there, {begin}.")


class _Opened(logging.Handler):
    """Prints where a run is written, once its folder has been made."""

    def __init__(self, output: Path):
        super().__init__(logging.DEBUG)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the folder if it is the one of this command."""
        if getattr(record, "run_folder", None) == self._output and not distributed.rank():
            quoted = shlex.quote(str(self._output))
            note(f"run folder: {self._output}   (curves: nas-moreau watch {quoted})", activity=False)


@contextmanager
def working_in(output: Path) -> Iterator[None]:
    """Prints the run folder when it is made; an exception that leaves the context carries it, for resuming.

    A sign of life is shown where nothing else is: before, between and after the bars of the stages.
    """
    logger = logging.getLogger("nas_moreau.runs.folder")
    with nullcontext() if distributed.launched() else heartbeat(f"working in {output}"):
        handler = _Opened(output)
        logger.addHandler(handler)
        try:
            yield
        except BaseException as error:
            if output.exists():
                error.run_folder = str(output)  # type: ignore[attr-defined]
            raise
        finally:
            logger.removeHandler(handler)

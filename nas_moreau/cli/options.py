"""Options that verbs share, and the way from them to a configuration and a run folder.

Imports of what takes time (torch, pydantic) stand inside the functions, here and in the modules of the verbs, so that
help and lists answer at once.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nas_moreau import distributed
from nas_moreau.cli.output import note
from nas_moreau.cli.verbs import option
from nas_moreau.data.sources import SOURCES
from nas_moreau.errors import InputError
from nas_moreau.presets import preset_names

if TYPE_CHECKING:
    from nas_moreau.config import Config

COMMON = [
    option("-v", "--verbose", action="store_true", help="show tracebacks"),
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


def configuration(args: argparse.Namespace, base: Path | None = None, defaults: Sequence[str] = ()) -> Config:
    """Returns the configuration of the options.

    Args:
        args: Options of `CONFIGURATION`.
        base: A run folder; its configuration is the starting point if neither --preset nor --config is given.
        defaults: Settings (`key=value`) that come before those of the command line.
    """
    from nas_moreau.config import load_config, make_config

    overrides = [*defaults, *args.overrides]
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
    return make_config(run_config(base).to_dict(), str(base / "config.yaml"), overrides)


def run_config(folder: Path) -> Config:
    """Returns the configuration of a run folder."""
    from nas_moreau.config import make_config
    from nas_moreau.runs.folder import read_config

    data = read_config(folder)
    data.pop("genotype", None)  # recorded by a retraining, so that it cannot be resumed with another cell
    return make_config(data, str(folder / "config.yaml"))


def stage_folder(run: str, *stages: str) -> Path:
    """Returns the folder of the first of `stages` that `run` is or holds."""
    from nas_moreau.runs.history import find_stage

    return find_stage(run, *stages).path


def new_folder(args: argparse.Namespace, stem: str) -> Path:
    """Returns --output, or else a new folder under checkpoints/."""
    if args.output:
        return Path(args.output)
    if args.resume:
        raise InputError("--resume needs the folder of the run.", "Name it with --output.")
    number = 1
    while (path := Path("checkpoints") / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return path


def begin(args: argparse.Namespace, name: str, base: Path | None = None) -> tuple[Config, Path]:
    """Returns the configuration and the run folder of a verb; a resumed run needs no other configuration.

    Args:
        args: Options of `CONFIGURATION` and `RUN_FOLDER`.
        name: Of the verb, for the name of a new folder.
        base: A run folder; its configuration is the starting point.
    """

    def agree() -> tuple[Config, Path]:
        resumed = Path(args.output) if args.resume and args.output else None
        config = configuration(args, resumed if resumed is not None and (resumed / "config.yaml").exists() else base)
        preset = args.preset or Path(args.config or "default").stem
        return config, new_folder(args, f"{name}-{preset}-seed{config.seed}")

    return distributed.run_on_rank0(agree)


@contextmanager
def working_in(output: Path) -> Iterator[None]:
    """Prints the run folder; an exception that leaves the context carries it, for the command that resumes the run."""
    note(f"run folder: {output}   (curves: nas-moreau watch {shlex.quote(str(output))})")
    try:
        yield
    except BaseException as error:
        error.run_folder = str(output)  # type: ignore[attr-defined]
        raise

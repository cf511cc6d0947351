"""From the words of a command to a configuration and a folder, and from results to words.

Imports of what takes time stand inside the functions, as in the verbs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas_moreau import distributed
from nas_moreau.errors import InputError

if TYPE_CHECKING:
    from nas_moreau.config import Config


def say(text: str = "") -> None:
    """Prints for a person, on standard error: standard output belongs to results."""
    print(text, file=sys.stderr, flush=True)


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of texts as columns; the last text of a row may be as long as it likes."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(len(row) for row in rows) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), *row[len(widths) :]]).rstrip())


def configuration(args: argparse.Namespace, base: Path | None = None) -> Config:
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


def new_folder(args: argparse.Namespace, stem: str) -> Path:
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


def begin(args: argparse.Namespace, verb: str, base: Path | None = None) -> tuple[Config, Path]:
    """Returns configuration and output folder; a resumed run needs no configuration beside its own."""

    def agree() -> tuple[Config, Path]:
        resumed = Path(args.output) if args.resume and args.output else None
        config = configuration(args, resumed if resumed is not None and (resumed / "config.yaml").exists() else base)
        name = args.preset or Path(args.config or "default").stem
        return config, new_folder(args, f"{verb}-{name}-seed{config.seed}")

    config, output = distributed.on_first(agree)
    args.output = str(output)
    return config, output

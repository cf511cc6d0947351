"""The configuration of a run folder: its digest, and which keys a resumed run may change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nas_moreau.config import Config, config_keys, flatten, make_config
from nas_moreau.errors import InputError, nearest
from nas_moreau.runs.plain_files import read_yaml

LOCAL = ("logging", "device", "output", "download", "directory", "threads")
"""Keys, in any section, in which even the processes of one run may differ."""
GROWING = ("epochs", "restarts", "against_random")
"""Keys, in any section, that a resumed run may change upwards."""
MAY_CHANGE = (*LOCAL, *GROWING, "checkpoint")
"""Keys, in any section, that a resumed run may change. None of them changes what is computed before."""


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the configuration of a run folder, plain data.

    Raises:
        InputError: It is not a run folder, or its config.yaml is damaged.
    """
    found = read_yaml(Path(folder) / "config.yaml")
    if found is None:
        raise InputError(f"{folder} is not a run folder (config.yaml is missing).", "Give the folder of a run.")
    return found


def run_config(folder: str | os.PathLike[str]) -> Config:
    """Returns the configuration of a run folder.

    Raises:
        InputError: As `read_config`, or a key is unknown or does not fit.
    """
    data = read_config(folder)
    data.pop("genotype", None)  # recorded by a retraining, so that it cannot be resumed with another cell
    return make_config(data, str(Path(folder) / "config.yaml"))


def near_run(folder: Path) -> str:
    """Returns the cure for a folder without status.json: the run beside it of the nearest name, or those inside."""
    try:
        runs = {status.parent.name: status.parent for status in folder.absolute().parent.glob("*/status.json")}
        inside = sorted(status.parent for status in folder.glob("*/status.json"))
    except OSError:
        runs, inside = {}, []
    if inside:
        return f"Give one of the runs in it: {', '.join(map(str, inside[:3]))}{', ...' * (len(inside) > 3)}."
    near = nearest(folder.name, runs)
    if near is not None:
        return f"Did you mean {folder.parent / near}?"
    return "Give a folder made by `nas-moreau run` or a stage."


def configuration_digest(config: dict[str, Any], may_change: Collection[str] = MAY_CHANGE) -> str:
    """Returns 16 hexadecimal digits of a configuration.

    Args:
        config: Plain data. The place of the data (`data.name`) does not count: their content has its own digest.
        may_change: Keys, in any section, that do not count.
    """
    entries = {
        key: value for key, value in flatten(config).items() if key != "data.name" and not _among(key, may_change)
    }
    return hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()[:16]


def compare_configurations(
    old: dict[str, Any], new: dict[str, Any], folder: Path, movable: Collection[str] = ()
) -> list[str]:
    """Returns the keys of `GROWING` that grew.

    Args:
        old: What the run was begun with.
        new: What it is to be continued with.
        folder: Its folder, for the message.
        movable: Full names of further keys that may change.

    Raises:
        InputError: Names the keys that may not differ.
    """
    before, after = flatten(old), flatten(new)
    refused: list[str] = []
    grown: list[str] = []
    for key in sorted(before.keys() | after.keys(), key=str):
        a, b = before.get(key), after.get(key)
        if (a == b and type(a) is type(b)) or key in movable:
            continue
        parts = key.split(".")
        if parts[-1] in GROWING and type(a) is int and type(b) is int:
            (grown if b > a else refused).append(key)
        elif parts[-1] in GROWING or not _among(key, MAY_CHANGE):
            refused.append(key)
    unknown = [key for key in refused if key not in before and key in config_keys()]
    if unknown:
        raise InputError(
            f"The run in {folder} was made by another version of nas_moreau: {', '.join(unknown[:5])} "
            f"{'is a key' if len(unknown) == 1 else 'are keys'} of this one alone.",
            "Resume it with that version (environment.json names its commit), or start a new folder with --output.",
        )
    if "search.epochs" in grown and (after.get("search.restarts") or 1) > 1:
        raise InputError(
            f"The searches of the run in {folder} have {before['search.epochs']} epochs each; those that ended cannot "
            f"go on for {after['search.epochs']}.",
            "Leave search.epochs as it was (search.restarts may grow), or start a new folder with --output.",
        )
    if refused:
        shown = ", ".join(f"{key} (was {before.get(key)!r}, now {after.get(key)!r})" for key in refused[:5])
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise InputError(
            f"The run in {folder} was made with another configuration: {shown}{more}.",
            "Resume it with its own configuration, or start a new folder with --output.",
        )
    return grown


def _among(key: str, names: Collection[str]) -> bool:
    return any(part in names for part in key.split("."))

"""JSON and YAML files of a run folder; a damaged one is an InputError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nas_moreau.errors import InputError, first_line
from nas_moreau.runs.manifest import read_recorded
from nas_moreau.yaml_files import parse_yaml

CURE = "Restore it, or start again in another folder."


def json_text(value: dict[str, Any]) -> str:
    """Returns the text of a JSON file: sorted keys, no NaN or infinity (ValueError)."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file of a run folder, None if there is no file.

    Raises:
        InputError: It is damaged, or not what was recorded.
    """
    text = read_recorded_text(path)
    if text is None:
        return None
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({first_line(error)}).", CURE) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds something else than a JSON object.", CURE)
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def read_yaml(path: Path) -> dict[str, Any] | None:
    """Returns the mapping in a YAML file of a run folder, None if there is no file.

    Raises:
        InputError: It is damaged, or not what was recorded.
    """
    text = read_recorded_text(path)
    if text is None:
        return None
    value = parse_yaml(text, str(path), CURE)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds something else than a mapping.", CURE)
    return value


def read_recorded_text(path: Path) -> str | None:
    """Returns the text of a file of a run folder, None if there is no file.

    Raises:
        InputError: It is not UTF-8, or not what was recorded.
    """
    data = read_recorded(path)
    try:
        return None if data is None else data.decode("utf-8")
    except ValueError as error:
        raise InputError(f"{path} is not UTF-8 ({first_line(error)}).", CURE) from None

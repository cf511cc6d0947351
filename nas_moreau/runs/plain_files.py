"""JSON and YAML files of a run folder; a damaged one is an InputError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nas_moreau.errors import InputError
from nas_moreau.yaml_files import parse_yaml, read_text

CURE = "Restore it, or start again in another folder."


def json_text(value: dict[str, Any]) -> str:
    """Returns the text of a JSON file: sorted keys, no NaN or infinity (ValueError)."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file, None if there is no file; InputError if it is damaged."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}).", CURE) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds something else than a JSON object.", CURE)
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file; InputError if it is damaged."""
    value = parse_yaml(read_text(path, "The file"), str(path), CURE)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds something else than a mapping.", CURE)
    return value

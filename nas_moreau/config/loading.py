"""From defaults, presets, YAML files and single settings to a checked configuration; every mistake is reported."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from nas_moreau.config.keys import Key, config_keys, nearest_keys, section_meanings
from nas_moreau.config.sections import Config, Section
from nas_moreau.errors import InputError
from nas_moreau.presets import preset_names, preset_text
from nas_moreau.yaml_files import parse_yaml, read_text

S = TypeVar("S", bound=Section)
MAX_PROBLEMS = 20
"""Problems that one message describes; a file with more of them is not a configuration."""


def load_config(preset: str | None = None, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration made of the defaults, a preset or a file, and single keys: the later one wins.

    Args:
        preset: Name of a preset.
        path: A YAML file.
        overrides: Settings `key.sub=value`; the value is read as YAML.

    Raises:
        InputError: Unknown preset, unreadable file, unknown key, or a value that does not fit; all problems at once.
    """
    if preset is not None and path is not None:
        raise InputError("Both a preset and a configuration file were given.", "Give one of --preset and --config.")
    data: dict[str, Any] = {}
    origin = "the configuration"
    if preset is not None:
        data, origin = _parse(preset_text(preset), f"preset {preset}"), f"preset {preset}"
    elif path is not None:
        data, origin = _parse(read_text(Path(path), "The configuration"), str(path)), str(path)
    return make_config(data, origin, overrides)


def make_config(data: Any, origin: str = "the configuration", overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration of plain data.

    Args:
        data: Sections and keys; what is missing has its default. Not modified.
        origin: Where the data are from, for messages.
        overrides: Settings `key.sub=value`, which win.

    Raises:
        InputError: Lists every key that is unknown or does not fit.
    """
    data = copy.deepcopy(data) if overrides else data
    for override in overrides:
        _set(data, override)
    return make_section(Config, data, origin, "Correct these keys (nas-moreau config KEY explains them).")


def make_section(section: type[S], data: Any, origin: str, cure: str) -> S:
    """Returns a section made of plain data.

    Args:
        section: Its class.
        data: Keys and values.
        origin: Where the data are from, for messages.
        cure: Second sentence of the message.

    Raises:
        InputError: Lists every key that is unknown or does not fit.
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        found, keys, sections = error.errors(include_url=False), config_keys(section), section_meanings(section)
        problems = [_describe(problem, keys, sections) for problem in found[:MAX_PROBLEMS]]
        more = [f"and {len(found) - MAX_PROBLEMS:,} more"] * (len(found) > MAX_PROBLEMS)
        raise InputError(f"In {origin}: {'; '.join([*problems, *more])}.", cure) from None


def _parse(text: str, origin: str) -> dict[str, Any]:
    data = parse_yaml(text, origin, "Correct that line.")
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{origin} does not hold keys and values.", "Write lines of the form 'key: value'.")
    return data


def _set(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        cure = f"Write --preset {override}." if override in preset_names() else "Write for example search.epochs=10."
        raise InputError(f"'{override}' is not of the form key.sub=value.", cure)
    value = _parse(f"value: {text}", f"'{override}'").get("value")
    place = data
    for part in parts[:-1]:
        if not isinstance(place.setdefault(part, {}), dict):
            raise InputError(f"'{override}' goes below '{part}', which is a single value.", "Check the key.")
        place = place[part]
    if isinstance(place.get(parts[-1]), dict) and isinstance(value, dict):
        place[parts[-1]] |= value
    else:
        place[parts[-1]] = value


def _describe(problem: Any, keys: Mapping[str, Key], sections: Mapping[str, str]) -> str:
    """Returns one problem of pydantic's list as a part of a sentence."""
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        if key in keys:  # its name is right, and stands in one line
            section, _, name = key.rpartition(".")
            return f"'{key}' is written with dots: write '{name}' indented below the section '{section}'"
        near = nearest_keys(key, [*sections, *keys])
        return f"unknown key '{key}'" + (f" (did you mean {' or '.join(repr(name) for name in near)}?)" if near else "")
    if key in keys and problem["type"] != "value_error":
        return f"'{key}' is {problem['input']!r}; it takes {keys[key].type}"[:300]
    if key in sections and problem["type"] != "value_error":
        return f"'{key}' is {problem['input']!r}, but it is a section: set {_first_keys(key, keys)}"[:300]
    message = problem["msg"].removeprefix("Value error, ")
    return f"'{key}' is {problem['input']!r}: {message[:1].lower()}{message[1:]}"[:300] if key else message


def _first_keys(section: str, known: Iterable[str]) -> str:
    keys = [key for key in known if key.startswith(f"{section}.")]
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")

"""What is known about configuration keys: full name, type with bounds, default, meaning."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nas_moreau.config.sections import Config, Section
from nas_moreau.errors import nearest

_NAMES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}


class Key(NamedTuple):
    """A key of a section.

    Attributes:
        key: Full name, `search.moreau.gamma`.
        type: With its bounds, for example `integer >= 1 or null` or `number in [0, 1)`.
        default: Plain data.
        meaning: One or two sentences.
    """

    key: str
    type: str
    default: Any
    meaning: str


def config_keys(section: type[Section] = Config, prefix: str = "") -> dict[str, Key]:
    """Returns the keys of a section and the sections below it, by full name and in their order.

    Args:
        section: The section.
        prefix: Before every name: "search." for the section `search`.
    """
    found: dict[str, Key] = {}
    properties = section.model_json_schema()["properties"]
    defaults = section.model_construct().model_dump(mode="json")
    for name, field in section.model_fields.items():
        if (inner := section_of(field.annotation)) is not None:
            below = config_keys(inner, f"{prefix}{name}.")
            values = flatten({f"{prefix}{name}": defaults[name]})  # a section may be given other defaults than its own
            found |= {key: row._replace(default=values[key]) for key, row in below.items()}
        else:
            text = field.description or ""
            found[f"{prefix}{name}"] = Key(f"{prefix}{name}", _type(properties[name]), defaults[name], text)
    return found


def section_of(annotation: Any) -> type[Section] | None:
    """Returns the annotation if it is a section, else None."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def section_meanings(section: type[Section] = Config, prefix: str = "") -> dict[str, str]:
    """Returns the full name of every section below `section` with its meaning."""
    found: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if (inner := section_of(field.annotation)) is not None:
            found[f"{prefix}{name}"] = field.description or ""
            found |= section_meanings(inner, f"{prefix}{name}.")
    return found


def _type(schema: Mapping[str, Any]) -> str:
    """Returns the text for a type of a JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if schema["type"] == "array" and "prefixItems" not in schema:
        return f"list, each {_type(schema['items'])}"
    if schema["type"] == "array":
        return f"list of {len(schema['prefixItems'])}, each {_type(schema['prefixItems'][0])}"
    name = _NAMES.get(schema["type"], schema["type"])
    low, high = (
        schema.get("minimum", schema.get("exclusiveMinimum")),
        schema.get("maximum", schema.get("exclusiveMaximum")),
    )
    if low is not None and high is not None:
        return f"{name} in {'[' if 'minimum' in schema else '('}{low}, {high}{']' if 'maximum' in schema else ')'}"
    return name if low is None else f"{name} {'>=' if 'minimum' in schema else '>'} {low}"


OTHER_NAMES = {"learning_rate": "lr", "wd": "weight_decay", "dataset": "name"}
"""Last parts of keys that other programs use -> ours."""
_CLOSE = 0.75


def nearest_keys(key: str, known: Iterable[str]) -> list[str]:
    """Returns the full names that an unknown key may stand for.

    These are the names with the same last part, or else with the last part that is spelled most like it, or else the
    name that is spelled most like the whole key. Of several, those in the section that the key names.

    Args:
        key: The unknown key, with or without its section.
        known: Full names of keys and sections.
    """
    by_last: dict[str, list[str]] = {}
    for name in known:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    section, _, last = key[:200].lower().replace("-", "_").rpartition(".")
    last = OTHER_NAMES.get(last, last) if last not in by_last else last
    close = difflib.get_close_matches(last, by_last, 1, _CLOSE)
    if not close:
        found = nearest(key, [name for names in by_last.values() for name in names])
        return [found] if found else []
    same = by_last[close[0]]
    if not section or f"{section}.{close[0]}" in same:
        return [f"{section}.{close[0]}"] if section else same
    below = [name for name in same if name.startswith(f"{section}.")]
    near = nearest(section, {name.rpartition(".")[0] for name in same} - {""})
    return below or [name for name in same if near and name == f"{near}.{close[0]}"] or same


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted key -> value of nested plain data, tuples as lists; an empty section is a value.

    Args:
        data: Sections and keys.
        prefix: Before every key: "search." for the section `search`.
    """
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found

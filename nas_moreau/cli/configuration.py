"""The verb config: what every configuration key means, a commented preset to edit, the JSON schema."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from nas_moreau.cli.options import CONFIGURATION
from nas_moreau.cli.output import print_json, print_rows
from nas_moreau.cli.verbs import option, verb
from nas_moreau.errors import InputError
from nas_moreau.presets import preset_names, preset_text

WIDTH = 100  # of comments


@verb(
    "config",
    "explain configuration keys, or print a configuration to edit",
    examples=[
        "config",
        "config search.moreau",
        "config search.moreau.gamma",
        "config --preset cpu > mine.yaml",
        "config --schema > schema.json",
    ],
    options=[
        option("key", nargs="?", metavar="KEY", help="a key or section, e.g. search.epochs (default: all keys)"),
        option("--preset", help=CONFIGURATION[0].settings["help"]),
        option("--schema", action="store_true", help="print the JSON schema of a configuration file"),
    ],
)
def config(args: argparse.Namespace) -> Any:
    """Prints keys, one key, a commented configuration, or the schema."""
    from nas_moreau.config import Config, load_config

    if (args.key is not None) + (args.preset is not None) + args.schema > 1:
        raise InputError("KEY, --preset and --schema exclude each other.", "Give one of them.")
    if args.schema:
        schema = Config.model_json_schema()
        if not args.json:
            print_json(schema)
        return schema
    if args.preset is not None:
        text = commented(args.preset)
        if not args.json:
            print(text, end="")
        return load_config(args.preset).to_dict()
    rows = explain(args.key)
    if not args.json:
        if args.key == rows[0]["key"]:
            _print_key(rows[0])
        else:
            print_rows([(row["key"], row["type"], _yaml(row["default"])) for row in rows])
    return rows


def explain(name: str | None = None) -> list[dict[str, Any]]:
    """Returns key, type (with bounds), default, meaning and the presets' values of one key, a section's, or all keys.

    Raises:
        InputError: Unknown key.
    """
    from nas_moreau.config import config_keys, flatten
    from nas_moreau.config.keys import nearest_keys, section_meanings
    from nas_moreau.yaml_files import parse_yaml

    keys = config_keys()
    chosen = [key for key in keys if name is None or key == name or key.startswith(f"{name}.")]
    if not chosen:
        near = nearest_keys(name or "", [*section_meanings(), *keys])
        cure = f"Did you mean {' or '.join(near)}?" if near else "See nas-moreau config for all keys."
        raise InputError(f"Unknown key '{name}'.", cure)
    used = {preset: flatten(parse_yaml(preset_text(preset), preset, "")) for preset in preset_names()}
    return [
        keys[key]._asdict() | {"presets": {preset: values[key] for preset, values in used.items() if key in values}}
        for key in chosen
    ]


def _print_key(row: dict[str, Any]) -> None:
    presets = ", ".join(f"{name} {_yaml(value)}" for name, value in row["presets"].items())
    facts = [("type", row["type"]), ("default", _yaml(row["default"])), ("presets", presets or "none sets it")]
    print(row["key"])
    print_rows([("", row["meaning"])])
    print_rows([(f"  {name}", text) for name, text in facts])


def commented(preset: str) -> str:
    """Returns a preset as YAML with every key, each below a comment on its meaning, type and default.

    Raises:
        InputError: Unknown preset.
    """
    from nas_moreau.config import config_keys, flatten, load_config
    from nas_moreau.config.keys import section_meanings

    header = [line for line in preset_text(preset).splitlines() if line.startswith("#")]
    values, sections = flatten(load_config(preset).to_dict()), section_meanings()
    lines, open_sections = [*header], list[str]()
    for row in config_keys().values():
        *above, name = row.key.split(".")
        for depth in range(len(above)):
            if open_sections[: depth + 1] != above[: depth + 1]:
                indent = "  " * depth
                lines += ["", *_comment(sections[".".join(above[: depth + 1])], indent), f"{indent}{above[depth]}:"]
        open_sections = above
        indent = "  " * len(above)
        lines += _comment(f"{row.meaning} [{row.type}; default {_yaml(row.default)}]", indent)
        lines.append(f"{indent}{name}: {_yaml(values[row.key])}")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _yaml(value: Any) -> str:
    """Returns a value as YAML writes it in one line."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")

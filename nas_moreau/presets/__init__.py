"""Configurations by name: YAML files that hold what differs from the defaults. Imports neither torch nor pydantic.

Each begins with two comments: the command that runs it, and one line on its purpose.
"""

from pathlib import Path as _Path

from nas_moreau.errors import unknown as _unknown

__all__ = ["preset_header", "preset_names", "preset_text"]


def preset_names() -> list[str]:
    """Returns the names of the presets of the package."""
    return sorted(path.stem for path in _Path(__file__).parent.glob("*.yaml"))


def preset_text(name: str) -> str:
    """Returns the YAML text of a preset.

    Raises:
        InputError: Unknown preset.
    """
    if name not in preset_names():
        raise _unknown("preset", name, preset_names())
    return _Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")


def preset_header(name: str) -> tuple[str, str]:
    """Returns the command that runs a preset, and one line on its purpose.

    Raises:
        InputError: Unknown preset.
    """
    command, purpose = (line.lstrip("# ") for line in preset_text(name).splitlines()[:2])
    return command, purpose
